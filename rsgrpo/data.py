"""Read and write data sets in EVisRAG's on-disk format; every defect is named before a worker starts.

Two layouts share one reader. *Train*: JSONL or JSON with ``prompt`` (ready text, one ``<image>`` an image),
``answer`` (a complete tagged gold response) and ``image`` (paths). *Test*: a folder with ``top3_test.jsonl``
whose lines hold ``qid``, ``query``, ``answer`` (accepted answers), ``image``, ``posImgs`` and
``is_sufficient``. Either may hold ``choices`` and ``boxes`` (``rsgrpo.gold_columns``). Pages are files, or
rows of an ``images.parquet`` beside the data file.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from rsgrpo.config import DataConfig
from rsgrpo.data_files import IMAGE_TABLE, DataError, data_files, read_rows
from rsgrpo.gold_columns import gold_columns
from rsgrpo.image_bytes import ImageError
from rsgrpo.images import check_page
from rsgrpo.media_store import MediaStore
from rsgrpo.readers.evisrag import evisrag_sample
from rsgrpo.readers.findings import BadRecordError
from rsgrpo.readers.media import MediaFinder
from rsgrpo.types import IMAGE_MARKER, ImageRef, Sample

_SHOWN_PROBLEMS = 5  # enough to see a pattern; the message also gives the counts
_CHECK_THREADS = 8  # reading pages waits for the disk


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedData:
    """A data set that passed all checks.

    Attributes:
        samples: in the file's order.
        skipped: how many items were left out, by reason; empty unless ``data.on_bad_sample=skip``.
    """

    samples: tuple[Sample, ...]
    skipped: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Problem:
    place: str
    reason: str
    detail: str


def load_samples(
    path: str,
    data: DataConfig,
    *,
    is_training: bool,
    find_problem: Callable[[Sample], str] | None = None,
) -> LoadedData:
    """Read a data set and check every item of it.

    Args:
        path: a JSONL, JSON or parquet file; a folder (EVisRAG-Test's, or the type of its first data file);
            or a data set on the hub. ``path@split`` picks a split, ``train`` if there is none.
        data: column names, image root and limits.
        is_training: too many images are then a defect; else the lowest ranked are left out.
        find_problem: says what else a sample lacks (such as gold that a reward needs), empty if nothing.

    Returns:
        The samples, and how many were skipped for which reason.

    Raises:
        DataError: there is no such data set, nothing in it, or (``data.on_bad_sample=reject``) any item
            with a defect: no JSON, missing or mistyped columns, ``<image>`` markers that do not match the
            images, pages that are missing, truncated or no images, too many images, an id twice.

    Example:
        ``load_samples("EVisRAG-Test-ChartQA", DataConfig(), is_training=False).samples[0].images[0].path``
        is ``"imgs/9.png"`` for a first line with ``"image": ["imgs/9.png", …]``.
    """
    files = data_files(path)
    problems: list[_Problem] = []
    samples: list[Sample] = []
    places: list[str] = []
    root = Path(data.image_root) if data.image_root else files[0].parent
    pages = MediaFinder((root, files[0].parent), must_exist=True, store=MediaStore(data.media_cache))
    seen: set[str] = set()
    for row in (row for file in files for row in read_rows(file)):
        try:
            if row.columns is None:
                raise BadRecordError("not JSON", row.detail)
            sample = evisrag_sample(row.columns, row.default_id, data, pages, is_training=is_training)
            if sample.sample_id in seen:
                raise BadRecordError("id twice", f"the id {sample.sample_id!r} stands further up already")
            detail = find_problem(sample) if find_problem else ""
            if detail:
                raise BadRecordError("gold", detail)
        except BadRecordError as error:
            problems.append(_Problem(place=row.place, reason=error.reason, detail=error.detail))
            continue
        seen.add(sample.sample_id)
        samples.append(sample)
        places.append(row.place)
    broken = _broken_pages(samples)
    kept = []
    for sample, place in zip(samples, places, strict=True):
        detail = next((broken[ref] for ref in sample.images if ref in broken), "")
        if detail:
            problems.append(_Problem(place=place, reason="image", detail=detail))
        else:
            kept.append(sample)
    if problems and data.on_bad_sample == "reject":
        raise DataError(_report(path, problems, len(kept)))
    if not kept:
        raise DataError(
            _report(path, problems, 0) if problems else f"{path} holds no items; give it at least one question"
        )
    return LoadedData(samples=tuple(kept), skipped=dict(Counter(problem.reason for problem in problems)))


def split_markers(prompt: str, marker: str = IMAGE_MARKER) -> tuple[str | None, ...]:
    """Take a ready prompt apart at its ``<image>`` markers.

    Args:
        prompt: ready text.
        marker: what stands for an image.

    Returns:
        Non-empty text pieces as they stand, and None for each image, in order.

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
    file: Path, samples: Sequence[Sample], pages: Mapping[str, Image.Image], *, layout: str, as_table: bool
) -> None:
    """Write a data set in EVisRAG's on-disk format; whatever the folder holds beside it stays.

    Args:
        file: the JSONL file; pages go beside it, under the paths of the samples' ``ImageRef.path``.
        samples: what to write. ``metadata`` becomes further columns.
        pages: every page by its path.
        layout: ``train`` (qid, query, prompt, answer = tagged gold, image) or ``test`` (qid, query, answer,
            gold_response, image, posImgs, is_sufficient).
        as_table: put the pages into ``images.parquet``, as they are downloaded, instead of files.

    Raises:
        ValueError: ``layout`` is not known, or a page is missing in ``pages``.
    """
    if layout not in ("train", "test"):
        raise ValueError(f"layout={layout!r} is not known; choose train or test")
    missing = {ref.path for sample in samples for ref in sample.images} - set(pages)
    if missing:
        raise ValueError(f"there is no page for {sorted(missing)[0]!r} and {len(missing) - 1} more paths")
    file.parent.mkdir(parents=True, exist_ok=True)
    if as_table:
        _write_table(file.parent / IMAGE_TABLE, pages)
    else:
        for path, page in pages.items():
            (file.parent / path).parent.mkdir(parents=True, exist_ok=True)
            page.save(file.parent / path)
    with file.open("w", encoding="utf-8") as lines:
        for sample in samples:
            columns = _train_columns(sample) if layout == "train" else _test_columns(sample)
            columns |= gold_columns(sample.choices, sample.boxes, [ref.path for ref in sample.images])
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


def _write_table(file: Path, pages: Mapping[str, Image.Image]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = []
    for page in pages.values():
        buffer = io.BytesIO()
        page.save(buffer, "PNG")
        data.append({"bytes": buffer.getvalue()})
    pq.write_table(pa.table({"image": data, "path": list(pages)}), file)


def _report(path: str, problems: list[_Problem], num_good: int) -> str:
    counts = ", ".join(f"{count} × {reason}" for reason, count in Counter(p.reason for p in problems).most_common())
    shown = "\n".join(f"  {problem.place}: {problem.detail}" for problem in problems[:_SHOWN_PROBLEMS])
    more = len(problems) - _SHOWN_PROBLEMS
    return (
        f"{path}: {len(problems)} of {len(problems) + num_good} items cannot be used ({counts})\n{shown}"
        + (f"\n  … and {more} more" if more > 0 else "")
        + "\nrepair them, or set data.on_bad_sample=skip to go on without them"
    )


def _broken_pages(samples: list[Sample]) -> dict[ImageRef, str]:
    """What is wrong with which page; every page is looked at once."""
    pages = list({ref: None for sample in samples for ref in sample.images})

    def problem(ref: ImageRef) -> str:
        try:
            check_page(ref)
        except ImageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(_CHECK_THREADS) as threads:
        return {ref: detail for ref, detail in zip(pages, threads.map(problem, pages), strict=True) if detail}
