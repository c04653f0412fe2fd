"""What this process knows of page files that it read through once.

Pages are told apart by the size and time of their files, and by their content where those changed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass

from rsgrpo.data.images.headers import ImageFacts
from rsgrpo.data.images.sources import image_stamp
from rsgrpo.types import ImageRef

Place = tuple[str, str, int, int]
"""Where a page lies: file or table, then column, row and index in a table."""

_SETTLED_NS = 2 * 10**9
"""Nanoseconds: a file that was written later than this before it was looked at may be written once more without another
size or time, as file systems round times, by 2 s at the worst."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownImage:
    """A page that was found to be whole.

    Attributes:
        stamp: size in bytes, and time of the last change in ns, of the file that the page lies in.
        digest: the digest of the image file's bytes, as :func:`content_digest` gives it.
        facts: what the header of the image says.
    """

    stamp: tuple[int, int]
    digest: str
    facts: ImageFacts


class KnownImages:
    """Whole pages by place and by content. Threads may use it at once."""

    def __init__(self) -> None:
        self._by_place: dict[Place, KnownImage] = {}
        self._by_content: dict[str, ImageFacts] = {}

    def facts(self, ref: ImageRef) -> ImageFacts | None:
        """What is known of a page whose file has not changed; None: it must be read."""
        known = self._by_place.get(place_of(ref))
        return known.facts if known is not None and known.stamp == image_stamp(ref) else None

    def facts_of(self, digest: str) -> ImageFacts | None:
        """What is known of an image of this content, wherever it was found; None: nothing."""
        return self._by_content.get(digest)

    def learn(self, ref: ImageRef, stamp: tuple[int, int] | None, digest: str, facts: ImageFacts) -> None:
        """Remember a page that was found to be whole.

        Args:
            ref: the image, which says where it lies.
            stamp: the stamp of its file (size and time), taken before it was read.
            digest: the digest of its content.
            facts: what is known of the image.
        """
        self._by_content[digest] = facts
        if stamp is not None and stamp == image_stamp(ref) and stamp[1] < time.time_ns() - _SETTLED_NS:
            self._by_place[place_of(ref)] = KnownImage(stamp=stamp, digest=digest, facts=facts)

    def add(self, images: Iterable[tuple[Place, KnownImage]]) -> None:
        """Add what an earlier process knew; what this one found out itself stays."""
        for place, known in images:
            self._by_place.setdefault(place, known)
            self._by_content.setdefault(known.digest, known.facts)

    def of(self, refs: Iterable[ImageRef]) -> dict[Place, KnownImage]:
        """What is known of pages, by place; those that are not known are left out."""
        places = (place_of(ref) for ref in refs)
        return {place: self._by_place[place] for place in places if place in self._by_place}


KNOWN_IMAGES = KnownImages()
"""What this process knows: whoever asks for a page's size profits from whoever looked at it first."""


def place_of(ref: ImageRef) -> Place:
    """Where a page lies, without what people call it."""
    if ref.parquet_file:
        return ref.parquet_file, ref.parquet_column, ref.parquet_row, ref.parquet_index
    return ref.file, "", 0, -1


def content_digest(data: bytes) -> str:
    """Name of a content: 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
