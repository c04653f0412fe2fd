"""Does the evidence say of every page what the policy's own answers say of it? No labels of evidence are needed.

The policy answers once more, greedily: with all of its pages, and with one of them exchanged for a page of another
question (``RewardCall.counterfactuals``). A page is worth the share of exchanges that cost the right answer. A line
that speaks for the page is judged by that share, a line that marks it as irrelevant by the rest. The answer has to be
written anew without the page, with all that leads to it: behind the response's own notes it would be copied from these,
whatever the pages show.

The policy is asked about pages only where this can give credit: siblings say different things of the page, and the
greedy answer to all pages is right (``right_only``), since what moves a wrong answer is no evidence. An answer that
refuses says nothing of the pages: no exchange costs it, also where a page holds a part of what was asked for. Pages of
which exchanges say nothing are judged by what right answers say of them (:mod:`rewards.functions.consensus`): exchanges
find pages that matter more often than distractors, since who speaks for a distractor mostly answers wrongly, and by
themselves teach a policy to speak. What a policy might try:

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
from rewards.functions.consensus import agreement, has_answer, is_one_of, verdicts
from rewards.gold import gold_answers
from rsgrpo.text.normalise import is_refusal, normalize_keeping_numbers


def disputed_pages(
    call: RewardCall,
    section: str | None = None,
    right_only: bool = True,
    undecided: float = 0.2,
    compare_lines: bool = True,
    by_consensus: bool = True,
) -> Sequence[int]:
    """The pages of which siblings say different things, none where the greedy answer to all pages is wrong or refuses.

    Where all siblings say the same, no exchange could tell them apart.

    Args:
        call: any call of the group.
        section: the section that holds the answer; None: ``response.answer_section``.
        right_only: whether the greedy answer has to be right.
        undecided: not read.
        compare_lines: whether other words are another thing; False: only whether the page is relevant.
        by_consensus: not read.
    """
    if call.counterfactuals is not None and not _accepted(call, section, right_only):
        return ()
    said: list[set[object]] = [set() for _ in call.sample.images]
    for sibling in call.siblings:
        for image_index, text in verdicts(sibling).items():
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
        num_kept = sum(has_answer(call.parse(text), section, accepted) for text in texts)
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
    by_consensus: bool = True,
) -> list[float | None]:
    """Each image's own score, for the scope ``evidence_line``: do the line and the answers agree about the page?

    With u the page's value (:func:`page_values`) a line that marks the page as irrelevant scores 1 - u, one that speaks
    for it u; for a page that matters, (1 - u) + (2 u - 1) c, where c is how well its words agree with those of right
    answers about this page, so that a misread line for the right page still scores no less than none. Where the page's
    value is not known or undecided, the line scores its agreement with what right answers say of the page.

    Args:
        call: the response to judge, with its siblings and counterfactuals.
        section: the section that holds the answer; None: ``response.answer_section``.
        right_only: whether values are taken from right answers alone; see :func:`page_values`.
        undecided: a value no farther from a half than this decides nothing: exchanges contradict each other.
        compare_lines: whether c is taken into account; False: it is 1.
        by_consensus: whether pages whose value decides nothing are judged by right answers; False: not at all.

    Returns:
        One score for each image, in [0, 1]: 0.0 where the response has no line for it, None where nothing says what
        it should be.

    Example:
        Values (1.0, 0.0) and the lines ``[1]: red seven``, ``[2]: no relevant information``: (1.0, 1.0) where the
        others who answered rightly wrote ``red seven``, too.
    """
    num_images = len(call.sample.images)
    if call.counterfactuals is None:
        return [None] * num_images
    values = page_values(call, section, right_only) or (None,) * num_images
    accepted = _accepted(call, section, right_only)
    if right_only:
        accepted = (*accepted, *gold_answers(call.sample, call.parsed.format, section))
    greedy = call.parse(call.counterfactuals.with_all)
    right = [other for other in (greedy, *call.siblings) if has_answer(other, section, accepted)]
    everyone = [verdicts(other) for other in right] if by_consensus else []
    others = [verdicts(other) for other in right if other is not call.parsed]
    said = verdicts(call.parsed)
    scores: list[float | None] = []
    for image_index, value in enumerate(values):
        if value is None or abs(value - 0.5) <= undecided:
            scores.append(agreement(said, everyone, image_index))
        elif image_index not in said:
            scores.append(0.0)
        elif said[image_index] is None:
            scores.append(1.0 - value)
        elif value < 0.5 or not compare_lines:
            scores.append(value)
        else:
            speaking = [other for other in others if other.get(image_index) is not None]
            alike = agreement(said, speaking, image_index)
            scores.append((1.0 - value) + (2.0 * value - 1.0) * (1.0 if alike is None else alike))
    return scores


def _accepted(call: RewardCall, section: str | None, right_only: bool) -> tuple[str, ...]:
    """The answers that count as that to all pages: the greedy one and the right ones; none where nothing is judged."""
    assert call.counterfactuals is not None
    answer = call.parse(call.counterfactuals.with_all).content(section or call.parsed.format.answer_section)
    if answer is None or is_refusal(answer):
        return ()
    right = gold_answers(call.sample, call.parsed.format, section) if right_only else (answer,)
    return (answer, *right) if is_one_of(answer, right) else ()
