"""Yes and no in free text, as the Visual Haystacks scorer finds them, and as a reader would."""

from __future__ import annotations

import re
from functools import lru_cache

# Where NLTK 3.9.1's word tokenizer would cut; agrees with it on all published vectors.
_CUTS = r"\s()\[\]{}<>;@#$%&?!*\"“”„«»‘’`"
# Colons, commas and dashes are cut off in pairs from the left: in front of a word, an odd or an even number counts.
_BEFORE = (
    rf"(?:(?<![\s\S])|(?<=[{_CUTS}])|(?<=(?<![:,])[:,])|(?<=(?<![:,])[:,]{{3}})"
    r"|(?<=(?<!-)--)|(?<=(?<!-)----)|(?<=\.\.)|(?<=''))"
)
_GAP = rf"(?:\Z|[{_CUTS}]|[:,](?:\D|\Z)|--|\.\.|''|\.[\])}}>\"'»”’]*(?:\s|\Z))"
_AFTER = rf"(?=(?:'(?:[smd]|ll|re|ve)?|n't)?{_GAP}|'(?![mtsdn])\w\b)"
_LEADING = re.compile(r"\W*(yes|no)\b(?!\s*(?:\w|['/-]))")
_ANY = re.compile(r"\b(?:yes|no)\b")


@lru_cache(maxsize=64)
def _token_pattern(word: str) -> re.Pattern[str]:
    return re.compile(_BEFORE + re.escape(word) + _AFTER)


def holds_token(text: str, word: str) -> bool:
    """Whether NLTK's word tokenizer makes a token ``word`` out of the lower-cased text.

    Example:
        ``holds_token("Yes, a dog.", "yes")``; neither ``yes/no`` nor ``yes-no`` holds ``yes``, and no text
        holds ``Yes``.
    """
    return word == word.lower() and bool(word) and _token_pattern(word).search(text.lower()) is not None


def is_compliant(text: str) -> bool:
    """Whether the text holds a token yes or no."""
    return holds_token(text, "yes") or holds_token(text, "no")


def strict_answer(text: str) -> str:
    """``yes`` or ``no`` if the text says just one of them, or begins with one as a sentence of its own; else empty.

    Example:
        ``strict_answer("Yes, there is no cat.") == "yes"``, ``strict_answer("Yes and no") == ""``,
        ``strict_answer("yes/no") == ""``.
    """
    lower = text.lower()
    leading = _LEADING.match(lower)
    if leading:
        return leading.group(1)
    words = set(_ANY.findall(lower))
    return words.pop() if len(words) == 1 else ""
