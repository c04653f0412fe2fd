"""Gold responses, parsed once, and what rewards may need of them."""

from __future__ import annotations

from functools import lru_cache

from rewards.base import GOLD_FIELDS
from rsgrpo.config import EVISRAG, ResponseFormat
from rsgrpo.text.normalise import REFUSALS
from rsgrpo.text.sections import ParsedResponse, parse_response
from rsgrpo.types import Sample

# The siblings of a group and the rewards on them ask for the same gold; a step has a few hundred.
_CACHED_GOLDS = 4096


@lru_cache(maxsize=_CACHED_GOLDS)
def parsed_gold(
    gold_response: str, response_format: ResponseFormat = EVISRAG, page_numbers: tuple[int, ...] = ()
) -> ParsedResponse:
    """A gold response, taken apart. It is a whole one, with all of its tags, whatever prompts open."""
    return parse_response(gold_response, response_format, page_numbers=page_numbers)


def gold_answers(
    sample: Sample, response_format: ResponseFormat = EVISRAG, section: str | None = None
) -> tuple[str, ...]:
    """Answers that count as right.

    Where there is a gold response, the content of its section with the answer. Otherwise ``Sample.answers``,
    or, for a question that the pages do not answer, the three refusals of the EVisRAG evaluation.

    Args:
        sample: the sample that holds gold and answers.
        response_format: the declared sections.
        section: the one that holds the answer; None: ``response.answer_section``.
    """
    if sample.gold_response:
        gold = parsed_gold(sample.gold_response, response_format)
        answer = gold.content(section or response_format.answer_section)
        return () if answer is None else (answer,)
    return sample.answers if sample.is_sufficient else REFUSALS


def gold_problem(
    sample: Sample,
    needed: tuple[str, ...],
    response_format: ResponseFormat = EVISRAG,
    answer_section: str | None = None,
) -> str:
    """What a sample's gold lacks of what a reward needs.

    Args:
        sample: the sample that should hold gold.
        needed: declared sections, or fields of the sample.
        response_format: the declared sections.
        answer_section: the one among ``needed`` for which, without a gold response, ``Sample.answers`` will do; None:
            ``response.answer_section``.

    Returns:
        What is missing, as a phrase about the sample; empty if nothing is.
    """
    for name, (values, what) in {
        "boxes": (sample.boxes, "no gold boxes"),
        "choices": (sample.choices, "no options to choose from"),
        "positive_images": (sample.positive_images, "nothing that says which images matter"),
    }.items():
        if name in needed and not values:
            return f"it has {what}"
    sections = tuple(name for name in needed if name in response_format.names and name not in GOLD_FIELDS)
    if not sections:
        return ""
    if not sample.gold_response:
        if set(sections) - {answer_section or response_format.answer_section}:
            return "it has no gold response"
        is_answered = gold_answers(sample, response_format, answer_section)
        return "" if is_answered else "it has neither a gold response nor answers"
    gold = parsed_gold(sample.gold_response, response_format, sample.page_numbers)
    for name in sections:
        if gold.content(name) is None:
            return f"its gold response has no <{name}>…</{name}>"
    return _lines_problem(sample, gold) if response_format.lines_section in sections else ""


def _lines_problem(sample: Sample, gold: ParsedResponse) -> str:
    name = gold.format.lines_section
    if not gold.evidence_lines:
        return f"the {name} section of its gold response has no line that starts with [1]:"
    last = max(line.image_index for line in gold.evidence_lines) + 1
    if sample.images and last > len(sample.images) and not sample.page_numbers:
        return f"its gold response has {name} [{last}]: but the sample has {len(sample.images)} images"
    return ""
