"""Where the images of a data set lie: files, rows of ``images.parquet``, cells of a table, or its own text."""

from __future__ import annotations

import hashlib
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from rsgrpo.data.files import IMAGE_TABLE
from rsgrpo.data.images.sources import table_rows
from rsgrpo.data.inline_media import (
    INLINE_STARTS,
    InlineMediaError,
    base64_bytes,
    check_inline_size,
    inline_media,
    media_suffix,
)
from rsgrpo.data.media_paths import address_scheme, find_file, likely_cause, spellings
from rsgrpo.data.media_store import MediaStore
from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.errors import shown
from rsgrpo.types import ImageRef

_LETTERS = r"\w./+,()=&@#!;'\[\]{}\-"
_PLAIN_PATH = re.compile(
    rf"(?!{'|'.join(map(re.escape, INLINE_STARTS))})[{_LETTERS}][{_LETTERS} ]{{0,198}}(?<! )", re.ASCII
)
"""Paths that can only be meant as they stand: short ones without anything that other spellings or base64 are known
by."""
_LONGEST_NAME = 200  # characters of what an image is called
_LONGEST_PATH = 4096
_BYTES_KEYS = ("bytes", "base64", "b64_json")
PLACE_KEYS = ("path", "url", "image", "image_url", "video", "video_url", "file", "data", "source")
"""The keys under which the objects of the field's formats hold a path, a text in base64, or an object that does."""
_DEEPEST_OBJECT = 3  # {"source": {"image_url": {"url": …}}} is as deep as any format goes


class MediaFinder:
    """Finds images by what a data set writes: a path (files first, then ``images.parquet``), bytes, or text in base64.

    A path that no file has as it stands is looked for in the other ways in which it may be meant
    (:func:`rsgrpo.data.media_paths.spellings`).

    Args:
        roots: folders that paths may be relative to; the first that holds the image counts, and the first of
            all where none does.
        must_exist: whether an image that lies nowhere is refused; else its reference is made all the same.
        store: the store that keeps what does not lie in a file of its own; None: the one in the default folder.
    """

    def __init__(self, roots: tuple[Path, ...], *, must_exist: bool, store: MediaStore | None = None) -> None:
        homed = (Path(os.path.expanduser(root)).absolute() for root in roots)  # noqa: PTH111 - a user may have no home
        folders = tuple(dict.fromkeys(os.path.normpath(root) for root in homed))
        self._prefixes = tuple(f"{folder.rstrip('/')}/" for folder in folders)
        tables = (Path(folder) / IMAGE_TABLE for folder in folders)
        self._table = next((table for table in tables if table.is_file()), None)
        self._rows: dict[str, int] | None = None
        self._must_exist = must_exist
        self._must_look = must_exist or self._table is not None or len(self._prefixes) > 1
        self.store = MediaStore() if store is None else store

    def find_all(self, values: Sequence[object], record: str) -> tuple[ImageRef, ...]:
        """References to the images of a record.

        Args:
            values: the values, each as for :meth:`find`.
            record: the name of the record for people, such as ``record 3``.

        Raises:
            BadRecordError: an image cannot be found, as in :meth:`find`.
        """
        return tuple(
            [self._quickly(value) or self.find(value, f"{record} image {n}") for n, value in enumerate(values)]
        )

    def find(self, value: object, label: str = "image") -> ImageRef:
        """Reference to an image.

        Args:
            value: a path or ``file://`` URL; base64 or a data URI; bytes; a reference; or an object that holds one of
                these under ``path``, ``bytes``, ``url``, ``image`` or ``image_url``.
            label: what an image without a path is called, such as ``record 3 image 0``.

        Raises:
            BadRecordError: the value is none of these, there is no such image (and it must exist), or it lies on the
                web.
        """
        return self._quickly(value) or self._found(value, label, "image", self._must_exist, 0)

    def find_video(self, value: object, label: str) -> ImageRef:
        """Reference to the file of a video, which must exist."""
        return self._found(value, label, "video", True, 0)

    def has_file(self, path: str) -> bool:
        """Whether a path names a file."""
        return bool(find_file(path, self._prefixes))

    def folder(self, path: str) -> str:
        """The folder that a path names, as an absolute path; empty if there is none."""
        for spelling in spellings(path):
            for prefix in ("",) if spelling.startswith("/") else self._prefixes:
                if spelling and os.path.isdir(prefix + spelling):  # noqa: PTH112
                    return os.path.normpath(prefix + spelling)
        return ""

    def _quickly(self, value: object) -> ImageRef | None:
        """The reference to a plain path, if its file is there: a single look for each of maybe ten million paths."""
        if type(value) is not str or _PLAIN_PATH.fullmatch(value) is None:
            return None
        plain = value[2:] if value[:2] == "./" else value
        first = plain if plain[:1] == "/" else self._prefixes[0] + plain
        # No Path object, which would cost more than the look.
        if not self._must_look or os.path.isfile(first):  # noqa: PTH113
            return ImageRef(path=value, file=first)
        return None

    def _place(self, path: str) -> str:
        """The absolute path that a written path would have below the first folder."""
        plain = path[2:] if path.startswith("./") else path
        return plain if plain.startswith("/") else self._prefixes[0] + plain

    def _found(self, value: object, label: str, kind: str, must_exist: bool, depth: int) -> ImageRef:
        if isinstance(value, str):
            return self._by_text(value, label, kind, must_exist)
        if isinstance(value, ImageRef):
            return value
        if isinstance(value, bytes):
            return self._kept(value, label, "bytes")
        if isinstance(value, Mapping) and depth < _DEEPEST_OBJECT:
            return self._in_object(value, label, kind, must_exist, depth)
        raise BadRecordError(
            "wrong type",
            f"{label} is {_values.repr(value)}; expected the path of its file, or the bytes in base64",
        )

    def _in_object(
        self, value: Mapping[object, object], label: str, kind: str, must_exist: bool, depth: int
    ) -> ImageRef:
        path = value.get("path")
        for key in _BYTES_KEYS:
            if value.get(key):
                name = shown(path, _LONGEST_NAME - 40) if isinstance(path, str) and path else label
                return self._kept(_as_bytes(value[key], label), name, f"in {key!r}")
        for key in PLACE_KEYS:
            if value.get(key) is not None:
                return self._found(value[key], label, kind, must_exist, depth + 1)
        raise BadRecordError(
            "wrong type", f"{label} is the object {_values.repr(dict(value))}; expected a path or bytes in it"
        )

    def _by_text(self, text: str, label: str, kind: str, must_exist: bool) -> ImageRef:
        if not text.strip():
            raise BadRecordError(
                "missing media", f"{label} is {text[:20]!r}, an empty path; leave it out, or write null"
            )
        file = find_file(text, self._prefixes) if len(text) <= _LONGEST_PATH else ""
        if file:
            return ImageRef(path=shown(text), file=os.path.normpath(file))
        try:
            inline = inline_media(text)
        except InlineMediaError as error:
            raise BadRecordError("media", f"{label}: {error}") from error
        if inline is not None:
            return self._kept(inline.data, label, inline.kind)
        scheme = address_scheme(text)
        if scheme:
            raise BadRecordError(
                "address",
                f"{label} is at {shown(text, 120)!r}: nothing is fetched from the {_NETS.get(scheme, scheme)}; "
                "download the file and write its path",
            )
        return self._in_table(text) or self._missing(text, kind, must_exist)

    def _in_table(self, text: str) -> ImageRef | None:
        if self._table is None:
            return None
        if self._rows is None:
            self._rows = table_rows(self._table)
        for path in spellings(text):
            if path in self._rows:
                return ImageRef(path=shown(text), parquet_file=str(self._table), parquet_row=self._rows[path])
        return None

    def _missing(self, text: str, kind: str, must_exist: bool) -> ImageRef:
        place = self._place(text)
        if not must_exist:
            return ImageRef(path=shown(text), file=place)
        cause = (
            likely_cause(text, self._prefixes)
            or "put it there, or set the folder of the images (data.image_root, or media_root of a source)"
        )
        raise BadRecordError(
            "video" if kind == "video" else "missing media",
            f"{kind} {shown(text, 100)!r} does not exist at {shown(place, 150)}; {cause}",
        )

    def _kept(self, data: bytes, label: str, kind: str) -> ImageRef:
        try:
            check_inline_size(len(data))
        except InlineMediaError as error:
            raise BadRecordError("media", f"{label}: {error}") from error
        name = hashlib.sha256(data).hexdigest()[:8]
        return ImageRef(
            path=f"{shown(label, _LONGEST_NAME - 40)} ({kind} {name})",
            file=self.store.keep(data, media_suffix(data)),
        )


_NETS = {"http": "web", "https": "web", "ftp": "web", "s3": "cloud (s3)", "gs": "cloud (gs)"}
_values = reprlib.Repr()
_values.maxstring = _values.maxother = 60


def _as_bytes(value: object, label: str) -> bytes:
    """Bytes as JSON may hold them: text in base64, or a list of numbers."""
    if isinstance(value, bytes):
        return value
    try:
        if isinstance(value, str):
            return base64_bytes(value)
        if isinstance(value, list):
            return bytes(value)
    except (InlineMediaError, TypeError, ValueError) as error:
        raise BadRecordError("media", f"{label}: its bytes cannot be read: {shown(error)}") from error
    raise BadRecordError("media", f"{label}: its bytes are {_values.repr(value)}; expected base64 or a list of numbers")
