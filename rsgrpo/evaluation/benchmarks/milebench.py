"""MileBench: 29 sets of multi-image questions in three groups.

What strict mode changes: an answer section counts where there is one; words are compared as words; an
empty answer chooses nothing (official: C); ``The answer is A`` chooses A; labels beyond Z and options with
special characters work; a needle of several words can be found, an MMCoQA answer inside another word is
not; ROUGE-L minds order and repetition, decimals are one word, no epsilon.

Both modes: the last of doubled predictions counts and a missing one scores 0, both counted; the
original stops with an error at either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from rsgrpo.evaluation.benchmarks.milebench_strict import choose, holds_phrase, rouge_l_f1, words_of
from rsgrpo.evaluation.benchmarks.milebench_text import (
    OriginalRaisesError,
    option_label,
    score_choice,
    score_needle,
    score_rouge,
    score_substring,
)
from rsgrpo.evaluation.benchmarks.prediction_files import read_prediction_rows
from rsgrpo.io.atomic_files import write_json
from rsgrpo.text.sections import section_content
from rsgrpo.types import Sample

GROUPS = {
    "realistic_temporal": (
        "ActionLocalization",
        "ActionPrediction",
        "ActionSequence",
        "CharacterOrder",
        "CounterfactualInference",
        "EgocentricNavigation",
        "MovingAttribute",
        "MovingDirection",
        "ObjectExistence",
        "ObjectInteraction",
        "ObjectShuffle",
        "SceneTransition",
        "StateChange",
    ),
    "realistic_semantic": (
        "ALFRED",
        "CLEVR-Change",
        "DocVQA",
        "IEdit",
        "MMCoQA",
        "MultiModalQA",
        "nuscenes",
        "OCR-VQA",
        "SlideVQA",
        "Spot-the-Diff",
        "TQA",
        "WebQA",
        "WikiVQA",
    ),
    "diagnostic": ("TextNeedleInAHaystack", "ImageNeedleInAHaystack", "GPR1200"),
}
"""The three groups that results are reported by, as the original lists them."""

SETS = tuple(name for names in GROUPS.values() for name in names)

_COLUMNS = Columns(texts=("pred_response", "text", "pred", "response", "prediction"))
LEVELS = ("Few", "Medium", "Many")
_FEW_BELOW, _MANY_ABOVE = 6, 31
GOLD_NOT_A_CHOICE = "gold_not_among_choices"
_VARIANT = re.compile(r"(?P<set>.+?)(?:_combined_\d+|-adv)?")


def image_level(num_images: int) -> str:
    """``Few`` below 6 images, ``Many`` above 31, else ``Medium``."""
    if num_images < _FEW_BELOW:
        return "Few"
    return "Many" if num_images > _MANY_ABOVE else "Medium"


def rule_of(set_name: str, question_type: str) -> str:
    """By which rule a set is scored: ``needle``, ``substring``, ``rouge_l`` or ``choice``.

    Raises:
        BenchmarkError: the question type is unknown and the set's name does not decide.
    """
    if "NeedleInAHaystack" in set_name:
        return "needle"
    if "MMCoQA" in set_name:
        return "substring"
    rules = {"open-ended": "rouge_l", "multi-choice": "choice"}
    if question_type not in rules:
        raise BenchmarkError(f"{set_name}: question_type '{question_type}' is none of {', '.join(rules)}")
    return rules[question_type]


@dataclass(frozen=True, kw_only=True, slots=True)
class MileBenchmark:
    """One MileBench set, or a variant of it such as ``ALFRED_combined_1`` or ``ALFRED-adv``.

    Attributes:
        name: the name of the task.
        set_name: the name of the data set, variant included.
        main_metric: the metric that tables show first: accuracy, or ROUGE-L's F for open-ended questions: the mean of
            ``score``.
    """

    name: str
    set_name: str
    main_metric: str = "score"

    @property
    def sets(self) -> tuple[str, ...]:
        """The name of the set, as its folder is called."""
        match = _VARIANT.fullmatch(self.set_name)
        return (match["set"] if match else self.set_name,)

    def score(
        self,
        answered: Sequence[Answered],
        mode: Mode,
        gaps: Gaps = NO_GAPS,
        *,
        answer_section: str = ANSWER_SECTION,
    ) -> BenchmarkResult:
        """See :class:`~.base.Benchmark`; ``printed`` has the original's names, per level too."""
        once, num_doubled = last_of_each(answered)
        items = [_score(answer, self.set_name, mode, answer_section) for answer in once]
        items.extend(
            ScoredItem(sample_id=sample.sample_id, metrics={"score": 0.0}, groups=_groups(sample))
            for sample in gaps.missing
        )
        samples = (*(answer.sample for answer in once), *gaps.missing)
        return build_result(
            name=self.name,
            mode=mode,
            main_metric=self.main_metric,
            metric_names=("score",),
            items=items,
            counts=gaps.counts | {DOUBLED: num_doubled},
            printed=_printed(items, samples, self.set_name) if mode == "official" else {},
        )

    def write_predictions(self, answered: Sequence[Answered], folder: Path, *, model: str = "rsgrpo") -> Path:
        """``<folder>/<model>/<set>/pred.json``: with ``--result-dir <folder>/<model>`` the original finds it."""
        path = folder / model / self.sets[0] / "pred.json"
        write_json(
            path,
            [
                {
                    # The original looks predictions up by int(sample_id).
                    "sample_id": int(answer.sample.sample_id)
                    if answer.sample.sample_id.isdecimal()
                    else answer.sample.sample_id,
                    "image": [image.path for image in answer.sample.images],
                    "question": answer.sample.question,
                    "gt_response": _reference(answer.sample),
                    "pred_response": answer.text,
                    "gen_model_id": model,
                    "gen_kwargs": {},
                }
                for answer in answered
            ],
            indent=2,
        )
        return path

    @property
    def columns(self) -> Columns:
        """Columns of ids and answers: ``sample_id`` and ``pred_response``, or our own names."""
        return _COLUMNS

    def read_predictions(self, path: Path, columns: Columns | None = None) -> PredictionFile:
        """``pred.json`` (or a folder that holds it), or JSON lines."""
        return read_prediction_rows(path / "pred.json" if path.is_dir() else path, columns or self.columns)


def _reference(sample: Sample) -> str:
    if not sample.answers:
        raise BenchmarkError(f"sample '{sample.sample_id}' has no gold answer; read it with the milebench reader")
    return sample.answers[0]


def _rule(sample: Sample, set_name: str) -> str:
    fallback = "multi-choice" if sample.choices else "open-ended"
    return rule_of(set_name, sample.metadata.get("question_type", fallback))


def _groups(sample: Sample) -> dict[str, str]:
    # Combined variants show fewer images than the question has; the level goes by the question.
    return {"images": image_level(int(sample.metadata.get("num_images", len(sample.images))))}


def _score(answer: Answered, set_name: str, mode: Mode, answer_section: str) -> ScoredItem:
    sample = answer.sample
    rule, reference = _rule(sample, set_name), _reference(sample)
    if mode == "official":
        score, parsed, anomalies = (
            (0.0, "", (ORIGINAL_CRASHES,)) if answer.defect else _official(rule, answer.text, reference, sample)
        )
    else:
        score, parsed, anomalies = _strict(rule, answer.text, reference, sample, answer_section)
    return ScoredItem(
        sample_id=sample.sample_id,
        metrics={"score": score},
        parsed=parsed,
        groups=_groups(sample),
        anomalies=anomalies,
    )


def _official(rule: str, text: str, reference: str, sample: Sample) -> tuple[float, str, tuple[str, ...]]:
    plain: dict[str, Callable[[str, str], float]] = {
        "needle": score_needle,
        "substring": score_substring,
        "rouge_l": score_rouge,
    }
    anomalies = () if text.strip() else (UNPARSABLE,)
    try:
        if rule == "choice":
            choice = score_choice(text, reference, sample.choices)
            return float(choice.score), choice.extracted, anomalies
        return float(plain[rule](text, reference)), text, anomalies
    except OriginalRaisesError:
        return 0.0, "", (*anomalies, ORIGINAL_CRASHES)


def _strict(
    rule: str, text: str, reference: str, sample: Sample, answer_section: str
) -> tuple[float, str, tuple[str, ...]]:
    section = section_content(text, answer_section)
    answer = text if section is None else section
    if rule == "choice":
        gold = words_of(reference)
        anomalies = () if gold in map(words_of, sample.choices) else (GOLD_NOT_A_CHOICE,)
        chosen = choose(answer, sample.choices)
        if chosen is None:
            return 0.0, "", (*anomalies, UNPARSABLE)
        return float(words_of(sample.choices[chosen]) == gold), option_label(chosen), anomalies
    anomalies = () if words_of(answer) else (UNPARSABLE,)
    if rule == "rouge_l":
        return rouge_l_f1(answer, reference), answer, anomalies
    return float(holds_phrase(answer, reference)), answer, anomalies


def _printed(items: Sequence[ScoredItem], samples: Sequence[Sample], set_name: str) -> dict[str, float]:
    if not items:
        return {}
    title = "Rouge-L f" if _rule(samples[0], set_name) == "rouge_l" else "Accuracy"
    scores = [item.metrics["score"] for item in items]
    printed = {title: sum(scores) / len(scores)}
    for level in LEVELS:
        chosen = [item.metrics["score"] for item in items if item.groups["images"] == level]
        printed[f"image_quantity_level-Accuracy/{level}"] = sum(chosen) / len(chosen) if chosen else 0.0
        printed[f"image_quantity_level-Result/{level}/sum"] = sum(chosen)
        printed[f"image_quantity_level-Result/{level}/n"] = float(len(chosen))
    return printed
