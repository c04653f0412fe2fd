"""The files of an index in a folder: killed writers, full disks, damage, and what is refused with the way out."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rsgrpo.io.atomic_files import read_json_object
from rsgrpo.retrieval.index import index_header
from rsgrpo.retrieval.index.flat_index import FlatIndex, create_index, open_index
from rsgrpo.retrieval.index.index_header import HEADER_FILE, INDEX_VERSION
from rsgrpo.retrieval.index.page_index import IndexedPage, PageFilter, PageIndexError
from tests.unit.retrieval.index_pages import (
    IDENTITY,
    make_page,
    save_pages,
    sign_vectors,
    spread_page,
)

_KILLED = """
import os, signal, sys
from pathlib import Path
from rsgrpo.retrieval.index import flat_index, vector_file
from tests.unit.retrieval.index_pages import make_page, unit_vectors

place = sys.argv[2]
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
if place == "vectors":
    write = vector_file.faiss.write_index
    vector_file.faiss.write_index = lambda index, writer: (write(index, writer), die())
elif place == "pages":
    flat_index.PageTable.write = die
elif place == "header":
    flat_index.write_header = die
elif place == "cleaning":
    flat_index.FlatIndex._take_away_others = die
index = flat_index.open_index(Path(sys.argv[1]), is_writable=True)
index.add([make_page(number) for number in range(100, 105)], unit_vectors(5, 24, seed=3))
index.save()
"""


@pytest.mark.parametrize(("place", "num_after"), [("vectors", 20), ("pages", 20), ("header", 20), ("cleaning", 25)])
def test_a_process_killed_while_it_saves_leaves_the_index_before_or_the_new_one(
    tmp_path: Path, place: str, num_after: int
) -> None:
    vectors = save_pages(tmp_path / "i", 20)
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "i"), place], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    opened = open_index(tmp_path / "i")
    opened.verify()
    assert len(opened) == num_after
    assert opened.search(vectors[3:4], 1)[0][0].page == spread_page(3)
    # the next writer takes its leftovers away
    with open_index(tmp_path / "i", is_writable=True) as index:
        index.save()
    left = sorted(file.name for file in (tmp_path / "i").iterdir())
    number = read_json_object(tmp_path / "i" / HEADER_FILE)["content"]["save_number"]
    assert left == [".lock", HEADER_FILE, f"pages-{number:06d}.parquet", f"vectors-{number:06d}.faiss"]


def test_a_full_disk_is_named_and_leaves_the_index_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = save_pages(tmp_path / "i", 20)
    with open_index(tmp_path / "i", is_writable=True) as index:
        index.remove([spread_page(0).page_id])
        real_open = Path.open

        def full(path: Path, mode: str = "r", *arguments, **options):
            return real_open(Path("/dev/full") if "pages-" in path.name and "w" in mode else path, mode, *arguments)

        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(PageIndexError, match=r"the disk of the index .* is full; free some space"):
            index.save()
        monkeypatch.undo()
        assert len(index) == 19  # still in memory
    assert len(open_index(tmp_path / "i")) == 20
    assert open_index(tmp_path / "i").search(vectors[:1], 1)[0][0].page == spread_page(0)
    assert len(list((tmp_path / "i").glob("vectors-*"))) == 1


def test_vectors_that_do_not_fit_on_the_disk_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # faiss itself passes over a piece that could not be written
    with create_index(tmp_path / "i", IDENTITY) as index:
        index.add([make_page(0)], sign_vectors([1]))
        real_open = Path.open
        monkeypatch.setattr(
            Path,
            "open",
            lambda path, mode="r", *arguments: real_open(
                Path("/dev/full") if "vectors-" in path.name else path, mode, 0 if "vectors-" in path.name else -1
            ),
        )
        with pytest.raises(PageIndexError, match="is full"):
            index.save()


def _header(folder: Path, **changes: object) -> None:
    document = read_json_object(folder / HEADER_FILE)
    document |= changes
    (folder / HEADER_FILE).write_text(json.dumps(document))


def _sealed(folder: Path, content: dict[str, object]) -> None:
    _header(folder, content=content, sha256=index_header._digest(content))


def damage(folder: Path, kind: str) -> None:
    header = folder / HEADER_FILE
    vectors, pages = folder / "vectors-000001.faiss", folder / "pages-000001.parquet"
    content = read_json_object(header)["content"]
    damages: dict[str, Callable[[], object]] = {
        "no header": header.unlink,
        "cut header": lambda: header.write_bytes(header.read_bytes()[:100]),
        "empty header": lambda: header.write_bytes(b""),
        "foreign": lambda: header.write_text('{"name": "site", "version": 1}'),
        "list": lambda: header.write_text("[]"),
        "version": lambda: _header(folder, version=INDEX_VERSION + 1),
        "edited": lambda: _header(folder, content=content | {"num_pages": 19}),
        "not finite": lambda: header.write_text(header.read_text().replace('"num_pages": 20', '"num_pages": NaN')),
        "unknown field": lambda: _sealed(folder, content | {"more": 1}),
        "wrong count": lambda: _sealed(folder, content | {"num_pages": 19}),
        "no vectors": vectors.unlink,
        "cut vectors": lambda: os.truncate(vectors, 500),
        "other pages": lambda: pages.write_bytes(bytes(pages.stat().st_size)),
    }
    damages[kind]()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no header", r"is half written: its index.json, which comes last, is missing; run the rsgrpo index command"),
        ("cut header", r"is damaged: .* is no JSON"),
        ("empty header", r"is damaged: .* is empty"),
        ("foreign", r"is of the kind None, expected 'rsgrpo page index': another program wrote it"),
        ("list", r"holds a list where an object is expected"),
        ("version", r"has version 2, and this release reads version 1; make it anew"),
        ("edited", r"was changed after it was written: its checksum differs"),
        ("not finite", r"was changed after it was written"),
        ("unknown field", r"more"),
        ("wrong count", r"20 vectors, 20 pages and dimension 24, its header says 19, 19 and 24"),
        ("no vectors", r"lacks vectors-000001.faiss; copy the folder again"),
        ("cut vectors", r"has 500 bytes, expected \d+: it was cut or changed"),
        ("other pages", r"is damaged: its checksum differs"),
    ],
)
def test_what_is_no_whole_index_is_refused_with_the_way_out(tmp_path: Path, kind: str, message: str) -> None:
    save_pages(tmp_path / "i", 20)
    damage(tmp_path / "i", kind)
    with pytest.raises(PageIndexError, match=message):
        open_index(tmp_path / "i")


def test_changed_vectors_are_found_by_verifying(tmp_path: Path) -> None:
    save_pages(tmp_path / "i", 20)
    file = tmp_path / "i" / "vectors-000001.faiss"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(PageIndexError, match=r"vectors-000001.faiss is damaged"):
        open_index(tmp_path / "i").verify()
    # Nor does the next save write them anew, with a checksum that would fit.
    with pytest.raises(PageIndexError, match="checksum differs; copy the folder again"):
        open_index(tmp_path / "i", is_writable=True)


def test_a_path_without_an_index_is_told_from_a_file_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "pages").mkdir(parents=True)
    (tmp_path / "begun" / "pages" / "store.json").write_text("{}")
    for name, message in (
        ("file", "is a file, and an index is a folder"),
        ("empty", "holds no index: there is no index.json in it"),
        ("begun", "was interrupted before its first save: .* run the rsgrpo index command that began it once more"),
        ("missing", "there is no index .*; check the path, or make one with rsgrpo index"),
    ):
        for is_writable in (False, True):
            with pytest.raises(PageIndexError, match=message):
                open_index(tmp_path / name, is_writable=is_writable)
    assert list((tmp_path / "empty").iterdir()) == [] and not (tmp_path / "missing").exists()
    with pytest.raises(PageIndexError, match="is a file"):
        create_index(tmp_path / "file", IDENTITY)


def test_a_reader_meets_a_writer_between_header_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The writer replaces everything after the reader has read the header; the reader reads it once more.
    save_pages(tmp_path / "i", 20)
    load = FlatIndex._load
    calls: list[object] = []

    def late(index: FlatIndex, header) -> None:
        if not calls:
            calls.append(header)
            with open_index(tmp_path / "i", is_writable=True) as writer:
                writer.remove([spread_page(0).page_id])
                writer.save()
        load(index, header)

    monkeypatch.setattr(FlatIndex, "_load", late)
    assert len(open_index(tmp_path / "i")) == 19


def test_a_slash_behind_a_folder_changes_nothing() -> None:
    assert PageFilter(folders=("a/b/", "c")) == PageFilter(folders=("a/b", "c"))


def test_the_way_out_of_a_damaged_index_leads_out(tmp_path: Path) -> None:
    with create_index(tmp_path, IDENTITY) as index:
        index.add([make_page(1)], sign_vectors([1]))
        index.save()
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(PageIndexError, match=r"delete its index\.json, and run rsgrpo index"):
        open_index(tmp_path)
    (tmp_path / "index.json").unlink()
    with create_index(tmp_path, IDENTITY) as index:
        index.save()
    assert len(open_index(tmp_path)) == 0


@pytest.mark.parametrize("name", ["index.json", "vectors-000001.faiss"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pages(tmp_path / "i", 20)

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(file: object, *arguments: object, **named: object) -> Any:
            if str(file).endswith(name):  # root may read whatever the file's mode says
                raise PermissionError(errno.EACCES, "Permission denied", str(file))
            return function(file, *arguments, **named)

        return refuse

    monkeypatch.setattr(io, "open", refusing(io.open))
    monkeypatch.setattr(os, "open", refusing(os.open))
    with pytest.raises(PageIndexError, match="cannot be read") as caught:
        open_index(tmp_path / "i")
    assert "damaged" not in str(caught.value) and "delete" not in str(caught.value)


def test_a_moved_index_finds_the_images_in_its_folder(tmp_path: Path) -> None:
    before = tmp_path / "é $INDEX"
    own = str(before / "pages" / "a.png")
    paths = {"own": own, "elsewhere": "/data/a.png", "relative": "a.png", "none": "", "like it": own + "/" + own}
    pages = [
        IndexedPage(page_id=name, document="a.pdf", page_number=number, image_path=path)
        for number, (name, path) in enumerate(paths.items(), start=1)
    ]
    with create_index(before, IDENTITY) as index:
        index.add(pages, sign_vectors([1, 2, 3, 4, 5]))
        index.save()
        assert [page.image_path for page in index.pages()] == list(paths.values())
    after = before.rename(tmp_path / "after")
    moved = str(after / "pages" / "a.png")
    expected = paths | {"own": moved, "like it": moved + "/" + own}  # the beginning only
    assert [page.image_path for page in open_index(after).pages()] == list(expected.values())
