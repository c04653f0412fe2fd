"""What a written path may mean where it does not name a file as it stands, and why it names none."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from rsgrpo.errors import shown
from rsgrpo.io.special_files import special_kind

_ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+)://")
_DRIVE = re.compile(r"\s*(?:file:/*)?[A-Za-z]:[\\/]")
_UNSEEN = "\ufeff\u200b\u200c\u200d\u2060"  # byte order mark and zero-width characters, which editors leave
_LONGEST_LISTING = 200_000  # names of a folder that are looked through for a likely one
_OPEN_LISTINGS = 64


def address_scheme(written: str) -> str:
    """The scheme of a web or cloud address such as ``https`` or ``s3``; empty for a path or a ``file://`` URL."""
    found = _ADDRESS.match(written)
    return "" if found is None or found[1].lower() == "file" else found[1].lower()


def spellings(written: str) -> Iterator[str]:
    """What a written path may mean, the most literal first, each once.

    As it stands; without blanks around it; a ``file:`` URL's path, as it stands and percent-decoded; percent-decoded;
    with home folder and environment variables in place of ``~`` and ``$NAME``; all of these in Unicode's composed and
    decomposed form.

    Args:
        written: the path as the data set has it.

    Example:
        ``list(spellings("a%20b.png")) == ["a%20b.png", "a b.png"]``
    """
    given: dict[str, None] = dict.fromkeys((written, written.strip(), written.strip().strip(_UNSEEN).strip()))
    for spelling in tuple(given):
        if spelling[:5].lower() == "file:":
            given |= dict.fromkeys(_url_paths(spelling))
    if "%" in written:
        given |= dict.fromkeys(unquote(spelling) for spelling in tuple(given))
    if "~" in written or "$" in written:
        given |= dict.fromkeys(_expanded(spelling) for spelling in tuple(given))
    yield from given
    if not written.isascii() or "%" in written:
        for form in ("NFC", "NFD"):
            yield from (
                normalised for spelling in given if (normalised := unicodedata.normalize(form, spelling)) not in given
            )


def _expanded(written: str) -> str:
    """The path with home folder and environment variables put in; as written where the system cannot look them up."""
    try:
        return os.path.expanduser(os.path.expandvars(written))  # noqa: PTH111 - a user may have no home
    except ValueError:  # a zero byte, or half a surrogate pair
        return written


def _url_paths(url: str) -> list[str]:
    """Paths that a ``file:`` URL may mean: as RFC 8089 has it; relative, as Qwen's code reads it; a slash too few."""
    rest = url[len("file:") :]
    if not rest.startswith("//"):
        return [rest]
    rest = rest[2:]
    if rest.lower().startswith("localhost/"):
        rest = rest[len("localhost") :]
    return [rest] if rest.startswith("/") else [rest, f"/{rest}"]


def find_file(written: str, prefixes: Sequence[str]) -> str:
    """The file that a written path means.

    Args:
        written: the path as the data set has it.
        prefixes: folders, each with a slash at its end, that it may be relative to.

    Returns:
        The path of the file: the first spelling that names one, by the first folder; else, where the path has accents
        or other letters beyond ASCII, the only file whose names are the same text in another Unicode form. Empty if
        there is none.
    """
    for spelling in spellings(written):
        for file in _below(spelling, prefixes):
            if os.path.isfile(file):  # noqa: PTH113 - as the fast way does
                return file
    if not written.isascii() or "%" in written:
        for spelling in spellings(written):
            for file in _below(spelling, prefixes):
                found = _walk(file, _composed)
                if found and os.path.isfile(found):  # noqa: PTH113
                    return found
    return ""


def _below(path: str, prefixes: Sequence[str]) -> list[str]:
    plain = path[2:] if path.startswith("./") else path
    if not plain or "\0" in plain:
        return []
    return [plain] if plain.startswith("/") else [prefix + plain for prefix in prefixes]


def likely_cause(written: str, prefixes: Sequence[str]) -> str:
    """Why a path names no file, where a file that it nearly names is there; empty if nothing is near.

    Args:
        written: the path as the data set has it.
        prefixes: folders, each with a slash at its end, that it may be relative to.

    Example:
        ``it exists as 'imgs/Page.PNG': write it so``
    """
    for file in _below(written.strip(), prefixes):
        if os.path.isdir(file):  # noqa: PTH112
            return f"{shown(file)} is a folder, not a file: name the files in it"
        kind = special_kind(file)
        if kind:
            return f"it is {kind}: put a file there"
    drive = _DRIVE.match(written)
    if drive or "\\" in written:
        slashed = f"/{written[drive.end() :]}" if drive else written
        where = _nearest(slashed.replace("\\", "/"), prefixes)
        found = f"; it exists as {shown(where)!r}: write it so" if where else ": write it with /"
        return ("it is a path of Windows" if drive else "it has backslashes") + found
    where = _nearest(written, prefixes)
    return f"it exists as {shown(where)!r}: write it so" if where else ""


def _nearest(written: str, prefixes: Sequence[str]) -> str:
    """A path that nearly is the written one, as data could write it: other case, other suffix, fewer folders."""
    for spelling in spellings(written):
        for prefix in ("",) if spelling.startswith("/") else prefixes:
            for alike in (_composed, _caseless, _stem):
                found = _walk(prefix + spelling, alike)
                if found and os.path.isfile(found):  # noqa: PTH113
                    return found.removeprefix(prefix)
    for spelling in spellings(written):
        parts = [part for part in spelling.split("/") if part not in ("", ".")]
        for start in range(1, len(parts)):
            tail = "/".join(parts[start:])
            for prefix in prefixes:
                if prefix not in ("", "/") and os.path.isfile(prefix + tail):  # noqa: PTH113
                    return tail
    return ""


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    stem, dot, _ = _caseless(name).rpartition(".")
    return stem if dot and stem else _caseless(name)


def _walk(file: str, alike: Callable[[str], str]) -> str:
    """The path with each name that does not exist replaced by the only one there that is alike; empty if none is."""
    names = [name for name in file.split("/") if name not in ("", ".")]
    place = "/" if file.startswith("/") else "."
    for position, name in enumerate(names):
        if name == "..":
            place = os.path.join(place, name)  # noqa: PTH118
            continue
        here = f"{place.rstrip('/')}/{name}"
        if not os.path.exists(here):  # noqa: PTH110
            # Another suffix is a likely file, hardly a likely folder.
            same = _caseless if alike is _stem and position < len(names) - 1 else alike
            found = [other for other in _names(place) if same(other) == same(name)]
            if len(found) != 1:
                return ""
            here = f"{place.rstrip('/')}/{found[0]}"
        place = here
    return place


def _names(folder: str) -> tuple[str, ...]:
    """Names in a folder; none where there are so many that looking through them for each path takes too long."""
    try:
        return _listing(folder, Path(folder).stat().st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=_OPEN_LISTINGS)
def _listing(folder: str, changed_ns: int) -> tuple[str, ...]:
    try:
        with os.scandir(Path(folder)) as entries:
            names = []
            for entry in entries:
                names.append(entry.name)
                if len(names) > _LONGEST_LISTING:
                    return ()
            return tuple(names)
    except OSError:
        return ()
