"""Gold responses, parsed once, and what rewards may need of them."""

from __future__ import annotations

from functools import lru_cache

from rsgrpo.text.normalise import REFUSALS
from rsgrpo.text.sections import ParsedResponse, parse_response
from rsgrpo.types import SECTION_TAGS, Sample

# The siblings of a group and the rewards on them ask for the same gold; a step has a few hundred.
_CACHED_GOLDS = 4096


@lru_cache(maxsize=_CACHED_GOLDS)
def parsed_gold(gold_response: str) -> ParsedResponse:
    """A gold response, taken apart."""
    return parse_response(gold_response)


def gold_answers(sample: Sample) -> tuple[str, ...]:
    """Answers that count as right.

    Where there is a gold response, the content of its answer section. Otherwise ``Sample.answers``,
    or, for a question that the pages do not answer, the three refusals of the EVisRAG evaluation.
    """
    if sample.gold_response:
        answer = parsed_gold(sample.gold_response).content("answer")
        return () if answer is None else (answer,)
    return sample.answers if sample.is_sufficient else REFUSALS


def gold_problem(sample: Sample, needed: tuple[str, ...]) -> str:
    """What a sample's gold lacks of ``needed``, sections or fields of the sample; empty if nothing."""
    for name, (values, what) in {
        "boxes": (sample.boxes, "no gold boxes"),
        "choices": (sample.choices, "no options to choose from"),
        "positive_images": (sample.positive_images, "nothing that says which images matter"),
    }.items():
        if name in needed and not values:
            return f"it has {what}"
    sections = tuple(name for name in needed if name in SECTION_TAGS)
    if not sections:
        return ""
    if not sample.gold_response:
        if set(sections) - {"answer"}:
            return "it has no gold response"
        return "" if gold_answers(sample) else "it has neither a gold response nor answers"
    gold = parsed_gold(sample.gold_response)
    for name in sections:
        if gold.content(name) is None:
            return f"its gold response has no <{name}>…</{name}>"
    return _evidence_problem(sample, gold) if "evidence" in sections else ""


def _evidence_problem(sample: Sample, gold: ParsedResponse) -> str:
    if not gold.evidence_lines:
        return "the evidence section of its gold response has no line that starts with [1]:"
    last = max(line.image_index for line in gold.evidence_lines) + 1
    if sample.images and last > len(sample.images):
        return f"its gold response has evidence [{last}]: but the sample has {len(sample.images)} images"
    return ""
