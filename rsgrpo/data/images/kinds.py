"""What a file is that was given as an image and is none, in words, with the way out."""

from __future__ import annotations

from rsgrpo.errors import shown

_LOOKED_AT_BYTES = 2048
_SHOWN_CHARACTERS = 40

_AGAIN = "download it again"
_EXPORT = "save it as PNG or JPEG"
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer", "run git lfs pull"),
    (0, b"/annex/objects/", "a git-annex pointer", "run git annex get"),
    (0, b"%PDF", "a PDF document", "render its pages as PNG, with pdftoppm -png for one"),
    (0, b"%!PS", "a PostScript file", "render it as PNG"),
    (0, b"\xff\x0a", "a JPEG XL image, which is not read", _EXPORT),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image, which is not read", _EXPORT),
    (0, b"AT&TFORM", "a DjVu document", "render its pages as PNG, with ddjvu for one"),
    (0, b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it"),
    (0, b"Rar!", "a RAR archive", "unpack it"),
    (0, b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (0, b"PAR1", "a parquet table", "give the table as data, its rows hold the images"),
    (0, b"\x93NUMPY", "a NumPy array", _EXPORT),
    (0, b"\x89HDF", "an HDF5 file", _EXPORT),
    (0, b"\x80\x04\x95", "a pickle of Python", _EXPORT),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video", "give it as a video, or its frames as images"),
    (128, b"DICM", "a DICOM image, which is not read", _EXPORT),
    (8, b"AVI ", "an AVI video", "give it as a video, or its frames as images"),
)
_CUT = "is cut or damaged, or of a kind that is not read"
_IMAGES: tuple[tuple[bytes, str, str], ...] = (
    (b"\xff\xd8\xff", f"a JPEG image that {_CUT}", _AGAIN),
    (b"\x89PNG", f"a PNG image that {_CUT}", _AGAIN),
    (b"GIF8", f"a GIF image that {_CUT}", _AGAIN),
    (b"BM", f"a BMP image that {_CUT}", _AGAIN),
    (b"RIFF", f"a WebP image that {_CUT}", _AGAIN),
    (b"II*\0", f"a TIFF image that {_CUT} (such as 64-bit or coloured floats)", "save it as PNG"),
    (b"MM\0*", f"a TIFF image that {_CUT} (such as 64-bit or coloured floats)", "save it as PNG"),
    (b"II+\0", f"a TIFF image that {_CUT}", "save it as PNG"),
    (b"MM\0+", f"a TIFF image that {_CUT}", "save it as PNG"),
)
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_BASE64_STARTS = ("data:image", "iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")


def describe_non_image(data: bytes) -> tuple[str, str]:
    """What bytes are that no image reader takes.

    Args:
        data: the bytes of the file.

    Returns:
        What the bytes are, and what to do about it.

    Example:
        ``describe_non_image(b"%PDF-1.7 …")[0]`` is ``"a PDF document"``.
    """
    if not data:
        return "empty (0 bytes)", _AGAIN
    if not data.strip(b"\0"):
        return f"{len(data)} zero bytes", _AGAIN
    for offset, signature, what, way_out in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return what, way_out
    if data[4:8] == b"ftyp":
        return _boxed(data[8:12])
    for signature, what, way_out in _IMAGES:
        if data.startswith(signature):
            return what, way_out
    return _described_text(data[:_LOOKED_AT_BYTES])


def _boxed(brand: bytes) -> tuple[str, str]:
    if brand in _HEIC:
        return "a HEIC image, as iPhones take them, which is not read", "convert it to JPEG or PNG"
    if brand in (b"avif", b"avis"):
        return "an AVIF image that is cut, damaged or cannot be read here", "convert it to JPEG or PNG"
    return "an MP4 or QuickTime file", "give it as a video, or its frames as images"


def _described_text(head: bytes) -> tuple[str, str]:
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < _LOOKED_AT_BYTES else "ignore").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or sum(not character.isprintable() and not character.isspace() for character in text) > len(text) // 10:
        return f"not an image file (it starts with the bytes {head[:8].hex(' ')})", "replace it"
    lower = text.lower()
    start = shown(text, _SHOWN_CHARACTERS)
    if "<svg" in lower:
        return "an SVG drawing", "render it as PNG"
    if lower.startswith(("<!doctype html", "<html", "<head", "<body")):
        return f"not an image file but a web page (it starts with {start!r})", _AGAIN
    if text.startswith(_BASE64_STARTS):
        return "an image as base64 text", "decode it into a file, or put the text into the record itself"
    return f"not an image file but text (it starts with {start!r})", "replace it"
