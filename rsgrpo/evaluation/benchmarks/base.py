"""What every benchmark has in common: its records, its protocol, and how predictions find their samples.

    read_predictions -> pair_predictions -> Benchmark.score(official | strict) -> BenchmarkResult

``official`` mode is the original's metric, defects included; where the original would stop with an
error the item scores 0 and the error is counted. ``strict`` mode fixes the defects; each benchmark's
docstring lists what it changes. Nothing is dropped without a count in ``BenchmarkResult.anomalies``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from rsgrpo.config import EVISRAG
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.ids import plain_id
from rsgrpo.types import Sample

Mode = Literal["official", "strict"]
MODES: tuple[Mode, ...] = ("official", "strict")

ANSWER_SECTION = EVISRAG.answer_section
"""Where scorers look for the answer of a response in sections, unless they are told its run's own section."""

MISSING = "missing_prediction"
"""Anomaly: a sample without a prediction."""
DOUBLED = "doubled_prediction"
"""Anomaly: one more prediction for a sample that has one."""
UNKNOWN = "unknown_sample_id"
"""Anomaly: a prediction for an id that the data set does not hold."""
UNPARSABLE = "unparsable_prediction"
"""Anomaly: no answer could be read out of the text."""
UNREADABLE = "unreadable_row"
"""Anomaly: a row of the prediction file that is no prediction, such as a half-written last line."""
NOT_TEXT = "prediction_not_text"
"""Anomaly: an answer that is null, a number, a list or an object. It has its place: official mode scores it 0, as the
original's script stops there; strict mode reads a number and a list of one text."""
MENDED_TEXT = "surrogates_replaced"
"""Anomaly: a prediction with half characters (lone surrogates), which were replaced."""
ODD_FLAGS = "retrieval_flags_unreadable"
"""Anomaly: retrieval flags that are no list of 0 and 1; they are left out."""
ODD_POSITION = "needle_position_odd"
"""Anomaly: a needle position that is no whole number; a number in quotes is read, the rest is left out."""
ORIGINAL_CRASHES = "original_raises"
"""Anomaly: the original scorer stops with an error at this item; here it scores 0."""


class BenchmarkError(RsgrpoError, ValueError):
    """A benchmark, a data set or a prediction file cannot be used; the message names the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Where a row's id and its answer may stand, best first.

    Attributes:
        ids: the names of id columns; of several in a row the first counts that is not null.
        texts: the names of answer columns; of several in a row the first counts that is not null.
    """

    ids: tuple[str, ...] = ("sample_id", "qid", "id", "index")
    texts: tuple[str, ...] = ("text", "pred", "pred_response", "response", "prediction")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One line of a prediction file, before it has met its sample.

    Attributes:
        sample_id: the id as text; :func:`place_id` where the file has no ids but keeps the data's order.
        text: the answer of the model.
        needle_position: 0-based position of the needle among the images (positional Visual Haystacks); else -1.
        retrieved: for each shown image 1 if the model's retriever kept it, else 0; empty where unknown.
        relevant: for each shown image 1 if it is relevant by gold, else 0; empty where unknown.
        defect: the kind of answer, such as ``null``, where it is no text; ``text`` is then what can be read of it.
            Empty for a text.
        question: the question that the file says was asked; empty where it says none. It is checked where ``sample_id``
            is a place.
    """

    sample_id: str
    text: str
    needle_position: int = -1
    retrieved: tuple[int, ...] = ()
    relevant: tuple[int, ...] = ()
    defect: str = ""
    question: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Oddity:
    """Something wrong with a prediction that is kept.

    Attributes:
        kind: the kind under which it is counted, one of the anomalies above.
        detail: the file, the place in it, and what is wrong.
    """

    kind: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionFile:
    """What a prediction file holds.

    Attributes:
        predictions: the predictions, in the order of the file.
        problems: the rows that are no prediction, each with file, place and reason.
        oddities: what is odd about predictions that are kept.
        columns: the names that the rows' values have.
    """

    predictions: tuple[Prediction, ...]
    problems: tuple[str, ...] = ()
    oddities: tuple[Oddity, ...] = ()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A sample with what the model said to it.

    Attributes:
        sample: the question, its ``images`` in the order in which they were shown.
        text: the text to score. An official scorer reads all of it, so a model that reasons in sections
            is given ``text=<answer section>`` for every benchmark but EVisRAG.
        needle_position: 0-based position of the needle among the images, see :class:`Prediction`.
        retrieved: which images the model's retriever kept, see :class:`Prediction`.
        relevant: which images are relevant by gold, see :class:`Prediction`.
        defect: the kind of answer where it is no text, see :class:`Prediction`.
    """

    sample: Sample
    text: str
    needle_position: int = -1
    retrieved: tuple[int, ...] = ()
    relevant: tuple[int, ...] = ()
    defect: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaps:
    """What does not fit between a data set and a prediction file.

    Attributes:
        missing: the samples that no prediction names.
        unknown_ids: the ids of predictions that no sample has, one for each such prediction.
        doubled_ids: the ids with more than one prediction (for the same position), one for each further prediction;
            which of them counts is the benchmark's to say, and so is their count.
        problems: the rows of the file that are no prediction, see :class:`PredictionFile`.
        oddities: what is odd about predictions that are kept, see :class:`PredictionFile`.
    """

    missing: tuple[Sample, ...] = ()
    unknown_ids: tuple[str, ...] = ()
    doubled_ids: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    oddities: tuple[Oddity, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind of anomaly occurs, zeros included."""
        counts = {MISSING: len(self.missing), UNKNOWN: len(self.unknown_ids), UNREADABLE: len(self.problems)}
        return counts | Counter(oddity.kind for oddity in self.oddities)


NO_GAPS = Gaps()


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredItem:
    """How one prediction scored.

    Attributes:
        sample_id: the id of the sample.
        metrics: the numbers that the prediction earned, by metric name.
        parsed: the text that was taken for the answer.
        groups: the properties that results are broken down by, such as ``{"images": "Few"}``.
        anomalies: the kinds of what was wrong with the prediction.
    """

    sample_id: str
    metrics: Mapping[str, float]
    parsed: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    anomalies: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricSummary:
    """A mean with its 95 % percentile-bootstrap interval.

    Attributes:
        value: the mean; 0.0 where there is nothing to average.
        low: the 2.5 % quantile over resamples.
        high: the 97.5 % quantile over resamples.
        count: how many items were averaged.
    """

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSummary:
    """The metrics of those items that share one property.

    Attributes:
        kind: the name of the property, such as ``images``.
        name: the value of the property, such as ``Few``.
        metrics: the metrics of these items, by metric name.
    """

    kind: str
    name: str
    metrics: Mapping[str, MetricSummary]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkResult:
    """What a benchmark says of one set of predictions.

    Attributes:
        name: the name of the benchmark's task.
        mode: how predictions were scored, ``official`` or ``strict``.
        main_metric: the key of ``metrics`` that tables show first.
        metrics: the metrics over all items, by metric name.
        groups: the same metrics, broken down by properties of the items.
        printed: the numbers that the original's own script prints, by its names; empty in strict mode.
        anomalies: how often each kind of anomaly occurred; a kind that did not occur is absent.
        items: one item for each prediction, and in some modes one for each missing prediction.
    """

    name: str
    mode: Mode
    main_metric: str
    metrics: Mapping[str, MetricSummary]
    groups: tuple[GroupSummary, ...]
    printed: Mapping[str, float]
    anomalies: Mapping[str, int]
    items: tuple[ScoredItem, ...]

    @property
    def main(self) -> MetricSummary:
        """The main metric with its interval."""
        return self.metrics[self.main_metric]


class Benchmark(Protocol):
    """One task that predictions can be scored on.

    Attributes:
        name: the name of the task, such as ``evisrag/chartqa``.
        sets: the original's names of the data sets behind the task.
        main_metric: the name of the metric that tables show first.
    """

    @property
    def name(self) -> str:
        """The name of the task."""

    @property
    def sets(self) -> tuple[str, ...]:
        """The original's names of its data sets."""

    @property
    def main_metric(self) -> str:
        """The name of the main metric."""

    def score(
        self,
        answered: Sequence[Answered],
        mode: Mode,
        gaps: Gaps = NO_GAPS,
        *,
        answer_section: str = ANSWER_SECTION,
    ) -> BenchmarkResult:
        """Score predictions.

        Args:
            answered: samples with their predictions, in file order; a sample may come twice.
            mode: the mode, which says whose rules are applied.
            gaps: what did not pair, as ``pair_predictions`` finds it.
            answer_section: the name of the section with the answer, for the rules that look for one: EVisRAG's, and
                the strict ones of every benchmark.

        Returns:
            The metrics, breakdowns, anomalies and items of the predictions.
        """

    def write_predictions(self, answered: Sequence[Answered], folder: Path, *, model: str = "rsgrpo") -> Path:
        """Save predictions as the original saves them, so that its own scripts can score them.

        Args:
            answered: samples with their predictions.
            folder: the folder to write to, made if need be; files of the same name are replaced.
            model: goes into file names or columns where the original puts a model's name.

        Returns:
            The path that :meth:`read_predictions` takes: the file, or the folder where there are many.
        """

    @property
    def columns(self) -> Columns:
        """Where ids and answers stand in prediction files: the original's names first."""

    def read_predictions(self, path: Path, columns: Columns | None = None) -> PredictionFile:
        """Read predictions, in the original's format or ours.

        Args:
            path: the file, or the folder where there are many.
            columns: the names of columns, if not those of :attr:`columns`.

        Raises:
            BenchmarkError: there is no such file, or it is of another format.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairing:
    """Predictions beside their samples.

    Attributes:
        answered: the pairs of sample and prediction, in the order of the predictions.
        gaps: the samples and predictions without a partner.
    """

    answered: tuple[Answered, ...]
    gaps: Gaps


def place_id(task: str, index: int) -> str:
    """The text that stands for the id of a task's ``index``-th sample in files that carry no ids."""
    return f"@{task}#{index}"


def pair_predictions(samples: Iterable[Sample], file: PredictionFile) -> Pairing:
    """Give every prediction its sample, by id.

    Args:
        samples: the data set; ids are unique.
        file: the predictions of one file, doubled ones included.

    Returns:
        The pairs, and what found no partner.

    Raises:
        BenchmarkError: two samples share an id.

    Example:
        Samples a, b and predictions for a, a, c give two pairs of a, ``missing`` b, ``unknown_ids`` c.
    """
    by_id: dict[str, Sample] = {}
    by_place: dict[str, Sample] = {}
    task_sizes: dict[str, int] = {}
    for sample in samples:
        name = plain_id(sample.sample_id) or ""
        if name in by_id:
            raise BenchmarkError(f"two samples have the id '{shown(name)}'; make the data set's ids unique")
        by_id[name] = sample
        task = sample.task.rpartition("/")[2]
        by_place[place_id(task, task_sizes.get(task, 0))] = sample
        task_sizes[task] = task_sizes.get(task, 0) + 1
    answered: list[Answered] = []
    unknown: list[str] = []
    for prediction in file.predictions:
        found = by_id.get(plain_id(prediction.sample_id) or "") or _by_place(by_place, prediction)
        if found is None:
            unknown.append(prediction.sample_id)
            continue
        answered.append(
            Answered(
                sample=found,
                text=prediction.text,
                needle_position=prediction.needle_position,
                retrieved=prediction.retrieved,
                relevant=prediction.relevant,
                defect=prediction.defect,
            )
        )
    seen = Counter((answer.sample.sample_id, answer.needle_position) for answer in answered)
    seen_ids = {sample_id for sample_id, _ in seen}
    gaps = Gaps(
        missing=tuple(sample for sample in by_id.values() if sample.sample_id not in seen_ids),
        unknown_ids=tuple(unknown),
        doubled_ids=tuple(sample_id for (sample_id, _), count in seen.items() for _ in range(count - 1)),
        problems=file.problems,
        oddities=file.oddities,
    )
    return Pairing(answered=tuple(answered), gaps=gaps)


def _by_place(by_place: Mapping[str, Sample], prediction: Prediction) -> Sample | None:
    """The sample at a prediction's place; None where the file says that another question was asked there."""
    found = by_place.get(prediction.sample_id)
    if found is None or not prediction.question.strip() or not found.question.strip():
        return found
    asked, known = prediction.question.strip(), found.question.strip()
    return found if asked in known or known in asked else None


def last_of_each(answered: Sequence[Answered]) -> tuple[list[Answered], int]:
    """One prediction per sample (and needle position): the last, as files grow at their end.

    Returns:
        The predictions in the order of first appearance, and how many were left out.
    """
    last = {(answer.sample.sample_id, answer.needle_position): answer for answer in answered}
    return list(last.values()), len(answered) - len(last)
