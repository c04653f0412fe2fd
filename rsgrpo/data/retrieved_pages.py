"""A question over the pages that a retriever found for it, with the gold that follows from which of them are right.

own pages with gold + found pages  ->  found pages; evidence of the right ones; a refusal where one is missing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rsgrpo.config import EVISRAG, ResponseFormat
from rsgrpo.data.files import DataError
from rsgrpo.errors import shown
from rsgrpo.text.normalise import IRRELEVANT, REFUSAL, is_irrelevant, normalize_answer
from rsgrpo.text.sections import ParsedResponse, parse_response
from rsgrpo.types import IMAGE_MARKER, ImageRef, Sample


def gold_pages(sample: Sample, response_format: ResponseFormat = EVISRAG) -> tuple[int, ...]:
    """The pages that the answer to a question needs.

    Args:
        sample: the sample with its own pages.
        response_format: the declared sections.

    Returns:
        The 0-based indexes of ``positive_images``; where there are none, of the images whose evidence line in the gold
        response says more than that there is no relevant information. Empty: the sample does not say.
    """
    if sample.positive_images or not sample.gold_response:
        return sample.positive_images
    relevant = {
        line.image_index for line in _parsed_gold(sample, response_format).evidence_lines if _says_more(line.text)
    }
    return tuple(index for index in sorted(relevant) if index < len(sample.images))


def can_show_found_pages(sample: Sample, response_format: ResponseFormat = EVISRAG) -> bool:
    """Whether a trajectory can be written anew over other pages.

    Args:
        sample: the sample with its gold response.
        response_format: the declared sections.

    Returns:
        Whether it is answerable, no conversation, names its gold pages, and says nothing beside evidence lines and
        answer: what an observation or a thought says was said of its own pages, and nobody has described others.
    """
    if sample.turns or not sample.gold_response or not sample.is_sufficient or not gold_pages(sample, response_format):
        return False
    parsed = _parsed_gold(sample, response_format)
    rest = sample.gold_response
    for name in (response_format.lines_section, response_format.answer_section):
        if section := parsed.section(name) if name else None:
            rest = rest.replace(sample.gold_response[section.start : section.stop], "", 1)
    return not rest.strip()


def with_found_pages(
    sample: Sample,
    found: Sequence[ImageRef],
    own_indexes: Sequence[int | None],
    response_format: ResponseFormat = EVISRAG,
) -> Sample:
    """Show the pages that a retriever found in place of those that the data set prepared.

    Where all gold pages were found, the answer stays. Where one is missing, the question cannot be answered from what
    is shown: the gold answer is then a refusal, and the evidence lines of those gold pages that were found stay.

    Args:
        sample: an answerable question with known gold pages; no conversation.
        found: the pages that were found, best first, at least one.
        own_indexes: for each found page the 0-based index of the sample's image that it is; None: it is none of them.
        response_format: the declared sections.

    Returns:
        The sample over the found pages, numbered from 1. Its gold response holds the evidence lines and the answer:
        what else a gold response says was said of other pages. Without a gold response there is none.

    Raises:
        DataError: the sample is a conversation, is unanswerable as it stands, names no gold page, or has a ready
            prompt with words between its images.

    Example:
        Own pages (a, b), gold page b with the line ``[2]: 12``; found (c, b): ``positive_images == (1,)``, evidence
        ``[1]: no relevant information`` and ``[2]: 12``. Found (c, a): both lines irrelevant, a refusal as answer.
    """
    name = shown(sample.sample_id, 80)
    if sample.turns:
        raise DataError(f"sample {name!r} is a conversation; only questions over pages can be asked behind a retriever")
    gold = gold_pages(sample, response_format)
    if not gold or not sample.is_sufficient:
        raise DataError(
            f"sample {name!r} names no gold page; a retriever may find the page that answers it, and its gold would "
            "still be a refusal: leave it out, or give it gold pages"
        )
    place = {own: new for new, own in reversed(list(enumerate(own_indexes))) if own is not None}
    is_sufficient = all(index in place for index in gold)
    return replace(
        sample,
        images=tuple(found),
        page_numbers=(),
        prompt=_prompt_over(sample, len(found)),
        is_sufficient=is_sufficient,
        positive_images=tuple(sorted(place[index] for index in gold if index in place)),
        answers=sample.answers if is_sufficient else (REFUSAL,),
        gold_response=_gold_over(sample, place, len(found), response_format, is_sufficient=is_sufficient),
        boxes=tuple(
            replace(box, image_index=place[box.image_index]) for box in sample.boxes if box.image_index in place
        ),
    )


def _parsed_gold(sample: Sample, response_format: ResponseFormat) -> ParsedResponse:
    return parse_response(sample.gold_response, response_format, page_numbers=sample.page_numbers)


def _says_more(text: str) -> bool:
    return bool(normalize_answer(text)) and not is_irrelevant(text)


def _prompt_over(sample: Sample, num_images: int) -> str:
    """The ready prompt with another number of images, which stand in one run; empty where there is no ready prompt."""
    if not sample.prompt:
        return ""
    before, *between, after = sample.prompt.split(IMAGE_MARKER)
    if any(words.strip() for words in between):
        raise DataError(
            f"sample {shown(sample.sample_id, 80)!r} has a ready prompt with words between its images, which says "
            "where which page stands; leave its column out (data.prompt_column), so that prompt.path is used"
        )
    separator = between[0] if between else ""
    return before + separator.join([IMAGE_MARKER] * num_images) + after


def _gold_over(
    sample: Sample, place: dict[int, int], num_images: int, response_format: ResponseFormat, *, is_sufficient: bool
) -> str:
    """Evidence lines and answer for the found pages, tagged."""
    if not sample.gold_response:
        return ""
    parsed = _parsed_gold(sample, response_format)
    texts = dict.fromkeys(range(num_images), IRRELEVANT)
    for line in parsed.evidence_lines:
        if line.image_index in place:
            texts[place[line.image_index]] = line.text
    answer = parsed.content(response_format.answer_section) if is_sufficient else f" {REFUSAL}"
    contents = {response_format.answer_section: answer}
    if response_format.lines_section and parsed.evidence_lines:
        lines = "\n".join(f"[{index + 1}]: {texts[index]}" for index in range(num_images))
        contents[response_format.lines_section] = f"\n{lines}\n"
    return "\n".join(
        f"<{name}>{contents[name]}</{name}>" for name in response_format.names if contents.get(name) is not None
    )
