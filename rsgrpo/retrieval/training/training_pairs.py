"""Read what a page retriever is trained on: pairs of a question and the page that answers it.

Two kinds of files are read, and may be mixed (the format of each file is told by what it holds):

    VisRAG-Ret's parquet   ``query``, ``image`` (bytes and path) or ``text``, ``source``; ``metadata.json`` beside it
    JSON lines             ``query``, ``image`` or ``text``, and if wanted ``source``, ``negatives``, ``weight``

Images are looked at, and told apart by their content, but not kept: they are decoded when a batch needs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsgrpo.config import DataConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.file_bytes import DataError
from rsgrpo.data.files import data_files
from rsgrpo.data.images.counts import ImageCounts, look_at_images
from rsgrpo.data.images.image_manifest import ImageManifest
from rsgrpo.data.images.known_images import KNOWN_IMAGES, content_digest, place_of
from rsgrpo.data.images.sources import image_bytes
from rsgrpo.data.media_store import MediaStore
from rsgrpo.data.readers.findings import BadRecordError, Finding, Tally, short_report
from rsgrpo.data.readers.media import MediaFinder
from rsgrpo.data.readers.records import place_of as record_place
from rsgrpo.data.readers.records import raw_records
from rsgrpo.data.readers.skipping import check_skipped
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import FileError, read_json_object
from rsgrpo.io.ids import well_formed
from rsgrpo.text.control_tokens import control_token
from rsgrpo.types import ImageRef

LENGTH_FILE = "metadata.json"
"""Beside VisRAG's parquet: ``{"length": 122752}``, how many rows the folder holds."""

_MAX_WEIGHT = 1.0e6


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPage:
    """A page as a retriever is trained on it.

    Attributes:
        image: the reference to its image; None: the page is a text.
        text: its text; empty where it has an image.
        digest: the digest of the image file or of the text, 32 hexadecimal digits: pages of one digest are one page.
    """

    image: ImageRef | None
    text: str
    digest: str

    @property
    def name(self) -> str:
        """What messages call the page."""
        return shown(self.image.path if self.image is not None else self.text, 80)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPair:
    """A question and the page that answers it.

    Attributes:
        query: the text of the question, without an instruction.
        page: the page that answers it.
        source: the name of the data set that the pair is from; all pairs of a batch are of one source.
        negatives: pages that do not answer it, although they look as if they could.
        weight: how much the pair counts in the loss of its batch, above 0.
        place: the file and row that it stands in, for messages.
    """

    query: str
    page: TrainingPage
    source: str = ""
    negatives: tuple[TrainingPage, ...] = ()
    weight: float = 1.0
    place: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedPairs:
    """Pairs that passed all checks.

    Attributes:
        pairs: the pairs, in the order of the files.
        skipped: what was left out; empty unless ``data.on_bad_sample=skip``.
        images: counts of the images by what reading changes about them; each image counts once.
    """

    pairs: tuple[TrainingPair, ...]
    skipped: tuple[Finding, ...] = ()
    images: ImageCounts = field(default_factory=ImageCounts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A row of a file whose images have not been looked at; a page is a reference or a text."""

    query: str
    page: ImageRef | str
    source: str
    negatives: tuple[ImageRef | str, ...]
    weight: float
    place: str


def read_training_pairs(
    paths: Sequence[str],
    data: DataConfig,
    rules: ImageRules,
    *,
    tested_pages: Mapping[str, str] | None = None,
    check_query: Callable[[str], None] = lambda query: None,
) -> LoadedPairs:
    """Read training pairs and check every one of them.

    Args:
        paths: files, folders, patterns or data sets of the hub, each as
            :func:`rsgrpo.data.files.data_files` takes it. Images of JSON lines are relative to the folder of the file.
        data: the settings: where media are kept, and what becomes of bad rows.
        rules: how the images will be read.
        tested_pages: the names of pages, by digest, that must not be trained on, as they are tested on; a row with
            such a page counts as bad.
        check_query: raises BadRecordError for a question that the model cannot read.

    Returns:
        The pairs, in order, and what was left out.

    Raises:
        DataError: there are no such files, nothing in them, or (``data.on_bad_sample=reject``) a row with a defect: no
            JSON, an empty question, neither image nor text, an image that cannot be read, a page of the test set; or
            (``skip``) more such rows than ``data.max_skipped_frac`` allows.

    Example:
        ``read_training_pairs(["pairs.jsonl"], DataConfig(), ImageRules()).pairs[0].page.digest``
    """
    rows: list[_Row] = []
    found = Tally()
    num_bad = 0
    names: list[str] = []
    for path in paths:
        files = pair_files(path)
        names += [str(file.absolute()) for file in files]
        before = len(rows) + num_bad
        for file in files:
            num_bad += _read_file(file, data, check_query, rows, found)
        _check_length(files, len(rows) + num_bad - before)
    manifest = ImageManifest(data.media_cache, names)
    refs = dict.fromkeys(page for row in rows for page in (row.page, *row.negatives) if isinstance(page, ImageRef))
    broken, images = look_at_images(refs, rules)
    manifest.keep(refs)
    digests = image_digests(ref for ref in refs if ref not in broken)
    pairs: list[TrainingPair] = []
    for row in rows:
        try:
            pairs.append(_pair(row, digests, broken, tested_pages or {}))
        except BadRecordError as error:
            found.add(error.reason, f"{row.place}: {error.detail}")
            num_bad += 1
    title = ", ".join(paths)
    findings = found.findings()
    if num_bad and (data.on_bad_sample == "reject" or not pairs):
        advice = "repair them, or set data.on_bad_sample=skip to go on without them" if pairs else "repair them"
        head = f"{shown(title)}: {num_bad} of {len(pairs) + num_bad} training pairs cannot be used"
        raise DataError(short_report(head, findings, advice))
    if not pairs:
        raise DataError(f"{shown(title)} holds no training pairs; give it at least one question with its page")
    check_skipped(title, findings, len(pairs) + num_bad, data.max_skipped_frac)
    return LoadedPairs(pairs=tuple(pairs), skipped=findings, images=images)


def pair_files(path: str) -> list[Path]:
    """Find the files of training pairs.

    Args:
        path: a file, a folder, a pattern or a data set of the hub.

    Returns:
        The files, as :func:`rsgrpo.data.files.data_files` finds them; of a folder as VisRAG has it those of parquet,
        without the ``metadata.json`` beside them.

    Raises:
        DataError: there are none.
    """
    folder = Path(path)
    if folder.is_dir() and (folder / LENGTH_FILE).is_file() and any(folder.glob("*.parquet")):
        return data_files(f"{path}/*.parquet")
    return data_files(path)


def image_digests(refs: Iterable[ImageRef]) -> dict[ImageRef, str]:
    """Compute the digests of image files, by content; of those that were looked at before nothing is read.

    Args:
        refs: the images; each can be read.

    Returns:
        32 hexadecimal digits for each image.

    Raises:
        ImageError: an image is gone.
    """
    images = dict.fromkeys(refs)
    known = KNOWN_IMAGES.of(images)
    return {
        ref: known[place].digest if (place := place_of(ref)) in known else content_digest(image_bytes(ref))
        for ref in images
    }


def _read_file(file: Path, data: DataConfig, check_query: Callable[[str], None], rows: list[_Row], found: Tally) -> int:
    """Add the rows of a file to ``rows``, the others to ``found``; returns how many those are."""
    finder = MediaFinder((file.parent,), must_exist=True, store=MediaStore(data.media_cache))
    num_bad = 0
    for index, record in enumerate(raw_records(file, prefix="item")):
        place = record_place(file, record, index)
        try:
            if isinstance(record.value, BadRecordError):
                raise record.value
            if not isinstance(record.value, dict):
                raise BadRecordError("not JSON", f"expected a JSON object, got {type(record.value).__name__}")
            row = _row(record.value, finder, place)
            check_query(row.query)
            rows.append(row)
        except BadRecordError as error:
            found.add(error.reason, f"{place}: {error.detail}", error.num_records)
            num_bad += error.num_records
    return num_bad


def _row(columns: Mapping[str, Any], finder: MediaFinder, place: str) -> _Row:
    query = columns.get("query")
    if not isinstance(query, str):
        raise BadRecordError("no question", f"query is {query!r:.60}, expected the text of a question")
    query = well_formed(query)[0]
    if not query.strip():
        raise BadRecordError("empty question", "its query is empty: every page would fit it")
    token = control_token(query)
    if token:
        raise BadRecordError("text", f"its query holds the control token {token!r}; take it out")
    source, weight, negatives = columns.get("source"), columns.get("weight"), columns.get("negatives")
    if source is not None and not isinstance(source, str):
        raise BadRecordError("wrong type", f"source is {source!r:.60}, expected a name")
    if weight is None:
        weight = 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 < weight <= _MAX_WEIGHT:
        raise BadRecordError("weight", f"weight is {weight!r:.60}, expected a number above 0")
    if negatives is not None and not isinstance(negatives, list):
        raise BadRecordError("wrong type", f"negatives is {negatives!r:.60}, expected a list of pages")
    return _Row(
        query=query,
        page=_found_page(columns, finder),
        source=source or "",
        negatives=tuple(finder.find(value, f"negative {n}") for n, value in enumerate(negatives or (), start=1)),
        weight=float(weight),
        place=place,
    )


def _found_page(columns: Mapping[str, Any], finder: MediaFinder) -> ImageRef | str:
    image, text = columns.get("image"), columns.get("text")
    if image is not None:
        return finder.find(image, "its page")
    if not isinstance(text, str) or not text.strip():
        raise BadRecordError(
            "no page", f"it has neither image nor text; got the columns {shown(', '.join(map(str, columns)), 120)}"
        )
    token = control_token(text)
    if token:
        raise BadRecordError("text", f"its text holds the control token {token!r}; take it out")
    return well_formed(text)[0]


def _pair(
    row: _Row, digests: Mapping[ImageRef, str], broken: Mapping[ImageRef, str], left_out: Mapping[str, str]
) -> TrainingPair:
    def page(value: ImageRef | str) -> TrainingPage:
        if isinstance(value, str):
            return TrainingPage(image=None, text=value, digest=content_digest(value.encode()))
        if value in broken:
            raise BadRecordError("image", broken[value])
        return TrainingPage(image=value, text="", digest=digests[value])

    right = page(row.page)
    if right.digest in left_out:
        raise BadRecordError(
            "page of the test set",
            f"its page {right.name!r} (content {right.digest[:8]}) is {shown(left_out[right.digest], 60)!r} of the test"
            " set: whoever trains on it has seen the answer",
        )
    # What is the right page as well is no wrong one.
    negatives = tuple(negative for negative in map(page, row.negatives) if negative.digest != right.digest)
    return TrainingPair(
        query=row.query, page=right, source=row.source, negatives=negatives, weight=row.weight, place=row.place
    )


def _check_length(files: Sequence[Path], num_rows: int) -> None:
    """Refuse a folder that lacks rows which its ``metadata.json`` counts."""
    file = files[0].parent / LENGTH_FILE
    if not file.is_file() or any(other.parent != file.parent for other in files):
        return
    try:
        length = read_json_object(file).get("length")
    except FileError as error:
        raise DataError(f"{error}; download it again, or remove it") from error
    if isinstance(length, bool) or not isinstance(length, int | float) or not math.isfinite(length):
        return  # another program's metadata
    if num_rows != length:
        raise DataError(
            f"{shown(file.parent)} holds {num_rows:,} rows, and its {LENGTH_FILE} says {length:,}; download what is "
            f"missing, name single files, or remove {LENGTH_FILE}"
        )


def chosen_negatives(pair: TrainingPair, num_pages: int) -> tuple[TrainingPage, ...]:
    """Choose the hard negatives of a pair.

    Args:
        pair: the pair.
        num_pages: how many negatives every pair has.

    Returns:
        Its first negatives; those of a pair that has fewer come again, and one that has none has its own page, which
        counts once (:func:`rsgrpo.retrieval.training.contrastive_loss.pages_left_out`).

    Example:
        Negatives a and b, ``num_pages=3``: a, b, a.
    """
    given = pair.negatives or (pair.page,)
    return tuple(given[number % len(given)] for number in range(num_pages))
