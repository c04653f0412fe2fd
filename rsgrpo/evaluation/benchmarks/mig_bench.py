"""MIG-Bench: ten multi-image grounding tasks, judged by IoU.

What strict mode changes: boxes are read with spaces, signs, and mixed whole and decimal numbers; a box is
scaled as a whole (all four numbers by 1000 if one exceeds 1; official decides number by number, so
``1`` may mean 0.001); the box in the answer section counts where there is one; an inverted box is
turned round and clipped to the image, gold's as well; two empty boxes overlap by 0; doubled
predictions count once, the last; missing ones score 0.

``scale_y_for_migician`` is the original's hack for its own model; off unless asked for.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.aggregate import build_result, macro_average, summarize_groups
from rsgrpo.evaluation.benchmarks.base import (
    ANSWER_SECTION,
    DOUBLED,
    NO_GAPS,
    ORIGINAL_CRASHES,
    UNPARSABLE,
    Answered,
    BenchmarkError,
    BenchmarkResult,
    Columns,
    Gaps,
    Mode,
    PredictionFile,
    ScoredItem,
    last_of_each,
    place_id,
)
from rsgrpo.evaluation.benchmarks.prediction_files import RowReader
from rsgrpo.evaluation.benchmarks.prediction_text import prediction_rows
from rsgrpo.io.atomic_files import write_json
from rsgrpo.text.sections import section_content
from rsgrpo.types import Box, Sample

TASKS = (
    "diff",
    "view_diff",
    "common_object",
    "object_tracking",
    "multi_view",
    "region",
    "refer_grounding",
    "group_grounding",
    "reasoning",
    "correspondence",
)
"""The tasks, in the order in which papers print them."""

THRESHOLDS = (0.7, 0.5, 0.3)
METRICS = ("accuracy@0.7", "accuracy@0.5", "accuracy@0.3", "iou")
BAD_GOLD = "gold_box_inverted_or_out_of_range"
SEVERAL_BOXES = "several_boxes"

_COLUMNS = Columns(texts=("text", "pred", "pred_response", "response", "prediction", "answer"))

Numbers = tuple[float, ...]

_INT, _DECIMAL = r"(\d+)", r"(\d+\.\d+)"
_OFFICIAL_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\({_INT},\s*{_INT}\),\s*\({_INT},\s*{_INT}\)",
        rf"\[{_DECIMAL},\s*{_DECIMAL},\s*{_DECIMAL},\s*{_DECIMAL}\]",
        rf"\({_DECIMAL},{_DECIMAL}\),\({_DECIMAL},{_DECIMAL}\)",
        rf"\({_DECIMAL},\s*{_DECIMAL},\s*{_DECIMAL},\s*{_DECIMAL}\)",
        rf"\[{_INT},\s*{_INT},\s*{_INT},\s*{_INT}\]",
        rf"<box>{_INT}\s+{_INT}\s+{_INT}\s+{_INT}</box>",
    )
)
# A number starts where no digit stands in front of it: else a long row of digits is tried from each of them.
_NUMBER = r"((?:[-+]|(?<!\d))\d+(?:\.\d+)?|[-+]?\.\d+)"
STRICT_PATTERN = re.compile(rf"{_NUMBER}[\s,]+{_NUMBER}[\s,()\[\]]+{_NUMBER}[\s,]+{_NUMBER}")
"""What strict mode takes for a box: four numbers with nothing but blanks, commas and brackets between them."""
_PER_MILLE = 1000.0

_IMAGE_WORDS = ("first", "second", "third", "fourth", "fifth", "sixth")


def extract_boxes(text: str) -> list[float] | list[list[float]]:
    """The official reading of a response.

    Returns:
        An empty list for no box; one flat list for one box; a list of lists for several. A number of 1 or more is
        divided by 1000; among several boxes only a number above 1 is.

    Example:
        ``extract_boxes("(139,305),(495,743)") == [0.139, 0.305, 0.495, 0.743]``.
    """
    for pattern in _OFFICIAL_PATTERNS:
        # JSON has no infinity, which hundreds of digits would be.
        found = [[min(float(number), sys.float_info.max) for number in match] for match in pattern.findall(text)]
        if len(found) == 1:
            return [value / _PER_MILLE if value >= 1 else value for value in found[0]]
        if found:
            return [[value / _PER_MILLE if value > 1 else value for value in box] for box in found]
    return []


def scale_y_for_migician(box: list[float] | list[list[float]]) -> list[float] | list[list[float]]:
    """The original's correction for Migician: y1 by 1.05, y2 by 1.10, at most 0.999; one box only.

    Example:
        ``[0.1, 0.2, 0.5, 0.6]`` becomes ``[0.1, 0.21, 0.5, 0.66]``.
    """
    flat = [value for value in box if not isinstance(value, list)]
    if len(flat) != 4:
        return box
    left, top, right, bottom = flat
    return [left, round(min(top * 1.05, 0.999), 3), right, round(min(bottom * 1.10, 0.999), 3)]


def official_iou(gold: Sequence[float], predicted: Sequence[float] | Sequence[Sequence[float]]) -> float:
    """IoU as the original computes it, of the first box where there are several.

    Raises:
        ZeroDivisionError: the boxes touch and neither has an area, as in the original.
    """
    first = predicted[0] if predicted else None
    if isinstance(first, Sequence):
        box: Sequence[float] = first
    else:
        box = [value for value in predicted if not isinstance(value, Sequence)]
    if min(len(gold), len(box)) < 4:
        return 0.0
    left, top = max(gold[0], box[0]), max(gold[1], box[1])
    right, bottom = min(gold[2], box[2]), min(gold[3], box[3])
    if right < left or bottom < top:
        return 0.0
    intersection = (right - left) * (bottom - top)
    gold_area = (gold[2] - gold[0]) * (gold[3] - gold[1])
    return intersection / (gold_area + (box[2] - box[0]) * (box[3] - box[1]) - intersection)


def image_index(text: str) -> int:
    """Which image a text names, 0-based, by the original's word list; -1 for none.

    Example:
        ``image_index("It is in the second image") == 1``; ``Image-12`` gives 0, as it holds ``Image-1``.
    """
    for index, word in enumerate(_IMAGE_WORDS):
        number = index + 1
        if any(key in text for key in (word, f"Image-{number}", f"Image{number}", f"Image {number}", f"{number}th")):
            return index
    return -1


def strict_boxes(text: str) -> list[Numbers]:
    """All boxes of a response, in 0 to 1, corners in order, clipped to the image."""
    boxes = []
    for match in STRICT_PATTERN.finditer(text):
        values = tuple(float(number) for number in match.groups())
        scale = _PER_MILLE if max(values) > 1 else 1.0
        boxes.append(_upright(tuple(value / scale for value in values)))
    return boxes


def _upright(box: Numbers) -> Numbers:
    left, top, right, bottom = (min(max(value, 0.0), 1.0) for value in box)
    return (min(left, right), min(top, bottom), max(left, right), max(top, bottom))


@dataclass(frozen=True, kw_only=True, slots=True)
class MigBenchmark:
    """MIG-Bench, or one of its tasks.

    Attributes:
        name: the name of the benchmark's task.
        tasks: the tasks of MIG-Bench that it covers.
        scales_y_for_migician: whether to apply the original's correction for its own model, Migician.
        main_metric: the metric that tables show first, Acc@0.5; over several tasks their unweighted mean (the paper's
            AVE).
    """

    name: str
    tasks: tuple[str, ...]
    scales_y_for_migician: bool = False
    main_metric: str = "accuracy@0.5"

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the tasks that it covers."""
        return self.tasks

    def score(
        self,
        answered: Sequence[Answered],
        mode: Mode,
        gaps: Gaps = NO_GAPS,
        *,
        answer_section: str = ANSWER_SECTION,
    ) -> BenchmarkResult:
        """See :class:`rsgrpo.evaluation.benchmarks.base.Benchmark`; samples of other tasks are left out."""
        chosen = [answer for answer in answered if task_of(answer.sample) in self.tasks]
        once, num_doubled = last_of_each(chosen)
        items = [self._score(answer, mode, answer_section) for answer in (chosen if mode == "official" else once)]
        missing = [sample for sample in gaps.missing if task_of(sample) in self.tasks]
        if mode == "strict":
            items.extend(_missing_item(sample) for sample in missing)
        counts = replace(gaps, missing=tuple(missing)).counts
        groups = summarize_groups(items, METRICS)
        return build_result(
            name=self.name,
            mode=mode,
            main_metric=self.main_metric if len(self.tasks) == 1 else f"macro {self.main_metric}",
            metric_names=METRICS,
            items=items,
            counts=counts | {DOUBLED: num_doubled},
            printed=_printed(items) if mode == "official" else {},
            extra_metrics={}
            if len(self.tasks) == 1
            else {f"macro {metric}": macro_average(groups, items, "task", metric) for metric in METRICS},
        )

    def _score(self, answer: Answered, mode: Mode, answer_section: str) -> ScoredItem:
        sample = answer.sample
        gold = gold_box(sample)
        anomalies: list[str] = []
        if not _is_sane(gold):
            anomalies.append(BAD_GOLD)
        if mode == "official" and answer.defect:
            return replace(_missing_item(sample), anomalies=(*anomalies, ORIGINAL_CRASHES))
        if mode == "official":
            boxes = extract_boxes(answer.text)
            if self.scales_y_for_migician:
                boxes = scale_y_for_migician(boxes)
            num_boxes = len(boxes) if boxes and isinstance(boxes[0], list) else int(bool(boxes))
            parsed = str(boxes)
            try:
                iou = official_iou((gold.left, gold.top, gold.right, gold.bottom), boxes)
            except ZeroDivisionError:
                iou = 0.0
                anomalies.append(ORIGINAL_CRASHES)
        else:
            section = section_content(answer.text, answer_section)
            found = strict_boxes(answer.text if section is None else section)
            num_boxes, parsed = len(found), str([list(box) for box in found])
            iou = _strict_iou(gold, found[0]) if found else 0.0
        if num_boxes != 1:
            anomalies.append(SEVERAL_BOXES if num_boxes else UNPARSABLE)
        return ScoredItem(
            sample_id=sample.sample_id,
            metrics=_metrics(iou),
            parsed=parsed,
            groups={"task": task_of(sample)},
            anomalies=tuple(anomalies),
        )

    def write_predictions(self, answered: Sequence[Answered], folder: Path, *, model: str = "rsgrpo") -> Path:
        """``<folder>/<model>_<task>.json``: the original's list, its totals last, and our ids in ``sample_id``."""
        rows: list[dict[str, object]] = []
        items = []
        for answer in answered:
            item = self._score(answer, "official", ANSWER_SECTION)
            items.append(item)
            gold = gold_box(answer.sample)
            rows.append(
                {
                    "task": task_of(answer.sample),
                    "question": answer.sample.question,
                    "answer": answer.text,
                    "filter_answer": extract_boxes(answer.text),
                    "iou": item.metrics["iou"],
                    "groundtruth": [gold.left, gold.top, gold.right, gold.bottom],
                    "sample_id": answer.sample.sample_id,
                }
            )
        path = folder / f"{model}_{self.name.rpartition('/')[2]}.json"
        write_json(path, [*rows, _totals(items)], indent=2)
        return path

    @property
    def columns(self) -> Columns:
        """Where ids and answers stand, by our own names: the original's stand under ``answer`` and have no ids."""
        return _COLUMNS

    def read_predictions(self, path: Path, columns: Columns | None = None) -> PredictionFile:
        """The original's list (by ``sample_id``, else by place inside the task), or JSON lines."""
        columns = columns or self.columns
        reader = RowReader(path, columns)
        places: Counter[str] = Counter()
        num_lost = 0
        for row in prediction_rows(path, columns):
            value = row.value
            if row.problem:
                reader.add_problem(row.place, row.problem)
                num_lost += 1
            elif isinstance(value, dict) and value and value.keys() <= set(TASKS):
                continue  # the totals, which the original puts last
            elif isinstance(value, dict) and "answer" in value and not any(name in value for name in columns.ids):
                task = str(value.get("task", ""))
                question = value.get("question")
                if num_lost:
                    raise BenchmarkError(
                        f"{shown(path)}, {row.place}: it has no sample_id, so that its place says which question it "
                        f"answers, but {num_lost} rows before it cannot be read; write sample_id into every row"
                    )
                reader.add(
                    row.place,
                    place_id(task, places[task]),
                    value["answer"],
                    question=question if isinstance(question, str) else "",
                )
                places[task] += 1
            else:
                num_lost += not isinstance(value, dict) or not any(name in value for name in columns.ids)
                reader.add_row(row.place, value)
        return reader.file()


def task_of(sample: Sample) -> str:
    """The MIG-Bench task that a sample belongs to."""
    return sample.task.rpartition("/")[2]


def gold_box(sample: Sample) -> Box:
    """A sample's gold box as the data set writes it.

    Raises:
        BenchmarkError: the sample has no gold box.
    """
    if not sample.boxes:
        raise BenchmarkError(f"sample '{sample.sample_id}' has no gold box; read it with the mig_bench reader")
    return sample.boxes[0]


def _is_sane(box: Box) -> bool:
    return 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1


def _strict_iou(gold: Box, predicted: Numbers) -> float:
    try:
        return official_iou(_upright((gold.left, gold.top, gold.right, gold.bottom)), predicted)
    except ZeroDivisionError:
        return 0.0


def _metrics(iou: float) -> dict[str, float]:
    return {f"accuracy@{threshold}": float(iou >= threshold) for threshold in THRESHOLDS} | {"iou": iou}


def _missing_item(sample: Sample) -> ScoredItem:
    return ScoredItem(sample_id=sample.sample_id, metrics=_metrics(0.0), groups={"task": task_of(sample)})


def _totals(items: Sequence[ScoredItem]) -> dict[str, dict[str, float]]:
    totals: dict[str, dict[str, float]] = {}
    for item in items:
        total = totals.setdefault(
            item.groups["task"], {"IOU@0.7": 0, "IOU@0.5": 0, "IOU@0.3": 0, "AVE_IOU": 0, "TOTAL": 0}
        )
        for threshold in THRESHOLDS:
            total[f"IOU@{threshold}"] += int(item.metrics[f"accuracy@{threshold}"])
        total["AVE_IOU"] += item.metrics["iou"]
        total["TOTAL"] += 1
    return totals


def _printed(items: Sequence[ScoredItem]) -> dict[str, float]:
    return {
        f"{task}/{name}": 100 * value / total["TOTAL"]
        for task, total in _totals(items).items()
        for name, value in total.items()
        if name != "TOTAL"
    }
