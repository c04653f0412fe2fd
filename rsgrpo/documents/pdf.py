"""PDF files through pypdfium2, which only one thread of a process may use: outline, pixels and text of pages."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pypdfium2
from pypdfium2 import raw

from rsgrpo.config.documents import RenderSettings
from rsgrpo.data.images.kinds import describe_non_image
from rsgrpo.data.images.loading import MAX_ASPECT_RATIO
from rsgrpo.documents.records import DocumentError, PlacedWord
from rsgrpo.documents.stored_images import Pixels
from rsgrpo.errors import shown
from rsgrpo.types import Box

_POINTS_PER_INCH = 72.0
_END_MARK, _END_WITHIN = b"%%EOF", 2048  # the standard says the last 1,024 bytes; some servers append a little
_HEAD_BYTES = 4096
_MAX_OUTLINE_ENTRIES = 200_000  # an outline may lead in circles
_MAX_WORDS = 20_000  # of a page: more than anybody can read on one
_FINE = 10_000  # pdfium gives whole pixels; on a page of so many they are shares
_WHITE = (255, 255, 255, 255)
_FLAGS = raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER
_CODES = {raw.FPDF_ERR_FILE: "the file cannot be read", raw.FPDF_ERR_FORMAT: "its parts do not fit together"}
_HYPHEN_AT_LINE_END = "\ufffe"  # pdfium's sign for a hyphen at which a word was broken


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedPage:
    """The pixels and the text of a page.

    Attributes:
        pixels: the colours, [height, width, 3] uint8, red, green and blue.
        text: the text of the text layer; empty: the page has none.
        file: the bytes of an image file that holds exactly these pixels; empty: there is no such file yet.
        suffix: the suffix of that image file, with the dot; empty: there is no such file yet.
    """

    pixels: Pixels
    text: str = ""
    file: bytes = b""
    suffix: str = ""


def page_size(width: float, height: float, settings: RenderSettings) -> tuple[int, int]:
    """Calculate the width and height in pixels at which a page is rendered.

    Args:
        width: the width of the page, in points of 1/72 inch.
        height: the height of the page, in points of 1/72 inch.
        settings: the settings, of which ``dpi`` and ``max_pixels`` matter here.

    Returns:
        The width and the height in pixels; each is at least 1, and their product at most ``max_pixels``.

    Raises:
        DocumentError: the page has no area, or is a strip too long for the model to read.

    Example:
        A4, 595 × 842 points, has 1052 × 1489 pixels by default; a sheet of 200 × 200 inches 1252 × 1252.
    """
    if not (math.isfinite(width * height) and width > 0 and height > 0):
        raise DocumentError(f"its size is {width:g} × {height:g} points")
    scale = min(settings.most_dpi / _POINTS_PER_INCH, math.sqrt(settings.max_pixels / (width * height)))
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise DocumentError(
            f"it is a strip of {width:g} × {height:g} points, longer than {MAX_ASPECT_RATIO} to 1, which no model here "
            "reads; cut it into pages"
        )
    # 200 dpi of 8.5 inches are 1700 pixels, also where the product comes out a trace below.
    pixels = max(1, int(width * scale + 1e-6)), max(1, int(height * scale + 1e-6))
    if max(pixels) > MAX_ASPECT_RATIO * min(pixels):
        raise DocumentError(f"only {pixels[0]} × {pixels[1]} pixels are left of it at these dpi and max_pixels")
    return pixels


class PdfDocument:
    """An open PDF file.

    Args:
        path: the path of the file.
        settings: how pages are rendered.

    Raises:
        DocumentError: the file is encrypted, cut off, damaged, without pages, or not a PDF file.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, settings: RenderSettings) -> None:
        self._settings = settings
        _refuse_cut(path)
        try:
            self._pdf = pypdfium2.PdfDocument(path)
        except pypdfium2.PdfiumError as error:
            raise DocumentError(_reason(path)) from error
        self._pdf.init_forms()  # what people filled in is part of the page
        self.num_pages = len(self._pdf)

    def outline(self) -> tuple[tuple[int, str], ...]:
        """Return the page number, from 1, and the title of each outline entry with a page, in the order of pages."""
        found: list[tuple[int, str]] = []
        for count, entry in enumerate(self._pdf.get_toc()):
            if count == _MAX_OUTLINE_ENTRIES:
                break
            target = entry.get_dest()
            index = None if target is None else target.get_index()
            if index is None or not 0 <= index < self.num_pages:
                continue
            with suppress(UnicodeDecodeError):  # half a character
                title = " ".join(plain_text(entry.get_title()).split())
                found += [(index + 1, title)] if title else []
        return tuple(sorted(found, key=lambda entry: entry[0]))

    def page(self, number: int, *, with_text: bool = True) -> RenderedPage:
        """Render a page.

        Args:
            number: the number of the page, from 1 on.
            with_text: whether the text layer of the page is read as well.

        Raises:
            DocumentError: the page is missing or damaged in the file, or cannot be rendered.
        """
        try:
            page = self._pdf[number - 1]
        except pypdfium2.PdfiumError as error:
            raise DocumentError("it is missing or damaged in the file; save the PDF anew") from error
        try:
            width, height = page.get_size()
            size = page_size(width, height, self._settings)
            return RenderedPage(pixels=_pixels(page, size), text=_text(page) if with_text else "")
        except pypdfium2.PdfiumError as error:
            raise DocumentError(f"it cannot be rendered ({shown(error, 120)})") from error
        finally:
            page.close()

    def words(self, number: int) -> Iterator[PlacedWord]:
        """Read the words of a page's text layer with their places, at most 20,000.

        Args:
            number: the number of the page, from 1 on.

        Yields:
            The words, in the order of the text layer; none where the page has none.

        Raises:
            DocumentError: the page is missing or damaged in the file.
        """
        try:
            page = self._pdf[number - 1]
            layer = page.get_textpage()
        except pypdfium2.PdfiumError as error:
            raise DocumentError("it is missing or damaged in the file; save the PDF anew") from error
        word, boxes = "", list[Box]()
        num_words = 0
        for index in range(layer.count_chars() + 1):
            is_behind = index == layer.count_chars()
            character = " " if is_behind else layer.get_text_range(index, 1, errors="replace")
            if character.strip():
                word += character
                boxes.append(_place(page, layer.get_charbox(index)))
            elif word and num_words < _MAX_WORDS:
                num_words += 1
                yield PlacedWord(
                    text=plain_text(word),
                    box=Box(
                        left=min(box.left for box in boxes),
                        top=min(box.top for box in boxes),
                        right=max(box.right for box in boxes),
                        bottom=max(box.bottom for box in boxes),
                    ),
                )
                word, boxes = "", []

    def close(self) -> None:
        """Close the file."""
        self._pdf.close()


def _pixels(page: pypdfium2.PdfPage, size: tuple[int, int]) -> Pixels:
    """Render a page on white, with its annotations and filled-in forms: [height, width, 3] uint8."""
    width, height = size
    bitmap = pypdfium2.PdfBitmap.new_native(width, height, format=raw.FPDFBitmap_BGR, rev_byteorder=True)
    try:
        bitmap.fill_rect(_WHITE, 0, 0, width, height)
        place = (bitmap, page, 0, 0, width, height, 0, _FLAGS)
        raw.FPDF_RenderPageBitmap(*place)
        if page.formenv:
            raw.FPDF_FFLDraw(page.formenv, *place)
        pixels: Pixels = bitmap.to_numpy()  # of the bitmap's own memory, which stays as long as this does
        return pixels
    finally:
        bitmap.close()


def _place(page: pypdfium2.PdfPage, box: tuple[float, float, float, float]) -> Box:
    """Turn left, bottom, right and top of a character in the PDF's coordinates into its place on the rendered page."""
    left, bottom, right, top = box
    across, down = [], []
    for corner in ((left, top), (right, bottom)):
        found = ctypes.c_int(), ctypes.c_int()
        raw.FPDF_PageToDevice(page, 0, 0, _FINE, _FINE, 0, *corner, *found)  # heeds rotation and crop box
        across.append(min(1.0, max(0.0, found[0].value / _FINE)))
        down.append(min(1.0, max(0.0, found[1].value / _FINE)))
    return Box(left=min(across), top=min(down), right=max(across), bottom=max(down))


def _text(page: pypdfium2.PdfPage) -> str:
    try:
        layer = page.get_textpage()
    except pypdfium2.PdfiumError:
        return ""  # the picture is there all the same
    try:
        return plain_text(layer.get_text_range(errors="replace"))
    finally:
        layer.close()


def plain_text(text: str) -> str:
    """Clean a text so that UTF-8 can encode it, with ``\\n`` between lines and without control characters.

    Args:
        text: the text as the PDF library returns it.

    Example:
        ``plain_text("a\\r\\nb") == "a\\nb"``
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace(_HYPHEN_AT_LINE_END, "-")
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return (
        "".join(character for character in text if character >= " " or character in "\n\t")
        if not text.isprintable()
        else text
    )


def _refuse_cut(path: Path) -> None:
    """Refuse a file whose end is missing: pdfium would repair it and leave out the lost pages without a message."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if b"%PDF-" not in head:
            what, way_out = describe_non_image(head)
            raise DocumentError(f"it is {what}, not a PDF file; {way_out}")
        num_bytes = file.seek(0, 2)
        file.seek(max(0, num_bytes - _END_WITHIN))
        tail = file.read()
    if _END_MARK not in tail:
        raise DocumentError(
            f"it is cut off or damaged: no {_END_MARK.decode()} at its end, after {num_bytes:,} bytes; copy or "
            "download it again"
        )


def _reason(path: Path) -> str:
    # Of a document without pages pypdfium2 reports whatever went wrong before, with another document.
    document = raw.FPDF_LoadDocument(os.fsencode(path) + b"\0", None)
    if document:
        raw.FPDF_CloseDocument(document)
        return "it has no pages"
    code = raw.FPDF_GetLastError()
    if code == raw.FPDF_ERR_PASSWORD:
        return "it is encrypted and asks for a password; store a copy without one (qpdf --decrypt does that)"
    if code == raw.FPDF_ERR_SECURITY:
        return "it is encrypted in a way that pdfium does not know; store a copy without"
    return f"it is damaged or no PDF file (pdfium: {_CODES.get(code, code)}); save or download it again"
