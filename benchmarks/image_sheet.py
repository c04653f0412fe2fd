"""Draw ``docs/images/reading.png``: one page stored in many ways, as plain Pillow reads it and as rsgrpo does.

python benchmarks/image_sheet.py
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.types import ImageRef

SHEET = Path(__file__).resolve().parent.parent / "docs" / "images" / "reading.png"
WIDTH, HEIGHT = 150, 190
GAP, CAPTION, COLUMNS = 12, 34, 4


def drawn_image(scale: int = 1, *, is_transparent: bool = False) -> Image.Image:
    """A page with a heading, lines of text and a coloured chart."""
    image = Image.new("RGBA", (WIDTH * scale, HEIGHT * scale), (0, 0, 0, 0) if is_transparent else "white")
    draw = ImageDraw.Draw(image)
    big, small = ImageFont.load_default(17 * scale), ImageFont.load_default(9 * scale)
    draw.text((8 * scale, 6 * scale), "Page 7, upright", fill="black", font=big)
    for index in range(7):
        draw.text((8 * scale, (34 + 11 * index) * scale), "Revenue grew by 12 % in May.", fill=(40, 40, 40), font=small)
    for index, (colour, tall) in enumerate([("crimson", 30), ("seagreen", 48), ("royalblue", 22), ("orange", 60)]):
        left = (14 + 32 * index) * scale
        draw.rectangle([left, (180 - tall) * scale, left + 22 * scale, 180 * scale], fill=colour)
    return image


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    """A telephone's photo: stored so that only its EXIF orientation brings it upright."""
    stored_by = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(drawn_image().convert("RGB").transpose(stored_by[orientation]), "JPEG", exif=exif, quality=92)


def deep(kind: str) -> bytes:
    grey = np.asarray(drawn_image().convert("L"), dtype=np.float64) / 255
    if kind == "float":
        return encoded(Image.fromarray((grey * 3 - 1).astype(np.float32)), "TIFF")
    return encoded(Image.fromarray((grey * 60000).astype(np.uint16)), kind)


def scan(mode: str) -> bytes:
    """Twelve times the size, with lines one pixel thin below the heading, as 300 dpi scans have them."""
    image = drawn_image(12).convert("L")
    draw = ImageDraw.Draw(image)
    for top in range(34 * 12, HEIGHT * 12, 29):
        draw.line([0, top, WIDTH * 12, top], fill=0, width=3)
    return encoded(image.convert(mode), "PNG")


def half(fill: str) -> bytes:
    """A JPEG that lost its second half and kept its end marker."""
    data = encoded(drawn_image(3).convert("RGB"), "JPEG", quality=90)
    cut = int(len(data) * 0.6)
    return data[:cut] + (bytes(len(data) - cut - 2) if fill == "zeros" else b"") + b"\xff\xd9"


def with_profile() -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "x" * 2_000_000, zip=True)
    return encoded(drawn_image().convert("RGB"), "PNG", pnginfo=notes)


KINDS: dict[str, Callable[[], bytes]] = {
    "EXIF orientation 6": lambda: turned(6),
    "EXIF orientation 3": lambda: turned(3),
    "EXIF orientation 5, mirrored": lambda: turned(5),
    "RGBA, transparent paper": lambda: encoded(drawn_image(is_transparent=True), "PNG"),
    "LA, transparent paper": lambda: encoded(drawn_image(is_transparent=True).convert("LA"), "PNG"),
    "palette with transparency": lambda: encoded(drawn_image(is_transparent=True).quantize(32), "PNG"),
    "16-bit grey PNG": lambda: deep("PNG"),
    "16-bit grey TIFF": lambda: deep("TIFF"),
    "32-bit float TIFF, -1 to 2": lambda: deep("float"),
    "1-bit scan, made smaller": lambda: scan("1"),
    "palette scan, made smaller": lambda: scan("P"),
    "CMYK JPEG": lambda: encoded(drawn_image().convert("RGB").convert("CMYK"), "JPEG", quality=95),
    "JPEG cut, end marker kept": lambda: half("nothing"),
    "JPEG with a hole of zeros": lambda: half("zeros"),
    "PNG with a large text": with_profile,
    "plain RGB": lambda: encoded(drawn_image().convert("RGB"), "PNG"),
}


def note(text: str) -> Image.Image:
    """A tile that says why there is no picture."""
    tile = Image.new("RGB", (WIDTH, HEIGHT), (245, 238, 238))
    words, lines = text.split(), [""]
    for word in words:
        lines[-1:] = [f"{lines[-1]} {word}".strip()] if len(lines[-1] + word) < 24 else [lines[-1], word]
    ImageDraw.Draw(tile).multiline_text((8, 50), "\n".join(lines), fill=(140, 20, 20), font=ImageFont.load_default(11))
    return tile


def as_plain_pillow(data: bytes) -> Image.Image:
    """An image resized and then converted with plain Pillow, as many programs do."""
    try:
        image = Image.open(io.BytesIO(data))
        return image.resize(image.size if max(image.size) <= HEIGHT else (WIDTH, HEIGHT)).convert("RGB")
    except (OSError, ValueError):
        return note("not read: its text is too large for Pillow")


def as_rsgrpo(data: bytes, folder: Path) -> Image.Image:
    file = folder / "page"
    file.write_bytes(data)
    try:
        return load_image(ImageRef(path="page", file=str(file)), ImageRules(max_pixels=WIDTH * HEIGHT))
    except ImageError as error:
        return note("named: " + str(error).split(" is ", 1)[1].split(";")[0])


def draw_sheet() -> Image.Image:
    cell_width, cell_height = 2 * WIDTH + 3 * GAP, HEIGHT + CAPTION + GAP
    rows = math.ceil(len(KINDS) / COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell_width + GAP, rows * cell_height + GAP), (226, 226, 226))
    draw = ImageDraw.Draw(sheet)
    bold, plain = ImageFont.load_default(14), ImageFont.load_default(11)
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, make) in enumerate(KINDS.items()):
            left, top = index % COLUMNS * cell_width + GAP, index // COLUMNS * cell_height + GAP // 2
            data = make()
            draw.text((left, top), name, fill="black", font=bold)
            tiles = (("Pillow alone", as_plain_pillow(data)), ("rsgrpo", as_rsgrpo(data, Path(folder))))
            for column, (label, tile) in enumerate(tiles):
                shown = tile.copy()
                shown.thumbnail((WIDTH, HEIGHT))
                x = left + column * (WIDTH + GAP)
                draw.text((x, top + 18), label, fill=(90, 90, 90), font=plain)
                sheet.paste(shown, (x, top + CAPTION))
    return sheet


if __name__ == "__main__":
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet().quantize(128, dither=Image.Dither.NONE).save(SHEET, optimize=True)
    print(f"{SHEET.relative_to(SHEET.parent.parent.parent)}: {SHEET.stat().st_size} bytes")
