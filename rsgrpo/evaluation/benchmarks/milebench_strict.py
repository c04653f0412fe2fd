"""MileBench without its slips: words instead of characters, one chosen option or none, plain ROUGE-L."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rsgrpo.evaluation.benchmarks.milebench_text import lcs_length, option_label

_WORD = re.compile(r"\w+(?:\.\d+)*")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WHOLE_LABEL = re.compile(r"\W*([A-Za-z]{1,2})\W*")
_LEADING_LABEL = re.compile(r"[\s*\"'(\[]*([A-Z]{1,2})(?:[)\].:]|\s*[-–]\s)\s*(.*)", re.DOTALL)
_ANNOUNCED_LABEL = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+(?:is|be|option|choice|letter))*\s*:?[\s*\"'(\[]*([A-Z]{1,2})\b(?!')",
    re.IGNORECASE,
)
_LONE_LABEL = re.compile(
    # A and I are words too: they count in front of punctuation, at the end, or beside another label.
    r"(?<![\w'])(?:[B-HJ-Z]|[A-Z]{2}|[AI](?=\W*\Z|\s*[^\w\s]|\s+(?:and|or)\s+[A-Z]\b))(?![\w'])"
)


def words_of(text: str) -> list[str]:
    """Lower-case words; a decimal number is one word, thousands separators go.

    Example:
        ``words_of("It's 1,234.5, U.S.!") == ["it", "s", "1234.5", "u", "s"]``.
    """
    return _WORD.findall(_COMMA_IN_NUMBER.sub("", text.lower()))


def holds_phrase(text: str, phrase: str) -> bool:
    """Whether the words of a phrase stand in a text, in a row; an empty phrase stands nowhere."""
    words, wanted = words_of(text), words_of(phrase)
    return bool(wanted) and any(
        words[start : start + len(wanted)] == wanted for start in range(len(words) - len(wanted) + 1)
    )


def rouge_l_f1(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, order and repetitions counted: 2 L / (n + m).

    Example:
        ``rouge_l_f1("the cat sat", "the cat sat on the mat")`` = 2 * 3 / (3 + 6) = 2/3.
    """
    left, right = words_of(prediction), words_of(reference)
    total = len(left) + len(right)
    return 2.0 * lcs_length(left, right) / total if left and right else 0.0


def choose(text: str, choices: Sequence[str]) -> int | None:
    """The one option that a text chooses.

    In this order: the text is a label; it is an option's words; it begins with a label and a delimiter
    (and what follows is not another option's words); a label is announced (``the answer is B``, the last
    one counts); just one option's words occur, options inside longer ones aside; just one label
    stands alone as a capital (``A`` and ``I`` only before punctuation or at the end).

    Args:
        text: the text of the answer.
        choices: texts of the options.

    Returns:
        The 0-based index of the option; None where the text chooses none, or more than one.

    Example:
        ``choose("The answer is A", ["red", "blue"]) == 0``; ``choose("red or blue", ["red", "blue"]) is None``.
    """
    labels = {option_label(index): index for index in range(len(choices))}
    options = [words_of(choice) for choice in choices]
    words = words_of(text)
    if not words:
        return None
    whole = _WHOLE_LABEL.fullmatch(text)
    if whole and whole.group(1).upper() in labels:
        return labels[whole.group(1).upper()]
    if words in options:
        return options.index(words)
    leading = _LEADING_LABEL.match(text)
    if leading and leading.group(1) in labels:
        chosen, rest = labels[leading.group(1)], words_of(leading.group(2))
        return None if rest in options and rest != options[chosen] else chosen
    announced = [
        match.group(1).upper()
        for match in _ANNOUNCED_LABEL.finditer(text)
        # In lower case only at the end: "the answer is a dog" announces nothing.
        if match.group(1).isupper() or not words_of(text[match.end() :])
    ]
    if announced and announced[-1] in labels:
        return labels[announced[-1]]
    mentioned = _mentioned(words, options)
    if mentioned:
        return next(iter(mentioned)) if len(mentioned) == 1 else None
    alone = {labels[label] for label in _LONE_LABEL.findall(text) if label in labels}
    return next(iter(alone)) if len(alone) == 1 else None


def _mentioned(words: Sequence[str], options: Sequence[Sequence[str]]) -> set[int]:
    """Options whose words occur; longer ones first, and each word belongs to one mention."""
    taken = [False] * len(words)
    found: set[int] = set()
    for index in sorted(range(len(options)), key=lambda index: -len(options[index])):
        option = options[index]
        for start in range(len(words) - len(option) + 1 if option else 0):
            stop = start + len(option)
            if list(words[start:stop]) == list(option) and not any(taken[start:stop]):
                taken[start:stop] = [True] * len(option)
                found.add(index)
    return found
