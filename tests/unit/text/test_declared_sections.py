"""Any declared sections: what the parser finds equals what plain regular expressions find, and nothing else counts."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import EVISRAG, ConfigError, ResponseFormat, SectionRule
from rsgrpo.text.sections import ParsedResponse, opened_section, parse_response, section_content

PLAN = ResponseFormat(
    sections=(
        SectionRule(name="think", order=0, repeatable=True),
        SectionRule(name="look", order=0, repeatable=True, required=False, per_image_lines=True),
        SectionRule(name="answer", order=1),
    )
)
PIECES = ("\n", "x", "<", ">", "[1]: a", "\n[2]: b", " ", "</", "é")


def codes(text: str, response_format: ResponseFormat = PLAN, opened: str = "") -> set[str]:
    return {problem.code for problem in parse_response(text, response_format, opened).problems}


@st.composite
def formats(draw: st.DrawFn) -> ResponseFormat:
    """One to five sections with names of which some begin or end alike."""
    alike = st.sampled_from(["a", "aa", "a-b", "ab", "answer", "answer_2", "look", "Look", "x.y"])
    names = draw(
        st.lists(
            alike | st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,6}", fullmatch=True), min_size=1, max_size=5, unique=True
        )
    )
    lined = draw(st.sampled_from([*names, ""]))
    return ResponseFormat(
        sections=tuple(
            SectionRule(
                name=name,
                order=draw(st.integers(0, 3)),
                required=draw(st.booleans()),
                repeatable=draw(st.booleans()),
                per_image_lines=name == lined,
            )
            for name in names
        )
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, ResponseFormat, str]:
    """A text of tags and other pieces, the sections it is read by, and which one the prompt opened."""
    response_format = draw(formats())
    pieces = st.sampled_from([*response_format.tags, *PIECES])
    text = "".join(draw(st.lists(pieces, max_size=25)))
    return text, response_format, draw(st.sampled_from(["", *response_format.names]))


def closed(parsed: ParsedResponse, name: str) -> list[str]:
    return [
        parsed.text[section.content_start : section.content_stop]
        for section in parsed.all_of(name)
        if section.is_closed
    ]


@given(cases())
def test_sections_are_what_a_lazy_regular_expression_finds(case: tuple[str, ResponseFormat, str]) -> None:
    text, response_format, opened = case
    parsed = parse_response(text, response_format, opened)
    # what the prompt opened counts as if its tag stood in front
    whole = f"<{opened}>{text}" if opened else text
    for rule in response_format.sections:
        found = re.findall(f"<{re.escape(rule.name)}>(.*?)</{re.escape(rule.name)}>", whole, re.DOTALL)
        assert closed(parsed, rule.name) == (found if rule.repeatable else found[:1])
        assert parsed.content(rule.name) == ("\n".join(closed(parsed, rule.name)) if found else None)
        assert (parsed.section(rule.name) is None) == (f"<{rule.name}>" not in whole)


@given(cases())
def test_spans_do_not_overlap_and_begin_and_end_at_tags(case: tuple[str, ResponseFormat, str]) -> None:
    text, response_format, opened = case
    parsed = parse_response(text, response_format, opened)
    for rule, places in zip(response_format.sections, parsed.occurrences, strict=True):
        edge = 0
        for number, section in enumerate(places):
            is_opened = opened == rule.name and number == 0
            assert edge <= section.start <= section.content_start <= section.content_stop <= section.stop <= len(text)
            assert text[section.start : section.content_start] == ("" if is_opened else f"<{rule.name}>")
            assert text[section.content_stop : section.stop] == (f"</{rule.name}>" if section.is_closed else "")
            assert f"</{rule.name}>" not in text[section.content_start : section.content_stop]
            edge = section.stop
        if not rule.repeatable:
            assert len(places) <= 1
        # behind an unclosed one there is no closing tag of its own
        for section in places:
            assert section.is_closed or f"</{rule.name}>" not in text[section.content_start :]
    lines = [(line.start, line.stop) for line in parsed.evidence_lines]
    assert lines == sorted(lines) and all(stop <= start for (_, stop), (start, _) in pairwise(lines))
    for tag in response_format.tags:
        assert parsed.tag_start(tag) == (0 if tag == f"<{opened}>" else text.find(tag))


@given(cases())
def test_what_the_prompt_opened_shifts_every_place_by_its_tag(case: tuple[str, ResponseFormat, str]) -> None:
    text, response_format, opened = case
    parsed = parse_response(text, response_format, opened)
    whole = parse_response(f"<{opened}>{text}" if opened else text, response_format)
    shift = len(f"<{opened}>") if opened else 0
    assert parsed.problems == whole.problems
    for places, others in zip(parsed.occurrences, whole.occurrences, strict=True):
        assert [(max(0, section.start - shift), section.stop - shift) for section in others] == [
            (section.start, section.stop) for section in places
        ]
    assert [(line.image_index, line.start, line.text) for line in parsed.evidence_lines] == [
        (line.image_index, line.start - shift, line.text) for line in whole.evidence_lines
    ]


@given(cases())
def test_well_formed_is_a_regular_language(case: tuple[str, ResponseFormat, str]) -> None:
    # Take off one leading section after the other, with the blanks in front of it; what is left must be blank.
    text, response_format, opened = case
    rest = f"<{opened}>{text}" if opened else text
    seen: list[SectionRule] = []
    inside = "|".join(map(re.escape, response_format.tags))
    while rest.strip():
        found = next(
            (
                (rule, match)
                for rule in response_format.sections
                if (
                    match := re.match(
                        rf"\s*<{re.escape(rule.name)}>((?:(?!{inside}).)*)</{re.escape(rule.name)}>", rest, re.DOTALL
                    )
                )
            ),
            None,
        )
        if found is None:
            break
        seen.append(found[0])
        rest = rest[found[1].end() :]
    orders = [rule.order for rule in seen]
    is_well_formed = (
        not rest.strip()
        and orders == sorted(orders)
        and all(seen.count(rule) >= 1 for rule in response_format.sections if rule.required)
        and all(seen.count(rule) <= 1 for rule in response_format.sections if not rule.repeatable)
    )
    assert parse_response(text, response_format, opened).is_well_formed == is_well_formed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>t</think><answer>a</answer>", set()),
        ("<think>t</think> <look>[1]: l</look>\n<think>t</think><look>l</look><answer>a</answer>", set()),
        ("<look>l</look><think>t</think><answer>a</answer>", set()),  # the same order: either may come first
        ("<think>t</think><answer>a</answer><look>l</look>", {"order"}),
        ("<think>t</think><answer>a</answer><think>t</think>", {"order"}),
        ("<look>l</look><answer>a</answer>", {"missing"}),
        ("<think>t<think>t</think><answer>a</answer>", {"unclosed"}),
        ("<think>t</think><think>t<answer>a</answer>", {"unclosed"}),
        ("<think>t</think></think><answer>a</answer>", {"unclosed"}),
        ("<think>t<look>l</look></think><answer>a</answer>", {"order"}),  # one in another
        ("<think>t</think>x<answer>a</answer>", {"stray_text"}),
        ("<think>t</think><answer>a</answer><answer>b</answer>", {"repeated"}),
    ],
)
def test_each_defect_of_repeatable_sections_is_named(text: str, expected: set[str]) -> None:
    assert codes(text) == expected


def test_lines_are_read_in_every_place_where_their_section_stands() -> None:
    parsed = parse_response("[9]: no<look>[2]: b</look><think>[8]: no</think><look>\n[1]: a\n[2]: c</look>", PLAN)
    assert [(line.image_index, line.text) for line in parsed.evidence_lines] == [(1, "b"), (0, "a"), (1, "c")]
    assert {index: line.text for index, line in parsed.first_lines().items()} == {0: "a", 1: "b"}


def test_without_a_section_of_lines_there_are_none() -> None:
    only = ResponseFormat(sections=(SectionRule(name="answer", order=0),))
    assert parse_response("<answer>[1]: a</answer>", only).evidence_lines == ()


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", "think"),
        ("<|im_start|>assistant\n<think>", "think"),
        ("<|im_start|>assistant\n", ""),
        ("<think>\n\n</think>\n\n", ""),  # opened and closed
        ("<think>\nOkay,", ""),
        ("<reason>", ""),  # not declared
    ],
)
def test_a_prompt_opens_the_section_whose_tag_it_ends_in(prompt: str, opened: str) -> None:
    assert opened_section(prompt, EVISRAG) == opened


def test_a_response_that_writes_the_opened_tag_again_is_malformed() -> None:
    assert codes("t</think><answer>a</answer>", opened="think") == set()
    assert codes("<think>t</think><answer>a</answer>", opened="think") == {"unclosed"}
    evisrag = "o</observe><evidence>[1]: e</evidence><think>t</think><answer>a</answer>"
    assert codes(evisrag, EVISRAG, "observe") == set()
    assert codes(f"<observe>{evisrag}", EVISRAG, "observe") == {"repeated"}
    assert codes(evisrag, EVISRAG) == {"missing"}


def test_an_undeclared_section_is_refused_with_the_declared_ones() -> None:
    parsed = parse_response("<answer>a</answer>", PLAN)
    for ask in (parsed.content, parsed.section, parsed.all_of):
        with pytest.raises(ConfigError, match=r"'observe' is not declared; response\.sections has think, look, answer"):
            ask("observe")
    with pytest.raises(ConfigError, match="'</observe>' is of no declared section"):
        parsed.tag_start("</observe>")


@given(cases())
def test_one_sections_content_does_not_depend_on_the_others(case: tuple[str, ResponseFormat, str]) -> None:
    text, response_format, _ = case
    parsed = parse_response(text, response_format)
    for rule in response_format.sections:
        if not rule.repeatable:
            assert section_content(text, rule.name) == parsed.content(rule.name)
