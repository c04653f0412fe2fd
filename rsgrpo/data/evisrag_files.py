"""Read and write data sets in EVisRAG's on-disk format; every defect is named before a worker starts.

Two layouts share one reader. *Train*: JSONL or JSON with ``prompt`` (ready text, one ``<image>`` an image),
``answer`` (a complete tagged gold response) and ``image`` (paths). *Test*: a folder with ``top3_test.jsonl``
whose lines hold ``qid``, ``query``, ``answer`` (accepted answers), ``image``, ``posImgs`` and
``is_sufficient``. Either may hold ``choices`` and ``boxes`` (``rsgrpo.data.gold_columns``), and ``page_numbers``, by
which texts call the images where a filter left pages out. Pages are files, or
rows of an ``images.parquet`` beside the data file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from rsgrpo.config import EVISRAG, DataConfig, ResponseFormat
from rsgrpo.data.file_bytes import DataError
from rsgrpo.data.files import IMAGE_TABLE, data_files
from rsgrpo.data.gold_columns import gold_columns
from rsgrpo.data.images.counts import ImageCounts, look_at_images
from rsgrpo.data.images.image_manifest import ImageManifest
from rsgrpo.data.media_store import MediaStore
from rsgrpo.data.readers.evisrag import evisrag_sample
from rsgrpo.data.readers.findings import TOO_DEEP, BadRecordError, Finding, Tally, short_report
from rsgrpo.data.readers.media import MediaFinder
from rsgrpo.data.readers.records import place_of, raw_records
from rsgrpo.data.readers.skipping import check_skipped
from rsgrpo.errors import shown
from rsgrpo.types import IMAGE_MARKER, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedData:
    """A data set that passed all checks.

    Attributes:
        samples: the samples, in the file's order.
        skipped: how many items were left out, by reason; empty unless ``data.on_bad_sample=skip``.
        num_mended: how many halves of surrogate pairs in its texts were replaced by U+FFFD.
        images: counts of its images by what reading changes about them; each image counts once.
    """

    samples: tuple[Sample, ...]
    skipped: Mapping[str, int]
    num_mended: int = 0
    images: ImageCounts = field(default_factory=ImageCounts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Problem:
    place: str
    reason: str
    detail: str


@dataclass(kw_only=True, slots=True)
class _Read:
    """The samples and problems that were read so far; ``places`` says of each sample where it stands."""

    samples: list[Sample] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    problems: list[_Problem] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    num_mended: int = 0


def load_samples(
    path: str,
    data: DataConfig,
    *,
    is_training: bool,
    check: Callable[[Sample], None] | None = None,
    looks_at_images: bool = True,
    response_format: ResponseFormat = EVISRAG,
) -> LoadedData:
    """Read a data set and check every item of it.

    Args:
        path: a JSONL, JSON or parquet file; a folder (EVisRAG-Test's, or the type of its first data file);
            or a data set on the hub. ``path@split`` picks a split, ``train`` if there is none.
        data: column names, image root and limits.
        is_training: too many images are then a defect; else the lowest ranked are left out.
        check: raises BadRecordError for a sample that lacks something else, such as a gold response.
        looks_at_images: whether images are looked at and judged; False: they are only looked for.
        response_format: the declared sections, by which a tagged answer is told from a plain one.

    Returns:
        The samples, and how many items were left out for which reason.

    Raises:
        DataError: there is no such data set, nothing in it, or (``data.on_bad_sample=reject``) any item
            with a defect: no JSON, missing or mistyped columns, ``<image>`` markers that do not match the
            images, pages that are missing, truncated or no images, too many images, an id twice; or (``skip``) more
            such items than ``data.max_skipped_frac`` allows.

    Example:
        ``load_samples("EVisRAG-Test-ChartQA", DataConfig(), is_training=False).samples[0].images[0].path``
        is ``"imgs/9.png"`` for a first line with ``"image": ["imgs/9.png", …]``.
    """
    files = data_files(path)
    root = Path(data.image_root) if data.image_root else files[0].parent
    manifest = ImageManifest(data.media_cache, [str(file.absolute()) for file in files])
    media = MediaFinder((root, files[0].parent), must_exist=True, store=MediaStore(data.media_cache))

    def sample_of(columns: dict[str, Any], default_id: str) -> Sample:
        sample = evisrag_sample(
            columns, default_id, data, media, is_training=is_training, response_format=response_format
        )
        if check:
            check(sample)
        return sample

    read = _Read()
    for file in files:
        _read_file(file, sample_of, read)
    problems, samples, places = read.problems, read.samples, read.places
    shown_images = {ref: None for sample in samples for ref in sample.images} if looks_at_images else {}
    broken, images = look_at_images(shown_images, data.image_rules)
    if looks_at_images:
        manifest.keep(shown_images)
    kept = []
    for sample, place in zip(samples, places, strict=True):
        detail = next((broken[ref] for ref in sample.images if ref in broken), "")
        if detail:
            problems.append(_Problem(place=place, reason="image", detail=detail))
        else:
            kept.append(sample)
    findings = _findings(problems)
    head = f"{shown(path)}: {{}} of {len(kept) + len(problems)} items cannot be used"
    if problems and (data.on_bad_sample == "reject" or not kept):
        advice = "repair them, or set data.on_bad_sample=skip to go on without them" if kept else "repair them"
        raise DataError(short_report(head.format(len(problems)), findings, advice))
    if not kept:
        raise DataError(f"{shown(path)} holds no items; give it at least one question")
    check_skipped(path, findings, len(kept) + len(problems), data.max_skipped_frac)
    return LoadedData(
        samples=tuple(kept),
        skipped={finding.reason: finding.count for finding in findings},
        num_mended=read.num_mended,
        images=images,
    )


def _read_file(file: Path, sample_of: Callable[[dict[str, Any], str], Sample], read: _Read) -> None:
    """Read a file, and add its samples to what was read before."""
    for index, raw in enumerate(raw_records(file, prefix="item")):
        place = place_of(file, raw, index)
        try:
            if isinstance(raw.value, BadRecordError):
                raise raw.value
            if not isinstance(raw.value, dict):
                raise BadRecordError("not JSON", f"expected a JSON object, got {type(raw.value).__name__}")
            try:
                sample = sample_of(raw.value, f"{file.stem}-{raw.line or index}")
            except RecursionError as error:
                raise BadRecordError("nested too deeply", TOO_DEEP) from error
            if sample.sample_id in read.seen:
                raise BadRecordError("id twice", f"the id {shown(sample.sample_id)!r} stands further up already")
        except BadRecordError as error:
            read.problems += [_Problem(place=place, reason=error.reason, detail=error.detail)] * error.num_records
            continue
        read.num_mended += raw.num_mended
        read.seen.add(sample.sample_id)
        read.samples.append(sample)
        read.places.append(place)


def _findings(problems: Sequence[_Problem]) -> tuple[Finding, ...]:
    found = Tally()
    for problem in problems:
        found.add(problem.reason, f"{problem.place}: {problem.detail}")
    return found.findings()


def split_markers(prompt: str, marker: str = IMAGE_MARKER) -> tuple[str | None, ...]:
    """Take a ready prompt apart at its ``<image>`` markers.

    Args:
        prompt: the ready text of the prompt.
        marker: the text that stands for an image.

    Returns:
        Each non-empty piece of text as it stands, and None for each image, in order.

    Example:
        ``split_markers("<image><image>\\nQ?") == (None, None, "\\nQ?")``
    """
    parts: list[str | None] = []
    for index, text in enumerate(prompt.split(marker)):
        if index:
            parts.append(None)
        if text:
            parts.append(text)
    return tuple(parts)


def write_evisrag(
    file: Path, samples: Sequence[Sample], images: Mapping[str, Image.Image], *, layout: str, as_table: bool
) -> None:
    """Write a data set in EVisRAG's on-disk format; whatever the folder holds beside it stays.

    Args:
        file: the JSONL file; pages go beside it, under the paths of the samples' ``ImageRef.path``.
        samples: the samples to write; ``metadata`` becomes further columns.
        images: every image by its path.
        layout: ``train`` (qid, query, prompt, answer = tagged gold, image) or ``test`` (qid, query, answer,
            gold_response, image, posImgs, is_sufficient).
        as_table: whether the images go into ``images.parquet``, as they are downloaded, instead of files.

    Raises:
        ValueError: ``layout`` is not known, or a page is missing in ``images``.
    """
    if layout not in ("train", "test"):
        raise ValueError(f"layout={layout!r} is not known; choose train or test")
    missing = {ref.path for sample in samples for ref in sample.images} - set(images)
    if missing:
        raise ValueError(f"there is no page for {sorted(missing)[0]!r} and {len(missing) - 1} more paths")
    file.parent.mkdir(parents=True, exist_ok=True)
    if as_table:
        _write_table(file.parent / IMAGE_TABLE, images)
    else:
        for path, image in images.items():
            (file.parent / path).parent.mkdir(parents=True, exist_ok=True)
            image.save(file.parent / path)
    with file.open("w", encoding="utf-8") as lines:
        for sample in samples:
            columns = _train_columns(sample) if layout == "train" else _test_columns(sample)
            columns |= gold_columns(sample.choices, sample.boxes, [ref.path for ref in sample.images])
            columns |= {"page_numbers": list(sample.page_numbers)} if sample.page_numbers else {}
            lines.write(json.dumps({**columns, **sample.metadata}, ensure_ascii=False) + "\n")


def _train_columns(sample: Sample) -> dict[str, Any]:
    return {
        "qid": sample.sample_id,
        "query": sample.question,
        "prompt": sample.prompt or IMAGE_MARKER * len(sample.images) + sample.question,
        "answer": sample.gold_response,
        "image": [ref.path for ref in sample.images],
    }


def _test_columns(sample: Sample) -> dict[str, Any]:
    paths = [ref.path for ref in sample.images]
    return {
        "qid": sample.sample_id,
        "query": sample.question,
        "answer": list(sample.answers),
        "gold_response": sample.gold_response,
        "image": paths,
        "posImgs": [paths[index] for index in sample.positive_images],
        "is_sufficient": sample.is_sufficient,
    }


def _write_table(file: Path, images: Mapping[str, Image.Image]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = []
    for image in images.values():
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data.append({"bytes": buffer.getvalue()})
    pq.write_table(pa.table({"image": data, "path": list(images)}), file)
