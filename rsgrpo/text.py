"""Normalise answers and compare them word by word."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

REFUSALS = ("no relevant information", "insufficient to answer", "insufficient to answer the question")
"""What counts as right where the pages do not hold the answer."""

IRRELEVANT = "no relevant information"
"""What an evidence line says of an image that does not help."""

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# Punctuation that is part of a number: a decimal point between digits, and a sign in front of one.
_NUMBER_PUNCTUATION = re.compile(r"(?<=[0-9])\.(?=[0-9])|(?<![^\s(])-(?=[0-9.])")
_KEPT = {".": "\ue000", "-": "\ue001"}  # private-use characters: no tokenizer writes them into an answer
_RESTORE = str.maketrans({mark: character for character, mark in _KEPT.items()})


def normalize_answer(text: str) -> str:
    """N(s) of the EVisRAG evaluation: the official normalisation.

    Lower-case; delete ASCII punctuation, putting nothing in its place; replace the words a, an, the
    by a space; collapse whitespace. Decimal points vanish: ``3.5`` and ``35`` become the same.

    Example:
        ``normalize_answer("The  A-Team, 3.5 %") == "ateam 35"``
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split())


def normalize_keeping_numbers(text: str) -> str:
    """N(s), except that decimal points between digits and the sign of a number stay.

    Example:
        ``normalize_keeping_numbers("About -3.50, or 1,200.") == "about -3.50 or 1200"``
    """
    marked = _NUMBER_PUNCTUATION.sub(lambda match: _KEPT[match.group()], text)
    return normalize_answer(marked).translate(_RESTORE)


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


_NORMALIZED_REFUSALS = frozenset(normalize_answer(refusal) for refusal in REFUSALS)
