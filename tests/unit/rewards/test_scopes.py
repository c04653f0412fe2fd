from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.scopes import ScopeRequest, locate_scopes
from rsgrpo.config import EVISRAG, ConfigError, ResponseFormat, ScopeConfig, SectionRule
from rsgrpo.text.sections import parse_response
from rsgrpo.text.token_offsets import TokenTable
from rsgrpo.types import TokenSpan
from tests.located import locate_scope

# tokens as BPE really cuts them: `>` merges with a newline, a bracket, a following tag and text
PIECES = [
    b"<observe", b">o", b"</", b"observe", b">\n<",  # 0-4: token 4 begins with `>` and belongs to observe
    b"evidence", b">\n[", b"1]: ", b"price\n", b"[2", b"]: no", b"\n</evidence", b"><",  # 5-12
    b"think", b">The", b" end</think>", b"<answer>", b"12", b"</answer>", b"",  # 13-19: 19 is end of sequence
]  # fmt: skip
TEXT, STARTS = TokenTable(PIECES).decode(range(len(PIECES)))
PARSED = parse_response(TEXT)


def span(scope: ScopeConfig, on_missing: str = "skip") -> tuple[tuple[int, int] | None, bool]:
    located = locate_scope(scope, PARSED, STARTS, on_missing)
    assert len(located.spans) <= 1
    return ((located.spans[0].start, located.spans[0].stop) if located.spans else None), located.found


def test_the_scopes_of_the_recipe_on_merged_tokens() -> None:
    # `<think>` starts inside token 12 (`><`), whose first character belongs to evidence: think starts at 13
    assert span(ScopeConfig(start="<think>", stop="end")) == ((13, 20), True)
    assert span(ScopeConfig(start="begin", stop="<think>")) == ((0, 13), True)
    assert span(ScopeConfig(start="begin", stop="end")) == ((0, 20), True)
    # `<evidence>` starts inside token 4 (`>\n<`)
    assert span(ScopeConfig(start="begin", stop="<evidence>")) == ((0, 5), True)
    assert span(ScopeConfig(start="<think>", stop="<answer>")) == ((13, 16), True)


def test_a_section_is_its_tags_and_what_stands_between() -> None:
    # observe ends behind `>`, the first character of token 4; the section answer runs to the end
    assert span(ScopeConfig(section="observe")) == ((0, 5), True)
    assert span(ScopeConfig(section="answer")) == ((16, 20), True)
    assert span(ScopeConfig(section="think")) == ((13, 16), True)


def test_evidence_lines_give_one_span_an_image() -> None:
    request = ScopeRequest(scope=ScopeConfig(evidence_line=True))
    (lines,) = locate_scopes([request], PARSED, STARTS, num_images=3)
    assert [line.image_index for line in lines] == [0, 1, 2]
    # `[1]:` starts inside token 6 (`>\n[`); `[2]:` at token 9, and its line ends with the section's content
    # there is no `[3]:`: its scope is the tag that closes the section, which begins in front of token 12 (`><`)
    written = [(TokenSpan(start=7, stop=9),), (TokenSpan(start=9, stop=12),)]
    assert [line.spans for line in lines] == [*written, (TokenSpan(start=12, stop=13),)]
    assert [line.found for line in lines] == [True, True, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<evidence>[1]: a</evidence>x", [(10, 16), (16, 27), (16, 27)]),  # one closing tag for all that are left out
        ("<evidence>[2]: a</evidence>", [(16, 28), (10, 16), (16, 28)]),  # at the end of the text with the end of turn
        ("<evidence>[1]: a", [(10, 17), None, None]),  # cut off: nobody knows what was to come
        ("<think>a</think>", [None, None, None]),  # no section: rewards on the format see that
    ],
)
def test_a_line_that_is_left_out_has_the_closing_tag(text: str, expected: list[tuple[int, int] | None]) -> None:
    starts = np.arange(len(text) + 1, dtype=np.int32)  # one token a character, and the end of sequence
    request = ScopeRequest(scope=ScopeConfig(evidence_line=True))
    (lines,) = locate_scopes([request], parse_response(text), starts, num_images=3)
    spans = [(line.spans[0].start, line.spans[0].stop) if line.spans else None for line in lines]
    assert spans == expected
    assert [line.found for line in lines] == [f"[{image}]:" in text for image in (1, 2, 3)]


@pytest.mark.parametrize(
    ("text", "scope", "widened"),
    [
        # the public rule: absent start -> from 0, absent stop -> to the end, each on its own side
        ("ab</think>c", ScopeConfig(start="<think>", stop="</think>"), (0, 2)),
        ("ab<think>c", ScopeConfig(start="<think>", stop="</think>"), (2, 11)),
        ("abc", ScopeConfig(start="<think>", stop="<answer>"), (0, 4)),
        ("abc", ScopeConfig(start="begin", stop="<think>"), (0, 4)),
        ("abc", ScopeConfig(section="think"), (0, 4)),
        ("abc", ScopeConfig(start="<think>", stop="end"), (0, 4)),
    ],
)
def test_a_missing_scope_is_skipped_or_widened(text: str, scope: ScopeConfig, widened: tuple[int, int]) -> None:
    starts = np.arange(len(text) + 1, dtype=np.int32)  # one token a character, and the end of sequence
    parsed = parse_response(text)
    skipped = locate_scope(scope, parsed, starts)
    assert (skipped.spans, skipped.found) == ((), False)
    whole = locate_scope(scope, parsed, starts, "whole")
    assert (whole.spans, whole.found) == ((TokenSpan(start=widened[0], stop=widened[1]),), False)


@pytest.mark.parametrize("on_missing", ["skip", "whole"])
def test_reversed_tags_leave_no_tokens(on_missing: str) -> None:
    parsed = parse_response("<answer>x<think>")
    starts = np.arange(17, dtype=np.int32)
    located = locate_scope(ScopeConfig(start="<think>", stop="<answer>"), parsed, starts, on_missing)
    assert (located.spans, located.found) == ((), False)


def test_a_scope_without_tokens_may_still_be_found() -> None:
    parsed = parse_response("<evidence>x")
    located = locate_scope(ScopeConfig(start="begin", stop="<evidence>"), parsed, np.arange(12, dtype=np.int32))
    assert (located.spans, located.found) == ((), True)


def test_a_missing_line_widens_to_the_whole_response() -> None:
    request = ScopeRequest(scope=ScopeConfig(evidence_line=True), on_missing="whole")
    (lines,) = locate_scopes([request], PARSED, STARTS, num_images=3)
    assert lines[2].spans == (TokenSpan(start=0, stop=20),)
    assert not lines[2].found


def test_an_unfinished_last_line_keeps_its_last_token() -> None:
    # cut at the limit: no end-of-sequence token, the line runs to the last token
    text, starts = TokenTable([b"<evidence>", b"[1]: ", b"pri"]).decode([0, 1, 2])
    request = ScopeRequest(scope=ScopeConfig(evidence_line=True))
    (lines,) = locate_scopes([request], parse_response(text), starts, num_images=1)
    assert lines[0].spans == (TokenSpan(start=1, stop=3),)


@given(
    st.lists(st.sampled_from([*EVISRAG.tags, "\n", "x", "é", "東<", ">\n", "[1]: a\n", "[2]: b\n"]), max_size=25).map(
        "".join
    ),
    st.data(),
)
def test_adjacent_scopes_partition_the_tokens(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(encoded)), max_size=20).map(sorted))
    edges = [0, *cuts, len(encoded)]
    pieces = [encoded[start:stop] for start, stop in pairwise(edges)]
    decoded, starts = TokenTable([*pieces, b""]).decode(range(len(pieces) + 1))
    assert decoded == text
    parsed = parse_response(text)
    # every tag that stands there cuts the response in two: no token lost, none counted twice
    for tag in EVISRAG.tags:
        before = locate_scope(ScopeConfig(start="begin", stop=tag), parsed, starts)
        behind = locate_scope(ScopeConfig(start=tag, stop="end"), parsed, starts)
        assert before.found == behind.found == (tag in text)
        if not before.found:
            continue
        tokens = [
            index for located in (before, behind) for item in located.spans for index in range(item.start, item.stop)
        ]
        assert tokens == list(range(len(starts)))
        # each token lies on the side of its first character
        assert all(starts[item.start] >= text.find(tag) for item in behind.spans)
    # image lines never overlap
    (lines,) = locate_scopes([ScopeRequest(scope=ScopeConfig(evidence_line=True))], parsed, starts, num_images=2)
    found = [line for line in lines if line.found]
    taken = [index for line in found for item in line.spans for index in range(item.start, item.stop)]
    assert len(taken) == len(set(taken))


def test_scopes_located_together_and_alone_agree() -> None:
    scopes = [
        ScopeConfig(section="think"),
        ScopeConfig(evidence_line=True),
        ScopeConfig(start="begin", stop="<think>"),
    ]
    together = locate_scopes([ScopeRequest(scope=scope) for scope in scopes], PARSED, STARTS, num_images=2)
    assert [len(entry) for entry in together] == [1, 2, 1]
    assert together[0][0] == locate_scope(scopes[0], PARSED, STARTS)
    assert together[2][0] == locate_scope(scopes[2], PARSED, STARTS)


LOOKS = ResponseFormat(
    sections=(
        SectionRule(name="look", order=0, repeatable=True, per_image_lines=True),
        SectionRule(name="answer", order=1),
    )
)


def test_a_repeated_section_has_a_span_for_every_place_where_it_stands() -> None:
    text = "<look>[1]: a</look>x<look>[2]: b</look><answer>c</answer>"
    starts = np.arange(len(text) + 1, dtype=np.int32)
    parsed = parse_response(text, LOOKS)
    looks = locate_scope(ScopeConfig(section="look"), parsed, starts)
    # `<look>[1]: a</look>` has 19 characters, the second one begins behind the x
    assert looks.spans == (TokenSpan(start=0, stop=19), TokenSpan(start=20, stop=39))
    # a tag is the first of its kind
    first = locate_scope(ScopeConfig(start="<look>", stop="</look>"), parsed, starts)
    assert first.spans == (TokenSpan(start=0, stop=12),)
    (lines,) = locate_scopes([ScopeRequest(scope=ScopeConfig(evidence_line=True))], parsed, starts, num_images=2)
    assert [line.spans for line in lines] == [(TokenSpan(start=6, stop=12),), (TokenSpan(start=26, stop=32),)]


def test_the_last_of_a_repeated_section_holds_the_end_of_sequence_where_it_ends_the_text() -> None:
    text = "<look>a</look><look>b"
    located = locate_scope(ScopeConfig(section="look"), parse_response(text, LOOKS), np.arange(22, dtype=np.int32))
    assert located.spans == (TokenSpan(start=0, stop=14), TokenSpan(start=14, stop=22))


def test_a_tag_that_the_prompt_wrote_stands_in_front_of_the_first_token() -> None:
    text = "t</think><answer>3</answer>"
    starts = np.arange(len(text) + 1, dtype=np.int32)
    parsed = parse_response(text, EVISRAG, "think")
    for scope, expected in (
        (ScopeConfig(section="think"), (0, 9)),
        (ScopeConfig(start="<think>", stop="<answer>"), (0, 9)),
        (ScopeConfig(start="<think>", stop="end"), (0, 28)),
    ):
        located = locate_scope(scope, parsed, starts)
        assert (located.spans, located.found) == ((TokenSpan(start=expected[0], stop=expected[1]),), True)
    # nothing stands in front of it, but it is there
    before = locate_scope(ScopeConfig(start="begin", stop="<think>"), parsed, starts)
    assert (before.spans, before.found) == ((), True)
    assert not locate_scope(ScopeConfig(section="think"), parse_response(text), starts).found


def test_an_undeclared_section_is_no_scope() -> None:
    with pytest.raises(ConfigError, match="'think' is not declared"):
        locate_scope(ScopeConfig(section="think"), parse_response("x", LOOKS), np.arange(2, dtype=np.int32))


@given(
    st.lists(st.sampled_from([*LOOKS.tags, "\n", "x", "é", "[1]: a\n"]), max_size=25).map("".join),
    st.sampled_from(["", "look", "answer"]),
    st.data(),
)
def test_the_places_of_a_repeated_section_share_no_token_and_cut_where_characters_do(
    text: str, opened: str, data: st.DataObject
) -> None:
    encoded = text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(encoded)), max_size=20).map(sorted))
    pieces = [encoded[start:stop] for start, stop in pairwise([0, *cuts, len(encoded)])]
    decoded, starts = TokenTable([*pieces, b""]).decode(range(len(pieces) + 1))
    parsed = parse_response(decoded, LOOKS, opened)
    located = locate_scope(ScopeConfig(section="look"), parsed, starts)
    taken = [index for span in located.spans for index in range(span.start, span.stop)]
    assert taken == sorted(set(taken))
    # exactly the tokens whose first character lies in one of its places
    for index, start in enumerate(starts):
        is_inside = any(
            section.start <= start < section.stop or (start == len(text) == section.stop)
            for section in parsed.all_of("look")
        )
        assert (index in taken) == is_inside
