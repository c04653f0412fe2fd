"""Mine the hard negatives of training pairs, and write the pairs with them as JSON lines.

    pairs -> every page once into an index -> mine_negatives -> pairs with negatives -> JSON lines

An image that lies in a file of its own is named by its path relative to the JSON lines; one that lies in a table is
written beside them, so that the lines can be read without the data set that they came from.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rsgrpo.data.images.sources import image_bytes
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import replacing
from rsgrpo.retrieval.embedders.embedder import Embedder
from rsgrpo.retrieval.index.page_index import IndexedPage, PageIndex
from rsgrpo.retrieval.training.mining import MiningError, MiningReport, MiningRules, mine_negatives, mining_report
from rsgrpo.retrieval.training.training_pairs import TrainingPage, TrainingPair
from rsgrpo.types import ImageRef

IMAGES_FOLDER = "imgs"
"""Name of the folder, beside the JSON lines, with images that did not lie in files of their own."""

_PAGES_AT_ONCE = 256  # embedded between two calls of ``on_progress``
_PAGES_A_SAVE = 16_384  # a save writes all vectors, so that many small ones would take longer than embedding
_DIGEST = re.compile(r"[0-9a-f]{32}")  # the id of a page of pairs
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp"}


def index_pages(
    pairs: Sequence[TrainingPair],
    embedder: Embedder,
    index: PageIndex,
    *,
    is_kept: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Embed every page of training pairs once, and add it to an index under its digest.

    Args:
        pairs: the pairs; pages that the index has already are not embedded again.
        embedder: the embedder that makes the vectors.
        index: the index, open for writing.
        is_kept: whether the index is saved from time to time and at the end, so that a run that was killed goes on.
        on_progress: told how many pages are embedded, and how many there are to embed.

    Raises:
        MiningError: a page is a text: embedders of pages read images; or the index holds pages of documents, among
            which pages of pairs would be found from then on.
        EmbedderMismatchError: another embedder made the index.
        EmbeddingError: a page is too long for the model, or its vector is not finite.
        ImageError: an image cannot be read.
        PageIndexError: the index was opened for reading, or cannot be saved.
    """
    index.identity.check(embedder.identity, index.name)
    there = {page.page_id for page in index.pages()}
    other = next((page_id for page_id in there if not _DIGEST.fullmatch(page_id)), None)
    if other is not None:
        raise MiningError(
            f"{index.name} holds pages of documents, such as {shown(other, 80)!r}, which searches find: pages of "
            "training pairs do not belong among them; name a folder of their own"
        )
    wanted: dict[str, ImageRef] = {}
    for pair in pairs:
        if pair.page.image is None:
            raise MiningError(f"{pair.place or 'a pair'}: its page is a text; leave it out, negatives are images")
        if pair.page.digest not in there:
            wanted.setdefault(pair.page.digest, pair.page.image)
    digests = list(wanted)
    num_saved = 0
    for start in range(0, len(digests), _PAGES_AT_ONCE):
        some = digests[start : start + _PAGES_AT_ONCE]
        pages = [IndexedPage(page_id=digest, document=wanted[digest].path or digest, page_number=1) for digest in some]
        index.add(pages, embedder.embed_pages([wanted[digest] for digest in some]))
        num_done = start + len(some)
        if is_kept and (num_done - num_saved >= _PAGES_A_SAVE or num_done == len(digests)):
            index.save()
            num_saved = num_done
        if on_progress:
            on_progress(num_done, len(digests))


def with_mined_negatives(
    pairs: Sequence[TrainingPair], embedder: Embedder, index: PageIndex, rules: MiningRules
) -> tuple[list[TrainingPair], MiningReport]:
    """Give every training pair the hard negatives that its question has in an index.

    Args:
        pairs: the pairs, at least one; negatives that they have already are replaced.
        embedder: the embedder that made the index.
        index: the index that :func:`index_pages` filled.
        rules: which pages become negatives.

    Returns:
        The pairs in the same order, with their negatives, best first; and what was found, in numbers.

    Raises:
        MiningError: a page of a pair is not in the index.
        EmbedderMismatchError: another embedder made the index.
    """
    page_of: dict[str, TrainingPage] = {pair.page.digest: pair.page for pair in pairs}
    mined = mine_negatives([pair.query for pair in pairs], [pair.page.digest for pair in pairs], embedder, index, rules)
    found = [
        # An index that was kept may hold pages that the pairs no longer have.
        tuple(page_of[page.page.page_id] for page in question.negatives if page.page.page_id in page_of)
        for question in mined
    ]
    mined_pairs = [dataclasses.replace(pair, negatives=negatives) for pair, negatives in zip(pairs, found, strict=True)]
    return mined_pairs, mining_report(mined)


def write_training_pairs(file: Path, pairs: Sequence[TrainingPair]) -> None:
    """Write training pairs as JSON lines; the file appears all at once, images in ``imgs`` beside it before it does.

    Args:
        file: the file to write; its folder is made if need be.
        pairs: the pairs to write.

    Raises:
        OSError: the disk is full, or there is no permission.
        ImageError: an image that must be copied cannot be read.

    Example:
        A line is ``{"query": "Who signed?", "image": "imgs/1.png", "source": "letters", "negatives": ["imgs/7.png"],
        "weight": 1.0}``.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}

    def name(page: TrainingPage) -> str:
        if page.digest not in written:
            written[page.digest] = _written_image(page, file.parent)
        return written[page.digest]

    with replacing(file) as lines:
        for pair in pairs:
            row: dict[str, object] = {"query": pair.query}
            if pair.page.image is None:
                row["text"] = pair.page.text
            else:
                row["image"] = name(pair.page)
            if pair.source:
                row["source"] = pair.source
            if pair.negatives:
                row["negatives"] = [name(page) for page in pair.negatives]
            row["weight"] = pair.weight
            lines.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def _written_image(page: TrainingPage, folder: Path) -> str:
    """Name an image relative to a folder, and write it there if it lies in no file of its own."""
    assert page.image is not None, "a text has no image to write"
    # A file that the data set does not name lies in the cache of media, which may be emptied.
    if page.image.file and Path(page.image.file).name == Path(page.image.path).name:
        return os.path.relpath(page.image.file, folder.absolute())
    content = image_bytes(page.image)
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if content.startswith(start)), "")
    name = f"{IMAGES_FOLDER}/{page.digest}{suffix}"
    with replacing(folder / name) as image:
        image.write(content)
    return name
