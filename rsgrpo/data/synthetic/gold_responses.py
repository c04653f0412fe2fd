"""Gold of questions about generated pages: which have an answer, and responses in the sections of EVisRAG's."""

from __future__ import annotations

from collections.abc import Sequence

from rsgrpo.config import EVISRAG
from rsgrpo.text.normalise import IRRELEVANT, REFUSAL


def has_answer(index: int, unanswerable_frac: float) -> bool:
    """Whether a question can be answered, so that the share of those that cannot is exact up to rounding.

    Args:
        index: the place of the question, from 0.
        unanswerable_frac: the share that cannot be answered, in [0, 1].

    Example:
        With a share of 0.4 these are the third and the fifth of five: 0.4, 0.8, 1.2, 1.6, 2.0 pass 1 and reach 2 there.
    """
    # Every time the running count of unanswerable ones passes a whole number, the question is one.
    return int((index + 1) * unanswerable_frac) == int(index * unanswerable_frac)


def gold_response(
    transcripts: Sequence[str], positive_images: Sequence[int], reason: str, answer: str, *, observed: str = ""
) -> str:
    """Write what a reader sees, which pages help, why the answer follows, and the answer.

    Args:
        transcripts: what stands on each page, in order.
        positive_images: the 0-based indexes of the pages that the answer needs.
        reason: how the answer follows from these pages.
        answer: the answer; empty where the pages do not hold it.
        observed: what the reader sees, where that is more than the transcripts one after another.

    Returns:
        The tagged response; an empty answer is written as ``REFUSAL``.

    Example:
        ``gold_response(["red one", "blue two"], [1], "blue is two", "two")`` has the evidence lines
        ``[1]: no relevant information`` and ``[2]: blue two``.
    """
    evidence = "\n".join(
        f"[{number}]: {transcript if number - 1 in positive_images else IRRELEVANT}"
        for number, transcript in enumerate(transcripts, start=1)
    )
    # A blank behind the tag: a word is then the same token here as everywhere else.
    contents = (f" {observed or ', '.join(transcripts)}", f"\n{evidence}\n", f" {reason}", f" {answer or REFUSAL}")
    return "\n".join(f"<{tag}>{content}</{tag}>" for tag, content in zip(EVISRAG.names, contents, strict=True))
