"""Images as paths in all their spellings, as text, as bytes in tables and objects."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import DataConfig
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.file_bytes import DataError
from rsgrpo.data.images.sources import ImageError, image_bytes
from rsgrpo.data.inline_media import InlineMediaError, inline_media
from rsgrpo.data.readers import ReaderOptions, open_reader, read_samples
from rsgrpo.data.readers.indexed import IndexedSamples
from rsgrpo.data.readers.records import raw_records
from rsgrpo.types import ImageRef
from tests.examples import examples
from tests.unit.data.media_files import BARE, FORMATS, PNG, TALK, encoded, put


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/rsgrpo/media"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize(
    "write",
    [
        lambda text: text,
        lambda text: text.rstrip("="),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: "\n".join(text[start : start + 76] for start in range(0, len(text), 76)) + "\n",
        lambda text: f"b'{text}'",
        lambda text: f"image/png;base64,{text}",
        lambda text: f"{text[:50]}\\n{text[50:]}",
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f"data:image/png;charset=utf-8;base64,{text.rstrip('=')}",
        lambda text: f"  DATA:;BASE64,{text}",
        lambda text: f"data:image/png;base64,{quote(text, safe='')}",
        lambda text: "data:image/png," + quote(base64.b64decode(text)),
    ],
)
def test_an_image_in_a_text_is_the_same_image(format: str, write: Callable[[str], str]):
    data = encoded(format)
    found = inline_media(write(base64.b64encode(data).decode()))
    assert found is not None
    assert found.data == data


@examples(150)
@given(st.binary(min_size=40, max_size=200), st.integers(1, 90), st.booleans(), st.booleans())
def test_base64_is_read_whatever_its_lines_padding_and_alphabet(
    rest: bytes, width: int, is_padded: bool, is_url_safe: bool
):
    data = b"\x89PNG\r\n\x1a\n" + rest
    text = (base64.urlsafe_b64encode if is_url_safe else base64.b64encode)(data).decode()
    text = text if is_padded else text.rstrip("=")
    found = inline_media("\n".join(text[start : start + width] for start in range(0, len(text), width)))
    assert found is not None
    assert found.data == data


@pytest.mark.parametrize(
    "text",
    [
        "imgs/1.png",
        "iVBORw0KGgo.png",
        "/9j/shots/a.jpg",
        "UklGR",
        "Qk.bmp",
        "R0lGODlhAQABAAAAACw.gif",
        "AAAA" * 20,
        "a" * 300,
    ],
)
def test_a_path_is_no_image_in_base64(text: str):
    assert inline_media(text) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BARE[:-9] + "!" + BARE[-8:] + "A" * 400, "not whole or has foreign"),
        (BARE + "A" * (401 - len(BARE) % 4), "not whole"),
        ("data:image/png;base64", "without the comma"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,%%%", "not base64"),
        ("data:image/svg+xml,<svg/>", "SVG"),
        ("word " * 2000, "too long for a path"),
        ("data:image/png;base64," + "A" * (90 << 20), "write it into a file"),
    ],
)
def test_a_text_that_is_no_image_is_named_shortly(text: str, words: str):
    with pytest.raises(InlineMediaError, match=words) as caught:
        inline_media(text)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("has_root", [False, True])
@pytest.mark.parametrize(
    "image", [BARE, "data:image/png;base64," + BARE, {"bytes": BARE, "path": None}, {"bytes": list(PNG)}]
)
def test_every_format_reads_images_in_text(tmp_path: Path, format: str, has_root: bool, image: object):
    file = tmp_path / "d.json"
    file.write_text(json.dumps([FORMATS[format](image)]))
    for check_media in (True, False):
        options = ReaderOptions(media_root=str(tmp_path / "imgs") if has_root else "", check_media=check_media)
        ((sample,), _) = read_samples(format, file, options=options)
        (ref,) = sample.images
        assert image_bytes(ref) == PNG
        assert len(ref.path) <= 200
        assert "image 0" in ref.path


def cells(data: bytes) -> dict[str, tuple[Any, Any]]:
    """A table's column with one image, by layout, and its type."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return {
        "list<struct>": ([{"bytes": data, "path": None}], pa.list_(struct)),
        "struct": ({"bytes": data, "path": "a.png"}, struct),
        "binary": (data, pa.binary()),
        "list<binary>": ([data], pa.list_(pa.binary())),
        "large": ([data], pa.large_list(pa.large_binary())),
        "path": ([{"bytes": None, "path": "here.png"}], pa.list_(struct)),
    }


@pytest.mark.parametrize("layout", cells(PNG))
@pytest.mark.parametrize("format", ["llava", "sharegpt", "mirage", "mgrounding", "mig_bench", "evisrag"])
def test_every_format_reads_bytes_in_parquet(tmp_path: Path, format: str, layout: str):
    put(tmp_path / "here.png")
    value, kind = cells(PNG)[layout]
    record = FORMATS[format](None)
    key = "images" if "images" in record else "image"
    columns = {name: pa.array([entry, entry]) for name, entry in record.items() if name not in (key, "qid")}
    if format == "evisrag":
        columns["qid"] = pa.array([1, 2])
    pq.write_table(pa.table({**columns, key: pa.array([value, value], type=kind)}), tmp_path / "d.parquet")
    (samples, _) = read_samples(format, tmp_path / "d.parquet")
    assert [image_bytes(ref) for sample in samples for ref in sample.images] == [PNG, PNG]
    if layout != "path":
        assert samples[1].images[0].parquet_row == 1


def test_bytes_in_parquet_are_references_for_training(tmp_path: Path):
    value, kind = cells(PNG)["list<struct>"]
    table = pa.table({"query": ["q"] * 3, "answer": [["a"]] * 3, "image": pa.array([value * 2] * 3, type=kind)})
    pq.write_table(table, tmp_path / "rl[1].parquet")
    samples = load_samples(str(tmp_path / "rl[1].parquet"), DataConfig(), is_training=True).samples
    assert [[(ref.file, ref.parquet_row, ref.parquet_index) for ref in sample.images] for sample in samples] == [
        [("", row, 0), ("", row, 1)] for row in range(3)
    ]
    # No bytes are held: what a row of the table gives is small.
    assert all(len(repr(row.value)) < 1000 for row in raw_records(tmp_path / "rl[1].parquet", prefix="item"))


def test_single_conversations_of_a_parquet_file_are_read_when_asked_for(tmp_path: Path):
    value, kind = cells(PNG)["list<struct>"]
    talks = [[TALK[0], {"from": "gpt", "value": f"answer {row}"}] for row in range(5)]
    talks[2] = [TALK[0]]
    pq.write_table(
        pa.table({"conversations": talks, "images": pa.array([value] * 5, type=kind)}), tmp_path / "d.parquet"
    )
    samples = IndexedSamples("sharegpt", str(tmp_path / "d.parquet"), ReaderOptions())
    assert [samples.sample(index).turns[1].text for index in (3, 0, 1, 2)] == [
        "answer 4",
        "answer 0",
        "answer 1",
        "answer 3",
    ]
    assert samples.sample(2).images[0].parquet_row == 3


def test_image_columns_and_saved_folders_of_datasets(tmp_path: Path):
    import datasets

    cell = {"bytes": PNG, "path": None}
    features = datasets.Features(
        {
            "image": datasets.List(datasets.Image()),
            "query": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    rows = {"image": [[cell, cell], [cell]], "query": ["a", "b"], "answer": ["x", "y"]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.to_parquet(tmp_path / "d.parquet")
    data.save_to_disk(tmp_path / "saved", num_shards=2)
    put(tmp_path / "saved/cache-0123.arrow", b"what a map left there")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "splits")
    for path in (tmp_path / "d.parquet", tmp_path / "saved", f"{tmp_path / 'splits'}@test"):
        samples = load_samples(str(path), DataConfig(), is_training=True).samples
        assert [len(sample.images) for sample in samples] == [2, 1], path
        assert {image_bytes(ref) for sample in samples for ref in sample.images} == {PNG}


def test_a_table_that_was_changed_or_is_none_is_named(tmp_path: Path):
    put(tmp_path / "d.parquet", b"no table")
    with pytest.raises(DataError, match=r"d\.parquet cannot be read as a table"):
        list(raw_records(tmp_path / "d.parquet", prefix="item"))
    pq.write_table(pa.table({"image": [PNG, None], "raw": ["a", "b"]}), tmp_path / "e.parquet")
    table = str(tmp_path / "e.parquet")
    for ref, words in (
        (ImageRef(path="x", parquet_file=table, parquet_row=2), "has 2 rows"),
        (ImageRef(path="x", parquet_file=table, parquet_row=1), "holds no bytes"),
        (ImageRef(path="x", parquet_file=table, parquet_column="gone"), "no column 'gone'"),
        (ImageRef(path="x", parquet_file=table + "x"), "does not exist"),
    ):
        with pytest.raises(ImageError, match=words):
            image_bytes(ref)


def test_a_message_about_inline_media_is_short(tmp_path: Path):
    file = tmp_path / "d.json"
    file.write_text(json.dumps([FORMATS["evisrag"]("data:image/png;base64," + BARE[:-2] + "!!" + "x" * 100_000)]))
    with pytest.raises(DataError) as caught:
        load_samples(str(file), DataConfig(), is_training=False)
    assert len(str(caught.value)) < 600 + len(str(file))


@pytest.mark.parametrize("images", ["i.png", ["i.png"], '["i.png"]', {"path": "i.png"}, '[{"path": "i.png"}]'])
def test_one_image_may_stand_without_a_list_and_a_list_as_text(tmp_path: Path, images: object):
    put(tmp_path / "i.png")
    for format, key in (("llava", "image"), ("sharegpt", "images"), ("evisrag", "image")):
        file = tmp_path / "d.json"
        file.write_text(json.dumps([FORMATS[format](None) | {key: images}]))
        assert [image.path for image in next(iter(open_reader(format, file))).images] == ["i.png"]


def test_an_empty_table_has_no_rows(tmp_path: Path):
    _, kind = cells(PNG)["list<struct>"]
    pq.write_table(
        pa.table({"image": pa.array([], type=kind), "query": pa.array([], type=pa.string())}), tmp_path / "d.parquet"
    )
    assert read_samples("evisrag", tmp_path / "d.parquet")[0] == ()
    with pytest.raises(DataError, match="holds no items"):
        load_samples(str(tmp_path / "d.parquet"), DataConfig(), is_training=True)
