"""Images of pages for the browser: as they are stored, and small ones for lists."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from starlette.responses import FileResponse, Response

from recipes.serving.refusals import RefusedError
from rsgrpo.retrieval.index.page_index import IndexedPage

THUMBNAIL_PIXELS = 320
"""The longer side of a small image, in pixels."""

_CACHE_SECONDS = 3600
_GONE = "the image of this page is gone; add its document again"
_KEPT_THUMBNAILS = 512  # of some 20 KB each


def image_reply(page: IndexedPage, *, is_small: bool) -> Response:
    """Make the reply that holds a page's image; takes a while where it is made small.

    Args:
        page: the page.
        is_small: whether a small image is wanted.

    Raises:
        RefusedError: there is no image file, or it cannot be read.
    """
    path = Path(page.image_path)
    if not page.image_path or not path.is_file():
        raise RefusedError(_GONE, 404)
    # Private: another visitor of the same browser may not see it.
    headers = {"Cache-Control": f"private, max-age={_CACHE_SECONDS}"}
    if is_small:
        return Response(_thumbnail(str(path), page.sha256), media_type="image/jpeg", headers=headers)
    kind = "image/jpeg" if path.suffix.lower() in (".jpg", ".jpeg") else "image/png"
    return FileResponse(path, media_type=kind, headers=headers)


@lru_cache(maxsize=_KEPT_THUMBNAILS)
def _thumbnail(path: str, sha256: str) -> bytes:
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    except (UnidentifiedImageError, OSError) as error:
        raise RefusedError(_GONE, 404) from error
    output = io.BytesIO()
    small.save(output, "JPEG", quality=80)
    return output.getvalue()
