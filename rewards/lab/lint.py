"""What do known tricks earn, compared with an honest response?"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from numbers import Real

import numpy as np

from rewards.base import RewardCall, RewardError
from rewards.gold import gold_problem
from rewards.lab.cases import KINDS, TRICKS, Case, cases_of
from rewards.plugins import LoadedReward
from rewards.running import run_async, run_plain
from rsgrpo.config import EVISRAG, ResponseFormat
from rsgrpo.text.normalise import IRRELEVANT
from rsgrpo.text.sections import parse_response
from rsgrpo.types import Counterfactuals

_KIND_OF_FIELD = {"boxes": "grounding", "choices": "choice", "positive_images": "haystack"}
_TOKEN = re.compile(r"\w+|[^\w\s]")  # there is no tokenizer here: a word or a sign counts as one token
_TIE = 1e-9
_SILENT = "constant: no relevant information"
UNMOVED = "no relevant information, of answers that no page moves"
"""The name of one more trick, on rewards that ask what the policy answers without single pages: it guesses."""
_IMAGE_SIZE = (1000, 1000)  # the cases' pages are made up; on such ones pixels are per mille


@dataclass(frozen=True, kw_only=True, slots=True)
class TrickResult:
    """What one trick earns.

    Attributes:
        trick: the name of the trick, a key of ``TRICKS``.
        score: the mean of what it earns over the questions; None where the reward does not apply to such a response.
        is_untouched: whether the trick changes nothing that the reward judges, and earns the same: then it is no trick
            on this reward.
        pays: whether the trick earns as much as an honest response, or more.
    """

    trick: str
    score: float | None
    is_untouched: bool
    pays: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Lint:
    """All tricks against one reward, or against a weighted sum of rewards.

    Attributes:
        name: the name under which the rewards are reported.
        kind: the kind of the questions, one of ``KINDS``.
        honest: the mean of what the honest responses earn.
        tricks: the results of those tricks that change the response to at least one question.
    """

    name: str
    kind: str
    honest: float
    tricks: tuple[TrickResult, ...]

    @property
    def paying(self) -> tuple[TrickResult, ...]:
        """The results of the tricks that pay."""
        return tuple(result for result in self.tricks if result.pays)


def lint(name: str, rewards: Sequence[LoadedReward], kind: str = "", response_format: ResponseFormat = EVISRAG) -> Lint:
    """Play all tricks on the weighted sum of rewards.

    Args:
        name: the name under which the rewards are reported together.
        rewards: the reward, or several that are trained with together.
        kind: the kind of questions, one of ``KINDS``; empty: what the rewards declare that they need, else the first
            kind on which an honest response earns more than an empty one, else ``pages``.
        response_format: the declared sections.

    Returns:
        What an honest response and each trick earn.

    Raises:
        RewardError: a reward fails, returns what is no reward, or cannot judge such questions.
    """
    by_kind = cases_of(response_format, _answer_section(rewards, response_format))
    kind = kind or _kind(rewards, by_kind)
    cases = by_kind[kind]
    for reward in rewards:
        problem = next((found for case in cases if (found := _gold_problem(case, reward))), "")
        if problem:
            raise RewardError(f"reward {reward.name!r} cannot judge questions of the kind {kind!r}: {problem}")
    honest = _scores(rewards, cases, [case.text for case in cases])
    if all(score is None for score in honest):
        raise RewardError(f"{name} does not apply to an honest response of the kind {kind!r}; choose another kind")
    judged = _judged_sections(rewards, cases, honest)
    baseline = _mean(honest) or 0.0
    results = []
    for trick, write in TRICKS.items():
        texts = [write(case) for case in cases]
        if all(text == case.text for text, case in zip(texts, cases, strict=True)):
            continue
        score = _mean(_scores(rewards, cases, texts))
        is_same = judged and all(
            _contents(text, judged, response_format) == _contents(case.text, judged, response_format)
            for text, case in zip(texts, cases, strict=True)
        )
        is_untouched = bool(is_same) and score is not None and abs(score - baseline) <= _TIE
        pays = score is not None and score >= baseline - _TIE and not is_untouched
        results.append(TrickResult(trick=trick, score=score, is_untouched=is_untouched, pays=pays))
    if any(reward.pages_in_question is not None for reward in rewards):
        score = _mean(_scores(rewards, cases, [TRICKS[_SILENT](case) for case in cases], is_moved=False))
        pays = score is not None and score >= baseline - _TIE
        results.append(TrickResult(trick=UNMOVED, score=score, is_untouched=False, pays=pays))
    return Lint(name=name, kind=kind, honest=baseline, tricks=tuple(results))


def _answer_section(rewards: Sequence[LoadedReward], response_format: ResponseFormat) -> str:
    """The section that a reward takes the answer from, where one needs it; else the run's own."""
    needed = (reward.answer_section for reward in rewards if reward.answer_section in reward.gold_sections)
    return next(needed, response_format.answer_section)


def _gold_problem(case: Case, reward: LoadedReward) -> str:
    return gold_problem(case.sample, reward.gold_sections, case.format, reward.answer_section)


def _judged_sections(
    rewards: Sequence[LoadedReward], cases: Sequence[Case], honest: Sequence[float | None]
) -> tuple[str, ...]:
    """Names of the sections without whose content some honest response earns something else."""
    return tuple(
        name
        for name in cases[0].sections
        if _scores(rewards, cases, [case.with_sections({name: ""}) for case in cases]) != honest
    )


def _contents(text: str, sections: Sequence[str], response_format: ResponseFormat) -> list[str | None]:
    parsed = parse_response(text, response_format)
    return [parsed.content(name) for name in sections]


def _kind(rewards: Sequence[LoadedReward], by_kind: Mapping[str, Sequence[Case]]) -> str:
    declared = {section for reward in rewards for section in reward.gold_sections}
    for field, kind in _KIND_OF_FIELD.items():
        if field in declared:
            return kind
    for kind, cases in by_kind.items():
        if any(_gold_problem(case, reward) for reward in rewards for case in cases):
            continue
        honest = _mean(_scores(rewards, cases, [case.text for case in cases]))
        empty = _mean(_scores(rewards, cases, [""] * len(cases))) or 0.0
        if honest is not None and honest > empty:
            return kind
    return KINDS[0]


def _scores(
    rewards: Sequence[LoadedReward], cases: Sequence[Case], texts: Sequence[str], *, is_moved: bool = True
) -> list[float | None]:
    """The weighted sum of the rewards that apply, for each text; None where no reward applies.

    An honest response stands beside each as its sibling. Of a policy whose answers the pages move it is assumed that it
    answers honestly with all pages, and otherwise without one that an honest line speaks for; of one whose answers they
    do not move that it answers the same.
    """
    calls = [_call(case, text, is_moved) for case, text in zip(cases, texts, strict=True)]
    totals: list[float | None] = [None] * len(calls)
    for reward in rewards:
        values = run_async(reward, calls) if reward.is_async else run_plain(reward, calls)
        for index, value in enumerate(values):
            number = _number(reward, value)
            if number is not None:
                totals[index] = (totals[index] or 0.0) + reward.config.weight * number
    return totals


def _counterfactuals(case: Case, is_moved: bool) -> Counterfactuals:
    lines = case.lines()
    other = case.with_roles(answer=next(option for option in case.options if option not in case.text.splitlines()[-1]))
    return Counterfactuals(
        with_all=case.text,
        exchanged=tuple(
            (other if is_moved and line not in ("", IRRELEVANT) else case.text,)
            for line, _ in zip_longest(lines, case.sample.images, fillvalue="")
        ),
    )


def _call(case: Case, text: str, is_moved: bool) -> RewardCall:
    num_tokens = len(_TOKEN.findall(text)) + 1  # and the end of sequence
    is_cut = text != case.text and case.text.startswith(text)
    parsed = parse_response(text, case.format, page_numbers=case.sample.page_numbers)
    return RewardCall(
        sample=case.sample,
        text=text,
        parsed=parsed,
        token_ids=np.zeros(num_tokens, dtype=np.int32),
        finish_reason="length" if is_cut and text else "stop",
        num_tokens=num_tokens,
        response_index=0,
        image_sizes=lambda _: _IMAGE_SIZE,
        siblings=(parsed, parse_response(case.text, case.format, page_numbers=case.sample.page_numbers)),
        counterfactuals=_counterfactuals(case, is_moved),
    )


def _number(reward: LoadedReward, value: object) -> float | None:
    """The value of a reward; the mean of the values where there is one per image."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _mean([_number(reward, image_value) for image_value in value])
    if value is None:
        return None
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    raise RewardError(
        f"reward {reward.name!r} ({reward.config.function}) returned {value!r}; it must return a finite number, None, "
        "or a list of these, one per image"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else None
