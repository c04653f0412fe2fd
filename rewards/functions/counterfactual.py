"""Does the evidence say of every page what the policy's own answers say of it? No labels of evidence are needed.

The policy answers once more, greedily: with all of its pages, and with one of them exchanged for a page of another
question (``RewardCall.counterfactuals``). A page is worth the share of exchanges that cost the right answer. A line
that speaks for the page is judged by that share, a line that marks it as irrelevant by the rest. The answer has to be
written anew without the page, with all that leads to it: behind the response's own notes it would be copied from these,
whatever the pages show.

The policy is asked about pages only where this can give credit: siblings say different things of the page, and the
greedy answer to all pages is right (``right_only``), since what moves a wrong answer is no evidence. An answer that
refuses says nothing of the pages: no exchange costs it, also where a page holds a part of what was asked for. What a
policy might try:

* marking all pages, or none, as relevant: right for some of them only, as with labels;
* inventing the text of a line: it is compared with what those wrote of the page who answered rightly;
* answers that no page moves: no page is then worth anything, and marking all of them as irrelevant earns 1 each. This
  needs questions that are answered rightly without their pages.

Two pages that both hold the answer stand in for one another: neither is worth anything (leave-one-out sees no
redundancy).
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.base import IMAGE_LINES, RewardCall, needs_counterfactuals, needs_gold, reads_sections
from rewards.gold import gold_answers
from rsgrpo.text.normalise import is_irrelevant, is_refusal, normalize_keeping_numbers, set_f1
from rsgrpo.text.sections import ParsedResponse

# Set-F1 from which on two answers count as the same: "about 3 percent" and "3 percent", but not "4 percent".
_SAME = 0.8


def disputed_pages(
    call: RewardCall,
    section: str | None = None,
    right_only: bool = True,
    undecided: float = 0.2,
    compare_lines: bool = True,
) -> Sequence[int]:
    """The pages of which siblings say different things, none where the greedy answer to all pages is wrong or refuses.

    Where all siblings say the same, no exchange could tell them apart.

    Args:
        call: any call of the group.
        section: the section that holds the answer; None: ``response.answer_section``.
        right_only: whether the greedy answer has to be right.
        undecided: not read.
        compare_lines: whether other words are another thing; False: only whether the page is relevant.
    """
    if call.counterfactuals is not None and not _accepted(call, section, right_only):
        return ()
    said: list[set[object]] = [set() for _ in call.sample.images]
    for sibling in call.siblings:
        for image_index, text in _speaking_lines(sibling).items():
            if image_index < len(said):
                said[image_index].add(normalize_keeping_numbers(text) if text and compare_lines else text is None)
    return [image_index for image_index, things in enumerate(said) if len(things) > 1]


def page_values(
    call: RewardCall, section: str | None = None, right_only: bool = True
) -> tuple[float | None, ...] | None:
    """What each page is worth to the answer, in [0, 1].

    Args:
        call: any call of the group; its siblings are not read.
        section: the section that holds the answer; None: ``response.answer_section``.
        right_only: True: the share of exchanges after which the greedy answer is no longer right. False: the share
            after which it is no longer the same; no label at all is read then.

    Returns:
        One value for each image, None for those that were not exchanged; None where nothing is known: the policy was
        not asked, or its greedy answer to all pages is missing, refuses or is (``right_only``) wrong.

    Example:
        The greedy answer to all pages is ``7`` and right. Without the first page the policy says ``4`` and ``9``,
        without the second twice ``7``: (1.0, 0.0).
    """
    if call.counterfactuals is None:
        return None
    accepted = _accepted(call, section, right_only)
    if not accepted:
        return None
    values: list[float | None] = []
    for texts in call.counterfactuals.exchanged:
        num_kept = sum(_has_answer(call.parse(text), section, accepted) for text in texts)
        values.append(1.0 - num_kept / len(texts) if texts else None)
    return tuple(values)


@needs_counterfactuals(disputed_pages)
@reads_sections(IMAGE_LINES, arguments=("section",))
@needs_gold(answer_in="section")
def counterfactual_evidence(
    call: RewardCall,
    section: str | None = None,
    right_only: bool = True,
    undecided: float = 0.2,
    compare_lines: bool = True,
) -> list[float | None]:
    """Each image's own score, for the scope ``evidence_line``: do the line and the answers agree about the page?

    With u the page's value (:func:`page_values`) a line that marks the page as irrelevant scores 1 - u, one that speaks
    for it u; for a page that matters, (1 - u) + (2 u - 1) c, where c is how well its words agree with those of right
    answers about this page, so that a misread line for the right page still scores no less than none.

    Args:
        call: the response to judge, with its siblings and counterfactuals.
        section: the section that holds the answer; None: ``response.answer_section``.
        right_only: whether values are taken from right answers alone; see :func:`page_values`.
        undecided: pages whose value lies no farther from a half give no score: exchanges contradict each other.
        compare_lines: whether c is taken into account; False: it is 1.

    Returns:
        One score for each image, in [0, 1]: 0.0 where the response has no line for it, None where the page's value is
        not known, or undecided.

    Example:
        Values (1.0, 0.0) and the lines ``[1]: red seven``, ``[2]: no relevant information``: (1.0, 1.0) where the
        others who answered rightly wrote ``red seven``, too.
    """
    values = page_values(call, section, right_only)
    num_images = len(call.sample.images)
    if values is None:
        return [None] * num_images
    accepted = _accepted(call, section, right_only)
    lines = _speaking_lines(call.parsed)
    scores: list[float | None] = []
    for image_index, value in enumerate(values):
        if value is None or abs(value - 0.5) <= undecided:
            scores.append(None)
        elif image_index not in lines:
            scores.append(0.0)
        else:
            text = lines[image_index]
            if text is None:
                scores.append(1.0 - value)
            elif value < 0.5 or not compare_lines:
                scores.append(value)
            else:
                agreement = _line_agreement(call, image_index, text, section, accepted)
                scores.append((1.0 - value) + (2.0 * value - 1.0) * agreement)
    return scores


def _speaking_lines(parsed: ParsedResponse) -> dict[int, str | None]:
    """What a response says about each image that has a line; None where it marks the image as irrelevant."""
    return {
        image_index: None if is_irrelevant(line.text) else line.text
        for image_index, line in parsed.first_lines().items()
    }


def _accepted(call: RewardCall, section: str | None, right_only: bool) -> tuple[str, ...]:
    """The answers that count as that to all pages: the greedy one and the right ones; none where nothing is judged."""
    assert call.counterfactuals is not None
    answer = call.parse(call.counterfactuals.with_all).content(section or call.parsed.format.answer_section)
    if answer is None or is_refusal(answer):
        return ()
    right = gold_answers(call.sample, call.parsed.format, section) if right_only else (answer,)
    return (answer, *right) if _is_one_of(answer, right) else ()


def _has_answer(parsed: ParsedResponse, section: str | None, accepted: Sequence[str]) -> bool:
    return _is_one_of(parsed.content(section or parsed.format.answer_section) or "", accepted)


def _is_one_of(answer: str, accepted: Sequence[str]) -> bool:
    words = normalize_keeping_numbers(answer).split()
    return any(set_f1(words, normalize_keeping_numbers(other).split()) >= _SAME for other in accepted)


def _line_agreement(
    call: RewardCall, image_index: int, text: str, section: str | None, accepted: Sequence[str]
) -> float:
    """Mean set-F1 of a line and those about the same page in other responses with the answer; 1 where there are none.

    The greedy response to all pages is one of them.
    """
    assert call.counterfactuals is not None
    words = normalize_keeping_numbers(text).split()
    found = []
    for other in (call.parse(call.counterfactuals.with_all), *call.siblings):
        line = _speaking_lines(other).get(image_index)
        if line is not None and other is not call.parsed and _has_answer(other, section, accepted):
            found.append(set_f1(words, normalize_keeping_numbers(line).split()))
    return sum(found) / len(found) if found else 1.0
