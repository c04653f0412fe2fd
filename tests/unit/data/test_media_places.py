"""Paths to images however they are written, and what is said of those that name none."""

from __future__ import annotations

import json
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import DataConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.images.sources import ImageError, image_bytes
from rsgrpo.data.inline_media import media_suffix
from rsgrpo.data.media_store import MediaStore, MediaStoreError
from rsgrpo.data.readers import open_reader
from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.data.readers.media import MediaFinder
from rsgrpo.types import ImageRef, Sample
from tests.examples import examples
from tests.unit.data.media_files import BARE, FORMATS, PNG, encoded, put


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/rsgrpo/media"


def finder(root: Path, **options: Any) -> MediaFinder:
    return MediaFinder((root,), **{"must_exist": True, **options})


ACCENT = "é"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("imgs/a b.png", "imgs/a b.png"),
        ("\ufeffimgs/1.png\u200b", "imgs/1.png"),
        ("file:/{root}/imgs/1.png", "imgs/1.png"),
        ("imgs/a%20b.png", "imgs/a b.png"),
        ("imgs/100%25.png", "imgs/100%.png"),
        ("imgs/a%20b.png", "imgs/a%20b.png"),
        (" imgs/1.png\n", "imgs/1.png"),
        ("imgs/1.png ", "imgs/1.png "),
        ("./imgs//1.png", "imgs/1.png"),
        ("imgs/../imgs/1.png", "imgs/1.png"),
        ("file://{root}/imgs/a%20b.png", "imgs/a b.png"),
        ("file://localhost{root}/imgs/1.png", "imgs/1.png"),
        ("FILE:{root}/imgs/1.png", "imgs/1.png"),
        ("file://imgs/1.png", "imgs/1.png"),
        ("~/imgs/1.png", "imgs/1.png"),
        ("$HOME/imgs/1.png", "imgs/1.png"),
        (
            unicodedata.normalize("NFD", f"{ACCENT}/{ACCENT}.png"),
            unicodedata.normalize("NFC", f"{ACCENT}/{ACCENT}.png"),
        ),
        (
            unicodedata.normalize("NFC", f"{ACCENT}/{ACCENT}.png"),
            unicodedata.normalize("NFD", f"{ACCENT}/{ACCENT}.png"),
        ),
        (
            unicodedata.normalize("NFC", f"{ACCENT}/{ACCENT}.png"),
            unicodedata.normalize("NFC", ACCENT) + "/" + unicodedata.normalize("NFD", f"{ACCENT}.png"),
        ),
        ("imgs/%C3%A9.png", unicodedata.normalize("NFD", f"imgs/{ACCENT}.png")),
        ("imgs\\1.png", "imgs\\1.png"),
        ("画像/１.png", "画像/１.png"),
    ],
)
def test_a_path_is_found_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, name: str
):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = put(tmp_path / name)
    for must_exist in (True, False):
        ref = finder(tmp_path, must_exist=must_exist).find(written.replace("{root}", str(tmp_path)))
        assert Path(ref.file).samefile(file)
        assert image_bytes(ref) == PNG


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("imgs\\1.PNG", "exists as 'imgs/1.PNG': write it so"),
        ("C:\\data\\imgs\\1.PNG", "path of Windows; it exists as 'imgs/1.PNG'"),
        ("D:\\elsewhere\\x.png", "path of Windows"),
        ("imgs/1.png", "exists as 'imgs/1.PNG': write it so"),
        ("IMGS/1.PNG", "exists as 'imgs/1.PNG': write it so"),
        ("imgs/1.jpg", "exists as 'imgs/1.PNG': write it so"),
        ("/home/alice/set/imgs/1.PNG", "exists as 'imgs/1.PNG': write it so"),
        ("imgs", "is a folder"),
        ("imgs/gone.png", "put it there, or set the folder"),
        ("https://example.org/a.png", "download the file"),
        ("HTTP://example.org/a.png", "nothing is fetched from the web"),
        ("s3://bucket/a.png", "cloud (s3)"),
        ("hf://datasets/a/b.png", "download the file"),
        ("", "empty path"),
        (" \n", "empty path"),
        (None, "image 0 is None"),
        ("file://C:/data/imgs/1.PNG", "path of Windows"),
        ("imgs/1.PNG?raw=1", "exists as 'imgs/1.PNG'"),
        (3, "image 0 is 3"),
        (True, "image 0 is True"),
        (["imgs/1.PNG"], "image 0 is ["),
        ({}, "the object {}"),
        ({"name": "x"}, "the object"),
        ({"path": {"path": {"path": {"path": "x"}}}}, "image 0 is"),
        ({"bytes": "/etc/passwd!"}, "not base64"),
        ({"bytes": [300]}, "bytes cannot be read"),
        ("imgs/\0.png", "does not exist"),
        ("x" * 3000, "does not exist"),
        ("x/" * 5000, "too long for a path"),
    ],
)
def test_what_names_no_image_is_named_with_its_likely_cause(tmp_path: Path, written: object, words: str):
    put(tmp_path / "imgs/1.PNG")
    with pytest.raises(BadRecordError) as caught:
        finder(tmp_path).find_all([written], "record 3")
    assert words in caught.value.detail
    assert len(caught.value.detail) <= 500


@pytest.mark.parametrize("key", ["path", "url", "image", "image_url"])
def test_an_object_may_hold_the_path(tmp_path: Path, key: str):
    put(tmp_path / "1.png")
    value: object = {"url": "1.png"} if key == "image_url" else "1.png"
    assert finder(tmp_path).find({key: value, "bytes": None}).file == str(tmp_path / "1.png")


def test_a_page_of_images_parquet_is_found_however_its_path_is_written(tmp_path: Path):
    pq.write_table(pa.table({"image": [{"bytes": PNG}], "path": ["imgs/a b.png"]}), tmp_path / "images.parquet")
    for written in ("imgs/a b.png", "imgs/a%20b.png", "imgs/a b.png\n"):
        assert image_bytes(finder(tmp_path).find(written)) == PNG


def test_a_missing_page_names_the_likely_file_also_when_it_is_opened(tmp_path: Path):
    put(tmp_path / "Page.PNG")
    with pytest.raises(ImageError, match=r"exists as '.*Page\.PNG'"):
        image_bytes(ImageRef(path="page.png", file=str(tmp_path / "page.png")))
    with pytest.raises(ImageError, match="is a folder"):
        image_bytes(ImageRef(path="x", file=str(tmp_path)))
    put(tmp_path / "p.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ImageError, match="git lfs pull"):
        image_bytes(ImageRef(path="p.png", file=str(tmp_path / "p.png")))


def test_the_store_keeps_a_content_once_and_whole(tmp_path: Path):
    store = MediaStore(str(tmp_path / "store"))
    assert not store.folder.exists()
    first = store.keep(PNG, ".png")
    assert MediaStore(str(tmp_path / "store")).keep(PNG, ".png") == first
    Path(first).write_bytes(PNG[:-1])  # as a crash of the machine may leave it
    assert store.keep(PNG, ".png") == first
    assert Path(first).read_bytes() == PNG
    assert [file.name for file in store.folder.rglob("*") if file.is_file()] == [Path(first).name]


def test_a_store_that_cannot_be_written_names_its_setting(tmp_path: Path):
    put(tmp_path / "file")
    with pytest.raises(MediaStoreError, match=r"data\.media_cache"):
        MediaStore(str(tmp_path / "file/below")).keep(PNG, ".png")


def test_the_cache_folder_is_a_setting(tmp_path: Path, cache: Path):
    file = tmp_path / "d.json"
    file.write_text(json.dumps([FORMATS["evisrag"](BARE)]))
    elsewhere = DataConfig(media_cache=str(tmp_path / "elsewhere"))
    samples: tuple[Sample, ...] = load_samples(str(file), elsewhere, is_training=False).samples
    assert samples[0].images[0].file.startswith(str(tmp_path / "elsewhere"))
    assert next(iter(open_reader("evisrag", file))).images[0].file.startswith(str(cache))


def test_signatures_of_media():
    for format, suffix in (
        ("PNG", ".png"),
        ("JPEG", ".jpg"),
        ("WEBP", ".webp"),
        ("AVIF", ".avif"),
        ("JPEG2000", ".jp2"),
    ):
        assert media_suffix(encoded(format)) == suffix
    assert media_suffix(b"") == media_suffix(b"BMW is a make of cars") == ""


@pytest.mark.parametrize("value", ["~\0", "~%00", "~\ud800/a.png", "${\ud800}/a.png", "$\0"])
def test_a_path_that_no_system_knows_is_named(tmp_path: Path, value: str):
    media = MediaFinder((tmp_path,), must_exist=True, store=MediaStore(str(tmp_path / "store")))
    with pytest.raises(BadRecordError, match=r"image '.*' does not exist at"):
        media.find_all([value], "record 1")


PATHS = ["imgs", "/", "\\", "..", ".png", "%", "%2e", "~", "$HOME", "file:", "//", "C:", "é", "e\u0301", "\0", "\ud800"]


OTHERS = ["data:", ";base64,", "iVBORw0KGgo", "A" * 60, "b'", "'", "[", "://", " ", "\n"]


TEXTS = st.lists(st.sampled_from([*PATHS, *OTHERS]), max_size=8).map("".join)


VALUES = st.recursive(
    TEXTS | st.none() | st.integers() | st.floats() | st.binary(max_size=50),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["path", "bytes", "url", "image", "source", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@examples(300)
@given(VALUES)
def test_whatever_stands_for_an_image_is_read_or_named(value: object):
    with tempfile.TemporaryDirectory() as folder:
        for must_exist in (True, False):
            media = MediaFinder((Path(folder),), must_exist=must_exist, store=MediaStore(f"{folder}/store"))
            try:
                ref = media.find_all([value], "record 1")[0]
            except BadRecordError as error:
                assert len(error.detail) <= 500
                assert error.detail.isprintable()
            else:
                assert len(ref.path) <= 200
