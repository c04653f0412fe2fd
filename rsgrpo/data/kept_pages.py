"""A question without the pages that a filter left out; the others keep the numbers that texts call them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rsgrpo.config import EVISRAG, ResponseFormat
from rsgrpo.data.files import DataError
from rsgrpo.errors import shown
from rsgrpo.text.sections import parse_response
from rsgrpo.types import IMAGE_MARKER, Sample


def with_pages(sample: Sample, kept: Sequence[int]) -> Sample:
    """The question with some of its pages.

    Gold stays as it is: its labels are numbers, which do not change. Gold pages and boxes on pages that were left out
    are not there any more.

    Args:
        sample: a question, not a conversation.
        kept: the 0-based indexes of the pages that stay, ascending, at least one.

    Returns:
        The sample with these images and their numbers; its ready prompt keeps the markers of these images.

    Raises:
        DataError: the sample is a conversation, whose texts speak of all of its images.

    Example:
        Of 12 images the indexes (6, 11): ``page_numbers == (7, 12)``, and gold page 11 is ``positive_images == (1,)``.
    """
    if sample.turns:
        raise DataError(
            f"sample {shown(sample.sample_id, 80)!r} is a conversation; only questions over pages can be filtered"
        )
    place = {index: new for new, index in enumerate(kept)}
    pieces = sample.prompt.split(IMAGE_MARKER)
    prompt = pieces[0] + "".join(
        (IMAGE_MARKER if index in place else "") + piece for index, piece in enumerate(pieces[1:])
    )
    return replace(
        sample,
        images=tuple(sample.images[index] for index in kept),
        page_numbers=tuple(sample.numbers[index] for index in kept),
        positive_images=tuple(place[index] for index in sample.positive_images if index in place),
        boxes=tuple(
            replace(box, image_index=place.get(box.image_index, -1))
            for box in sample.boxes
            if box.image_index in place or box.image_index == -1
        ),
        prompt=prompt,
    )


def with_shown_gold(sample: Sample, response_format: ResponseFormat = EVISRAG) -> Sample:
    """The sample with a gold response that has lines for shown pages alone, as a response to imitate.

    Args:
        sample: a sample whose pages have numbers; any other stays as it is.
        response_format: the declared sections.

    Example:
        ``page_numbers == (2,)`` and lines ``[1]: no relevant information`` and ``[2]: 12``: the second line stays.
    """
    if not sample.page_numbers or not sample.gold_response:
        return sample
    gold = parse_response(sample.gold_response, response_format, page_numbers=sample.page_numbers)
    text = sample.gold_response
    for line in sorted(gold.evidence_lines, key=lambda line: -line.start):
        if line.image_index >= len(sample.images):
            text = text[: line.start] + text[line.stop :]
    return replace(sample, gold_response=text)
