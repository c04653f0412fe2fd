"""Where on a page the source of a line of evidence stands, as far as it is known."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rsgrpo.documents.records import PlacedWord
from rsgrpo.text.coordinates import PER_MILLE
from rsgrpo.types import Box

_BOX_TOKENS = re.compile(
    r"<\|box_start\|>\s*\((\d{1,4}),\s*(\d{1,4})\),\s*\((\d{1,4}),\s*(\d{1,4})\)\s*<\|box_end\|>", re.ASCII
)
_WORD = re.compile(r"\w+(?:[.,:/\-]\w+)*")
_TELLING_CHARACTERS = 4  # of a word that stands alone: shorter ones are in every line
_MAX_MARKS = 60
# Whoever uploads a page chooses its words: what is compared has a bound.
_MAX_LINE_WORDS = 200
_MAX_PAGE_WORDS = 4000


def box_tokens_of(evidence: str) -> list[Box]:
    """Read the boxes that a line of evidence writes as Qwen2-VL's box tokens, the one form that says what it counts.

    Args:
        evidence: the text of the line.

    Example:
        ``<|box_start|>(100,200),(300,400)<|box_end|>`` is a box from 0.1, 0.2 to 0.3, 0.4.
    """
    boxes = []
    for numbers in _BOX_TOKENS.findall(evidence):
        left, top, right, bottom = (int(number) / PER_MILLE for number in numbers)
        if left < right <= 1 and top < bottom <= 1:
            boxes.append(Box(left=left, top=top, right=right, bottom=bottom))
    return boxes


def marked_words(evidence: str, words: Sequence[PlacedWord]) -> list[Box]:
    """Find the words of a page that a line of evidence repeats.

    Runs of at least two words that stand in the line in the same order are marked; of single words those with a digit,
    and long ones. The longest run goes first, then those in front of it and behind.

    Args:
        evidence: the text of the line; its first 200 words count.
        words: the words of the page, in the order of its text layer; the first 4,000 count.

    Returns:
        The boxes of the words; empty: the line repeats none.

    Example:
        ``The total is 4,210 EUR`` marks ``4,210 EUR`` on a page that says ``Amount: 4,210 EUR``.
    """
    wanted = [_folded(word) for word in _WORD.findall(evidence)[:_MAX_LINE_WORDS]]
    there = [_folded(found[0]) if (found := _WORD.findall(word.text)) else "" for word in words[:_MAX_PAGE_WORDS]]
    boxes: list[Box] = []
    for start, size in common_runs(wanted, there):
        if size > 1 or _is_telling(there[start]):
            boxes += [words[place].box for place in range(start, start + size)]
    return boxes[:_MAX_MARKS]


def common_runs(wanted: Sequence[str], there: Sequence[str]) -> list[tuple[int, int]]:
    """Find runs of words that stand in both texts in the same order, the longest first taken.

    Args:
        wanted: n words, none of them empty.
        there: m words; empty ones belong to no run.

    Returns:
        Where each run begins in ``there`` and how many words it has, in order. It takes n² m steps at most, m of them
        at a time.
    """
    numbers = {word: number for number, word in enumerate(dict.fromkeys(wanted))}
    line = np.array([numbers[word] for word in wanted], dtype=np.int64)
    page = np.array([numbers.get(word, -1) for word in there], dtype=np.int64)
    found: list[tuple[int, int]] = []
    waiting = [(0, len(line), 0, len(page))]
    while waiting:
        first, last, start, stop = waiting.pop()
        size, in_line, on_page = _longest_run(line[first:last], page[start:stop])
        if size:
            in_line, on_page = in_line + first, on_page + start
            found.append((on_page, size))
            waiting += [(first, in_line, start, on_page), (in_line + size, last, on_page + size, stop)]
    return sorted(found)


def _longest_run(line: NDArray[np.int64], page: NDArray[np.int64]) -> tuple[int, int, int]:
    """The size of the longest common run, and where it begins in both; of equally long ones the first of the line."""
    best = (0, 0, 0)
    lengths = np.zeros(len(page) + 1, dtype=np.int64)  # of the run that ends with each word of the page
    if not len(page):
        return best
    for place, word in enumerate(line):
        lengths[1:] = np.where(page == word, lengths[:-1] + 1, 0)
        end = int(lengths.argmax())
        size = int(lengths[end])
        if size > best[0]:
            best = (size, place + 1 - size, end - size)
    return best


def _is_telling(word: str) -> bool:
    return len(word) > _TELLING_CHARACTERS or any(character.isdigit() for character in word)


def _folded(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold()
