"""EVisRAG-Test: five sets of questions over three retrieved pages, judged by em, accuracy and F1.

What strict mode changes: an answer section is required (official judges the whole text without one);
decimal points and signs count; F1 without epsilon; the last of doubled predictions counts, once;
a question without a prediction scores 0 (official leaves it out of the mean).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rsgrpo.evaluation.benchmarks.aggregate import build_result
from rsgrpo.evaluation.benchmarks.base import (
    ANSWER_SECTION,
    DOUBLED,
    NO_GAPS,
    ORIGINAL_CRASHES,
    UNPARSABLE,
    Answered,
    BenchmarkResult,
    Columns,
    Gaps,
    Mode,
    PredictionFile,
    ScoredItem,
    last_of_each,
)
from rsgrpo.evaluation.benchmarks.prediction_files import read_prediction_rows
from rsgrpo.evaluation.metrics import official_answer, score_answer, strict_score_answer
from rsgrpo.io.jsonl import write_rows
from rsgrpo.types import NUMERIC_ID, Sample

SETS = ("ChartQA", "InfoVQA", "DocVQA", "SlideVQA", "ViDoSeek")
METRICS = ("em", "accuracy", "f1")
_COLUMNS = Columns(
    ids=("qid", "sample_id", "id", "index"), texts=("pred", "text", "pred_response", "response", "prediction")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EVisRagBenchmark:
    """One EVisRAG-Test set.

    Attributes:
        name: the name of the task.
        set_name: the name of the set as in the folder name ``EVisRAG-Test-<set_name>``.
        main_metric: the name of the metric that tables show first.
    """

    name: str
    set_name: str
    main_metric: str = "f1"

    @property
    def sets(self) -> tuple[str, ...]:
        """The name of the set."""
        return (self.set_name,)

    def score(
        self,
        answered: Sequence[Answered],
        mode: Mode,
        gaps: Gaps = NO_GAPS,
        *,
        answer_section: str = ANSWER_SECTION,
    ) -> BenchmarkResult:
        """See :class:`rsgrpo.evaluation.benchmarks.base.Benchmark`; ``printed`` has the original's ten numbers."""
        once, num_doubled = last_of_each(answered)
        items = [_score(answer, mode, answer_section) for answer in (answered if mode == "official" else once)]
        if mode == "strict":
            items.extend(_missing_item(sample) for sample in gaps.missing)
        return build_result(
            name=self.name,
            mode=mode,
            main_metric=self.main_metric,
            metric_names=METRICS,
            items=items,
            counts=gaps.counts | {DOUBLED: num_doubled},
            printed=_printed(items) if mode == "official" else {},
        )

    def write_predictions(self, answered: Sequence[Answered], folder: Path, *, model: str = "rsgrpo") -> Path:
        """``<folder>/<set>/<model>.jsonl``: with ``folder`` called ``preds``, the original finds it."""
        path = folder / self.set_name / f"{model}.jsonl"
        write_rows(
            path,
            (
                {
                    "qid": public_id(answer.sample),
                    "imgs": [image.file or image.path for image in answer.sample.images],
                    "pred": answer.text,
                }
                for answer in answered
            ),
        )
        return path

    @property
    def columns(self) -> Columns:
        """Columns of ids and answers: ``qid`` and ``pred``, or our own names."""
        return _COLUMNS

    def read_predictions(self, path: Path, columns: Columns | None = None) -> PredictionFile:
        """JSON lines with ``qid`` and ``pred``."""
        return read_prediction_rows(path, columns or self.columns)


def public_id(sample: Sample) -> str | int:
    """The id in the type that the data set writes it in: EVisRAG's script stops at ``"7"`` where that says 7."""
    return int(sample.sample_id) if NUMERIC_ID in sample.metadata else sample.sample_id


def _groups(sample: Sample) -> dict[str, str]:
    return {"pages": "answerable" if sample.is_sufficient else "unanswerable"}


def _score(answer: Answered, mode: Mode, answer_section: str) -> ScoredItem:
    sample = answer.sample
    if answer.defect and mode == "official":
        return replace(_missing_item(sample), anomalies=(ORIGINAL_CRASHES,))
    score_text = score_answer if mode == "official" else strict_score_answer
    score = score_text(answer.text, sample.answers, is_sufficient=sample.is_sufficient, section=answer_section)
    return ScoredItem(
        sample_id=sample.sample_id,
        metrics={"em": score.em, "accuracy": score.accuracy, "f1": score.f1},
        parsed=official_answer(answer.text, answer_section),
        groups=_groups(sample),
        anomalies=() if f"<{answer_section}>" in answer.text else (UNPARSABLE,),
    )


def _missing_item(sample: Sample) -> ScoredItem:
    return ScoredItem(sample_id=sample.sample_id, metrics=dict.fromkeys(METRICS, 0.0), groups=_groups(sample))


def _printed(items: Sequence[ScoredItem]) -> dict[str, float]:
    parts = {
        "global": (items, ("em", "accuracy", "f1")),
        "issuff": ([item for item in items if item.groups["pages"] == "answerable"], ("em", "accuracy", "f1")),
        "unsuff": ([item for item in items if item.groups["pages"] == "unanswerable"], ("em",)),
    }
    printed = {
        f"{part}_{'acc' if metric == 'accuracy' else metric}": (
            sum(item.metrics[metric] for item in some) / len(some) if some else 0.0
        )
        for part, (some, metrics) in parts.items()
        for metric in metrics
    }
    return printed | {f"cnt_{part}": float(len(some)) for part, (some, _) in parts.items()}
