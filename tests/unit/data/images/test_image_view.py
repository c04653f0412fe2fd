"""The size at which the model sees a page: as its processor makes it of what we send, whatever the bounds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as original

from rewards.functions.grounding import box_iou
from rsgrpo.config import ConfigError, DataConfig, EndpointConfig
from rsgrpo.data.images.image_view import ImageView, ImageViewError, endpoint_view, model_view, read_view, write_view
from rsgrpo.data.images.loading import load_image, resized_size
from rsgrpo.text.coordinates import CoordinateError, from_pixels, to_pixels
from rsgrpo.types import Box, ImageRef
from tests.examples import examples

# our bounds inside the processor's, at its edges, and outside of them on either side
OURS = ((3136, 1003520), (784, 50176), (3136, 12845056), (1, 20_000_000), (4_000_000, 16_000_000))
PROCESSORS = ((3136, 12845056), (784, 12544), (200_704, 1_003_520))
SIDES = st.integers(1, 14_000)


def view(ours: tuple[int, int], processor: tuple[int, int] = PROCESSORS[0]) -> ImageView:
    return ImageView(
        min_pixels=ours[0],
        max_pixels=ours[1],
        processor_min_pixels=processor[0],
        processor_max_pixels=processor[1],
    )


@examples(300)
@given(width=SIDES, height=SIDES, ours=st.sampled_from(OURS), processor=st.sampled_from(PROCESSORS))
def test_the_seen_size_is_what_the_processor_makes_of_what_is_sent(
    width: int, height: int, ours: tuple[int, int], processor: tuple[int, int]
) -> None:
    sent = resized_size(width, height, *ours)
    if max(sent) > 200 * min(sent):
        with pytest.raises(CoordinateError, match="has no size"):
            view(ours, processor).of_size(width, height)
        return
    high, wide = original(sent[1], sent[0], factor=28, min_pixels=processor[0], max_pixels=processor[1])
    assert view(ours, processor).of_size(width, height) == (wide, high)


@examples(300)
@given(width=SIDES, height=SIDES, ours=st.sampled_from(OURS), data=st.data())
def test_whole_pixels_of_the_seen_page_lose_nothing_but_their_rounding(
    width: int, height: int, ours: tuple[int, int], data: st.DataObject
) -> None:
    sent = resized_size(width, height, *ours)
    if max(sent) > 200 * min(sent):
        return
    size = view(ours).of_size(width, height)
    # A box of at least 70 whole pixels a side, whose edges each move by half of one: ((70 - 1) / 70) ** 2 = 0.9716.
    if min(size) < 70:
        return
    left, top = (data.draw(st.floats(0, 1 - 70 / side)) for side in size)
    right, bottom = (data.draw(st.floats(low + 70 / side, 1)) for low, side in zip((left, top), size, strict=True))
    box = Box(left=left, top=top, right=min(1.0, right), bottom=min(1.0, bottom))
    assert box_iou(from_pixels(to_pixels(box, size), size), box) >= 0.97


@pytest.mark.parametrize("size", [(1, 1), (30, 30), (10, 1000), (640, 480), (900, 5), (333, 777)])
@pytest.mark.parametrize(("ours", "processor"), [((3136, 1003520), (3136, 12845056)), ((1, 10**7), (784, 10**6))])
def test_the_real_processor_agrees(
    tmp_path: Path, size: tuple[int, int], ours: tuple[int, int], processor: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(tmp_path / "page.png")
    ref = ImageRef(path="page.png", file=str(tmp_path / "page.png"))
    data = DataConfig(min_pixels=ours[0], max_pixels=ours[1])
    images = Qwen2VLImageProcessor(size={"shortest_edge": processor[0], "longest_edge": processor[1]})
    found = model_view(data, images)
    assert found == view(ours, processor)
    grid = images(images=[load_image(ref, data.image_rules)], return_tensors="pt")["image_grid_thw"][0].tolist()
    assert found.seen_size(ref) == (14 * grid[2], 14 * grid[1])


def test_sizes_by_hand() -> None:
    # 2000² down to sqrt(1568000) = 1252.2: 1252², 44.7 tokens a side: 45 * 28 = 1260.
    assert view((3136, 1568000)).of_size(2000, 2000) == (1260, 1260)
    # data.max_pixels above the processor's: 5000 × 4000 at sqrt(20e6 / 12845056) = 1.2478 less: 4007.0 / 28 = 143.1,
    # 3205.6 / 28 = 114.5.
    assert view((3136, 20_000_000)).of_size(5000, 4000) == (143 * 28, 114 * 28)
    # 10 × 1000 rounds to no token in width: the processor scales it to 3136 pixels, sqrt(0.3136) = 0.56.
    assert view((3136, 1568000)).of_size(10, 1000) == (28, 560)


def test_the_worked_example_of_the_documentation() -> None:
    text = (Path(__file__).resolve().parents[4] / "docs" / "boxes.md").read_text()
    size = view((3136, 1003520)).of_size(2000, 1500)
    box = from_pixels((200, 300, 1200, 1200), (2000, 1500))
    assert size == (1148, 868) and "1148 × 868" in text
    assert to_pixels(box, size) == (115, 174, 689, 694) and "| 115, 174, 689, 694 |" in text
    # the best whole pixels of a small page, against gold as it is
    small = Box(left=0.1, top=0.2, right=0.3, bottom=0.35)
    assert f"{box_iou(from_pixels(to_pixels(small, (56, 56)), (56, 56)), small):.3f}" == "0.886" and "0.886" in text


def test_bounds_come_from_the_processors_file_in_either_spelling() -> None:
    data = DataConfig()
    assert model_view(data, Qwen2VLImageProcessor(min_pixels=784, max_pixels=12544)).processor_max_pixels == 12544
    wide = Qwen2VLImageProcessor(patch_size=16, merge_size=2)
    assert model_view(data, wide).processor_factor == 32
    wide.size = {"height": 224, "width": 224}
    with pytest.raises(ImageViewError, match=r"expected areas in pixels.*preprocessor_config\.json"):
        model_view(data, wide)


def test_a_server_has_qwens_bounds_unless_told_otherwise() -> None:
    data = DataConfig(min_pixels=784, max_pixels=50176)
    assert endpoint_view(data, EndpointConfig()) == view((784, 50176))
    other = EndpointConfig(processor_min_pixels=784, processor_max_pixels=10**6, processor_factor=32)
    assert dataclasses.astuple(endpoint_view(data, other)) == (784, 50176, 784, 10**6, 32)
    with pytest.raises(ConfigError, match=r"processor_max_pixels=100 is too small"):
        EndpointConfig(processor_max_pixels=100)


def test_a_view_is_kept_beside_a_run(tmp_path: Path) -> None:
    file = tmp_path / "image_view.json"
    assert read_view(file) is None
    write_view(file, view((784, 50176)))
    assert read_view(file) == view((784, 50176))
    for damage in ("{", '{"min_pixels": 1}', "[]"):
        file.write_text(damage)
        with pytest.raises(ImageViewError, match="is damaged"):
            read_view(file)
