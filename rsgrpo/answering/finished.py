"""From a whole response to the finished answer: sections, evidence by page, whether the pages say it at all."""

from __future__ import annotations

from collections.abc import Sequence

from rsgrpo.answering.records import Answered, LookedAtPage, PageEvidence, Spent
from rsgrpo.answering.streamed_sections import SectionStream
from rsgrpo.config.response import ResponseFormat
from rsgrpo.text.normalise import is_irrelevant, is_refusal
from rsgrpo.text.sections import ParsedResponse, parse_response


def finish_answer(
    question: str,
    response: str,
    pages: Sequence[LookedAtPage],
    response_format: ResponseFormat,
    spent: Spent,
    *,
    opened: str = "",
    is_cut: bool = False,
) -> Answered:
    """Take a response apart.

    Args:
        question: the text of the question.
        response: the whole response, with its tags.
        pages: the pages that were found or given; those that the model saw are the ones that it may name.
        response_format: the declared sections.
        spent: what the answer cost.
        opened: the section that the prompt opened; empty: none.
        is_cut: whether the response ended at its largest number of tokens.

    Returns:
        The answer. A section's text is what :class:`SectionStream` gave of it; the lines of evidence are those that
        rewards see. Where a response has no answer section that is closed, its text is the answer as a whole, so that
        a model that knows no sections is heard as well.

    Raises:
        ConfigError: the section ``opened`` is not declared.

    Example:
        ``<evidence>[2]: 12</evidence><answer>12</answer>`` to two pages gives the answer ``12`` and one line of
        evidence on page 2, beside the problems that ``observe`` and ``think`` do not stand in it.
    """
    numbers = tuple(page.number for page in pages if page.is_shown)
    parsed = parse_response(response, response_format, opened, numbers)
    words = {name: _own_words(parsed, name) for name in response_format.names}
    sections = {name: text.strip() for name, text in words.items() if text is not None}
    answer = sections.get(response_format.answer_section, response.strip())
    return Answered(
        question=question,
        answer=answer,
        response=response,
        sections=sections,
        evidence=_evidence(parsed, numbers),
        pages=tuple(pages),
        is_insufficient=is_refusal(answer),
        is_cut=is_cut,
        spent=spent,
        problems=tuple(problem.detail for problem in parsed.problems),
    )


def _own_words(parsed: ParsedResponse, name: str) -> str | None:
    """The text of the closed places of a section, without that of sections that lie in them; None: none is closed.

    Readers have seen that text come as the other section's, so it is not shown as this one's afterwards.
    """
    texts = []
    for section in parsed.all_of(name):
        if section.is_closed:
            stream = SectionStream(parsed.format, name)
            pieces = stream.feed(parsed.text[section.content_start : section.content_stop]) + stream.end()
            texts.append("".join(piece.text for piece in pieces if piece.section == name))
    return "\n".join(texts) if texts else None


def _evidence(parsed: ParsedResponse, numbers: Sequence[int]) -> tuple[PageEvidence, ...]:
    return tuple(
        PageEvidence(
            number=numbers[line.image_index] if line.image_index < len(numbers) else 0,
            text=line.text,
            is_relevant=not is_irrelevant(line.text),
        )
        for line in parsed.evidence_lines
    )
