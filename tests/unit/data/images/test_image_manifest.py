"""How much of page files is read: once whole, then nothing but ``stat``; headers where only sizes are asked for."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from recipes.sft_data import MixtureSource
from rsgrpo.config import Config, DataConfig, SourceConfig, TrainerConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.evisrag_files import LoadedData, load_samples
from rsgrpo.data.file_bytes import DataError
from rsgrpo.data.images import loading as images
from rsgrpo.data.images import sources as image_sources
from rsgrpo.data.images.counts import look_at_images
from rsgrpo.data.images.headers import DECODING_ERRORS, ImageFacts, NoImageError, open_image, read_facts
from rsgrpo.data.images.image_manifest import ImageManifest
from rsgrpo.data.images.known_images import KNOWN_IMAGES
from rsgrpo.data.images.loading import check_image, image_size
from rsgrpo.data.images.sources import ImageError, image_bytes
from rsgrpo.data.mixture import Mixture
from rsgrpo.types import ImageRef
from tests.examples import examples
from tests.unit.prompts.test_conversation_prompts import builder
from tests.unit.recipes.test_sft_data import IMAGE_TOKENS, Letters, record

RULES = ImageRules(min_pixels=3136, max_pixels=1568000)
_LONG_AGO_SECONDS = 1_000_000_000.0


class Reads:
    """Counts what is read of page files, at the one place that opens them."""

    def __init__(self) -> None:
        self.num_bytes: Counter[str] = Counter()
        self._open = image_sources._open

    def open(self, ref: ImageRef) -> io.RawIOBase:
        reads, name, inner = self, ref.path, self._open(ref)

        class Counted(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def seekable(self) -> bool:
                return True

            def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
                return inner.seek(offset, whence)

            def readinto(self, buffer) -> int | None:
                found = inner.readinto(buffer)
                reads.num_bytes[name] += found or 0
                return found

            def close(self) -> None:
                inner.close()
                super().close()

        return Counted()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads()
    monkeypatch.setattr(image_sources, "_open", found.open)
    return found


@pytest.fixture(autouse=True)
def no_other_tests_pages() -> None:
    forget()


def forget() -> None:
    """As in a new process."""
    KNOWN_IMAGES._by_place.clear()
    KNOWN_IMAGES._by_content.clear()


def encoded(kind: str, **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind, **options)
    return buffer.getvalue()


def settled(file: Path, data: bytes, *, age: int = 0) -> ImageRef:
    """A page file that was written long ago."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    os.utime(file, (_LONG_AGO_SECONDS + age, _LONG_AGO_SECONDS + age))
    return ImageRef(path=file.name, file=str(file))


def turned_png() -> bytes:
    """Its orientation stands behind the pixels, where a reader of headers would miss it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = io.BytesIO()
    PngImagePlugin.putchunk(chunk, b"eXIf", exif.tobytes()[6:])
    data = encoded("PNG")
    return data[:-12] + chunk.getvalue() + data[-12:]


def several(kind: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "green")]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def oriented(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(kind, exif=exif.tobytes())


def palette() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (30, 20)).save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


KINDS = {
    **{kind: encoded(kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")},
    **{f"several {kind}": several(kind) for kind in ("TIFF", "GIF", "WEBP", "PNG", "MPO")},
    **{f"oriented {kind}": oriented(kind) for kind in ("JPEG", "WEBP", "TIFF", "PNG")},
    "oriented behind": turned_png(),
    "progressive": encoded("JPEG", progressive=True),
    "palette": palette(),
    "text": b"no image, but words",
    "nothing": b"",
}


def outcome(read) -> object:
    try:
        return read()
    except (NoImageError, *DECODING_ERRORS) as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_says_what_the_whole_file_says(kind: str, tmp_path: Path):
    data = KINDS[kind]
    (tmp_path / "page").write_bytes(data)
    with io.FileIO(tmp_path / "page") as file:
        assert outcome(lambda: read_facts(file)) == outcome(lambda: open_image(data).facts)
        assert not file.closed
    if "oriented" in kind:
        assert open_image(data).facts.orientation == 6


@given(st.sampled_from(sorted(KINDS)), st.floats(0, 1))
@examples(150)
def test_a_header_of_a_cut_file_says_what_the_cut_file_says(kind: str, share: float):
    data = KINDS[kind][: int(share * len(KINDS[kind]))]
    found = outcome(lambda: read_facts(image_sources._ViewFile(memoryview(data))))
    assert found == outcome(lambda: open_image(data).facts)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_a_size_takes_a_small_part_of_the_file(kind: str, tmp_path: Path, reads: Reads):
    noise = np.random.default_rng(0).integers(0, 255, (1000, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "page", kind)  # JPEG: 0.7 MB, others: 2.4 MB
    assert image_size(ImageRef(path="page", file=str(tmp_path / "page")), RULES) == (800, 1000)
    assert 0 < reads.num_bytes["page"] < 0.05 * (tmp_path / "page").stat().st_size


def test_a_size_in_a_table_takes_a_small_part_of_the_cell(tmp_path: Path, reads: Reads):
    data = encoded("BMP")
    pq.write_table(pa.table({"image": [{"bytes": data}], "path": ["a"]}), tmp_path / "t.parquet")
    ref = ImageRef(path="a", parquet_file=str(tmp_path / "t.parquet"))
    assert image_size(ref, ImageRules()) == (200, 300)
    assert 0 < reads.num_bytes["a"] < 0.05 * len(data)
    assert image_bytes(ref) == data


def data_set(folder: Path) -> Path:
    """Three questions on four pages, one of them twice; for gold boxes sizes are asked while records are read."""
    for number, kind in enumerate(["oriented JPEG", "PNG", "palette", "progressive"]):
        settled(folder / "imgs" / f"{number}.img", KINDS[kind], age=number)
    shown = [["0.img", "1.img"], ["1.img", "2.img"], ["3.img"]]
    rows = [
        {
            "qid": f"q{number}",
            "query": "?",
            "answer": ["x"],
            "image": [f"imgs/{name}" for name in names],
            "boxes": [{"box": [0, 0, 10, 10], "image": f"imgs/{names[0]}"}],
            "is_sufficient": True,
        }
        for number, names in enumerate(shown)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "test.jsonl"


def start(file: Path, cache: Path) -> LoadedData:
    """As a new process reads the data, and asks for the sizes of all pages."""
    forget()
    data = DataConfig(media_cache=str(cache), box_coordinates="pixels")
    loaded = load_samples(str(file), data, is_training=False)
    for sample in loaded.samples:
        for ref in sample.images:
            image_size(ref, data.image_rules)
    return loaded


def test_the_first_start_reads_every_page_once_and_the_next_none(tmp_path: Path, reads: Reads):
    file = data_set(tmp_path)
    first = start(file, tmp_path / "cache")
    sizes = {f"imgs/{image_file.name}": image_file.stat().st_size for image_file in (tmp_path / "imgs").iterdir()}
    boxed = {"imgs/0.img", "imgs/1.img", "imgs/3.img"}  # whose headers were asked for before they were looked at
    for name, num_bytes in sizes.items():
        header = reads.num_bytes[name] - num_bytes
        assert 0 <= header < 10_000 and bool(header) == (name in boxed)
    reads.num_bytes.clear()
    second = start(file, tmp_path / "cache")
    assert not reads.num_bytes
    assert second == first
    assert second.images.document() == first.images.document()
    assert (first.images.read, first.images.oriented, first.images.composed) == (4, 1, 1)


def test_other_rules_are_applied_to_pages_that_are_known(tmp_path: Path, reads: Reads):
    ref = settled(tmp_path / "a.png", KINDS["PNG"])
    check_image(ref, RULES)
    reads.num_bytes.clear()
    with pytest.raises(ImageError, match=r"data\.max_image_megapixels=0\.001"):
        check_image(ref, ImageRules(max_megapixels=0.001))
    assert image_size(ref, ImageRules(max_pixels=600)) == (20, 30)  # a hundredth of the area
    assert not reads.num_bytes


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_page_that_changed_is_looked_at_again_and_no_other(change: str, tmp_path: Path, reads: Reads):
    file = data_set(tmp_path)
    start(file, tmp_path / "cache")
    image = tmp_path / "imgs" / "3.img"
    data = bytearray(image.read_bytes())
    if change == "size":
        settled(image, bytes(data[: len(data) // 2]), age=3)
    else:
        data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
        settled(image, bytes(data), age=4)
    reads.num_bytes.clear()
    with pytest.raises(DataError, match=r"1 × image[\s\S]*imgs/3\.img.*truncated or damaged"):
        start(file, tmp_path / "cache")
    assert set(reads.num_bytes) == {"imgs/3.img"}


def test_a_content_is_decoded_once_wherever_and_however_often_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checked: list[str] = []
    check = images._checked

    def counted(ref: ImageRef, data: bytes, rules: ImageRules) -> ImageFacts:
        checked.append(ref.path)
        return check(ref, data, rules)

    monkeypatch.setattr(images, "_checked", counted)
    file = data_set(tmp_path)
    start(file, tmp_path / "cache")
    assert sorted(checked) == [f"imgs/{number}.img" for number in range(4)]
    settled(tmp_path / "imgs" / "1.img", KINDS["PNG"], age=99)  # written again, with the same content
    settled(tmp_path / "imgs" / "2.img", KINDS["PNG"], age=99)  # now a copy of it
    loaded = start(file, tmp_path / "cache")
    assert len(checked) == 4
    assert loaded.images.kinds == {"JPEG RGB": 2, "PNG RGB": 2}


def test_a_file_that_may_be_written_once_more_at_the_same_time_is_not_taken_for_known(tmp_path: Path):
    ref = ImageRef(path="a.jpg", file=str(tmp_path / "a.jpg"))
    file = Path(ref.file)
    data = KINDS["JPEG"]
    file.write_bytes(data)
    now = time.time_ns()
    os.utime(file, ns=(now, now))
    check_image(ref, RULES)
    hole = data[: len(data) // 2] + bytes(300) + data[len(data) // 2 + 300 :]
    file.write_bytes(hole)
    os.utime(file, ns=(now, now))  # as a file system with coarse times has it
    with pytest.raises(ImageError, match="damaged"):
        check_image(ref, RULES)


def note_file(cache: Path) -> Path:
    (note,) = (cache / "notes").iterdir()
    return note


def _cut(note: Path) -> None:
    note.write_bytes(note.read_bytes()[:-20])


def _another_digit(note: Path) -> None:
    content = note.read_text()
    assert "300" in content
    note.write_text(content.replace("300", "301"))


def _no_manifest(note: Path) -> None:
    key = json.loads(note.read_text())["key"]
    note.write_text(json.dumps({"key": key, "content": [1, 2, 3]}))


def _other_decoders(note: Path) -> None:
    document = json.loads(note.read_text())
    document["content"]["reading"] = "1/2/pillow 9.0"
    note.write_text(json.dumps(document))


def _deep(note: Path) -> None:
    note.write_text("[" * 100_000)


def _other_data(note: Path) -> None:
    document = json.loads(note.read_text())
    document["key"] = "pages\n/elsewhere.jsonl"
    note.write_text(json.dumps(document))


@pytest.mark.parametrize("damage", [_cut, _another_digit, _no_manifest, _other_decoders, _deep, _other_data])
def test_a_manifest_that_is_damaged_or_foreign_counts_for_nothing_and_is_written_anew(damage, tmp_path, reads):
    file = data_set(tmp_path)
    first = start(file, tmp_path / "cache")
    note = note_file(tmp_path / "cache")
    written = note.read_bytes()
    damage(note)
    reads.num_bytes.clear()
    assert start(file, tmp_path / "cache") == first
    assert len(reads.num_bytes) == 4
    assert note.read_bytes() == written


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, reads: Reads):
    file = data_set(tmp_path)
    (tmp_path / "cache").write_text("a file where a folder should be")
    first = start(file, tmp_path / "cache")
    reads.num_bytes.clear()
    assert start(file, tmp_path / "cache") == first
    assert len(reads.num_bytes) == 4


def test_processes_that_write_at_once_leave_a_whole_manifest(tmp_path: Path):
    refs = [settled(tmp_path / f"{number}.png", KINDS["palette"], age=number) for number in range(24)]
    look_at_images(refs, RULES)
    shares = [refs[start::3] for start in range(3)]
    manifests = [ImageManifest(str(tmp_path / "cache"), ["data"]) for _ in shares]

    def keep(manifest: ImageManifest, share: list[ImageRef]) -> None:
        for stop in range(1, len(share) + 1):
            manifest.keep(share[:stop])

    threads = [threading.Thread(target=keep, args=own) for own in zip(manifests, shares, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = ImageManifest(str(tmp_path / "cache"), ["data"])
    # The last to write had all of its own; what another wrote at the very same moment may be missing.
    assert len(found._kept) >= 8
    assert found._kept.items() <= KNOWN_IMAGES.of(refs).items()
    for manifest, share in zip(manifests, shares, strict=True):
        manifest.keep(share)
    ImageManifest(str(tmp_path / "cache"), ["data"]).keep(refs)
    assert ImageManifest(str(tmp_path / "cache"), ["data"])._kept == KNOWN_IMAGES.of(refs)
    assert [note.name for note in (tmp_path / "cache" / "notes").iterdir()] == [note_file(tmp_path / "cache").name]


def test_pages_in_a_table_are_known_by_the_table_and_their_place_in_it(tmp_path: Path, reads: Reads):
    table = tmp_path / "t.parquet"
    cells = [{"bytes": KINDS[kind]} for kind in ("PNG", "JPEG")]
    pq.write_table(pa.table({"image": cells, "path": ["a", "b"]}), table)
    os.utime(table, (_LONG_AGO_SECONDS, _LONG_AGO_SECONDS))
    refs = [ImageRef(path=name, parquet_file=str(table), parquet_row=row) for row, name in enumerate("ab")]
    manifest = ImageManifest(str(tmp_path / "cache"), ["data"])
    broken, first = look_at_images(refs, RULES)
    manifest.keep(refs)
    assert not broken and first.kinds == {"PNG RGB": 1, "JPEG RGB": 1}
    forget()
    reads.num_bytes.clear()
    ImageManifest(str(tmp_path / "cache"), ["data"])
    assert look_at_images(refs, RULES) == ({}, first)
    assert not reads.num_bytes
    os.utime(table, (_LONG_AGO_SECONDS + 1, _LONG_AGO_SECONDS + 1))
    assert look_at_images(refs, RULES) == ({}, first)
    assert set(reads.num_bytes) == {"a", "b"}


def test_a_mixture_keeps_what_it_looked_at_while_it_was_taken(tmp_path: Path, reads: Reads):
    records = [record(number, image=f"imgs/{number}.png") for number in range(6)]
    for number in range(6):
        settled(tmp_path / "imgs" / f"{number}.png", KINDS["palette"], age=number)
    (tmp_path / "d.json").write_text(json.dumps(records))
    config = Config(
        stage="sft",
        data=DataConfig(media_cache=str(tmp_path / "cache")),
        trainer=TrainerConfig(micro_batch_tokens=1000),
    )

    def opened() -> MixtureSource:
        forget()
        mixture = Mixture(
            [SourceConfig(path=str(tmp_path / "d.json"))],
            seed=0,
            num_held_out=0,
            on_bad_record="skip",
            check_media=True,
        )
        return MixtureSource(
            mixture, builder(), config, max_tokens=0, tokenizer=Letters(), image_tokens=lambda image: IMAGE_TOKENS
        )

    def counted(source: MixtureSource, count: int) -> int:
        """How many pages are read for the first conversations; an epoch shows each once."""
        reads.num_bytes.clear()
        source.take(0, count)
        return len(reads.num_bytes)

    source = opened()
    assert [counted(source, count) for count in (4, 4, 5)] == [4, 0, 1]
    # A run that was killed here kept the four, but not yet the fifth: five are not half as many again.
    source = opened()
    assert counted(source, 5) == 1
    source.close()
    assert counted(opened(), 5) == 0
    # Six are half as many again as the four that a run finds known and goes on from.
    note_file(tmp_path / "cache").unlink()
    source = opened()
    assert [counted(source, count) for count in (4, 6)] == [4, 2]
    assert counted(opened(), 6) == 0
