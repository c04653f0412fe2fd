"""Read and write data sets in EVisRAG's on-disk format; every defect is named before a worker starts.

Two layouts share one reader. *Train*: JSONL or JSON with ``prompt`` (ready text, one ``<image>`` an image),
``answer`` (a complete tagged gold response) and ``image`` (paths). *Test*: a folder with ``top3_test.jsonl``
whose lines hold ``qid``, ``query``, ``answer`` (accepted answers), ``image``, ``posImgs`` and
``is_sufficient``. Pages are files, or rows of an ``images.parquet`` beside the data file.
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
from rsgrpo.data_files import IMAGE_TABLE, DataError, Row, data_files, read_rows
from rsgrpo.images import ImageError, check_page, table_rows
from rsgrpo.sections import parse_response
from rsgrpo.text import is_refusal
from rsgrpo.types import IMAGE_MARKER, ImageRef, Sample

_SHOWN_PROBLEMS = 5  # enough to see a pattern; the message also gives the counts
_CHECK_THREADS = 8  # reading pages waits for the disk
_SUFFICIENT_COLUMN = "is_sufficient"
_POSITIVE_COLUMN = "posImgs"


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


class _BadItemError(Exception):
    """One item cannot be used; caught where problems are counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


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
    pages = _Pages(files[0].parent, data.image_root)
    seen: set[str] = set()
    for row in (row for file in files for row in read_rows(file)):
        try:
            sample = _sample(row, data, pages, is_training=is_training)
            if sample.sample_id in seen:
                raise _BadItemError("id twice", f"the id {sample.sample_id!r} stands further up already")
            detail = find_problem(sample) if find_problem else ""
            if detail:
                raise _BadItemError("gold", detail)
        except _BadItemError as error:
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


def split_markers(prompt: str) -> tuple[str | None, ...]:
    """Take a ready prompt apart at its ``<image>`` markers.

    Args:
        prompt: ready text.

    Returns:
        Non-empty text pieces as they stand, and None for each image, in order.

    Example:
        ``split_markers("<image><image>\\nQ?") == (None, None, "\\nQ?")``
    """
    parts: list[str | None] = []
    for index, text in enumerate(prompt.split(IMAGE_MARKER)):
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


def _sample(row: Row, data: DataConfig, pages: _Pages, *, is_training: bool) -> Sample:
    if row.columns is None:
        raise _BadItemError("not JSON", row.detail)
    columns = dict(row.columns)
    sample_id = columns.pop(data.id_column, row.default_id)
    if isinstance(sample_id, bool) or not isinstance(sample_id, (str, int)):
        raise _BadItemError("wrong type", f"{data.id_column} must be text or a whole number, got {sample_id!r}")
    question = _text(columns, data.question_column)
    prompt = _text(columns, data.prompt_column)
    if not question and not prompt:
        raise _BadItemError(
            "missing column",
            f"it has neither {data.question_column!r} nor {data.prompt_column!r} (it has {', '.join(row.columns)}); "
            "set data.question_column or data.prompt_column",
        )
    paths = _texts(columns, data.image_column, "data.image_column")
    if not paths:
        raise _BadItemError("image", "it has no images")
    num_markers = prompt.count(IMAGE_MARKER)
    if prompt and num_markers != len(paths):
        raise _BadItemError(
            "markers",
            f"its prompt has {num_markers} {IMAGE_MARKER} markers, but it lists {len(paths)} images; each needs one",
        )
    if len(paths) > data.max_images:
        if is_training:
            raise _BadItemError(
                "too many images", f"it has {len(paths)} images, more than data.max_images={data.max_images}"
            )
        paths = paths[: data.max_images]
        pieces = prompt.split(IMAGE_MARKER)
        prompt = IMAGE_MARKER.join(pieces[: data.max_images + 1]) + "".join(pieces[data.max_images + 1 :])
    answers, gold = _answers(columns, data)
    positive = columns.pop(_POSITIVE_COLUMN, None) or ()
    return Sample(
        sample_id=str(sample_id),
        question=question,
        prompt=prompt,
        images=tuple(pages.find(path) for path in paths),
        answers=answers,
        gold_response=gold,
        is_sufficient=_is_sufficient(columns, answers if gold else ()),
        positive_images=tuple(index for index, path in enumerate(paths) if path in positive),
        metadata={
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            for name, value in columns.items()
        },
    )


def _answers(columns: dict[str, Any], data: DataConfig) -> tuple[tuple[str, ...], str]:
    """Accepted answers and the tagged gold response; a tagged ``answer`` is both."""
    gold = _text(columns, data.gold_column)
    if isinstance(columns.get(data.answer_column), str):
        text = _text(columns, data.answer_column)
        answer = parse_response(text).content("answer")
        if not gold and (answer is not None or "<evidence>" in text):
            return (() if answer is None else (answer.strip(),)), text
        return (text,), gold
    return tuple(_texts(columns, data.answer_column, "data.answer_column")), gold


def _is_sufficient(columns: dict[str, Any], gold_answers: tuple[str, ...]) -> bool:
    """What the data set says; a training set does not say it, but its gold refuses."""
    value = columns.pop(_SUFFICIENT_COLUMN, None)
    if value is None:
        return not any(is_refusal(answer) for answer in gold_answers)
    if not isinstance(value, bool):
        raise _BadItemError("wrong type", f"{_SUFFICIENT_COLUMN} must be true or false, got {value!r}")
    return value


def _text(columns: dict[str, Any], name: str) -> str:
    value = columns.pop(name, None)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _BadItemError("wrong type", f"{name} must be text, got {type(value).__name__} {value!r:.80}")
    return value


def _texts(columns: dict[str, Any], name: str, key: str) -> list[str]:
    if name not in columns:
        raise _BadItemError("missing column", f"it has no {name!r} (it has {', '.join(columns)}); set {key}")
    value = columns.pop(name)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise _BadItemError("wrong type", f"{name} must be a list of texts, got {type(value).__name__} {value!r:.80}")
    return values


class _Pages:
    """Finds page images: files first, then the rows of ``images.parquet`` beside the data."""

    def __init__(self, data_folder: Path, image_root: str) -> None:
        self._root = Path(image_root).absolute() if image_root else data_folder.absolute()
        tables = (self._root / IMAGE_TABLE, data_folder.absolute() / IMAGE_TABLE)
        self._table = next((table for table in tables if table.is_file()), None)
        self._rows: dict[str, int] | None = None
        self._found: dict[str, ImageRef] = {}

    def find(self, path: str) -> ImageRef:
        if path not in self._found:
            self._found[path] = self._look_up(path)
        return self._found[path]

    def _look_up(self, path: str) -> ImageRef:
        file = self._root / path
        if self._table is not None and not file.is_file():
            if self._rows is None:
                self._rows = table_rows(self._table)
            if path in self._rows:
                return ImageRef(path=path, parquet_file=str(self._table), parquet_row=self._rows[path])
        return ImageRef(path=path, file=str(file))


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
