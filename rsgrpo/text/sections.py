"""Find the four tagged sections of a response, and its evidence lines, in one linear scan.

Every angle bracket is looked at once; nothing backtracks, so 100,000 repeated tags cost milliseconds
where four lazy regular-expression groups would cost hours.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.types import SECTION_TAGS

TAGS = tuple(tag for name in SECTION_TAGS for tag in (f"<{name}>", f"</{name}>"))
"""The eight tags in the order of a well-formed response; tag ``2 k`` opens section ``k``, ``2 k + 1`` closes it."""

_TAG_INDEX = {tag: index for index, tag in enumerate(TAGS)}
_LONGEST_TAG = max(len(tag) for tag in TAGS)
# `[1234567]:` is no label: no prompt holds a million images, and int() refuses very long digit runs.
_MAX_LABEL_DIGITS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Where one section stands; all positions are character offsets into the response.

    Attributes:
        start: of the opening tag.
        stop: after the closing tag; where the section is unclosed, equal to ``content_stop``.
        content_start: after the opening tag.
        content_stop: at the closing tag; where there is none, at the next opening tag of another
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
        image_index: 0-based; the label ``[3]:`` is image 2.
        start: offset of the label's bracket.
        stop: offset of the next label, or the end of the section's content.
        text: what follows the label, without surrounding whitespace.
    """

    image_index: int
    start: int
    stop: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SectionProblem:
    """One thing that keeps a response from being well formed.

    Attributes:
        code: ``missing``, ``repeated``, ``order``, ``unclosed`` or ``stray_text``.
        detail: one phrase for people.
    """

    code: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedResponse:
    """A response, taken apart.

    Attributes:
        text: the response.
        tag_starts: offset of the first occurrence of each entry of ``TAGS``; -1 where it is absent.
        sections: one entry for each of ``SECTION_TAGS``; None where the opening tag is absent.
        evidence_lines: labelled lines of the evidence section in the order of the text; a label
            that comes twice is listed twice.
        problems: empty for a well-formed response.
    """

    text: str
    tag_starts: tuple[int, ...]
    sections: tuple[Section | None, ...]
    evidence_lines: tuple[EvidenceLine, ...]
    problems: tuple[SectionProblem, ...]

    @property
    def is_well_formed(self) -> bool:
        """Whether the four sections stand once each, closed, in order, with only whitespace around them."""
        return not self.problems

    def tag_start(self, tag: str) -> int:
        """Offset of a tag's first occurrence, -1 where it is absent."""
        return self.tag_starts[_TAG_INDEX[tag]]

    def section(self, name: str) -> Section | None:
        """The named section, None where its opening tag is absent."""
        return self.sections[SECTION_TAGS.index(name)]

    def content(self, name: str) -> str | None:
        """Text between a section's tags, as it stands; None unless both tags are there, in order."""
        section = self.section(name)
        if section is None or not section.is_closed:
            return None
        return self.text[section.content_start : section.content_stop]

    def first_lines(self) -> dict[int, EvidenceLine]:
        """Each image's first evidence line, by image index; a repeated label says nothing more."""
        lines: dict[int, EvidenceLine] = {}
        for line in self.evidence_lines:
            lines.setdefault(line.image_index, line)
        return lines


def parse_response(text: str) -> ParsedResponse:
    """Take a response apart.

    Args:
        text: the response, or a tagged gold response.

    Returns:
        Spans, evidence lines and problems; any text is accepted.

    Example:
        ``parse_response("<observe>o</observe><evidence>[1]: x</evidence><think>t</think><answer>3</answer>")``
        is well formed, its answer section's content is ``"3"`` and its one evidence line says ``"x"``
        about image 0.
    """
    tags = _find_tags(text)
    tag_starts = [-1] * len(TAGS)
    for index, start in tags:
        if tag_starts[index] < 0:
            tag_starts[index] = start
    sections = tuple(_section(text, tags, tag_starts, number) for number in range(len(SECTION_TAGS)))
    evidence = sections[SECTION_TAGS.index("evidence")]
    return ParsedResponse(
        text=text,
        tag_starts=tuple(tag_starts),
        sections=sections,
        evidence_lines=() if evidence is None else _evidence_lines(text, evidence),
        problems=_problems(text, tags, tag_starts, sections),
    )


def _find_tags(text: str) -> list[tuple[int, int]]:
    """All tags as (index into TAGS, offset), in the order of the text."""
    found: list[tuple[int, int]] = []
    start = text.find("<")
    while start >= 0:
        candidate = text[start : start + _LONGEST_TAG]
        index = _TAG_INDEX.get(candidate[: candidate.find(">") + 1])
        if index is not None:
            found.append((index, start))
        start = text.find("<", start + 1)
    return found


def _section(text: str, tags: list[tuple[int, int]], tag_starts: list[int], number: int) -> Section | None:
    """Section ``number``: from its first opening tag to the next closing tag of its own behind that."""
    opening, closing = 2 * number, 2 * number + 1
    start = tag_starts[opening]
    if start < 0:
        return None
    content_start = start + len(TAGS[opening])
    stop = tag_starts[closing]
    if stop < start:
        stop = next((offset for index, offset in tags if index == closing and offset > start), -1)
    if stop >= 0:
        return Section(
            start=start,
            stop=stop + len(TAGS[closing]),
            content_start=content_start,
            content_stop=stop,
            is_closed=True,
        )
    following = (offset for index, offset in tags if index % 2 == 0 and index != opening and offset > start)
    content_stop = next(following, len(text))
    return Section(
        start=start, stop=content_stop, content_start=content_start, content_stop=content_stop, is_closed=False
    )


def _evidence_lines(text: str, section: Section) -> tuple[EvidenceLine, ...]:
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
            labels.append((int(digits) - 1, start, colon + 2))
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


def _problems(
    text: str, tags: list[tuple[int, int]], tag_starts: list[int], sections: tuple[Section | None, ...]
) -> tuple[SectionProblem, ...]:
    """Everything that is wrong; the common case, eight tags in order, leaves early."""
    in_order = [index for index, _ in tags] == list(range(len(TAGS)))
    if not in_order:
        return _tag_problems(tags, tag_starts, sections)
    problems = []
    edge = 0
    for name, section in zip((*SECTION_TAGS, "end of the response"), (*sections, None), strict=True):
        start = len(text) if section is None else section.start
        between = text[edge:start]
        if between and not between.isspace():
            problems.append(SectionProblem(code="stray_text", detail=f"text outside the sections before {name}"))
        edge = start if section is None else section.stop
    return tuple(problems)


def _tag_problems(
    tags: list[tuple[int, int]], tag_starts: list[int], sections: tuple[Section | None, ...]
) -> tuple[SectionProblem, ...]:
    counts = [0] * len(TAGS)
    for index, _ in tags:
        counts[index] += 1
    problems = []
    for number, (name, section) in enumerate(zip(SECTION_TAGS, sections, strict=True)):
        if section is None:
            problems.append(SectionProblem(code="missing", detail=f"<{name}> does not stand in the response"))
        elif not section.is_closed:
            problems.append(SectionProblem(code="unclosed", detail=f"<{name}> has no </{name}> behind it"))
        for tag, count in zip(TAGS[2 * number : 2 * number + 2], counts[2 * number : 2 * number + 2], strict=True):
            if count > 1:
                problems.append(SectionProblem(code="repeated", detail=f"{tag} stands {count} times"))
    present = [start for start in tag_starts if start >= 0]
    if present != sorted(present):
        problems.append(SectionProblem(code="order", detail="the sections do not stand in order"))
    if not problems:
        # Left over: a closing tag stands in front although its section is missing nothing else.
        problems.append(SectionProblem(code="order", detail="a tag stands where it does not belong"))
    return tuple(problems)
