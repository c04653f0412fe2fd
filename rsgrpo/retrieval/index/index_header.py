"""Read and write ``index.json``: what made an index, and which files belong to it.

It is written last. Files of an index get a new number in every save, so that the header on the disk always names files
that are whole: those of the save before until the very end, the new ones from then on.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import (
    PARTIAL_SUFFIX,
    FileError,
    json_bytes,
    read_json_object,
    shown_value,
    write_json,
)
from rsgrpo.io.manifest import FileDigest
from rsgrpo.io.record_codec import RecordError, from_plain, to_plain
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity
from rsgrpo.retrieval.index.page_index import PageIndexError

HEADER_FILE = "index.json"
INDEX_KIND = "rsgrpo page index"
INDEX_VERSION = 1
"""The version of the format of all files in an index's folder."""

_FIRST_WRITTEN = "pages/store.json"  # rsgrpo index renders pages before the first vector is there

ANEW = f"make it anew: delete its {HEADER_FILE}, and run rsgrpo index with all documents again"
"""The way out that always works; the same call over the damaged header would be refused again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexHeader:
    """The content of ``index.json``.

    Attributes:
        made_by: the version of rsgrpo that wrote it.
        identity: the identity of the embedder whose vectors the index holds.
        embedder: the settings of that embedder, so that questions can be embedded without naming them again; None:
            vectors were brought from elsewhere.
        num_pages: how many pages the index holds.
        save_number: the number of the save that wrote it, from 1.
        vectors: the name, size and checksum of the file of the vectors.
        pages: the name, size and checksum of the file of everything else about the pages.
        lists: the name, size and checksum of the file of the inverted lists; None: there are none.
        offsets: those of the file that says which vectors belong to a page; None: each page has one.
        means: those of the file of the mean of each page's vectors; None: each page has one.
    """

    made_by: str
    identity: EmbedderIdentity
    embedder: EmbedderConfig | None
    num_pages: int
    save_number: int
    vectors: FileDigest
    pages: FileDigest
    lists: FileDigest | None = None
    offsets: FileDigest | None = None
    means: FileDigest | None = None

    @property
    def files(self) -> tuple[FileDigest, ...]:
        """All files of the index beside the header."""
        others = (self.lists, self.offsets, self.means)
        return (self.vectors, self.pages, *(file for file in others if file is not None))


def write_header(folder: Path, header: IndexHeader) -> None:
    """Write the header, which makes a save valid.

    Raises:
        OSError: the disk is full, or there is no permission.
    """
    content = to_plain(header)
    document = {"kind": INDEX_KIND, "version": INDEX_VERSION, "sha256": _digest(content), "content": content}
    write_json(folder / HEADER_FILE, document, indent=1)


def read_header(folder: Path) -> IndexHeader:
    """Read the header of an index.

    Raises:
        PageIndexError: there is no header, it is damaged, or it is of something else or of another version; the message
            says which, and the way out.
    """
    _check_there(folder)
    try:
        document = read_json_object(folder / HEADER_FILE)
    except FileError as error:
        if isinstance(error.__cause__, PermissionError):  # nothing is damaged, and nothing should be deleted
            raise PageIndexError(f"{error}; make it readable for this user") from error
        raise PageIndexError(f"the index {shown(folder)} is damaged: {error}; {ANEW}") from error
    kind, version = document.get("kind"), document.get("version")
    if kind != INDEX_KIND:
        raise PageIndexError(
            f"{shown(folder / HEADER_FILE)} is of the kind {shown_value(kind)}, expected {INDEX_KIND!r}: another "
            "program wrote it; choose another folder"
        )
    if version != INDEX_VERSION:
        raise PageIndexError(
            f"the index {shown(folder)} has version {shown_value(version)}, and this release reads version "
            f"{INDEX_VERSION}; {ANEW}, or open it with the release that made it"
        )
    content = document.get("content")
    if document.get("sha256") != _digest(content):
        raise PageIndexError(
            f"{shown(folder / HEADER_FILE)} was changed after it was written: its checksum differs; put the original "
            f"back, or {ANEW}"
        )
    try:
        header = from_plain(IndexHeader, content)
    except RecordError as error:
        raise PageIndexError(f"{shown(folder / HEADER_FILE)}: {error}; {ANEW}") from error
    return header


def check_sizes(folder: Path, header: IndexHeader) -> None:
    """Refuse an index of which a file is missing or has another size than when it was written.

    Raises:
        FileNotFoundError: a file is missing; a writer may just have replaced it.
        PageIndexError: a file has another size; the message names it.
    """
    for expected in header.files:
        with (folder / expected.name).open("rb") as file:  # where it may not be read, faiss would call it damaged
            size = os.fstat(file.fileno()).st_size
        if size != expected.num_bytes:
            raise PageIndexError(
                f"{shown(folder / expected.name)} has {size} bytes, expected {expected.num_bytes}: it was cut or "
                f"changed, perhaps while it was copied; copy the folder again, or {ANEW}"
            )


def check_digest(folder: Path, expected: FileDigest) -> None:
    """Refuse a file whose content is another than when it was written.

    Raises:
        PageIndexError: the content differs; the message names the file.
    """
    with (folder / expected.name).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
            raise PageIndexError(
                f"{shown(folder / expected.name)} is damaged: its checksum differs; copy the folder again, or {ANEW}"
            )


def _check_there(folder: Path) -> None:
    if (folder / HEADER_FILE).is_file():
        return
    if not folder.exists():
        raise PageIndexError(
            f"there is no index {shown(folder)}; check the path, or make one with rsgrpo index FILE… --out FOLDER"
        )
    if not folder.is_dir():
        raise PageIndexError(f"{shown(folder)} is a file, and an index is a folder; check the path")
    if is_half_written(folder):
        raise PageIndexError(
            f"the index {shown(folder)} is half written: its {HEADER_FILE}, which comes last, is missing; run the "
            "rsgrpo index command that made it once more"
        )
    if (folder / _FIRST_WRITTEN).exists():
        raise PageIndexError(
            f"the index {shown(folder)} was interrupted before its first save: it holds pages, and no {HEADER_FILE} "
            "yet; run the rsgrpo index command that began it once more, which goes on"
        )
    raise PageIndexError(f"{shown(folder)} holds no index: there is no {HEADER_FILE} in it; check the path")


def is_half_written(folder: Path) -> bool:
    """Whether a folder holds files of an index, but no header."""
    return not (folder / HEADER_FILE).exists() and any(own_files(folder))


def own_files(folder: Path) -> list[Path]:
    """List the files of all saves of an index in a folder, without the header."""
    names = ("vectors-*.faiss", "pages-*.parquet", "lists-*.faiss", "vectors-*.npy", "offsets-*.npy", "means-*.npy")
    found = [file for name in names for end in ("", PARTIAL_SUFFIX) for file in folder.glob(name + end)]
    return [*found, *folder.glob(HEADER_FILE + PARTIAL_SUFFIX)]


def _digest(content: object) -> str:
    try:
        return hashlib.sha256(json_bytes(content)).hexdigest()
    except ValueError:  # NaN, which a header that was changed by hand may hold
        return ""
