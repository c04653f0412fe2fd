"""Visual Haystacks: is the thing in the one image, or in any or all of a few, among many.

What strict mode changes: the answer section counts where there is one; a reply that says yes and no is
wrong (official: right for either); gold's case does not matter; the last of doubled predictions counts
once, and a missing one scores 0 (official: left out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.aggregate import build_result
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
)
from rsgrpo.evaluation.benchmarks.haystack_bootstrap import Printed, Reply, printed_numbers
from rsgrpo.evaluation.benchmarks.haystack_files import read_folder, record_id, write_folder
from rsgrpo.evaluation.benchmarks.haystack_text import holds_token, is_compliant, strict_answer
from rsgrpo.evaluation.benchmarks.prediction_files import read_prediction_rows
from rsgrpo.text.sections import section_content
from rsgrpo.types import Sample

METRICS = ("accuracy", "compliance")


@dataclass(frozen=True, kw_only=True, slots=True)
class HaystackBenchmark:
    """One mode of Visual Haystacks.

    Attributes:
        name: the name of the task.
        needle_mode: the name of the data's folder, ``single_needle`` or ``multi_needle``.
        is_positional: whether a question has several replies, one for each position of the needle.
        main_metric: the name of the metric that tables show first.
    """

    name: str
    needle_mode: str
    is_positional: bool = False
    main_metric: str = "accuracy"

    @property
    def sets(self) -> tuple[str, ...]:
        """The name of the data's folder."""
        return (self.needle_mode,)

    def score(
        self,
        answered: Sequence[Answered],
        mode: Mode,
        gaps: Gaps = NO_GAPS,
        *,
        answer_section: str = ANSWER_SECTION,
    ) -> BenchmarkResult:
        """See :class:`rsgrpo.evaluation.benchmarks.base.Benchmark`.

        ``printed`` has the original's means and deviations over 100 resamples, seeded with 0 (the original
        is not seeded), and MIRAGE's recall and precision where predictions carry retrieval flags.
        """
        once, num_doubled = last_of_each(answered)
        # The original's positional files hold one reply a position.
        chosen = answered if mode == "official" and not self.is_positional else once
        items = [_score(answer, mode, answer_section, self.is_positional) for answer in chosen]
        if mode == "strict":
            items.extend(_missing_item(sample) for sample in gaps.missing)
        printed = (
            printed_numbers(_replies(chosen, items)) if mode == "official" else Printed(numbers={}, num_undefined=0)
        )
        return build_result(
            name=self.name,
            mode=mode,
            main_metric=self.main_metric,
            metric_names=METRICS,
            items=items,
            counts=gaps.counts | {DOUBLED: num_doubled, ORIGINAL_CRASHES: printed.num_undefined},
            printed=printed.numbers,
        )

    def write_predictions(self, answered: Sequence[Answered], folder: Path, *, model: str = "rsgrpo") -> Path:
        """``<folder>/<model>/<N>_images/<id>.json``, one file per question, as the original's scorer lists them."""
        return write_folder(answered, folder / model, is_positional=self.is_positional)

    @property
    def columns(self) -> Columns:
        """Where ids and answers stand, by our own names: the original's files have their numbers for ids."""
        return Columns()

    def read_predictions(self, path: Path, columns: Columns | None = None) -> PredictionFile:
        """A folder of the original (or of MIRAGE), by the numbers in the file names; or JSON lines.

        An id is the record's number, so that ``7``, ``07`` and ``007`` are the same.
        """
        if path.is_dir():
            if columns is not None and columns != self.columns:
                raise BenchmarkError(
                    f"{shown(path)} is a folder of Visual Haystacks' own files, which have no columns to choose; leave "
                    "--id-column and --prediction-column out"
                )
            return read_folder(path)
        file = read_prediction_rows(path, columns or self.columns)
        predictions = tuple(
            replace(prediction, sample_id=record_id(prediction.sample_id)) for prediction in file.predictions
        )
        return replace(file, predictions=predictions)


def _gold(sample: Sample) -> str:
    if not sample.answers:
        raise BenchmarkError(f"sample '{sample.sample_id}' has no gold answer; read it with the haystack reader")
    return sample.answers[0]


def _groups(sample: Sample, needle_position: int = -1) -> dict[str, str]:
    groups = {"images": str(len(sample.images))}
    return groups if needle_position < 0 else groups | {"needle position": str(needle_position)}


def _score(answer: Answered, mode: Mode, answer_section: str, is_positional: bool) -> ScoredItem:
    gold = _gold(answer.sample)
    groups = _groups(answer.sample, answer.needle_position if is_positional else -1)
    if answer.defect and mode == "official":
        return replace(_missing_item(answer.sample), groups=groups, anomalies=(ORIGINAL_CRASHES,))
    if mode == "official":
        # The positional scorer skips an empty reply; an empty one holds no token anyway.
        is_right, complies = holds_token(answer.text, gold), is_compliant(answer.text)
        parsed = "/".join(word for word in ("yes", "no") if holds_token(answer.text, word))
    else:
        section = section_content(answer.text, answer_section)
        parsed = strict_answer(answer.text if section is None else section)
        is_right, complies = parsed == gold.strip().lower() != "", bool(parsed)
    return ScoredItem(
        sample_id=answer.sample.sample_id,
        metrics={"accuracy": float(is_right), "compliance": float(complies)},
        parsed=parsed,
        groups=groups,
        anomalies=() if complies else (UNPARSABLE,),
    )


def _missing_item(sample: Sample) -> ScoredItem:
    return ScoredItem(sample_id=sample.sample_id, metrics=dict.fromkeys(METRICS, 0.0), groups=_groups(sample))


def _replies(answered: Sequence[Answered], items: Sequence[ScoredItem]) -> list[list[Reply]]:
    """The scored replies, those to one question together."""
    records: dict[str, list[Reply]] = {}
    for number, (answer, item) in enumerate(zip(answered, items, strict=True)):
        reply = Reply(
            is_correct=bool(item.metrics["accuracy"]),
            is_compliant=bool(item.metrics["compliance"]),
            retrieved=answer.retrieved,
            relevant=answer.relevant,
        )
        # Without positions every reply is a record of its own, doubled ones included.
        key = answer.sample.sample_id if answer.needle_position >= 0 else f"#{number}"
        records.setdefault(key, []).append(reply)
    return list(records.values())
