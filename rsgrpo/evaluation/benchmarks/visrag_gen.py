"""VisRAG-Gen (arXiv:2410.10594, §4): questions over pages that were found, judged by accuracy.

    visrag_gen/chartqa/multi_image          all pages, as images; visrag_gen/chartqa for short
    visrag_gen/chartqa/page_concatenation   all pages, joined to one image
    visrag_gen/chartqa/weighted_selection   one answer from each page; one of them is chosen
    visrag_gen/chartqa/text                 the text of all pages
    visrag_gen/chartqa/oracle               the gold pages, as images

What strict mode changes beside the rules of :mod:`rsgrpo.evaluation.benchmarks.visrag_gen_text`: an answer section
counts where there is one; the last of doubled predictions counts, once; a question without a prediction scores 0
(official leaves it out of the mean, as the original does with requests that failed).

In files ``original_answer`` is the data set's own; the original's holds the normalised one where there are several,
because it normalises its list in place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from rsgrpo.evaluation.benchmarks.aggregate import build_result
from rsgrpo.evaluation.benchmarks.base import (
    ANSWER_SECTION,
    DOUBLED,
    NO_GAPS,
    ORIGINAL_CRASHES,
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
from rsgrpo.evaluation.benchmarks.milebench_text import OriginalRaisesError
from rsgrpo.evaluation.benchmarks.prediction_files import read_prediction_rows
from rsgrpo.evaluation.benchmarks.visrag_gen_text import GenScore, GoldAnswer, SetName, score_answer
from rsgrpo.io.atomic_files import write_text
from rsgrpo.io.jsonl import write_rows
from rsgrpo.retrieval.measuring.relevance_files import RetrievalQuery
from rsgrpo.text.sections import section_content
from rsgrpo.types import Sample

FAMILY = "visrag_gen"

Setting = Literal["multi_image", "page_concatenation", "weighted_selection", "text", "oracle"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)
DEFAULT_SETTING: Setting = "multi_image"

GEN_SETS: dict[str, SetName] = {
    "arxivqa": "ArxivQA",
    "chartqa": "ChartQA",
    "infovqa": "InfoVQA",
    "mp_docvqa": "MP-DocVQA",
    "plotqa": "PlotQA",
    "slidevqa": "SlideVQA",
}
"""VisRAG's name of each set by ours."""

GOLD = "gold_answer"
"""Key of ``Sample.metadata``: the gold answer as JSON, whose type the scorer goes by."""
PAGES, PROMPT, RUN, TOP_K = "docid", "prompt", "run", "top_k"
"""Keys of ``Sample.metadata`` of a question that was asked: the ids of its pages as JSON, the text behind them, whose
search found them, and how many were wanted."""

_COLUMNS = Columns(
    ids=("qid", "query-id", "sample_id", "id"), texts=("original_responds", "text", "pred", "response", "prediction")
)


def gen_sample(query: RetrievalQuery, task: str) -> Sample | None:
    """Make a question of the data set a sample, its gold answer with its type.

    Args:
        query: the question.
        task: the name of the task.

    Returns:
        The sample, without pages; None where the data set has no answer to it.

    Example:
        The answer 5 gives ``answers == ("5",)`` and ``metadata["gold_answer"] == "5"``, the answer ``"5"`` the JSON
        ``'"5"'``: VisRAG gives a number a tolerance that a text does not have.
    """
    answer = query.answer
    if answer is None or answer == ():
        return None
    accepted = answer if isinstance(answer, tuple) else (answer,)
    gold = list(answer) if isinstance(answer, tuple) else answer
    return Sample(
        sample_id=query.query_id,
        question=query.text,
        choices=query.options,
        answers=tuple(map(str, accepted)),
        task=task,
        metadata={GOLD: json.dumps(gold, ensure_ascii=False)},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class VisRagGenBenchmark:
    """One set of VisRAG-Gen in one setting.

    Attributes:
        name: the name of the task, such as ``visrag_gen/chartqa/text``.
        set_name: VisRAG's name of the set, whose rule applies.
        setting: what the model is shown.
        main_metric: the name of the metric that tables show first.
    """

    name: str
    set_name: SetName
    setting: Setting
    main_metric: str = "accuracy"

    @property
    def sets(self) -> tuple[str, ...]:
        """VisRAG's name of the set."""
        return (self.set_name,)

    def score(
        self,
        answered: Sequence[Answered],
        mode: Mode,
        gaps: Gaps = NO_GAPS,
        *,
        answer_section: str = ANSWER_SECTION,
    ) -> BenchmarkResult:
        """See :class:`rsgrpo.evaluation.benchmarks.base.Benchmark`; ``printed`` is what ``_result.jsonl`` holds."""
        once, num_doubled = last_of_each(answered)
        items = [self._item(answer, mode, answer_section) for answer in (answered if mode == "official" else once)]
        if mode == "strict":
            items.extend(
                ScoredItem(sample_id=sample.sample_id, metrics={self.main_metric: 0.0}) for sample in gaps.missing
            )
        result = build_result(
            name=self.name,
            mode=mode,
            main_metric=self.main_metric,
            metric_names=(self.main_metric,),
            items=items,
            counts=gaps.counts | {DOUBLED: num_doubled},
            printed={},
        )
        return replace(result, printed={"Accuracy": result.main.value}) if mode == "official" else result

    def _item(self, answer: Answered, mode: Mode, answer_section: str) -> ScoredItem:
        sample_id = answer.sample.sample_id
        if mode == "strict":
            section = section_content(answer.text, answer_section)
            text = answer.text if section is None else section.strip()
            score = score_answer(self.set_name, text, gold_answer(answer.sample), is_strict=True)
        else:
            found = self._official(answer)
            if found is None:
                return ScoredItem(sample_id=sample_id, metrics={self.main_metric: 0.0}, anomalies=(ORIGINAL_CRASHES,))
            score = found
        return ScoredItem(
            sample_id=sample_id, metrics={self.main_metric: float(score.is_correct)}, parsed=score.response
        )

    def _official(self, answer: Answered) -> GenScore | None:
        """The original's score; None where the original stops."""
        if answer.defect:
            return None
        try:
            return score_answer(self.set_name, answer.text, gold_answer(answer.sample))
        except OriginalRaisesError:
            return None

    def write_predictions(self, answered: Sequence[Answered], folder: Path, *, model: str = "rsgrpo") -> Path:
        """``<folder>/<model>/<run>/<model>_<run>_<set>_<setting>_top<k>_history.jsonl``, and ``_result.jsonl`` beside.

        In the setting ``oracle`` the run is called ``upper_bound`` and the setting and the number of pages are left
        out, as the original names its files.
        """
        metadata = answered[0].sample.metadata if answered else {}
        is_oracle = self.setting == "oracle"
        run = "upper_bound" if is_oracle else metadata.get(RUN) or "run"
        name = f"{model}_{run}_{self.set_name}_" + (
            "oracle" if is_oracle else f"{self.setting}_top{metadata.get(TOP_K, '')}"
        )
        place = folder / model / run
        history = place / f"{name}_history.jsonl"
        write_rows(history, (self._history_row(answer) for answer in answered))
        accuracy = self.score(answered, "official").main.value
        write_text(place / f"{name}_result.jsonl", json.dumps({"Accuracy": accuracy}) + "\n")
        return history

    def _history_row(self, answer: Answered) -> dict[str, object]:
        sample, score = answer.sample, self._official(answer)
        gold = gold_answer(sample)
        compared: object = None
        if score is not None:
            is_list = self.set_name in ("MP-DocVQA", "InfoVQA")  # of which the original makes a list of any answer
            compared = list(score.answers) if is_list else score.answers[0]
        return {
            "query": sample.question,
            "qid": sample.sample_id,
            "original_answer": gold,
            "docid": json.loads(sample.metadata.get(PAGES, "[]")),
            "prompt": sample.metadata.get(PROMPT, ""),
            "preprocessed_responds": None if score is None else score.response,
            "preprocessed_answer": compared,
            "original_responds": answer.text,
        }

    @property
    def columns(self) -> Columns:
        """Columns of ids and answers: ``qid`` and ``original_responds``, or our own names."""
        return _COLUMNS

    def read_predictions(self, path: Path, columns: Columns | None = None) -> PredictionFile:
        """JSON lines with ``qid`` and ``original_responds``, as the original's ``_history.jsonl``."""
        return read_prediction_rows(path, columns or self.columns)


def gold_answer(sample: Sample) -> GoldAnswer:
    """The gold answer with the type that the data set gives it.

    Args:
        sample: a sample of :func:`gen_sample`.

    Raises:
        BenchmarkError: the sample is another benchmark's.
    """
    gold = sample.metadata.get(GOLD)
    if gold is None:
        raise BenchmarkError(f"sample '{sample.sample_id}' has no {GOLD}; it was not read as one of VisRAG-Gen's")
    answer: GoldAnswer = json.loads(gold)
    return answer


def is_visrag_gen(name: str) -> bool:
    """Whether a task is one of VisRAG-Gen's."""
    return name.partition("/")[0] == FAMILY
