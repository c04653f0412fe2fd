"""MileBench's text rules, official to the digit: normalisation, choice matching, ROUGE-L."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the original passes a flag of that value where the count belongs
_ROUGE_EPSILON = 1e-8
# The original walks back through its table by recursion: one frame a word dropped or matched, and
# CPython's limit of 1000 frames leaves that many for one walk. Measured with rouge 1.0.1.
_MAX_ROUGE_STEPS = 990


class OriginalRaisesError(Exception):
    """The original scorer stops at this item; the caller scores 0 and counts it."""


def normalize(text: str) -> str:
    """M(s): MileBench's normalisation, its two slips included.

    Line breaks and tabs become spaces; trim; every punctuation character is deleted everywhere if it
    stands beside a space somewhere, or if a digit-comma-digit occurs anywhere, else replaced by a space;
    the first 32 periods that no digit follows go; quotes at the ends go; lower-case.

    Example:
        ``normalize("U.S.A.") == "usa"``, ``normalize("1,234 apples") == "1234 apples"``,
        ``normalize("x - y") == "x  y"``.
    """
    trimmed = text.replace("\n", " ").replace("\t", " ").strip()
    has_digit_comma = _DIGIT_COMMA_DIGIT.search(trimmed) is not None
    result = trimmed
    for character in _PUNCTUATION:
        if character in result:
            is_deleted = has_digit_comma or character + " " in trimmed or " " + character in trimmed
            result = result.replace(character, "" if is_deleted else " ")
    result = _PERIOD.sub("", result, count=_MAX_PERIODS)
    return result.strip("'").strip('"').strip().lower()


def option_label(index: int) -> str:
    """The label of the option at a 0-based index: A … Z, AA … AZ, BA … BZ, then on through ASCII.

    Example:
        ``option_label(30) == "AE"``.
    """
    if index < 26:
        return chr(index + 65)
    return ("A" if index < 52 else "B") + chr(index + 65 - (26 if index < 52 else 52))


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceScore:
    """The label that was read as the choice, and whether it is gold's."""

    extracted: str
    score: int


def score_choice(prediction: str, reference: str, choices: Sequence[str]) -> ChoiceScore:
    """The official multiple-choice score of one prediction.

    Args:
        prediction: the text of the prediction.
        reference: text of the right option.
        choices: texts of all options.

    Returns:
        The label that was read and the score; an empty prediction counts as label C.

    Raises:
        OriginalRaisesError: the reference is none of the options.

    Example:
        ``score_choice("The answer is A", "red", ["red", "blue"])`` extracts ``AA`` and scores 0.
    """
    options = [normalize(choice) for choice in choices]
    gold = normalize(reference)
    if gold not in options:
        raise OriginalRaisesError(f"the reference '{gold}' is none of {len(options)} options")
    extracted = match_choice(normalize(prediction), options)
    return ChoiceScore(extracted=extracted, score=int(extracted == option_label(options.index(gold))))


def match_choice(text: str, options: Sequence[str]) -> str:
    """The label, or the letters, that the original reads out of a normalised prediction.

    Args:
        text: the normalised text of the prediction.
        options: the normalised texts of the options.

    Returns:
        The result of the first rule that fires: C for an empty text; the first letter of the leftmost ``<label>
        <option>``; the label of the leftmost option, spaces aside; a text of one or two characters that is a label; all
        characters that are labels, joined.
    """
    if not text:
        return "C"
    labels = [option_label(index) for index in range(len(options))]
    with_labels = [normalize(f"{label} {option}") for label, option in zip(labels, options, strict=True)]
    hit = _leftmost(text, with_labels)
    if hit is not None:
        return hit[0].upper()
    bare = [normalize(option).replace(" ", "") for option in options]
    hit = _leftmost(text.replace(" ", ""), bare)
    # The original compares with the option's pattern, in which special characters carry a backslash.
    if hit is not None and not set(hit) & set(".^$*|"):
        return labels[bare.index(hit)]
    if len(text) <= 2 and text.upper() in labels:
        return text.upper()
    return "".join(character.upper() for character in text if character.upper() in labels)


def _leftmost(text: str, needles: Sequence[str]) -> str | None:
    """What a regular expression of the needles, in order, would hit first."""
    best: tuple[int, int] | None = None
    for order, needle in enumerate(needles):
        position = text.find(needle)
        if position >= 0 and (best is None or (position, order) < best):
            best = (position, order)
    return None if best is None else needles[best[1]]


def score_needle(prediction: str, reference: str) -> int:
    """1 if the normalised reference is one word of the normalised prediction."""
    return int(normalize(reference) in normalize(prediction).split())


def score_substring(prediction: str, reference: str) -> int:
    """1 if the normalised reference occurs anywhere in the normalised prediction (MMCoQA)."""
    return int(normalize(reference) in normalize(prediction))


def score_rouge(prediction: str, reference: str) -> float:
    """The official ROUGE-L of one prediction: :func:`rouge_l` of the normalised texts, 0 for an empty prediction.

    Raises:
        OriginalRaisesError: the reference is empty, or the original's recursion runs too deep.
    """
    gold = normalize(reference)
    if not gold:
        raise OriginalRaisesError("the normalised reference is empty")
    text = normalize(prediction)
    return rouge_l(text, gold) if text else 0.0


def rouge_l(hypothesis: str, reference: str) -> float:
    """ROUGE-L of the package rouge 1.0.1: summary level, over sets of words.

    With U the words on any longest common subsequence of a reference sentence and a hypothesis sentence,
    P = abs(U) / distinct hypothesis words, R = abs(U) / distinct reference words, F = 2PR / (P + R + 1e-8).
    Sentences end at every period. Which subsequence counts among equals is the original's choice: walking
    back, it drops the reference word only where that is strictly better.

    Args:
        hypothesis: the normalised text of the prediction.
        reference: the normalised gold text.

    Returns:
        The F score in [0, 1).

    Raises:
        OriginalRaisesError: either text has no sentence, or a walk is longer than the original's recursion carries.

    Example:
        ``rouge_l("the cat sat", "the cat sat on the mat")``: U = {the, cat, sat}, P = 1, R = 3/5, F = 0.75.
    """
    hypothesis_sentences = _sentences(hypothesis)
    reference_sentences = _sentences(reference)
    if not hypothesis_sentences or not reference_sentences:
        raise OriginalRaisesError("no sentence but periods")
    union: set[str] = set()
    for sentence in hypothesis_sentences:
        masks: dict[str, int] = {}
        for position, word in enumerate(sentence):
            masks[word] = masks.get(word, 0) | 1 << position
        for gold in reference_sentences:
            if not masks.keys().isdisjoint(gold) or len(sentence) > _MAX_ROUGE_STEPS:
                _add_common_words(gold, sentence, masks, union)
    num_hypothesis = len({word for sentence in hypothesis_sentences for word in sentence})
    num_reference = len({word for sentence in reference_sentences for word in sentence})
    precision, recall = len(union) / num_hypothesis, len(union) / num_reference
    return 2.0 * (precision * recall / (precision + recall + _ROUGE_EPSILON))


def _sentences(text: str) -> list[list[str]]:
    # A sentence of blanks is one empty word, as the original splits at single spaces after joining.
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _lcs_rows(reference: Sequence[str], masks: dict[str, int], length: int) -> list[int]:
    """Rows of the table of longest common subsequences, as bit vectors.

    Bit j of row i is set where T[i][j+1] = T[i][j] (Hyyro 2004): one addition of big integers a row
    instead of ``length`` comparisons.
    """
    full = (1 << length) - 1
    row = full
    rows = [row]
    for word in reference:
        mask = masks.get(word, 0)
        if mask:
            common = row & mask
            row = ((row + common) | (row - common)) & full
        rows.append(row)
    return rows


def lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence of two lists of words.

    Example:
        ``lcs_length("a b c d".split(), "b x d".split()) == 2``.
    """
    masks: dict[str, int] = {}
    for position, word in enumerate(right):
        masks[word] = masks.get(word, 0) | 1 << position
    return len(right) - _lcs_rows(left, masks, len(right))[-1].bit_count()


def _add_common_words(
    reference: Sequence[str], hypothesis: Sequence[str], masks: dict[str, int], union: set[str]
) -> None:
    rows = _lcs_rows(reference, masks, len(hypothesis))
    i, j, num_steps = len(reference), len(hypothesis), 0
    while i and j:
        num_steps += 1
        if reference[i - 1] == hypothesis[j - 1]:
            union.add(reference[i - 1])
            i -= 1
            j -= 1
        elif rows[i] >> (j - 1) & 1:
            # T[i][j-1] = T[i][j]: dropping the reference word is not strictly better.
            j -= 1
        else:
            i -= 1
    if num_steps > _MAX_ROUGE_STEPS:
        raise OriginalRaisesError(f"{num_steps} steps back through the table overflow the original's stack")
