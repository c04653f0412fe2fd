"""Multiple choice: is the chosen option the right one?

An answer that names no option, or more than one, is wrong, so listing the options does not pay; guessing one
of n pays 1/n on average, as in every such test.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from rewards.base import RewardCall, needs_gold, reads_sections
from rewards.gold import gold_answers
from rsgrpo.text.normalise import normalize_keeping_numbers

_NO_CHOICE = -1
# `B`, `(B)`, `B.`, `[B]:` … and what follows; a bare letter is followed by a sign or by nothing, never by a word.
_LABEL = re.compile(r"[(\[]?([A-Za-z]{1,2})(?:[)\].:,](.*)|)", re.DOTALL)


@reads_sections(arguments=("section",))
@needs_gold("choices")
def choice(call: RewardCall, section: str | None = None) -> float | None:
    """1.0 if the answer section names the right option and no other, else 0.0.

    It may name it by letter (``B``, ``(b)``, ``B.``), by its text, or by both if they agree (``B. a dog``). A
    letter comes before a text: where an option's text is itself a letter, ``A`` means the first option.

    Args:
        call: the response to judge, with its sample.
        section: the section that holds the answer; None: ``response.answer_section``.

    Returns:
        1.0 or 0.0; 0.0 also where there is no closed answer section; None where gold names no option.

    Example:
        Options ``a cat``, ``a dog``; gold ``a dog``. ``B``, ``(B)``, ``A dog.`` and ``B. a dog`` give 1.0;
        ``A. a dog``, ``A or B`` and ``a cat, a dog`` give 0.0.
    """
    choices = call.sample.choices
    accepted = gold_answers(call.sample, call.parsed.format, section)
    gold = {chosen_option(answer, choices) for answer in accepted} - {_NO_CHOICE}
    if not gold:
        return None
    answer = call.answer(section)
    return 0.0 if answer is None else float(chosen_option(answer, choices) in gold)


def chosen_option(answer: str, choices: Sequence[str]) -> int:
    """The 0-based index of the option that an answer names; -1 if it names none, or more than one.

    Example:
        ``chosen_option("(B) a dog", ("a cat", "a dog")) == 1``
    """
    answer = answer.strip()
    texts = [normalize_keeping_numbers(option) for option in choices]
    same = [index for index, option in enumerate(choices) if option.strip().casefold() == answer.casefold()]
    match = _LABEL.fullmatch(answer)
    index = _label_index(match.group(1)) if match else len(choices)
    if match and index < len(choices):
        rest = (match.group(2) or "").strip()
        # `B, A` must not pass for B with an article behind it.
        if not any(character.isalnum() for character in rest) or normalize_keeping_numbers(rest) == texts[index] != "":
            return index
    else:
        words = normalize_keeping_numbers(answer)
        same = [index for index, text in enumerate(texts) if text == words != ""]
    return same[0] if len(same) == 1 else _NO_CHOICE


def option_label(index: int) -> str:
    """The label of an option at a 0-based index: A … Z, AA, AB …."""
    letters = string.ascii_uppercase
    return letters[index] if index < len(letters) else letters[index // 26 - 1] + letters[index % 26]


def _label_index(label: str) -> int:
    """The 0-based index of the option with a label: A is 0, Z 25, AA 26."""
    index = 0
    for letter in label.upper():
        index = 26 * index + string.ascii_uppercase.index(letter) + 1
    return index - 1
