"""Page images: the EVisRAG resize rule, both places where a page can lie, and what is refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import MAX_ASPECT_RATIO, check_image, image_size, load_image, read_image, resized_size
from rsgrpo.data.images.sources import ImageError, table_rows
from rsgrpo.types import ImageRef
from tests.examples import examples


def page(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def file_ref(file: Path) -> ImageRef:
    return ImageRef(path=f"imgs/{file.name}", file=str(file))


def write_table(file: Path, images: list[object], paths: list[str]) -> Path:
    pq.write_table(pa.table({"image": images, "path": paths}), file)
    return file


def test_resize_gives_the_size_and_mode_of_the_original(parity: Callable[[str], list[dict[str, Any]]], tmp_path: Path):
    vectors = [vector for vector in parity("evisrag_dataset") if vector["inputs"]["op"] in ("resize", "mode")]
    assert len(vectors) >= 70
    for vector in vectors:
        inputs, expected = vector["inputs"], vector["expected"]
        rules = ImageRules(min_pixels=inputs["min_pixels"], max_pixels=inputs["max_pixels"])
        size = resized_size(inputs["width"], inputs["height"], rules.min_pixels, rules.max_pixels)
        assert size == tuple(expected["size"]), vector["id"]
        # Drawing the largest ones takes seconds and shows nothing more; strips are refused.
        if size[0] * size[1] <= 500_000 and max(size) <= 200 * min(size):
            file = tmp_path / "page.png"
            Image.new(inputs.get("mode", "RGB"), (inputs["width"], inputs["height"])).save(file, compress_level=1)
            image = load_image(file_ref(file), rules)
            assert (image.size, image.mode) == (size, expected["mode"]), vector["id"]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(784, 10**5), st.integers(0, 10**6))
def test_no_page_is_larger_than_the_upper_bound_nor_changed_inside_the_bounds(width, height, low, extra):
    high = low + extra
    size = resized_size(width, height, low, high)
    assert size[0] * size[1] <= max(high, low)
    if low <= width * height <= high:
        assert size == (width, height)


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([1, 784, 3136, 262144]),
    st.integers(0, 10**6),
    st.booleans(),
)
@examples(60)
def test_every_page_is_read_at_the_size_that_was_said_or_refused_by_name(
    empty_images, width, height, low, extra, is_strip
):
    if is_strip:
        height = max(1, width // 200 + height % 3 - 1)  # about 200 to 1
    rules = ImageRules(min_pixels=low, max_pixels=low + extra)
    ref = empty_images(width, height)
    try:
        size = image_size(ref, rules)
    except ImageError as error:
        assert "strip" in str(error) or "no pixels left" in str(error)
        for judge in (check_image, load_image):
            with pytest.raises(ImageError):
                judge(ref, rules)
        return
    check_image(ref, rules)
    assert max(size) <= MAX_ASPECT_RATIO * min(size)
    smart_resize(size[1], size[0], factor=28, min_pixels=784, max_pixels=10**7)  # the processor takes it
    if size[0] * size[1] < 10**6:
        assert load_image(ref, rules).size == size


@pytest.fixture(scope="module")
def empty_images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], ImageRef]:
    folder = tmp_path_factory.mktemp("empty")

    def make(width: int, height: int) -> ImageRef:
        file = folder / "page.png"
        Image.new("1", (width, height)).save(file, compress_level=1)
        return file_ref(file)

    return make


def test_a_scan_of_196_megapixels_is_read_and_the_limit_of_pillow_stays(tmp_path: Path):
    limit = Image.MAX_IMAGE_PIXELS
    Image.new("1", (14000, 14000), 1).save(tmp_path / "map.png", compress_level=1)
    Image.new("1", (14000, 14000), 1).save(tmp_path / "map.tif", compression="group4")
    rules = ImageRules(min_pixels=3136, max_pixels=1568000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for name in ("map.png", "map.tif"):
            ref = file_ref(tmp_path / name)
            assert image_size(ref, rules) == (1252, 1252)  # 14000 · sqrt(1568000 / 14000²) = 1252.2
            check_image(ref, rules)
            assert load_image(ref, rules).getextrema() == ((255, 255),) * 3
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_large_jpeg_is_decoded_smaller_and_keeps_its_lines(tmp_path: Path):
    # 8,000 × 8,000 is above 50 megapixels, 1,000 × 1,000 is wanted: the decoder may give a quarter of each side.
    lines = np.full((8000, 8000), 255, dtype=np.uint8)
    lines[40::80] = 0  # 100 lines, one pixel of 80
    Image.fromarray(lines).save(tmp_path / "a.jpg", quality=90)
    read = np.asarray(load_image(file_ref(tmp_path / "a.jpg"), ImageRules(max_pixels=10**6)))[:, 500, 0]
    assert len(read) == 1000
    is_line = read < 250
    assert int((is_line[1:] & ~is_line[:-1]).sum()) == 100
    whole = Image.fromarray(lines).resize((1000, 1000), Image.Resampling.BICUBIC)
    assert np.abs(read.astype(int) - np.asarray(whole)[:, 500]).max() <= 24


def test_a_page_for_people_may_be_a_strip(tmp_path: Path):
    page(1, 900).save(tmp_path / "a.png")
    assert read_image(file_ref(tmp_path / "a.png"), ImageRules(max_pixels=100)).size == (1, 900)


def test_threads_that_decode_at_once_leave_pillows_leniency_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refs = []
    for index in range(12):
        data = encoded(page(seed=index), "BMP")
        (tmp_path / f"{index}.bmp").write_bytes(data if index % 2 else data[:-900])
        refs.append(file_ref(tmp_path / f"{index}.bmp"))

    def is_read(ref: ImageRef) -> bool:
        try:
            load_image(ref, ImageRules())
        except ImageError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(is_read, refs * 10)) == [False, True] * 60
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_page_is_the_same_from_a_file_and_from_a_table(tmp_path: Path):
    image = page()
    image.save(tmp_path / "a.png")
    table = write_table(
        tmp_path / "images.parquet", [{"bytes": encoded(page(seed=1))}, {"bytes": encoded(image)}], ["b", "a"]
    )
    assert table_rows(table) == {"b": 0, "a": 1}
    from_table = load_image(ImageRef(path="a", parquet_file=str(table), parquet_row=1), ImageRules())
    from_file = load_image(file_ref(tmp_path / "a.png"), ImageRules())
    assert np.array_equal(np.asarray(from_table), np.asarray(image))
    assert np.array_equal(np.asarray(from_file), np.asarray(image))


def test_a_table_may_hold_bare_bytes_or_the_hub_image_feature(tmp_path: Path):
    import datasets

    image = page()
    bare = write_table(tmp_path / "bare.parquet", [encoded(image)], ["a"])
    hub = tmp_path / "hub.parquet"
    features = datasets.Features({"image": datasets.Image(), "path": datasets.Value("string")})
    rows = {"image": [{"bytes": encoded(image), "path": None}], "path": ["a"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(hub))
    for file in (bare, hub):
        read = load_image(ImageRef(path="a", parquet_file=str(file)), ImageRules())
        assert np.array_equal(np.asarray(read), np.asarray(image)), file.name


def test_load_page_applies_the_bounds_and_returns_rgb(tmp_path: Path):
    Image.new("P", (100, 100)).save(tmp_path / "p.png")
    image = load_image(file_ref(tmp_path / "p.png"), ImageRules(min_pixels=262144, max_pixels=1568000))
    assert (image.size, image.mode) == ((512, 512), "RGB")  # sqrt(262144 / 10000) = 5.12


@pytest.mark.parametrize(
    "read",
    [lambda ref: check_image(ref, ImageRules()), lambda ref: load_image(ref, ImageRules())],
    ids=["check", "load"],
)
class TestBadPages:
    def refused(self, read: Callable[[ImageRef], object], ref: ImageRef, *words: str) -> None:
        with pytest.raises(ImageError) as caught:
            read(ref)
        for word in (ref.path, *words):
            assert word in str(caught.value)

    def test_missing_file(self, read, tmp_path: Path):
        self.refused(read, file_ref(tmp_path / "gone.png"), "does not exist", "data.image_root")

    @pytest.mark.parametrize("is_lenient", [False, True])  # lmms-eval makes Pillow lenient for the whole process
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
    def test_truncated_file(self, read, tmp_path: Path, kind: str, is_lenient: bool, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", is_lenient)
        data = encoded(page(), kind)
        file = tmp_path / "half"
        file.write_bytes(data[: len(data) // 2])
        self.refused(read, file_ref(file), "truncated")

    def test_jpeg_that_lost_its_end(self, read, tmp_path: Path):
        file = tmp_path / "end.jpg"
        file.write_bytes(encoded(page(400, 300), "JPEG")[:-200])
        self.refused(read, file_ref(file), "truncated")

    def test_text_file(self, read, tmp_path: Path):
        file = tmp_path / "page.png"
        file.write_text("no image, but words")
        self.refused(read, file_ref(file), "not an image file", "no image, but words", "data.on_bad_sample=skip")

    def test_empty_file(self, read, tmp_path: Path):
        file = tmp_path / "empty.png"
        file.touch()
        self.refused(read, file_ref(file), "0 bytes")

    def test_a_strip_is_judged_by_the_size_that_the_processor_gets(self, tmp_path: Path, read):
        # 1×199 is inside 200 to 1; sqrt(3136 / 199) = 3.97 brings it to 3×789, which is not.
        page(1, 199).save(tmp_path / "tiny.png")
        for judge in (check_image, load_image, image_size):
            with pytest.raises(ImageError, match="1×199, 3×789 after"):
                judge(file_ref(tmp_path / "tiny.png"), ImageRules(min_pixels=3136, max_pixels=1568000))

    def test_too_many_pixels(self, tmp_path: Path, read):
        page(100, 50).save(tmp_path / "a.png")  # 0.005 megapixels
        ref = file_ref(tmp_path / "a.png")
        for judge in (check_image, load_image, image_size):
            judge(ref, ImageRules(max_megapixels=0.005))
            with pytest.raises(ImageError, match=r"100×50.*data\.max_image_megapixels=0\.004.*skip"):
                judge(ref, ImageRules(max_megapixels=0.004))

    def test_strip(self, read, tmp_path: Path):
        page(1, 201).save(tmp_path / "strip.png")
        self.refused(read, file_ref(tmp_path / "strip.png"), "1×201", "200 to 1")
        page(1, 200).save(tmp_path / "longest.png")
        read(file_ref(tmp_path / "longest.png"))

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run git lfs pull"),
            (b"<!DOCTYPE html><title>404</title>", "a web page"),
            (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing: render it as PNG"),
            (b"%PDF-1.7\n", "a PDF document"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
            (b"\xff\x0a\xfa\x1f", "a JPEG XL image"),
            (b"\0" * 4096, "4096 zero bytes"),
            (b"iVBORw0KGgoAAAANSUhEUgAA", "base64"),
            (b"\x89PNG\r\n\x1a\n", "truncated or damaged"),
            (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "a TIFF image that is cut or damaged"),
            (bytes(range(200, 256)) * 9, "not an image file (it starts with the bytes c8 c9"),
        ],
        ids=["lfs", "html", "svg", "pdf", "heic", "jxl", "zeros", "base64", "png", "tiff", "bytes"],
    )
    def test_what_a_file_is_instead_is_said(self, read, tmp_path: Path, data: bytes, words: str):
        file = tmp_path / "page.jpg"
        file.write_bytes(data)
        self.refused(read, file_ref(file), words)

    def test_no_message_is_longer_than_500_characters(self, read, tmp_path: Path):
        file = tmp_path / ("long " * 40 + ".png")
        file.write_text("words " * 1000)
        with pytest.raises(ImageError) as caught:
            read(ImageRef(path="folder/" * 100, file=str(file)))
        assert len(str(caught.value)) <= 500

    def test_row_outside_the_table(self, read, tmp_path: Path):
        table = write_table(tmp_path / "images.parquet", [{"bytes": encoded(page())}], ["a"])
        self.refused(read, ImageRef(path="a", parquet_file=str(table), parquet_row=1), "row 1", "1 rows")

    def test_row_without_bytes(self, read, tmp_path: Path):
        images = [{"bytes": encoded(page())}, {"bytes": None}]
        table = write_table(tmp_path / "images.parquet", images, ["a", "b"])
        self.refused(read, ImageRef(path="b", parquet_file=str(table), parquet_row=1), "holds no bytes")


def test_check_page_finds_a_flipped_bit_in_a_png(tmp_path: Path):
    data = bytearray(encoded(page()))
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="damaged"):
        check_image(file_ref(tmp_path / "a.png"), ImageRules())


def test_a_page_scaled_to_nothing_is_refused(tmp_path: Path):
    page(100, 1).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"data\.max_pixels"):
        load_image(file_ref(tmp_path / "a.png"), ImageRules(max_pixels=50))  # sqrt(50 / 100) of 1 row is no row


def test_a_table_that_is_no_image_table_is_refused(tmp_path: Path):
    with pytest.raises(ImageError, match="does not exist"):
        table_rows(tmp_path / "gone.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(ImageError, match="cannot be read"):
        table_rows(tmp_path / "text.parquet")
    pq.write_table(pa.table({"picture": [1], "path": ["a"]}), tmp_path / "columns.parquet")
    with pytest.raises(ImageError, match="but not image"):
        table_rows(tmp_path / "columns.parquet")
    twice = write_table(tmp_path / "twice.parquet", [{"bytes": b"1"}, {"bytes": b"2"}], ["a", "a"])
    with pytest.raises(ImageError, match="'a' twice"):
        table_rows(twice)
