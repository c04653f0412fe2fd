"""VisRAG-Gen's answer scorer (arXiv:2410.10594, §4), official to the digit: normalisation, tolerance, percent signs.

``official`` keeps the original's slips; where it would stop with an error, :class:`OriginalRaisesError` is raised.
``strict`` mends them:

* a sign and a decimal point belong to a number: ``-5`` is not ``5``, and ``.39`` is ``0.39``;
* numbers are compared as numbers wherever a set has a tolerance, zero included (``0.0`` is ``0``);
* a percent sign on either side is dropped for each accepted answer by itself;
* an option's letter may have blanks or a bracket in front of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rsgrpo.evaluation.benchmarks.milebench_text import OriginalRaisesError

GoldAnswer = str | int | float | Sequence[str]
"""The gold answer as the data set gives it: the type decides about the tolerance."""

SetName = Literal["ArxivQA", "ChartQA", "MP-DocVQA", "InfoVQA", "PlotQA", "SlideVQA"]

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the original passes a flag of that value where the count belongs
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# The table of VQA's evaluation, which lists each of these words without one of its apostrophes, and one word reversed.
_WITH_APOSTROPHES = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}

_TOLERANCE_PERCENT = 5
_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d*)(\.\d+)?(?<=\d)(e[-+]?\d+)?")
_LETTER = re.compile(r"[\s(\[*]*([A-Za-z])(?![A-Za-z])")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenScore:
    """How a response scored.

    Attributes:
        is_correct: whether the response is the answer.
        response: the response as it was compared.
        answers: the accepted answers as they were compared.
    """

    is_correct: bool
    response: str
    answers: tuple[str, ...]


def normalise(text: str) -> str:
    """Normalise an answer as VisRAG-Gen does.

    Line breaks and tabs become blanks; a punctuation mark goes where it touches a blank or the text holds a digit, a
    comma and a digit, else it becomes a blank; the first 32 periods that no digit follows go; words are lower-cased,
    number words up to ten become digits, articles go, and contractions get their apostrophe back.

    Example:
        ``normalise("The U.S. has 1,234 of Ten") == "us has 1234 of 10"``
    """
    result = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in _PUNCTUATION:
        # Looked up in the text as the marks before have left it: a comma decides until its own turn comes.
        is_deleted = mark + " " in result or " " + mark in result or _DIGIT_COMMA_DIGIT.search(result) is not None
        result = result.replace(mark, "" if is_deleted else " ")
    result = _PERIOD.sub("", result, count=_MAX_PERIODS)
    words = [_DIGITS.get(word, word) for word in result.lower().split()]
    return " ".join(_WITH_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def score_answer(set_name: SetName, response: str, answer: GoldAnswer, *, is_strict: bool = False) -> GenScore:
    """Score one response.

    Args:
        set_name: the data set, whose rule applies.
        response: the whole response of the model.
        answer: the gold answer, of the type that the data set gives it; for MP-DocVQA and InfoVQA usually a list.
        is_strict: whether the slips that the module's docstring names are mended.

    Returns:
        Whether the response is correct, and what was compared.

    Raises:
        OriginalRaisesError: the original would stop with an error; never in strict mode.

    Example:
        ``score_answer("ChartQA", "40", "42").is_correct`` holds: 4.8 % below. For SlideVQA it does not.
    """
    if is_strict:
        return _strict_score(set_name, response, answer)
    if set_name == "ArxivQA":
        if not response or not isinstance(answer, str) or not answer:
            raise OriginalRaisesError("the first character of an empty text is asked for")
        first, gold = response[0].upper(), answer[0].upper()
        return GenScore(is_correct=first == gold, response=first, answers=(gold,))
    if set_name in ("MP-DocVQA", "InfoVQA"):
        return _score_any(normalise(response), [answer] if isinstance(answer, str) else answer)
    if not isinstance(answer, str) and (set_name != "PlotQA" or not isinstance(answer, int | float)):
        raise OriginalRaisesError(f"{set_name}'s answer is not a text")
    given, gold = _alike_in_percent(normalise(response), normalise(str(answer)))
    is_correct = given == gold
    if not is_correct and set_name == "ChartQA":
        is_correct = _is_numeric(given) and _is_numeric(gold) and gold != "0" and _is_near(given, gold)
    elif not is_correct and set_name == "PlotQA" and not isinstance(answer, str) and _is_numeric(given):
        is_correct = _to_number(gold) != 0.0 and _is_near(given, gold)
    return GenScore(is_correct=is_correct, response=given, answers=(gold,))


def _score_any(response: str, accepted: object) -> GenScore:
    """Compare with each of several answers; the first one decides about percent signs."""
    if not isinstance(accepted, Sequence) or not accepted or not all(isinstance(answer, str) for answer in accepted):
        raise OriginalRaisesError("the answers are no list of texts")
    answers = [normalise(answer) for answer in accepted]
    if "%" in response and "%" not in answers[0]:
        response = response.replace("%", "")
    elif "%" not in response and "%" in answers[0]:
        answers = [answer.replace("%", "") for answer in answers]
    return GenScore(is_correct=response in answers, response=response, answers=tuple(answers))


def _alike_in_percent(response: str, answer: str) -> tuple[str, str]:
    if ("%" in response) == ("%" in answer):
        return response, answer
    return response.replace("%", ""), answer.replace("%", "")


def _to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OriginalRaisesError(f"{text!r} is taken for a number") from None


def _is_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_near(response: str, answer: str) -> bool:
    gold = _to_number(answer)
    if gold == 0.0:
        raise OriginalRaisesError("it divides by zero")
    return abs((float(response) - gold) / gold) * 100 <= _TOLERANCE_PERCENT


def _strict_score(set_name: SetName, response: str, answer: GoldAnswer) -> GenScore:
    accepted = [
        str(item) for item in (answer if isinstance(answer, Sequence) and not isinstance(answer, str) else [answer])
    ]
    if set_name == "ArxivQA":
        letters = [_letter(text) for text in (response, *accepted)]
        return GenScore(
            is_correct=letters[0] != "" and letters[0] in letters[1:], response=letters[0], answers=tuple(letters[1:])
        )
    tolerance = (
        _TOLERANCE_PERCENT if set_name == "ChartQA" or (set_name == "PlotQA" and not isinstance(answer, str)) else 0
    )
    is_correct = any(_is_same(response, gold, tolerance) for gold in accepted)
    return GenScore(is_correct=is_correct, response=normalise(response), answers=tuple(map(normalise, accepted)))


def _letter(text: str) -> str:
    found = _LETTER.match(text)
    return found[1].upper() if found else ""


def _is_same(response: str, answer: str, tolerance_percent: float) -> bool:
    """Compare as numbers where both are numbers, else as normalised texts; percent signs on one side do not count."""
    given, gold = (_plain_number(text) for text in _alike_in_percent(response, answer))
    if given is not None and gold is not None:
        return abs(given - gold) * 100 <= tolerance_percent * abs(gold)
    texts = [normalise(text) for text in _alike_in_percent(response, answer)]
    return texts[0] == texts[1] != ""


def _plain_number(text: str) -> float | None:
    """Read a text that is nothing but a number, perhaps with a percent sign or a final period; None: it is none."""
    bare = text.strip().lower().removesuffix(".").removesuffix("%").strip()
    bare = _DIGITS.get(bare, bare)
    found = _NUMBER.fullmatch(bare)
    number = float(bare.replace(",", "")) if found else None
    return number if number is not None and math.isfinite(number) else None
