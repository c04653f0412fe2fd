"""Gold responses to questions about generated pages, in the sections of EVisRAG's answers."""

from __future__ import annotations

from collections.abc import Sequence

from rsgrpo.config import EVISRAG
from rsgrpo.text.normalise import IRRELEVANT, REFUSAL


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
