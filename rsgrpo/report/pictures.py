"""Page images as data URIs, scaled so that the report stays small."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from rsgrpo.types import ImageRef

_BUDGET_BYTES = 4_500_000  # of base64 text; the whole report stays below 8 MB
_SIDES = (720, 480, 320, 200, 120, 64)  # tried from the largest until the budget holds
_JPEG_QUALITY = 78


def embed_pictures(images: Iterable[ImageRef], run_folder: Path) -> dict[ImageRef, str]:
    """Encode every image once.

    Args:
        images: pages, repeated ones count once.
        run_folder: where to look for an image whose recorded place is gone (a run folder that was moved).

    Returns:
        Data URI by image; images that cannot be read are left out.
    """
    opened: dict[ImageRef, Image.Image] = {}
    for image in dict.fromkeys(images):
        pixels = _open(image, run_folder)
        if pixels is not None:
            opened[image] = pixels
    encoded: dict[ImageRef, str] = {}
    for side in _SIDES:
        encoded = {image: _data_uri(pixels, side) for image, pixels in opened.items()}
        if sum(map(len, encoded.values())) <= _BUDGET_BYTES:
            break
    return encoded


def _open(image: ImageRef, run_folder: Path) -> Image.Image | None:
    data = _bytes(image, run_folder)
    if data is None:
        return None
    try:
        pixels = Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None  # the page says that the image is missing
    pixels.thumbnail((_SIDES[0], _SIDES[0]))
    return pixels


def _bytes(image: ImageRef, run_folder: Path) -> bytes | None:
    recorded = Path(image.parquet_file or image.file)
    file = _find(recorded, run_folder)
    if file is None:
        return None
    return _parquet_bytes(file, image.parquet_row) if image.parquet_file else file.read_bytes()


def _find(recorded: Path, run_folder: Path) -> Path | None:
    """The file where it was, or below the run folder by the longest matching end of its path."""
    if recorded.is_file():
        return recorded
    parts = recorded.parts[1:] if recorded.is_absolute() else recorded.parts
    candidates = (run_folder.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _parquet_bytes(file: Path, row: int) -> bytes | None:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file).slice(row, 1).to_pylist()
    cells = table[0].values() if table else ()
    for cell in cells:
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(content, bytes):
            return content
    return None


def _data_uri(pixels: Image.Image, side: int) -> str:
    small = pixels.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    # Small pages stay exact; photographs of pages are far smaller as JPEG.
    is_small = small.width * small.height <= 128 * 128
    if is_small:
        small.save(buffer, "PNG", optimize=True)
    else:
        small.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
