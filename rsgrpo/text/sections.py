"""Find the tagged sections of a response, and its lines per image, in one linear scan.

Which sections there are is a setting (``response.sections``); EVisRAG's four are the default. Every angle bracket is
looked at once; nothing backtracks, so 100,000 repeated tags cost milliseconds where four lazy regular-expression
groups would cost hours.

A prompt may end in an opening tag of its own (``<think>``). It counts as if it stood, without a character, in front of
the response's first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from rsgrpo.config.checks import ConfigError
from rsgrpo.config.response import EVISRAG, ResponseFormat, SectionRule
from rsgrpo.errors import shown
from rsgrpo.text.page_labels import label_index

# `[1234567]:` is no label: no prompt holds a million images, and int() refuses very long digit runs.
_MAX_LABEL_DIGITS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Where a section stands once; all positions are character offsets into the response.

    Attributes:
        start: the offset of the opening tag; 0 where the prompt opened the section.
        stop: the offset behind the closing tag; where the section is unclosed, equal to ``content_stop``.
        content_start: the offset behind the opening tag.
        content_stop: the offset of the closing tag; where there is none, that of the next opening tag of another
            section, or the end of the text.
        is_closed: whether the closing tag was found behind the opening one.
    """

    start: int
    stop: int
    content_start: int
    content_stop: int
    is_closed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceLine:
    """What a response says about one image.

    Attributes:
        image_index: the 0-based image; the label ``[3]:`` is image 2, or the image whose number is 3 where numbers
            were given. The label of no image gives an index that no image has.
        start: the offset of the label's bracket.
        stop: the offset of the next label, or the end of the section's content.
        text: the text that follows the label, without surrounding whitespace.
    """

    image_index: int
    start: int
    stop: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SectionProblem:
    """One thing that keeps a response from being well formed.

    Attributes:
        code: the kind of problem: ``missing``, ``repeated``, ``order``, ``unclosed`` or ``stray_text``.
        detail: what is wrong, in one phrase for people.
    """

    code: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedResponse:
    """A response, taken apart.

    Attributes:
        text: the text of the response.
        format: the declared sections, which were looked for.
        opened: the name of the section that the prompt opened; empty: none.
        tag_starts: the offset of the first occurrence of each of ``format.tags``; -1 where it is absent.
        occurrences: for each of ``format.sections`` every place where it stands, in order and without overlap; for one
            that is not repeatable only the first.
        evidence_lines: the labelled lines of the section with ``per_image_lines``, in the order of the text; a label
            that comes twice is listed twice.
        problems: what keeps the response from being well formed; empty if nothing does.
    """

    text: str
    format: ResponseFormat
    opened: str
    tag_starts: tuple[int, ...]
    occurrences: tuple[tuple[Section, ...], ...]
    evidence_lines: tuple[EvidenceLine, ...]
    problems: tuple[SectionProblem, ...]

    @property
    def is_well_formed(self) -> bool:
        """Whether the sections stand as ``ResponseConfig`` says, with only whitespace around them."""
        return not self.problems

    def tag_start(self, tag: str) -> int:
        """Offset of a tag's first occurrence, 0 for the one that the prompt wrote, -1 where it is absent.

        Raises:
            ConfigError: the tag is that of no declared section.
        """
        index = _tag_indexes(self.format).get(tag)
        if index is None:
            raise ConfigError(f"tag {shown(tag, 80)!r} is of no declared section; {self.format.declared}")
        return self.tag_starts[index]

    def all_of(self, name: str) -> tuple[Section, ...]:
        """Every place where a section stands; one at most where it is not repeatable.

        Raises:
            ConfigError: no section of that name is declared.
        """
        return self.occurrences[self.format.place(name)]

    def section(self, name: str) -> Section | None:
        """Where the named section first stands, None where its opening tag is absent.

        Raises:
            ConfigError: no section of that name is declared.
        """
        return next(iter(self.all_of(name)), None)

    def content(self, name: str) -> str | None:
        """Text between a section's tags, as it stands; None unless both tags are there, in order.

        Of a repeatable section, the texts between all of its closed tags, parted by line breaks.

        Raises:
            ConfigError: no section of that name is declared.

        Example:
            With ``look`` repeatable, ``"<look>a</look><look>b</look>"`` gives ``"a\\nb"``.
        """
        closed = [section for section in self.all_of(name) if section.is_closed]
        return (
            "\n".join(self.text[section.content_start : section.content_stop] for section in closed) if closed else None
        )

    def first_lines(self) -> dict[int, EvidenceLine]:
        """Each image's first evidence line, by image index; a repeated label says nothing more."""
        lines: dict[int, EvidenceLine] = {}
        for line in self.evidence_lines:
            lines.setdefault(line.image_index, line)
        return lines


class _Tag(NamedTuple):
    """A tag in the text: its section, whether it closes it, and its characters."""

    section: int
    is_closing: bool
    start: int
    stop: int


def parse_response(
    text: str, response_format: ResponseFormat = EVISRAG, opened: str = "", page_numbers: Sequence[int] = ()
) -> ParsedResponse:
    """Take a response apart.

    Args:
        text: the response, or a tagged gold response.
        response_format: the declared sections.
        opened: the section that the prompt opened (``ChatPrompt.opened_section``); empty: none.
        page_numbers: the number by which labels call each image (``Sample.page_numbers``); empty: 1, 2, ….

    Returns:
        The sections, evidence lines and problems of the response; any text is accepted.

    Raises:
        ConfigError: the section ``opened`` is not declared.

    Example:
        ``parse_response("<observe>o</observe><evidence>[1]: x</evidence><think>t</think><answer>3</answer>")``
        is well formed, its answer section's content is ``"3"`` and its one evidence line says ``"x"``
        about image 0.
    """
    tags = _find_tags(text, response_format)
    if opened:
        tags.insert(0, _Tag(response_format.place(opened), False, 0, 0))
    tag_starts = [-1] * (2 * len(response_format.sections))
    for tag in tags:
        index = 2 * tag.section + tag.is_closing
        if tag_starts[index] < 0:
            tag_starts[index] = tag.start
    occurrences = _occurrences(text, tags, response_format)
    lines_section = response_format.lines_section
    lined = occurrences[response_format.place(lines_section)] if lines_section else ()
    is_tidy = _is_tidy(tags, response_format)
    return ParsedResponse(
        text=text,
        format=response_format,
        opened=opened,
        tag_starts=tuple(tag_starts),
        occurrences=occurrences,
        evidence_lines=tuple(line for section in lined for line in _evidence_lines(text, section, page_numbers)),
        problems=_stray_text(text, tags, response_format)
        if is_tidy
        else _tag_problems(tags, occurrences, response_format),
    )


def section_content(text: str, name: str) -> str | None:
    """What stands in one section, whichever others there are; it may not be repeated.

    Args:
        text: the response.
        name: of the section, declared or not.

    Returns:
        As :meth:`ParsedResponse.content`.

    Example:
        ``section_content("so <final>3</final>", "final")`` is ``"3"``, of ``"<final>3"`` it is None.
    """
    only = ResponseFormat(sections=(SectionRule(name=name, order=0),), answer_section=name)
    return parse_response(text, only).content(name)


def opened_section(prompt_text: str, response_format: ResponseFormat) -> str:
    """The section that a prompt leaves open: its opening tag is the last thing in it but blanks.

    Args:
        prompt_text: the prompt, chat template applied, with the assistant header and whatever the template writes
            behind it.
        response_format: the declared sections.

    Returns:
        The name of the section; empty: none is open.

    Example:
        ``"…<|im_start|>assistant\\n<think>\\n"`` opens ``think``.
    """
    end = prompt_text.rstrip()
    return next((name for name in response_format.names if end.endswith(f"<{name}>")), "")


@lru_cache(maxsize=64)
def _tag_indexes(response_format: ResponseFormat) -> dict[str, int]:
    return {tag: index for index, tag in enumerate(response_format.tags)}


def _find_tags(text: str, response_format: ResponseFormat) -> list[_Tag]:
    """All tags in the order of the text."""
    indexes = _tag_indexes(response_format)
    longest = max(map(len, indexes))
    found: list[_Tag] = []
    start = text.find("<")
    while start >= 0:
        candidate = text[start : start + longest]
        candidate = candidate[: candidate.find(">") + 1]
        index = indexes.get(candidate)
        if index is not None:
            found.append(_Tag(index // 2, bool(index % 2), start, start + len(candidate)))
        start = text.find("<", start + 1)
    return found


def _occurrences(text: str, tags: list[_Tag], response_format: ResponseFormat) -> tuple[tuple[Section, ...], ...]:
    """Each section from its opening tag to the next closing tag of its own, then again behind that."""
    found: list[list[Section]] = [[] for _ in response_format.sections]
    waiting: list[list[_Tag]] = [[] for _ in response_format.sections]  # opening tags since the last closing one
    for tag in tags:
        if found[tag.section] and not response_format.sections[tag.section].repeatable:
            continue
        opening = waiting[tag.section]
        if not tag.is_closing:
            opening.append(tag)
        elif opening:
            found[tag.section].append(
                Section(
                    start=opening[0].start,
                    stop=tag.stop,
                    content_start=opening[0].stop,
                    content_stop=tag.start,
                    is_closed=True,
                )
            )
            opening.clear()
    if any(waiting):
        following = _next_of_others(tags, len(text))
        for number, opening in enumerate(waiting):
            found[number] += _unclosed(opening, following, is_repeatable=response_format.sections[number].repeatable)
    return tuple(map(tuple, found))


def _unclosed(opening: list[_Tag], following: dict[_Tag, int], *, is_repeatable: bool) -> list[Section]:
    """The text that opening tags begin and no closing tag of their own ends, as sections."""
    found: list[Section] = []
    for tag in opening:
        if not found or (is_repeatable and tag.start >= found[-1].stop):
            stop = following[tag]
            found.append(
                Section(start=tag.start, stop=stop, content_start=tag.stop, content_stop=stop, is_closed=False)
            )
    return found


def _next_of_others(tags: list[_Tag], end: int) -> dict[_Tag, int]:
    """Behind each opening tag, where the next opening tag of another section stands; ``end`` if there is none."""
    following: dict[_Tag, int] = {}
    nearest, nearest_section, nearest_other = end, -1, end
    for tag in reversed(tags):
        if tag.is_closing:
            continue
        if tag.section != nearest_section:
            nearest_other = nearest
        following[tag] = nearest_other
        nearest, nearest_section = tag.start, tag.section
    return following


def _evidence_lines(text: str, section: Section, page_numbers: Sequence[int]) -> tuple[EvidenceLine, ...]:
    """Labels ``[i]:`` at the start of a line or of the section; each line runs to the next label."""
    labels: list[tuple[int, int, int]] = []  # image index, offset of the bracket, offset behind the colon
    limit = section.content_stop
    start = text.find("[", section.content_start, limit)
    while start >= 0:
        colon = text.find("]:", start + 1, min(start + _MAX_LABEL_DIGITS + 3, limit))
        digits = text[start + 1 : colon] if colon >= 0 else ""
        if (
            digits.isascii()
            and digits.isdecimal()
            and digits[0] != "0"
            and _is_at_line_start(text, section.content_start, start)
        ):
            labels.append((label_index(int(digits), page_numbers), start, colon + 2))
        start = text.find("[", start + 1, limit)
    stops = [*(label[1] for label in labels[1:]), limit][: len(labels)]
    return tuple(
        EvidenceLine(image_index=image_index, start=start, stop=stop, text=text[text_start:stop].strip())
        for (image_index, start, text_start), stop in zip(labels, stops, strict=True)
    )


def _is_at_line_start(text: str, first: int, offset: int) -> bool:
    """Whether only blanks stand between ``offset`` and the line's (or the section's) start."""
    while offset > first and text[offset - 1] in " \t\r":
        offset -= 1
    return offset == first or text[offset - 1] == "\n"


def _is_tidy(tags: list[_Tag], response_format: ResponseFormat) -> bool:
    """Whether each section is closed before the next one opens, as often and in such an order as it may stand."""
    opening, closing = tags[::2], tags[1::2]
    places = [tag.section for tag in opening]
    if [(tag.section, tag.is_closing) for tag in closing] != [(place, True) for place in places]:
        return False
    rules = response_format.sections
    orders = [rules[place].order for place in places]
    counts = [places.count(place) for place in range(len(rules))]
    fits = all(
        count >= rule.required and (count <= 1 or rule.repeatable) for rule, count in zip(rules, counts, strict=True)
    )
    return fits and orders == sorted(orders) and not any(tag.is_closing for tag in opening)


def _stray_text(text: str, tags: list[_Tag], response_format: ResponseFormat) -> tuple[SectionProblem, ...]:
    """Text around and between sections that otherwise stand as they should."""
    problems = []
    edge = 0
    for opening, closing in zip(tags[::2], tags[1::2], strict=True):
        between = text[edge : opening.start]
        if between and not between.isspace():
            problems.append(_stray(response_format.names[opening.section]))
        edge = closing.stop
    if text[edge:].strip():
        problems.append(_stray("end of the response"))
    return tuple(problems)


def _stray(name: str) -> SectionProblem:
    return SectionProblem(code="stray_text", detail=f"text outside the sections before {name}")


def _tag_problems(
    tags: list[_Tag], occurrences: tuple[tuple[Section, ...], ...], response_format: ResponseFormat
) -> tuple[SectionProblem, ...]:
    """The problems of the tags, section by section."""
    counts = [0] * (2 * len(response_format.sections))
    for tag in tags:
        counts[2 * tag.section + tag.is_closing] += 1
    problems = []
    for place, (rule, found) in enumerate(zip(response_format.sections, occurrences, strict=True)):
        tag_counts = (counts[2 * place], counts[2 * place + 1])
        if not found and rule.required:
            problems.append(SectionProblem(code="missing", detail=f"<{rule.name}> does not stand in the response"))
        elif any(not section.is_closed for section in found):
            problems.append(SectionProblem(code="unclosed", detail=f"<{rule.name}> has no </{rule.name}> behind it"))
        elif rule.repeatable and tag_counts[0] != tag_counts[1]:
            problems.append(
                SectionProblem(
                    code="unclosed",
                    detail=f"<{rule.name}> stands {tag_counts[0]} times, </{rule.name}> {tag_counts[1]} times",
                )
            )
        for slash, count in zip(("", "/"), tag_counts, strict=True):
            if count > 1 and not rule.repeatable:
                problems.append(SectionProblem(code="repeated", detail=f"<{slash}{rule.name}> stands {count} times"))
    if not _are_in_order(tags, response_format):
        problems.append(SectionProblem(code="order", detail="the sections do not stand in order"))
    if not problems:
        # Left over: a closing tag stands in front although its section is missing nothing else, or one section in
        # another.
        problems.append(SectionProblem(code="order", detail="a tag stands where it does not belong"))
    return tuple(problems)


def _are_in_order(tags: list[_Tag], response_format: ResponseFormat) -> bool:
    """Whether each section's tags, the first of each kind, stand behind those of all sections of lower order.

    Of a repeatable section its last opening tag counts as well.
    """
    first: dict[tuple[int, bool], int] = {}
    last_opening: dict[int, int] = {}
    for number, tag in enumerate(tags):  # numbers, not offsets: what the prompt opened has no character
        first.setdefault((tag.section, tag.is_closing), number)
        if not tag.is_closing and response_format.sections[tag.section].repeatable:
            last_opening[tag.section] = number
    extents: dict[int, list[int]] = {}
    for place, rule in enumerate(response_format.sections):
        opening, closing = first.get((place, False)), first.get((place, True))
        if opening is not None and closing is not None and closing < opening:
            return False
        own = [number for number in (opening, closing, last_opening.get(place)) if number is not None]
        extents.setdefault(rule.order, []).extend(own)
    edge = -1
    for _, numbers in sorted(extents.items()):
        if numbers and min(numbers) < edge:
            return False
        edge = max(edge, *numbers) if numbers else edge
    return True
