"""Gold boxes of data files, in every way that people write them, become shares of their page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from rsgrpo.config import ConfigError, DataConfig, SourceConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.files import DataError
from rsgrpo.data.mixture import Mixture
from rsgrpo.data.readers import ReaderOptions, read_samples
from rsgrpo.types import Box, Sample


def _write(folder: Path, boxes: object, images: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    Image.new("L", (2000, 1000)).save(folder / "a.png")
    Image.new("L", (500, 800)).save(folder / "b.png")
    row = {"qid": "q", "query": "Find it.", "answer": ["it"], "image": list(images), "boxes": boxes}
    file = folder / "data.jsonl"
    file.write_text(json.dumps(row) + "\n")
    return file


def _read(file: Path, coordinates: str) -> Sample:
    (sample,) = load_samples(str(file), DataConfig(box_coordinates=coordinates), is_training=True).samples
    return sample


# a quarter to half of the width of b.png (500 × 800), and a tenth to a fifth of its height
EXPECTED = Box(left=0.25, top=0.1, right=0.5, bottom=0.2, image_index=1)


@pytest.mark.parametrize(
    ("coordinates", "numbers"),
    [
        ("shares", [0.25, 0.1, 0.5, 0.2]),
        ("permille", [250, 100, 500, 200]),
        ("pixels", [125, 80, 250, 160]),
        ("pixels", [125.0, 80.0, 250.0, 160.0]),
    ],
)
@pytest.mark.parametrize("key", ["box", "bbox_2d"])
@pytest.mark.parametrize("image", ["b.png", 1])
def test_boxes_are_read_in_every_convention(
    tmp_path: Path, coordinates: str, numbers: list[float], key: str, image: object
) -> None:
    file = _write(tmp_path, [{key: numbers, "image": image, "label": "cup"}])
    assert _read(file, coordinates).boxes == (EXPECTED,)


def test_a_lone_image_need_not_be_named(tmp_path: Path) -> None:
    for boxes in ([[125, 80, 250, 160]], [{"bbox_2d": [125, 80, 250, 160]}]):
        (box,) = _read(_write(tmp_path, boxes, ("b.png",)), "pixels").boxes
        assert (box.left, box.top, box.right, box.bottom, box.image_index) == (0.25, 0.1, 0.5, 0.2, 0)


def test_a_far_edge_one_pixel_beyond_the_page_is_cut(tmp_path: Path) -> None:
    (box,) = _read(_write(tmp_path, [{"box": [0, 0, 500.5, 801], "image": "b.png"}]), "pixels").boxes
    assert (box.right, box.bottom) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("coordinates", "box", "problem"),
    [
        ("shares", {"box": [125, 80, 250, 160]}, "data.box_coordinates says what the numbers count"),
        ("permille", {"box": [0.25, 0.1, 0.5, 0.2]}, "looks like shares"),
        ("permille", {"box": [0, 0, 1200, 900]}, "as permille they must be"),
        ("pixels", {"box": [0.25, 0.1, 0.5, 0.2], "image": "b.png"}, "looks like shares"),
        ("pixels", {"box": [0, 0, 502, 100], "image": "b.png"}, "right <= 500 and"),
        ("pixels", {"box": [1, 2, 3, 4]}, "pixels of one of 2 images, and does not say which"),
        ("shares", {"box": [0.1, 0.1, 0.2, 0.2], "image": 2}, "lies on 2, which is none of the item's images"),
        ("shares", {"box": [0.1, 0.1, 0.2, 10**400]}, "four numbers"),
        ("shares", {"bbox": [0.1, 0.1, 0.2, 0.2]}, "must hold objects"),
    ],
)
def test_boxes_that_cannot_be_meant_so_are_named(
    tmp_path: Path, coordinates: str, box: dict[str, object], problem: str
) -> None:
    with pytest.raises(DataError, match=rf"line 1: .*{problem}"):
        _read(_write(tmp_path, [box]), coordinates)


def test_an_unreadable_image_is_named_where_its_size_is_needed(tmp_path: Path) -> None:
    file = _write(tmp_path, [{"box": [1, 2, 30, 40], "image": "b.png"}])
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 × image.*\n.*b\.png"):
        _read(file, "pixels")


def test_each_source_of_a_mixture_may_count_otherwise(tmp_path: Path) -> None:
    sources = []
    for name, numbers in (("permille", [250, 100, 500, 200]), ("pixels", [125, 80, 250, 160])):
        (tmp_path / name).mkdir()
        file = _write(tmp_path / name, [{"box": numbers, "image": "b.png"}])
        sources.append(SourceConfig(format="evisrag", path=str(file), box_coordinates=name))
    mixture = Mixture(sources, seed=0, num_held_out=0, on_bad_record="error", check_media=True)
    assert [mixture.sample(int(key)).boxes for key in sorted(mixture.order(0))] == [(EXPECTED,)] * 2


def test_the_reader_takes_the_convention_as_an_option(tmp_path: Path) -> None:
    file = _write(tmp_path, [{"box": [250, 100, 500, 200], "image": "b.png"}])
    for options in (
        ReaderOptions(box_coordinates="permille"),
        ReaderOptions(columns=DataConfig(box_coordinates="permille")),
    ):
        ((sample,), _) = read_samples("evisrag", file, options=options)
        assert sample.boxes == (EXPECTED,)
    for settings in (
        lambda: DataConfig(box_coordinates="percent"),
        lambda: SourceConfig(path="x", box_coordinates="x"),
    ):
        with pytest.raises(ConfigError, match=r"box_coordinates=.* is not known"):
            settings()


def test_a_source_whose_boxes_stand_in_its_text_does_not_take_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"source of format 'mgrounding' has none.*docs/boxes\.md"):
        SourceConfig(format="mgrounding", path="x", box_coordinates="pixels")
