"""Haystacks: find the page that matters among many, and answer yes or no.

What a policy might try: both words (neither counts); the marker as an answer, for the "no" in it (not counted);
"no relevant information" for every page, or for none (``needle_found`` is 0 either way; ``needle_lines`` compares
siblings page by page, where a constant earns no credit). A line on the needle page is only known to be there, not
to be true: gold has no text for it.
"""

from __future__ import annotations

from rewards.base import IMAGE_LINES, RewardCall, needs_gold, reads_sections
from rewards.gold import gold_answers
from rsgrpo.text.normalise import IRRELEVANT, is_irrelevant, normalize_answer

_YES_NO = frozenset(("yes", "no"))


@reads_sections(arguments=("section",))
@needs_gold(answer_in="section")
def yes_no(call: RewardCall, section: str | None = None) -> float | None:
    """1.0 if the answer section says the gold word and not the other one, else 0.0.

    The benchmark's own rule counts an answer that holds both words as right for either gold; here it is wrong.

    Args:
        call: the response to judge, with its sample.
        section: the section that holds the answer; None: ``response.answer_section``.

    Returns:
        1.0 or 0.0; 0.0 also where there is no closed answer section; None where gold is neither yes nor no.

    Example:
        Gold ``yes``: ``<answer>Yes, there is.</answer>`` gives 1.0, ``<answer>yes and no</answer>`` 0.0.
    """
    accepted = gold_answers(call.sample, call.parsed.format, section)
    gold = {word for answer in accepted for word in normalize_answer(answer).split()} & _YES_NO
    if len(gold) != 1:
        return None
    answer = call.answer(section)
    if answer is None:
        return 0.0
    # The "no" of "no relevant information" answers nothing.
    words = " ".join(_words(answer)).replace(IRRELEVANT, "").split()
    return float(set(words) & _YES_NO == gold)


@reads_sections(IMAGE_LINES)
@needs_gold("positive_images")
def needle_lines(call: RewardCall, min_words: int = 2) -> list[float | None]:
    """Each page's own value, for the scope ``evidence_line``: 1.0 if its line is what it should be, else 0.0.

    The line of a needle page must say something: at least ``min_words`` words (articles are none), without
    the marker. The line of any other page must be the marker ``no relevant information`` and nothing else. A page
    without a line gets 0.0.

    Args:
        call: the response to judge, with its sample.
        min_words: the fewest words of a needle image's line.

    Returns:
        One value for each page.

    Example:
        Needle on page 2 of 3, lines ``[1]: no relevant information``, ``[2]: a truck and a dog``: ``[1, 1, 0]``.
    """
    return [float(is_right) for is_right in _right_lines(call, min_words)]


@reads_sections(IMAGE_LINES)
@needs_gold("positive_images")
def needle_found(call: RewardCall, min_words: int = 2) -> float:
    """Whether the evidence tells needle pages from the others, in [0, 1].

    Youden's J: share of needle pages marked relevant, plus share of other pages marked irrelevant, minus 1, at least 0.
    Marking every page alike is worth 0, whichever way. Without other pages it is the first share alone.

    Args:
        call: the response to judge, with its sample.
        min_words: the fewest words of a needle image's line.

    Example:
        Needle found, one of two other pages marked: 1 + 1/2 - 1 = 0.5.
    """
    right = _right_lines(call, min_words)
    needles = set(call.sample.positive_images)
    found = [right[index] for index in range(len(right)) if index in needles]
    spared = [right[index] for index in range(len(right)) if index not in needles]
    if not found:
        return 0.0
    recall = sum(found) / len(found)
    return max(0.0, recall + sum(spared) / len(spared) - 1.0) if spared else recall


def _right_lines(call: RewardCall, min_words: int) -> list[bool]:
    lines = call.parsed.first_lines()
    needles = set(call.sample.positive_images)
    right = []
    for image_index in range(len(call.sample.images)):
        line = lines.get(image_index)
        if line is None:
            right.append(False)
        elif image_index in needles:
            words = _words(line.text)
            right.append(len(words) >= min_words and IRRELEVANT not in " ".join(words))
        else:
            right.append(is_irrelevant(line.text))
    return right


def _words(text: str) -> list[str]:
    """The normalised words of a text; a dash or a slash separates two words, as a blank does."""
    return normalize_answer(text.replace("-", " ").replace("/", " ").replace("—", " ")).split()
