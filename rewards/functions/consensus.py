"""Does the evidence say of every page what the right answers of its group say of it? No labels of evidence are needed.

A right answer mostly rests on right evidence. So the lines of right responses say, page by page, what the others got
wrong: the one misread page of a sum, the distractor that was spoken for. The reward for the answer alone blames or
praises all lines of a response together. Nothing is sampled for this. What a policy might try:

* marking all pages, or none, as relevant: agrees with right answers that do so, and earns nothing more than they;
* inventing the text of a line: it is compared with what right answers say of the page;
* answers that are right without their pages (guesses from the question): then any evidence passes for right.

What all right answers of a group get wrong alike is never found, and nothing is learned of a question that none answers
rightly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rewards.base import IMAGE_LINES, RewardCall, needs_gold, reads_sections
from rewards.gold import gold_answers
from rsgrpo.text.normalise import is_irrelevant, normalize_keeping_numbers, set_f1
from rsgrpo.text.sections import ParsedResponse

# Set-F1 from which on two answers count as the same: "about 3 percent" and "3 percent", but not "4 percent".
_SAME = 0.8

Verdicts = Mapping[int, str | None]
"""What a response says about each image that has a line; None where it marks the image as irrelevant."""


@reads_sections(IMAGE_LINES, arguments=("section",))
@needs_gold(answer_in="section")
def consensus_evidence(call: RewardCall, section: str | None = None) -> list[float | None]:
    """Each image's own score, for the scope ``evidence_line``: how well its line agrees with those of right answers.

    Args:
        call: the response to judge, with its siblings.
        section: the section that holds the answer; None: ``response.answer_section``.

    Returns:
        One score for each image, in [0, 1]: :func:`agreement` with the right responses of the group, this one
        included if it is right. None throughout where the response stands alone, as in evaluations.

    Example:
        Right: ``[1]: red seven``, ``[2]: no relevant information``. Wrong: ``[1]: red nine``, ``[2]: blue one``. The
        first scores (1.0, 1.0), the second (0.5, 0.0).
    """
    num_images = len(call.sample.images)
    if len(call.siblings) < 2:
        return [None] * num_images
    right = gold_answers(call.sample, call.parsed.format, section)
    references = [verdicts(sibling) for sibling in call.siblings if has_answer(sibling, section, right)]
    said = verdicts(call.parsed)
    return [agreement(said, references, image_index) for image_index in range(num_images)]


def agreement(said: Verdicts, references: Sequence[Verdicts], image_index: int) -> float | None:
    """How well a response says of an image what others say of it.

    Args:
        said: what the response says.
        references: what the others say.
        image_index: the 0-based image.

    Returns:
        The mean over the others that have a line about it: 1 where both mark it as irrelevant, 0 where one does, else
        the set-F1 of their words. 0.0 where the response has no line, None where no other has one.
    """
    found = [other[image_index] for other in references if image_index in other]
    if not found:
        return None
    if image_index not in said:
        return 0.0
    line = said[image_index]
    if line is None:
        return sum(other is None for other in found) / len(found)
    words = normalize_keeping_numbers(line).split()
    return sum(
        0.0 if other is None else set_f1(words, normalize_keeping_numbers(other).split()) for other in found
    ) / len(found)


def verdicts(parsed: ParsedResponse) -> Verdicts:
    """What a response says about each image that has a line; None where it marks the image as irrelevant."""
    return {
        image_index: None if is_irrelevant(line.text) else line.text
        for image_index, line in parsed.first_lines().items()
    }


def has_answer(parsed: ParsedResponse, section: str | None, accepted: Sequence[str]) -> bool:
    """Whether a response gives one of these answers, in nearly the same words.

    Args:
        parsed: the response.
        section: the section that holds the answer; None: ``response.answer_section``.
        accepted: the answers.
    """
    return is_one_of(parsed.content(section or parsed.format.answer_section) or "", accepted)


def is_one_of(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer has nearly the same words as one of these."""
    words = normalize_keeping_numbers(answer).split()
    return any(set_f1(words, normalize_keeping_numbers(other).split()) >= _SAME for other in accepted)
