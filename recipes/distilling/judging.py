"""From recorded groups to questions with a decision for every page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rsgrpo.config import ResponseFormat
from rsgrpo.config.distill import SCORES, DistillConfig
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.evaluation.metrics import score_response
from rsgrpo.retrieval.training.evidence_labels import JudgedResponse, QuestionLabels, label_pages, page_statements
from rsgrpo.run.recorder import RecordedGroup, RecordedRollout
from rsgrpo.text.normalise import is_irrelevant
from rsgrpo.text.sections import ParsedResponse, parse_response
from rsgrpo.types import IMAGE_MARKER, ImageRef


class DistillError(RsgrpoError):
    """No training pairs can be made; the message says of what, and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedQuestion:
    """A question with the decision for each of its pages.

    Attributes:
        sample_id: the question's id.
        query: the bare question; empty where the data set has only a ready prompt.
        pages: the different pages of the question, each once.
        numbers: the number by which responses call each page.
        labels: what was decided of each page.
        gold: whether each page is a gold page; None: it is not known.
        lines: for each page the first evidence line of a weighed response that says what was decided; empty: none.
        answers: the accepted answers.
        is_sufficient: whether the pages hold the answer.
    """

    sample_id: str
    query: str
    pages: tuple[ImageRef, ...]
    numbers: tuple[int, ...]
    labels: QuestionLabels
    gold: tuple[bool, ...] | None
    lines: tuple[str, ...]
    answers: tuple[str, ...]
    is_sufficient: bool


def judge_groups(
    groups: Iterable[RecordedGroup], settings: DistillConfig, response_format: ResponseFormat
) -> Iterator[JudgedQuestion]:
    """Decide of every page of every question.

    The responses that a run recorded for one question at several steps are taken together, as if they were sampled at
    once: which of them count is a matter of their answers, not of their age.

    Args:
        groups: the recorded groups.
        settings: the bounds of the decisions, and what a correct answer is.
        response_format: the sections that the run declared.

    Yields:
        The questions, in the order in which they were first recorded.

    Raises:
        DistillError: the sections have no line per image, or ``distill.correctness`` names what was not recorded, or a
            value outside 0 to 1.
    """
    if not response_format.lines_section:
        raise DistillError(
            "the run declares no section with a line per image (response.sections[].per_image_lines), so its responses "
            "say nothing of single pages; distil a run that does, such as one with EVisRAG's sections"
        )
    pooled: dict[tuple[str, str, tuple[ImageRef, ...]], list[RecordedGroup]] = {}
    for group in groups:
        pooled.setdefault((group.sample_id, group.question, group.images), []).append(group)
    for same in pooled.values():
        yield _judged(same, settings, response_format)


def _judged(same: Sequence[RecordedGroup], settings: DistillConfig, response_format: ResponseFormat) -> JudgedQuestion:
    group = same[0]
    pages = tuple(dict.fromkeys(group.images))
    places = [pages.index(image) for image in group.images]
    numbers = group.page_numbers or range(1, len(group.images) + 1)
    parsed: list[ParsedResponse] = []
    responses: list[JudgedResponse] = []
    for recorded in same:
        opened = recorded.opened_section if recorded.opened_section in response_format.names else ""
        for rollout in recorded.rollouts:
            parsed.append(parse_response(rollout.text, response_format, opened, recorded.page_numbers))
            helps = _by_page(page_statements(parsed[-1], len(places)), places, len(pages))
            correctness = _correctness(recorded, rollout, settings.correctness, response_format, opened)
            responses.append(JudgedResponse(correctness=correctness, helps=helps))
    labels = label_pages(responses, len(pages), settings, is_sufficient=group.is_sufficient)
    gold = _gold_pages(group, response_format)
    is_gold = (
        None
        if gold is None
        else tuple(any(pages[number] == group.images[i] for i in gold) for number in range(len(pages)))
    )
    return JudgedQuestion(
        sample_id=group.sample_id,
        query="" if IMAGE_MARKER in group.question else " ".join(group.question.split()),
        pages=pages,
        numbers=tuple(numbers[group.images.index(page)] for page in pages),
        labels=labels,
        gold=is_gold,
        lines=tuple(
            _told_line(number, places, parsed, responses, settings, wanted=label.decision != "negative")
            for number, label in enumerate(labels.pages)
        ),
        answers=group.answers,
        is_sufficient=group.is_sufficient,
    )


def _by_page(statements: Sequence[bool | None], places: Sequence[int], num_pages: int) -> tuple[bool | None, ...]:
    """Statements about the different pages: one that is shown twice helps if either line says so."""
    found: list[bool | None] = [None] * num_pages
    for place, statement in zip(places, statements, strict=True):
        if statement is not None:
            found[place] = bool(found[place]) or statement
    return tuple(found)


def _correctness(
    group: RecordedGroup, rollout: RecordedRollout, name: str, response_format: ResponseFormat, opened: str
) -> float:
    """How correct an answer is, from 0 to 1, by a score of ours or by a recorded reward."""
    if name in SCORES:
        score = score_response(
            rollout.text,
            group.answers,
            group.is_sufficient,
            response_format=response_format,
            opened=opened,
            page_numbers=group.page_numbers,
        )
        return float(getattr(score, name))
    values = [reward.value for reward in rollout.rewards if reward.name == name and reward.image_index < 0]
    if not values:
        recorded = sorted({reward.name for reward in rollout.rewards})
        raise DistillError(
            f"distill.correctness={shown(name, 80)}: nothing of that name was recorded with sample "
            f"{shown(group.sample_id, 80)!r} (it has {shown(', '.join(recorded), 200) or 'no rewards'}); choose one of "
            f"{', '.join(SCORES)}, or a reward of the run (responses that were sampled carry the one that was named "
            "then; sample into another --out)"
        )
    value = values[0] if values[0] is not None else 0.0  # a reward that does not apply says nothing good
    if not 0.0 <= value <= 1.0:
        raise DistillError(
            f"distill.correctness={shown(name, 80)}: sample {shown(group.sample_id, 80)!r} has the value {value:g}, "
            "and a correctness lies between 0 and 1; choose another reward, or one of " + ", ".join(SCORES)
        )
    return value


def _gold_pages(group: RecordedGroup, response_format: ResponseFormat) -> tuple[int, ...] | None:
    """0-based indexes of the pages that gold says help; None where gold does not say."""
    if not group.is_sufficient:
        return None
    if group.positive_images:
        return group.positive_images
    lines = parse_response(group.gold_response, response_format, page_numbers=group.page_numbers).first_lines()
    known = {index: line.text for index, line in lines.items() if line.text and index < len(group.images)}
    if len(known) < len(group.images):
        return None
    return tuple(index for index, text in known.items() if not is_irrelevant(text))


def _told_line(
    page: int,
    places: Sequence[int],
    parsed: Sequence[ParsedResponse],
    responses: Sequence[JudgedResponse],
    settings: DistillConfig,
    *,
    wanted: bool,
) -> str:
    """A line of a response that counts, to be looked at."""
    for text, response in zip(parsed, responses, strict=True):
        counts = response.correctness >= settings.min_correctness and any(response.helps)
        if not counts or response.helps[page] is not wanted:
            continue
        lines = text.first_lines()
        for index, place in enumerate(places):
            if place == page and index in lines and lines[index].text:
                return lines[index].text
    return ""
