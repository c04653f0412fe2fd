"""VisRAG-Gen's prompts (arXiv:2410.10594, §4): a question over pages, or over the text of pages.

Pages come before the text, as the benchmark has it; its demo puts the question first.
"""

from __future__ import annotations

from collections.abc import Sequence

from rsgrpo.evaluation.benchmarks.visrag_gen_text import SetName

MAX_ANSWER_TOKENS = {"ArxivQA": 2}
"""How many tokens an answer may have, by set; ``DEFAULT_ANSWER_TOKENS`` for the others."""
DEFAULT_ANSWER_TOKENS = 20

_SHORT_ANSWER = "Answer the question using a single word or phrase."
_LETTER_ANSWER = "Answer directly with the letter of the correct option as the first character."


def gen_prompt(
    set_name: SetName, question: str, *, options: Sequence[str] = (), page_texts: Sequence[str] | None = None
) -> str:
    """Write the prompt of a question.

    Args:
        set_name: the data set: ArxivQA asks for the letter of an option, the others for a word or a phrase.
        question: the question.
        options: the options of ArxivQA; if any of them lacks its letter, all get one.
        page_texts: the texts of the pages, best first, where the model reads texts; None: it sees the pages.

    Returns:
        The text that follows the pages in the user's turn.

    Example:
        >>> gen_prompt("ChartQA", "What is X?")
        'Answer the question using a single word or phrase.\\nQuestion:What is X?\\nAnswer:'
    """
    texts = None if page_texts is None else "\n".join(page_texts)
    if set_name != "ArxivQA":
        head = "" if texts is None else f"Image:{texts}\n"
        return f"{head}{_SHORT_ANSWER}\nQuestion:{question}\nAnswer:"
    head = "" if texts is None else f"Hint: {texts}\n"
    listed = "".join(f"{option}\n" for option in lettered(options))
    return f"{head}Question: {question}\nOptions:\n{listed}{_LETTER_ANSWER}"


def lettered(options: Sequence[str]) -> list[str]:
    """Give options their letters, unless every one begins with its own.

    Example:
        >>> lettered(["A. one", "two"])
        ['A. A. one', 'B. two']
    """
    letters = [chr(ord("A") + place) for place in range(len(options))]
    if all(option.startswith(letter) for option, letter in zip(options, letters, strict=True)):
        return list(options)
    return [f"{letter}. {option.strip()}" for option, letter in zip(options, letters, strict=True)]
