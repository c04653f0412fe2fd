"""Pages as a chat request carries them: read and scaled as everywhere here, as data URLs, the newest kept."""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import SKIP_ADVICE, load_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.types import ImageRef

_MAX_BYTES = 256 * 2**20
# Of a page of 1.5 megapixels PNG takes 114 ms at level 1, 518 ms at the usual 6; BMP, which packs nothing, 3 ms.
_COMPRESSION = 1
_READING_THREADS = 4

_Stamp = tuple[str, int, int]


class PageImages:
    """Reads pages and keeps them, so that a second question about the same pages finds them ready; for any threads.

    Args:
        rules: how pages are read.
        is_near: whether the server is one of ours on this machine: pages then go there unpacked, which saves time on
            both sides; else as PNG, which every server reads.
        max_bytes: how much is kept, in bytes.
    """

    def __init__(self, rules: ImageRules, *, is_near: bool = False, max_bytes: int = _MAX_BYTES) -> None:
        self._rules = rules
        self._is_near = is_near
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[_Stamp, str] = OrderedDict()
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(_READING_THREADS, "pages")  # no thread is started before it is needed

    def close(self) -> None:
        """End the threads that read pages."""
        self._readers.shutdown(wait=False)

    def read(self, images: Iterable[ImageRef]) -> None:
        """Read the pages that are not kept yet, several at a time, so that :meth:`url` finds them.

        Args:
            images: the pages.

        Raises:
            ImageError: a page cannot be read.
        """
        missing = [image for image in images if self._kept_url(_stamp(image)) is None]
        if len(missing) > 1:
            list(self._readers.map(self.url, missing))

    def url(self, image: ImageRef) -> str:
        """The address of a page: its pixels, without loss, in a data URL.

        Args:
            image: the page.

        Raises:
            ImageError: the page cannot be read.
        """
        stamp = _stamp(image)
        kept = self._kept_url(stamp)
        if kept is not None:
            return kept
        buffer = io.BytesIO()
        try:
            pixels = load_image(image, self._rules)
        except ImageError as error:
            raise ImageError(str(error).replace(SKIP_ADVICE, "")) from error  # who asks has no such setting
        if self._is_near:
            pixels.save(buffer, format="BMP")
        else:
            pixels.save(buffer, format="PNG", compress_level=_COMPRESSION)
        kind = "bmp" if self._is_near else "png"
        url = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
        if stamp is not None:
            self._keep(stamp, url)
        return url

    def _kept_url(self, stamp: _Stamp | None) -> str | None:
        with self._lock:
            if stamp is None or stamp not in self._kept:
                return None
            self._kept.move_to_end(stamp)
            return self._kept[stamp]

    def _keep(self, stamp: _Stamp, url: str) -> None:
        with self._lock:
            if stamp in self._kept or len(url) > self._max_bytes:
                return
            self._kept[stamp] = url
            self._num_bytes += len(url)
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= len(self._kept.popitem(last=False)[1])


def _stamp(image: ImageRef) -> _Stamp | None:
    """What changes where a page's file does; None: it is no file of its own."""
    if not image.file:
        return None
    try:
        status = Path(image.file).stat()
    except OSError:
        return None
    return image.file, status.st_size, status.st_mtime_ns
