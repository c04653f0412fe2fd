"""How lmms-eval reads answers to MMMU and MuirBench, and what its reasoning filter leaves.

lmms-eval scores its own tasks; these functions say, without it, what a response would be read as, and so why an
evidence-style response has to reach it as its answer section alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_EDGES = ",.!?;:'"
_MIN_WORDS_FOR_OPTION_TEXT = 6
_LEADING_LETTER = re.compile(r"\s*([A-Z])\.")
_TRIVIAL = frozenset(_EDGES)
_ANNOUNCING = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def mmmu_choice(response: str, choices: Sequence[str]) -> str | None:
    """The letter that MMMU's and MMMU-Pro's rule reads out of a response.

    Letters in parentheses; without any, letters in front of a space; else in front of a period; else, in a response
    of more than five words, options whose text occurs, whatever the case. Of several the one that stands last.

    Args:
        response: the text.
        choices: texts of the options.

    Returns:
        A letter; None where lmms-eval draws one at random.

    Example:
        Of four options ``The answer is (B) not (C)`` reads as C, ``B, because A is wrong`` as A, ``**B**`` as None.
    """
    bare = response
    for character in _EDGES:  # one after the other, as the original does: "., x" keeps its comma
        bare = bare.strip(character)
    text = f" {bare} "
    letters = {chr(ord("A") + index): choice for index, choice in enumerate(choices)}
    for found, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        candidates = [letter for letter in letters if found.format(letter) in text]
        if candidates:
            return max(candidates, key=lambda letter: text.rfind(place.format(letter)))
    if len(text.split()) < _MIN_WORDS_FOR_OPTION_TEXT:
        return None
    lower = text.lower()
    named = [letter for letter, choice in letters.items() if choice.lower() in lower]
    return max(named, key=lambda letter: lower.rfind(letters[letter].lower())) if named else None


def mmmu_open_answers(response: str) -> set[str | float]:
    """What MMMU's rule takes for possible answers to an open question: the tails of its lines, and all numbers.

    lmms-eval's task itself then looks at one of them letter by letter, so that open questions score 0 there.

    Example:
        ``mmmu_open_answers("it is a cat") == {"a cat"}``; ``"1,234"`` gives {1234.0, 234.0}.
    """
    lines = response.strip().strip(".").lower().split("\n")
    tails = []
    for index, line in enumerate(lines):
        is_last = index == len(lines) - 1
        tail = _shortest_tail(line, (*_ANNOUNCING, "=") if is_last else _ANNOUNCING)
        if tail and tail not in _TRIVIAL:
            tails.append(tail)
    tails = tails or [response.strip().strip(".").lower()]
    texts = tails + [number for tail in tails for pattern in _NUMBERS for number in pattern.findall(tail)]
    return {value for text in texts for value in _comparable(text)}


def mmmu_open_is_right(answers: set[str | float], gold: str | Sequence[str]) -> bool:
    """Whether one of the possible answers is gold: numbers rounded to two places, words as parts of an answer."""
    golds = {value for text in ([gold] if isinstance(gold, str) else gold) for value in _comparable(text)}
    return any(
        any(isinstance(value, str) and value in answer for value in golds)
        if isinstance(answer, str)
        else answer in golds
        for answer in answers
    )


def muirbench_answer(response: str) -> str:
    """MuirBench's filter: a leading capital with a period, else the whole response."""
    match = _LEADING_LETTER.match(response)
    return match.group(1) if match else response


def muirbench_is_right(response: str, gold: str) -> bool:
    """MuirBench's score: the filtered response is gold's letter, blanks around it and case aside.

    Example:
        For gold A, ``A.`` and ``a`` are right; ``(A)`` and ``The answer is A.`` are wrong.
    """
    return muirbench_answer(response).lower().strip() == gold.lower().strip()


def muirbench_question(question: str, choices: Sequence[str], *, before: str = "", behind: str = "") -> str:
    """MuirBench's words: question and lettered options; ``before`` and ``behind`` are its task file's prompts."""
    lines = "\n".join(f"{chr(ord('A') + index)}. {choice}" for index, choice in enumerate(choices))
    return f"{before}{question}\n{lines}{behind}"


def strip_reasoning(text: str, tag_pairs: Sequence[tuple[str, str]] = (("<think>", "</think>"),)) -> str:
    """What lmms-eval's ``--reasoning_tags`` leaves: blocks go; a closing tag alone takes all in front of it along.

    Example:
        ``strip_reasoning("<think>a</think>B") == "B"``; ``<evidence>`` sections stay.
    """
    for opening, closing in tag_pairs:
        while (start := text.find(opening)) >= 0 and (stop := text.find(closing, start)) >= 0:
            text = text[:start] + text[stop + len(closing) :]
        if opening not in text:
            text = text.rpartition(closing)[2]
    return text.strip()


def _shortest_tail(line: str, announcing: Sequence[str]) -> str:
    """What follows the last occurrence of an announcing word; of several tails the shortest.

    Word by word: an empty tail wipes out what was found, and the next word starts anew, as in the original.
    """
    shortest = ""
    for word in announcing:
        if word in line:
            tail = line.rpartition(word)[2].strip()
            shortest = tail if not shortest or len(tail) < len(shortest) else shortest
    return shortest


def _comparable(text: str) -> list[str | float]:
    """A number, rounded; or lower-case text, a lone letter with a blank beside it so that it hits no other word."""
    bare = text.strip()
    try:
        return [round(float(bare.replace(",", "")), 2)]
    except ValueError:
        lower = bare.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def mmiu_contains(reference: str, response: str) -> bool:
    """MMIU's rule: the reference, bare of outer blanks and then of outer periods, occurs in the response."""
    return reference.strip().strip(".") in response
