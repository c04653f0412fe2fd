"""Does a section do another one's work?"""

from __future__ import annotations

from rewards.base import RewardCall
from rsgrpo.text.normalise import normalize_keeping_numbers


def observe_citation(call: RewardCall) -> float:
    """-1.0 if the observe section cites an image by its evidence label ``[i]``, else 0.0.

    Any number counts, not only 1 to 5.
    """
    section = call.parsed.section("observe")
    if section is None:
        return 0.0
    return -1.0 if _has_label(call.text[section.content_start : section.content_stop]) else 0.0


def think_copy(call: RewardCall) -> float:
    """-1.0 if the think section only repeats the answer, else 0.0.

    Compared after normalisation, so an added space or full stop does not hide the copy.
    """
    think, answer = call.parsed.content("think"), call.parsed.content("answer")
    if think is None or answer is None:
        return 0.0
    return -1.0 if normalize_keeping_numbers(think) == normalize_keeping_numbers(answer) else 0.0


def _has_label(text: str) -> bool:
    """Whether ``[digits]`` stands in the text; each piece between brackets is looked at once."""
    for piece in text.split("[")[1:]:
        digits, bracket, _ = piece.partition("]")
        if bracket and digits.isascii() and digits.isdecimal():
            return True
    return False
