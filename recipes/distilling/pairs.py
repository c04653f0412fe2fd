"""Training rows of a retriever from judged questions, their pages beside them, and what was counted on the way."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.distilling.judging import DistillError, JudgedQuestion
from rsgrpo.config.distill import DistillConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import check_image
from rsgrpo.data.images.sources import ImageError, image_bytes
from rsgrpo.documents.stored_images import WRITING, store_image
from rsgrpo.errors import shown
from rsgrpo.types import ImageRef

_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif"}


@dataclass(kw_only=True, slots=True)
class _Query:
    """What all questions of the same words say of pages: their weights by the file of the page."""

    positives: dict[str, float] = field(default_factory=dict)
    negatives: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldAgreement:
    """How the labels compare with the gold pages, where these are known.

    Attributes:
        num_questions: how many answerable questions have known gold pages, those without a pair included.
        num_gold: how many gold pages they have.
        num_positives: how many pages of theirs became positives of a question that gives pairs.
        num_right_positives: how many of these are gold.
        num_negatives: how many pages of theirs became negatives of a question that gives pairs.
        num_wrong_negatives: how many of these are gold.
    """

    num_questions: int = 0
    num_gold: int = 0
    num_positives: int = 0
    num_right_positives: int = 0
    num_negatives: int = 0
    num_wrong_negatives: int = 0

    @property
    def precision(self) -> float | None:
        """The share of the positives that are gold; None without positives."""
        return self.num_right_positives / self.num_positives if self.num_positives else None

    @property
    def recall(self) -> float | None:
        """The share of the gold pages that became positives; None without gold pages."""
        return self.num_right_positives / self.num_gold if self.num_gold else None

    @property
    def negative_precision(self) -> float | None:
        """The share of the negatives that are not gold; None without negatives."""
        return 1.0 - self.num_wrong_negatives / self.num_negatives if self.num_negatives else None

    def document(self) -> dict[str, Any]:
        """The counts and shares as JSON has them."""
        return {
            "questions": self.num_questions,
            "gold_pages": self.num_gold,
            "positives": self.num_positives,
            "positive_precision": self.precision,
            "positive_recall": self.recall,
            "negatives": self.num_negatives,
            "negative_precision": self.negative_precision,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Distilled:
    """Rows, and what was counted while they were made.

    Attributes:
        rows: the training rows, as ``docs/distill.md`` describes them.
        questions: how many questions were judged.
        responses: how many responses they have.
        correct_responses: how many of these are correct.
        used_questions: how many questions give at least one row.
        left_out_questions: how many questions give none, by reason.
        positives: how many pages are positives, a page once for each query.
        negatives: how many pages are hard negatives in the rows, a page once for each query.
        left_out_pages: how many pages of the questions that give pairs were left out, by reason.
        queries_with_several_positives: how many queries have more than one positive. Many of them may be questions
            that only make sense beside their pages, such as "what is the total?".
        gold: how the labels compare with gold.
    """

    rows: tuple[dict[str, Any], ...]
    questions: int
    responses: int
    correct_responses: int
    used_questions: int
    left_out_questions: Mapping[str, int]
    positives: int
    negatives: int
    left_out_pages: Mapping[str, int]
    queries_with_several_positives: int
    gold: GoldAgreement

    def counts(self) -> dict[str, Any]:
        """Everything but the rows, as ``counts.json`` has it."""
        return {
            "questions": self.questions,
            "responses": self.responses,
            "correct_frac": self.correct_responses / self.responses if self.responses else None,
            "used_questions": self.used_questions,
            "left_out_questions": dict(self.left_out_questions),
            "rows": len(self.rows),
            "positives": self.positives,
            "negatives": self.negatives,
            "left_out_pages": dict(self.left_out_pages),
            "queries_with_several_positives": self.queries_with_several_positives,
            "gold": self.gold.document(),
        }


class PageStore:
    """Copies pages into a folder, each content once.

    Args:
        folder: the folder that gets the pages, below ``images/``.
        rules: how the run read its images.
    """

    def __init__(self, folder: Path, rules: ImageRules) -> None:
        self._folder = folder
        self._rules = rules
        self._names: dict[ImageRef, str] = {}
        self.problems: list[str] = []

    def name(self, ref: ImageRef) -> str:
        """The path of a page relative to the folder; empty where the page cannot be read, which is noted.

        Args:
            ref: the page, which says where it lies.

        Raises:
            DistillError: the page cannot be written.
        """
        if ref not in self._names:
            self._names[ref] = self._stored(ref)
        return self._names[ref]

    def _stored(self, ref: ImageRef) -> str:
        try:
            kind = check_image(ref, self._rules).format
            data = image_bytes(ref)
        except ImageError as error:
            self.problems.append(str(error))
            return ""
        try:
            (self._folder / WRITING).mkdir(parents=True, exist_ok=True)
            return store_image(self._folder, data, _SUFFIXES.get(kind, f".{kind.lower()}")).name
        except OSError as error:
            raise DistillError(
                f"{shown(self._folder)} cannot be written ({error.strerror or error}); make room, or choose another "
                "--out"
            ) from error

    def close(self) -> None:
        """Remove what only writing needs."""
        shutil.rmtree(self._folder / WRITING, ignore_errors=True)


def make_pairs(questions: Sequence[JudgedQuestion], settings: DistillConfig, store: PageStore) -> Distilled:
    """Turn decisions into training rows.

    Questions of the same words are one query to a retriever. A page that one of them makes a positive and another a
    negative is left out, and so is a negative with the same picture as a positive.

    Args:
        questions: the judged questions.
        settings: how many negatives a row has, and its source.
        store: gets the pages of the rows.

    Returns:
        The rows, in the order of the questions, with the counts.
    """
    left_out_questions: Counter[str] = Counter()
    left_out_pages: Counter[str] = Counter()
    queries: dict[str, _Query] = {}
    num_used = 0
    for question in questions:
        reason: str = question.labels.left_out or ("" if question.query else "no bare question")
        if not reason and not _collect(question, queries.setdefault(question.query, _Query()), store, left_out_pages):
            reason = "no positive that can be read"
        if reason:
            left_out_questions[reason] += 1
        num_used += not reason
    rows: list[dict[str, Any]] = []
    num_positives = num_negatives = num_several = 0
    for text, query in queries.items():
        for page in set(query.positives) & set(query.negatives):
            del query.positives[page], query.negatives[page]
            left_out_pages["disputed between questions of the same words"] += 1
        negatives = sorted(query.negatives, key=lambda page: (-query.negatives[page], page))[: settings.max_negatives]
        num_positives += len(query.positives)
        num_negatives += len(negatives) if query.positives else 0
        num_several += len(query.positives) > 1
        rows += [
            {
                "query": text,
                "image": page,
                "negatives": negatives,
                "weight": round(weight, 6),
                "source": settings.source,
            }
            for page, weight in query.positives.items()
        ]
    return Distilled(
        rows=tuple(rows),
        questions=len(questions),
        responses=sum(question.labels.num_responses for question in questions),
        correct_responses=sum(question.labels.num_correct for question in questions),
        used_questions=num_used,
        left_out_questions=dict(left_out_questions.most_common()),
        positives=num_positives,
        negatives=num_negatives,
        left_out_pages=dict(left_out_pages.most_common()),
        queries_with_several_positives=num_several,
        gold=gold_agreement(questions),
    )


def _collect(question: JudgedQuestion, query: _Query, store: PageStore, left_out: Counter[str]) -> bool:
    """Note a question's pages under its query; whether it has a positive that can be read."""
    found: dict[str, dict[str, float]] = {"positive": {}, "negative": {}}
    for page, label in zip(question.pages, question.labels.pages, strict=True):
        if label.decision not in found:
            left_out[label.decision] += 1
            continue
        name = store.name(page)
        if not name:
            left_out["cannot be read"] += 1
            continue
        of_kind = found[label.decision]
        of_kind[name] = max(label.weight, of_kind.get(name, 0.0))
    for name in set(found["positive"]) & set(found["negative"]):
        del found["negative"][name]
        left_out["same picture as a positive"] += 1
    if not found["positive"]:
        return False
    for kept, new in ((query.positives, found["positive"]), (query.negatives, found["negative"])):
        for name, weight in new.items():
            kept[name] = max(weight, kept.get(name, 0.0))
    return True


def gold_agreement(questions: Sequence[JudgedQuestion]) -> GoldAgreement:
    """Compare labels with gold pages.

    Args:
        questions: the judged questions; those whose gold pages are not known, or that their pages do not answer, are
            not looked at.

    Returns:
        The counts over questions, a page once for each question.
    """
    known = [question for question in questions if question.gold is not None]
    pairs = [
        (label.decision, is_gold)
        for question in known
        if not question.labels.left_out
        for label, is_gold in zip(question.labels.pages, question.gold or (), strict=True)
    ]
    return GoldAgreement(
        num_questions=len(known),
        num_gold=sum(sum(question.gold or ()) for question in known),
        num_positives=sum(decision == "positive" for decision, _ in pairs),
        num_right_positives=sum(decision == "positive" and is_gold for decision, is_gold in pairs),
        num_negatives=sum(decision == "negative" for decision, _ in pairs),
        num_wrong_negatives=sum(decision == "negative" and is_gold for decision, is_gold in pairs),
    )
