"""The six rewards exactly as the public EVisRAG code computes them, its defects included.

They know EVisRAG's four tags, whatever else ``response.sections`` may declare, and look at the response alone, whatever
a prompt opens; where one of their sections is not declared they are refused.
For reproduction only; the other modules hold the versions to train with. Known defects: six and more
images score up to 18, short gold evidence is searched as a substring (``12`` in ``2012``), decimal points
vanish, a section may be closed before it is opened, and gold without tags makes the original crash
(here: score 0, and the crash is named in ``ReferenceScores.anomalies``; the plugins also declare what gold
they need, so that training refuses such samples before it starts).

The weights 3 of accuracy and evidence belong in the settings (``rewards.*.weight``).
"""

from __future__ import annotations

from dataclasses import dataclass

from rewards.base import RewardCall, needs_gold, reads_sections
from rewards.functions.length import overlong_penalty
from rsgrpo.config import EVISRAG
from rsgrpo.text.normalise import IRRELEVANT, normalize_answer, set_f1

_MAX_IMAGES = 6  # the original looks at labels [1]: to [6]:
_FUZZY_WORDS = 5  # gold evidence with at least this many words is compared by F1
_OBSERVE_LABELS = tuple(f"[{number}]" for number in range(1, 6))
_WEIGHTS = {"accuracy": 3.0, "evidence": 3.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceScores:
    """The scores that the original gives one response.

    Attributes:
        accuracy: the set-F1 of the answers, in [0, 1].
        evidence: the weighted evidence score over the images, above 1 for six images and more.
        format: 1 if the format is right, else 0.
        overlong: the penalty for a long response, from -1 to 0.
        is_observe: -1 if the observe section cites an image, else 0.
        is_think: -1 if think and answer are the same text, else 0.
        overall: 3 times ``accuracy`` plus 3 times ``evidence`` plus the other four scores.
        anomalies: the names of the rewards on which the original crashes; their score is 0.
    """

    accuracy: float
    evidence: float
    format: float
    overlong: float
    is_observe: float
    is_think: float
    overall: float
    anomalies: tuple[str, ...]


def score_reference(
    response: str,
    gold_response: str,
    num_tokens: int,
    *,
    max_response_tokens: int = 1536,
    buffer_tokens: int = 512,
    min_response_tokens: int = 200,
) -> ReferenceScores:
    """All six rewards of one response and their weighted sum.

    Args:
        response: the text of the response.
        gold_response: the tagged gold.
        num_tokens: generated tokens, end of sequence included.
        max_response_tokens: the setting of the reward overlong with this name.
        buffer_tokens: the setting of the reward overlong with this name.
        min_response_tokens: the setting of the reward overlong with this name.

    Returns:
        The six scores and their weighted sum.
    """
    components = {
        "accuracy": reference_accuracy(response, gold_response),
        "evidence": reference_evidence(response, gold_response),
        "format": reference_format(response),
        "overlong": overlong_penalty(num_tokens, max_response_tokens, buffer_tokens, min_response_tokens),
        "is_observe": reference_observe(response),
        "is_think": reference_think(response),
    }
    values = {name: 0.0 if value is None else value for name, value in components.items()}
    return ReferenceScores(
        **values,
        overall=sum(_WEIGHTS.get(name, 1.0) * value for name, value in values.items()),
        anomalies=tuple(name for name, value in components.items() if value is None),
    )


def reference_accuracy(response: str, gold_response: str) -> float | None:
    """Set-F1 of normalised answers; None where the original crashes (gold without an answer tag)."""
    if not _has_tags(response, "answer"):
        return 0.0
    gold = _after_tag(gold_response, "answer")
    if gold is None:
        return None
    return set_f1(normalize_answer(_after_tag(response, "answer") or "").split(), normalize_answer(gold).split())


def reference_evidence(response: str, gold_response: str) -> float | None:
    """Weighted evidence score; None where the original crashes (gold without an evidence tag)."""
    if not _has_tags(response, "evidence"):
        return 0.0
    gold = _after_tag(gold_response, "evidence")
    if gold is None:
        return None
    generated = _after_tag(response, "evidence") or ""
    earned = total = 0.0
    for number in range(1, _MAX_IMAGES + 1):
        if f"[{number}]:" not in gold:
            return earned / total if total else 0.0
        gold_line = _labelled(gold, number)
        weight = 1.0 if gold_line == IRRELEVANT else 3.0
        total += weight
        if f"[{number}]:" in generated:
            earned += weight * _line_score(_labelled(generated, number), gold_line)
    return earned  # not divided: only the early end of the loop divides


def reference_format(response: str) -> float:
    """1.0 iff the four blocks, with whitespace between them only, are the whole response."""
    if any(response.count(tag) != 1 for tag in EVISRAG.tags):
        return 0.0
    edge = 0
    for position, tag in enumerate(EVISRAG.tags):
        start = response.find(tag, edge)
        between = response[edge:start] if start >= 0 else "x"
        is_opening = position % 2 == 0
        if start < 0 or (is_opening and between and (position == 0 or not between.isspace())):
            return 0.0
        edge = start + len(tag)
    return float(edge == len(response))


def reference_observe(response: str) -> float:
    """-1.0 if one of [1] to [5] stands in the observe section."""
    if not _has_tags(response, "observe"):
        return 0.0
    section = _after_tag(response, "observe") or ""
    return -1.0 if any(label in section for label in _OBSERVE_LABELS) else 0.0


def reference_think(response: str) -> float:
    """-1.0 if think and answer are the same text."""
    if not (_has_tags(response, "think") and _has_tags(response, "answer")):
        return 0.0
    return -1.0 if _after_tag(response, "think") == _after_tag(response, "answer") else 0.0


@needs_gold("answer")
def accuracy(call: RewardCall) -> float:
    """``reference_accuracy`` as a plugin."""
    return reference_accuracy(call.text, call.sample.gold_response) or 0.0


@needs_gold("evidence")
def evidence(call: RewardCall) -> float:
    """``reference_evidence`` as a plugin."""
    return reference_evidence(call.text, call.sample.gold_response) or 0.0


@reads_sections(*EVISRAG.names)
def format(call: RewardCall) -> float:
    """``reference_format`` as a plugin."""
    return reference_format(call.text)


def overlong(
    call: RewardCall, max_response_tokens: int = 1536, buffer_tokens: int = 512, min_response_tokens: int = 200
) -> float:
    """The overlong penalty as a plugin, with the published defaults."""
    return overlong_penalty(call.num_tokens, max_response_tokens, buffer_tokens, min_response_tokens)


@reads_sections("observe")
def is_observe(call: RewardCall) -> float:
    """``reference_observe`` as a plugin."""
    return reference_observe(call.text)


@reads_sections("think", "answer")
def is_think(call: RewardCall) -> float:
    """``reference_think`` as a plugin."""
    return reference_think(call.text)


def contains_normalized(text: str, gold: str) -> float:
    """1.0 if normalised gold is a substring of the normalised text (an empty gold always is)."""
    return float(normalize_answer(gold) in normalize_answer(text))


def _has_tags(text: str, name: str) -> bool:
    return f"<{name}>" in text and f"</{name}>" in text


def _after_tag(text: str, name: str) -> str | None:
    """The text between the first opening tag and the next opening or closing one; None without an opening tag."""
    _, tag, rest = text.partition(f"<{name}>")
    if not tag:
        return None
    return rest.partition(f"<{name}>")[0].partition(f"</{name}>")[0]


def _labelled(section: str, number: int) -> str:
    """The text behind the first ``[number]:`` up to the next one or the next ``[number + 1]``."""
    rest = section.partition(f"[{number}]:")[2].partition(f"[{number}]:")[0]
    return rest.partition(f"[{number + 1}]")[0].strip()


def _line_score(generated: str, gold: str) -> float:
    if len(gold.split()) >= _FUZZY_WORDS:
        return set_f1(normalize_answer(generated).split(), normalize_answer(gold).split())
    return contains_normalized(generated, gold)
