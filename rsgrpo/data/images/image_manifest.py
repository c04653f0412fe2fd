"""What was found out about a data set's pages, kept for the next start: whole pages are then told by ``stat`` alone.

It lies in ``data.media_cache``, where every run over the same data finds it: sweeps, resumed runs, the doctor. One that
is damaged, was written by other decoders, or is another data set's, counts for nothing and is written anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from rsgrpo.config.image_rules import READING_VERSION
from rsgrpo.data.images.headers import ImageFacts
from rsgrpo.data.images.known_images import KNOWN_IMAGES, KnownImage, Place, content_digest
from rsgrpo.data.images.loading import decoders_fingerprint
from rsgrpo.data.media_store import MediaStore, MediaStoreError
from rsgrpo.types import ImageRef

_FORMAT = 1
_GROWTH = 1.5  # times as many pages as at the last time: then it is worth while to write all of them again


class ImageManifest:
    """What is known of a data set's pages. Opening one tells this process what earlier ones knew.

    Args:
        media_cache: the folder of the media store, see ``DataConfig``.
        names: what makes the data set this one, such as the absolute paths of its files.

    Example:
        ::

            manifest = ImageManifest(data.media_cache, ["/data/train.jsonl"])
            broken, counts = look_at_images(refs, data.image_rules)
            manifest.keep(refs)
    """

    def __init__(self, media_cache: str, names: Sequence[str]) -> None:
        self._store = MediaStore(media_cache)
        self._key = "\n".join(["pages", *names])
        self._kept = self._read()
        self._num_looked_at = len(self._kept)
        KNOWN_IMAGES.add(self._kept.items())

    def keep(self, refs: Iterable[ImageRef]) -> None:
        """Write down what is known of these pages, beside what was kept before.

        A folder that cannot be written costs the next start its time, but not this run.

        Args:
            refs: the images; one may stand there more than once.
        """
        images = dict.fromkeys(refs)
        self._num_looked_at = max(self._num_looked_at, len(images))
        known = KNOWN_IMAGES.of(images)
        if all(self._kept.get(place) == image for place, image in known.items()):
            return
        self._kept = {**self._read(), **self._kept, **known}  # another run may have added to it meanwhile
        with suppress(MediaStoreError):
            self._store.keep_note(self._key, _document(self._kept))

    def keep_sometimes(self, refs: Collection[ImageRef]) -> None:
        """Write as :meth:`keep` does, once new images are so many that reading them cost far more than writing all.

        Args:
            refs: all pages that were looked at up to now.
        """
        if len(refs) >= _GROWTH * self._num_looked_at:
            self.keep(refs)

    def _read(self) -> dict[Place, KnownImage]:
        try:
            return _images(self._store.note(self._key))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return {}


def _reading() -> str:
    return f"{_FORMAT}/{READING_VERSION}/{decoders_fingerprint()}"


def _document(images: dict[Place, KnownImage]) -> dict[str, object]:
    """The manifest as JSON can hold it; few images differ in their facts, so that those are numbered."""
    numbers: dict[ImageFacts, int] = {}
    rows = [
        [*place, *image.stamp, image.digest, numbers.setdefault(image.facts, len(numbers))]
        for place, image in images.items()
    ]
    body = json.dumps({"facts": [dataclasses.astuple(facts) for facts in numbers], "pages": rows})
    return {"reading": _reading(), "digest": content_digest(body.encode()), "body": body}


def _images(document: object) -> dict[Place, KnownImage]:
    """The images of a document of :func:`_document`; an exception, or none, where it is something else."""
    if not isinstance(document, dict) or document["reading"] != _reading():
        return {}
    if content_digest(document["body"].encode()) != document["digest"]:
        return {}
    body = json.loads(document["body"])
    names = [field.name for field in dataclasses.fields(ImageFacts)]
    facts = [ImageFacts(**dict(zip(names, values, strict=True))) for values in body["facts"]]
    return {
        (file, column, row, index): KnownImage(stamp=(num_bytes, changed_ns), digest=digest, facts=facts[number])
        for file, column, row, index, num_bytes, changed_ns, digest, number in body["pages"]
    }
