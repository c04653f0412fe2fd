"""Normalise answers and compare them word by word."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

REFUSAL = "insufficient to answer"
"""The gold answer to a question whose pages do not hold the answer."""

REFUSALS = ("no relevant information", REFUSAL, "insufficient to answer the question")
"""The answers that count as right where the pages do not hold the answer."""

IRRELEVANT = "no relevant information"
"""The text of an evidence line for an image that does not help."""

_PUNCTUATION = string.punctuation.encode()
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ARTICLE_WORDS = frozenset(("a", "an", "the"))
_POINT_OR_SIGN = re.compile("[.-]")
# Stand-ins that survive the deletion of punctuation; private-use characters, which no answer holds.
_MARKS = {".": "\ue000", "-": "\ue001"}


def normalize_answer(text: str) -> str:
    """N(s) of the EVisRAG evaluation: the official normalisation.

    Lower-case; delete ASCII punctuation, putting nothing in its place; replace the words a, an, the
    by a space; collapse whitespace. Decimal points vanish: ``3.5`` and ``35`` become the same.

    Example:
        ``normalize_answer("The  A-Team, 3.5 %") == "ateam 35"``
    """
    return _normalize(text, kept="")


def normalize_keeping_numbers(text: str) -> str:
    """N(s), except that decimal points between digits and the sign of a number stay.

    A hyphen is a sign if it stands in front of a digit, behind nothing or a space (and an opening bracket).

    Example:
        ``normalize_keeping_numbers("About -3.50, or 1,200.") == "about -3.50 or 1200"``
    """
    marked = _POINT_OR_SIGN.sub(_mark_if_of_a_number, text)
    if marked == text:
        return _normalize(text, kept="")
    normal = _normalize(marked, kept="".join(_MARKS.values()))
    for character, mark in _MARKS.items():
        normal = normal.replace(mark, character)
    return normal


def set_f1(left: Iterable[str], right: Iterable[str]) -> float:
    """F1 of two sets of words; 0.0 where either is empty.

    Example:
        ``set_f1(["3", "percent"], ["3"])``: precision 1/2, recall 1, so 2/3.
    """
    left_words, right_words = set(left), set(right)
    num_common = len(left_words & right_words)
    if not num_common:
        return 0.0
    precision, recall = num_common / len(left_words), num_common / len(right_words)
    return 2 * precision * recall / (precision + recall)


def is_irrelevant(text: str) -> bool:
    """Whether an evidence line says that its image does not help, and nothing else."""
    return normalize_answer(text) == IRRELEVANT


def is_refusal(text: str) -> bool:
    """Whether an answer says that the pages do not hold it, and nothing else."""
    return normalize_answer(text) in _NORMALIZED_REFUSALS


def _normalize(text: str, kept: str) -> str:
    """N(s); ``kept`` are marks, each next to a digit, that count as parts of words."""
    # As bytes: an ASCII byte is never part of another character, and str.translate is 30 times slower.
    data = text.lower().encode("utf-8", "surrogatepass").translate(None, _PUNCTUATION)
    bare = data.decode("utf-8", "surrogatepass")
    words = bare.split()
    letters = "".join(words)
    for mark in kept:
        letters = letters.replace(mark, "")
    if letters.isalnum():
        # Nothing but whitespace bounds a word, so an article is a word of the split: four times faster.
        return " ".join(word for word in words if word not in _ARTICLE_WORDS)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _mark_if_of_a_number(match: re.Match[str]) -> str:
    character, position, text = match.group(), match.start(), match.string
    if not text[position + 1 : position + 2].isdecimal():
        return character
    if character == ".":
        is_kept = text[max(position - 1, 0) : position].isdecimal()
    else:
        # A word may not end in front of the mark: "3(-3" is one word to N(s).
        start = position - 1 if text[max(position - 1, 0) : position] == "(" else position
        is_kept = start == 0 or text[start - 1].isspace()
    return _MARKS[character] if is_kept else character


_NORMALIZED_REFUSALS = frozenset(normalize_answer(refusal) for refusal in REFUSALS)
