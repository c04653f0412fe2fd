"""Page images: the EVisRAG resize rule, both places where a page can lie, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from rsgrpo.image_bytes import ImageError, table_rows
from rsgrpo.images import check_page, load_page, resize_page, resized_size
from rsgrpo.types import ImageRef


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that are read leave their Arrow copies here, not in the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


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


def test_resize_gives_the_size_and_mode_of_the_original(parity: Callable[[str], list[dict[str, Any]]]):
    vectors = [vector for vector in parity("evisrag_dataset") if vector["inputs"]["op"] in ("resize", "mode")]
    assert len(vectors) >= 70
    for vector in vectors:
        inputs, expected = vector["inputs"], vector["expected"]
        bounds = inputs["min_pixels"], inputs["max_pixels"]
        size = resized_size(inputs["width"], inputs["height"], *bounds)
        assert size == tuple(expected["size"]), vector["id"]
        if size[0] * size[1] <= 2_000_000:  # drawing the largest ones takes seconds and shows nothing more
            image = resize_page(Image.new(inputs.get("mode", "RGB"), (inputs["width"], inputs["height"])), *bounds)
            assert (image.size, image.mode) == (size, expected["mode"]), vector["id"]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(784, 10**5), st.integers(0, 10**6))
def test_no_page_is_larger_than_the_upper_bound_nor_changed_inside_the_bounds(width, height, low, extra):
    high = low + extra
    size = resized_size(width, height, low, high)
    assert size[0] * size[1] <= max(high, low)
    if low <= width * height <= high:
        assert size == (width, height)


def test_a_page_is_the_same_from_a_file_and_from_a_table(tmp_path: Path):
    image = page()
    image.save(tmp_path / "a.png")
    table = write_table(
        tmp_path / "images.parquet", [{"bytes": encoded(page(seed=1))}, {"bytes": encoded(image)}], ["b", "a"]
    )
    assert table_rows(table) == {"b": 0, "a": 1}
    from_table = load_page(ImageRef(path="a", parquet_file=str(table), parquet_row=1), None, None)
    from_file = load_page(file_ref(tmp_path / "a.png"), None, None)
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
        read = load_page(ImageRef(path="a", parquet_file=str(file)), None, None)
        assert np.array_equal(np.asarray(read), np.asarray(image)), file.name


def test_load_page_applies_the_bounds_and_returns_rgb(tmp_path: Path):
    Image.new("P", (100, 100)).save(tmp_path / "p.png")
    image = load_page(file_ref(tmp_path / "p.png"), 262144, 1568000)
    assert (image.size, image.mode) == ((512, 512), "RGB")  # sqrt(262144 / 10000) = 5.12


@pytest.mark.parametrize("read", [check_page, lambda ref: load_page(ref, None, None)], ids=["check", "load"])
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
        file.write_text("<html>404</html>")
        self.refused(read, file_ref(file), "not an image file", "data.on_bad_sample=skip")

    def test_empty_file(self, read, tmp_path: Path):
        file = tmp_path / "empty.png"
        file.touch()
        self.refused(read, file_ref(file), "0 bytes")

    def test_strip(self, read, tmp_path: Path):
        page(1, 201).save(tmp_path / "strip.png")
        self.refused(read, file_ref(tmp_path / "strip.png"), "1×201", "200 to 1")
        page(1, 200).save(tmp_path / "longest.png")
        read(file_ref(tmp_path / "longest.png"))

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
        check_page(file_ref(tmp_path / "a.png"))


def test_a_page_scaled_to_nothing_is_refused(tmp_path: Path):
    page(100, 1).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"data\.max_pixels"):
        load_page(file_ref(tmp_path / "a.png"), None, 50)  # sqrt(50 / 100) of 1 row is no row


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
