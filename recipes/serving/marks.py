"""Where on a page the source of a line of evidence stands, as far as it is known."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence

from rsgrpo.documents.records import PlacedWord
from rsgrpo.text.coordinates import PER_MILLE
from rsgrpo.types import Box

_BOX_TOKENS = re.compile(
    r"<\|box_start\|>\s*\((\d{1,4}),\s*(\d{1,4})\),\s*\((\d{1,4}),\s*(\d{1,4})\)\s*<\|box_end\|>", re.ASCII
)
_WORD = re.compile(r"\w+(?:[.,:/\-]\w+)*")
_TELLING_CHARACTERS = 4  # of a word that stands alone: shorter ones are in every line
_MAX_MARKS = 60


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
    and long ones.

    Args:
        evidence: the text of the line.
        words: the words of the page, in the order of its text layer.

    Returns:
        The boxes of the words; empty: the line repeats none.

    Example:
        ``The total is 4,210 EUR`` marks ``4,210 EUR`` on a page that says ``Amount: 4,210 EUR``.
    """
    wanted = [_folded(word) for word in _WORD.findall(evidence)]
    there = [_folded(found[0]) if (found := _WORD.findall(word.text)) else "" for word in words]
    boxes: list[Box] = []
    matcher = difflib.SequenceMatcher(None, wanted, there, autojunk=False)
    for run in matcher.get_matching_blocks():
        of_run = [place for place in range(run.b, run.b + run.size) if there[place]]
        is_telling = len(of_run) > 1 or any(_is_telling(there[place]) for place in of_run)
        if is_telling:
            boxes += [words[place].box for place in of_run]
    return boxes[:_MAX_MARKS]


def _is_telling(word: str) -> bool:
    return len(word) > _TELLING_CHARACTERS or any(character.isdigit() for character in word)


def _folded(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold()
