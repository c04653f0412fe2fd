"""Does a section do another one's work?"""

from __future__ import annotations

from rewards.base import RewardCall, reads_sections
from rsgrpo.text.normalise import normalize_keeping_numbers


@reads_sections(arguments=("section",))
def observe_citation(call: RewardCall, section: str = "observe") -> float:
    """-1.0 if the observe section cites an image by its evidence label ``[i]``, else 0.0.

    Any number counts, not only 1 to 5.

    Args:
        call: the response to judge, with its sample.
        section: the section in which labels have no place.
    """
    found = call.parsed.all_of(section)
    contents = (call.text[occurrence.content_start : occurrence.content_stop] for occurrence in found)
    return -1.0 if any(_has_label(content) for content in contents) else 0.0


@reads_sections(arguments=("section", "answer_section"))
def think_copy(call: RewardCall, section: str = "think", answer_section: str | None = None) -> float:
    """-1.0 if the think section only repeats the answer, else 0.0.

    Compared after normalisation, so an added space or full stop does not hide the copy.

    Args:
        call: the response to judge, with its sample.
        section: the section that must not be a copy.
        answer_section: the section that holds the answer; None: ``response.answer_section``.
    """
    think, answer = call.parsed.content(section), call.answer(answer_section)
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
