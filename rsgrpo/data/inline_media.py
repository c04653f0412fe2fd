"""Images and videos that stand in a data set as text: data URIs and base64."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

MAX_INLINE_BYTES = 64 << 20
"""The most bytes of an image or video that stands in a record as text; a larger one belongs in a file of its own."""

_LONGEST_PATH = 4096  # PATH_MAX of Linux: a longer text is no path
_HEAD_CHARACTERS = 64  # 48 bytes: more than any format needs to be known by
_SHORTEST_IMAGE = 40  # characters of base64; the smallest GIF has 35 bytes
_DATA_URI = re.compile(r"data:([^,]{0,500}?)(;\s*base64\s*)?,|((?:[\w.+-]+/[\w.+-]+;)?)(base64\s*[,:])", re.IGNORECASE)
"""A data URI, or what is left of one that lost its beginning."""
_BYTES_LITERAL = re.compile(r"""b(['"])(.*)\1""", re.DOTALL)
_SPACE = re.compile(r"(?:\s|\\[nr])+")  # also line ends that were escaped twice
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_URL_SAFE = str.maketrans("-_", "+/")

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF87a", ".gif"),
    (b"GIF89a", ".gif"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"II+\0", ".tif"),
    (b"MM\0+", ".tif"),
    (b"\0\0\0\x0cjP  ", ".jp2"),
    (b"\xff\x4f\xff\x51", ".j2k"),
    (b"\x1a\x45\xdf\xa3", ".mkv"),
)
_STILL_BRANDS = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"hevc", b"heim", b"heis")
_RIFF_KINDS = {b"WEBP": ".webp", b"AVI ": ".avi"}

INLINE_STARTS = (
    "iVBOR",
    "/9j/",
    "R0lGOD",
    "UklGR",
    "Qk",
    "SUkq",
    "TU0A",
    "AAAA",
    "GkXf",
    "_9j_",
    "/0//",
    "data:",
    "base64",
)
"""How data URIs and the base64 of images and videos begin: a path that begins otherwise and is short is a path."""


class InlineMediaError(ValueError):
    """A text is meant to be an image or video but cannot be read as one; the message is a phrase about it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InlineMedia:
    """An image or video that stood in a text.

    Attributes:
        data: the bytes of the image's or video's file.
        suffix: the suffix of such a file, by its content, such as ``.png``; empty where the content is not known.
        kind: how it stood in the text: ``data URI`` or ``base64``.
    """

    data: bytes
    suffix: str
    kind: str


def media_suffix(data: bytes) -> str:
    """Suffix of an image or video file by its first bytes; empty where they are not known."""
    for signature, suffix in _SIGNATURES:
        if data.startswith(signature):
            return suffix
    if data[:4] == b"RIFF":
        return _RIFF_KINDS.get(data[8:12], "")
    if data[4:8] == b"ftyp":
        return ".avif" if data[8:12] in _STILL_BRANDS else ".mp4"
    # "BM" alone would be too little: the file's size, and zeros where the format has them.
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return ".bmp"
    return ""


def inline_media(text: str) -> InlineMedia | None:
    """The image or video in a text that may as well be a path.

    A data URI may have parameters, and may be percent-encoded in place of base64. Bare base64 is known by what
    it holds: all of it must decode, and its bytes must start as an image or video does. Line breaks, missing
    padding, the URL-safe alphabet and Python's ``b'…'`` around it do not matter.

    Args:
        text: the text as the data set writes it.

    Returns:
        The image or video in the text; None if the text is to be taken for a path.

    Raises:
        InlineMediaError: the text begins as an image but cannot be decoded, is too large, or is too long for a path.

    Example:
        ``inline_media("data:image/gif;base64,R0lGODlhAQABAAAAACw=").data[:6] == b"GIF89a"``
    """
    stripped = text.strip()
    found = _DATA_URI.match(stripped)
    if found:
        return _from_uri(stripped, found)
    if stripped[:5].lower() == "data:":
        raise InlineMediaError(f"{text[:40]!r}… is a data URI without the comma in front of its data")
    literal = _BYTES_LITERAL.fullmatch(stripped)
    if literal:
        stripped = literal[2]
    if len(stripped) >= _SHORTEST_IMAGE and media_suffix(_head(stripped)):
        data = _decoded(stripped)
        if data is not None:
            return InlineMedia(data=data, suffix=media_suffix(data), kind="base64")
        if len(stripped) > _LONGEST_PATH // 16:
            raise InlineMediaError(
                f"{text[:20]!r}… ({len(text)} characters) begins as an image in base64 but is not whole or has foreign "
                "characters; write it anew"
            )
    if len(text) > _LONGEST_PATH:
        raise InlineMediaError(
            f"{text[:40]!r}… ({len(text)} characters) is too long for a path and no image or video in base64"
        )
    return None


def base64_bytes(text: str) -> bytes:
    """The bytes of a text that must be base64, or a data URI.

    Raises:
        InlineMediaError: the text is neither base64 nor a data URI, or too large.
    """
    stripped = text.strip()
    found = _DATA_URI.match(stripped)
    if found:
        return _from_uri(stripped, found).data
    data = _decoded(stripped)
    if data is None:
        raise InlineMediaError(f"{text[:20]!r}… ({len(text)} characters) is not base64")
    return data


def check_inline_size(num_bytes: int) -> None:
    """Refuse what is too large for a record.

    Raises:
        InlineMediaError: the number of bytes is larger than ``MAX_INLINE_BYTES``.
    """
    if num_bytes > MAX_INLINE_BYTES:
        raise InlineMediaError(
            f"it takes {num_bytes / (1 << 20):.0f} MiB within its record, more than {MAX_INLINE_BYTES >> 20}; write it "
            "into a file and name the file's path"
        )


def _from_uri(text: str, found: re.Match[str]) -> InlineMedia:
    start = found.end()
    is_base64 = bool(found[2] or found[4])
    check_inline_size((len(text) - start) * 3 // 4 if is_base64 else len(text) - start)
    kind = (found[1] or found[3] or "").split(";")[0].strip().lower()
    if is_base64:
        payload = text[start:]
        data = _decoded(unquote_to_bytes(payload).decode("latin-1") if "%" in payload else payload)
        if data is None:
            raise InlineMediaError(
                f"the data URI {text[:40]!r}… ({len(text)} characters) is not whole or not base64; write it anew"
            )
    else:
        data = unquote_to_bytes(text[start:])
    if not data:
        raise InlineMediaError(f"the data URI {text[:60]!r} is empty")
    if kind == "image/svg+xml":
        raise InlineMediaError(f"the data URI {text[:40]!r}… is an SVG drawing; render it to PNG")
    return InlineMedia(data=data, suffix=media_suffix(data), kind="data URI")


def _head(text: str) -> bytes:
    """The first bytes of a text in base64; empty if it does not begin as base64."""
    head = _SPACE.sub("", text[: 2 * _HEAD_CHARACTERS])[:_HEAD_CHARACTERS].rstrip("=").translate(_URL_SAFE)
    if not _BASE64.fullmatch(head):
        return b""
    return base64.b64decode(head[: len(head) // 4 * 4])


def _decoded(text: str) -> bytes | None:
    """All of a text in base64, whatever its alphabet, padding and line breaks; None if it is not."""
    check_inline_size(len(text) * 3 // 4)
    plain = _SPACE.sub("", text).translate(_URL_SAFE)
    if not _BASE64.fullmatch(plain):
        return None
    plain = plain.rstrip("=")
    if len(plain) % 4 == 1:
        return None
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        return None
