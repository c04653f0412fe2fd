from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.config import EVISRAG
from rsgrpo.text.sections import parse_response

TAGS = EVISRAG.tags

WELL_FORMED = (
    "<observe>two pages</observe>\n<evidence>\n[1]: price 12\n[2]: no relevant information\n</evidence>\n"
    "<think>so 12</think>\n<answer>12</answer>"
)


def codes(text: str) -> set[str]:
    return {problem.code for problem in parse_response(text).problems}


def test_a_well_formed_response_comes_apart_at_its_tags() -> None:
    parsed = parse_response(WELL_FORMED)
    assert parsed.is_well_formed
    assert [parsed.content(name) for name in EVISRAG.names] == [
        "two pages",
        "\n[1]: price 12\n[2]: no relevant information\n",
        "so 12",
        "12",
    ]
    assert [parsed.tag_start(tag) for tag in TAGS] == [WELL_FORMED.find(tag) for tag in TAGS]
    think = parsed.section("think")
    assert think is not None
    assert WELL_FORMED[think.start : think.stop] == "<think>so 12</think>"


def test_evidence_lines_carry_image_span_and_text() -> None:
    lines = parse_response(WELL_FORMED).evidence_lines
    assert [(line.image_index, line.text) for line in lines] == [(0, "price 12"), (1, "no relevant information")]
    # the first line runs to the second label, the second to the section's content end: no character is lost
    assert lines[0].stop == lines[1].start == WELL_FORMED.find("[2]:")
    assert lines[1].stop == WELL_FORMED.find("</evidence>")


@pytest.mark.parametrize("num_images", [1, 6, 12, 120])
def test_any_number_of_images(num_images: int) -> None:
    body = "\n".join(f"[{number}]: fact {number}" for number in range(1, num_images + 1))
    lines = parse_response(f"<evidence>{body}</evidence>").evidence_lines
    assert [line.image_index for line in lines] == list(range(num_images))
    assert lines[-1].text == f"fact {num_images}"


@pytest.mark.parametrize(
    ("body", "images"),
    [
        ("[1]: see [2]: there", [0]),  # not at a line's start
        ("  [1]: a\n\t[2]: b", [0, 1]),  # indented
        ("x [1]: a", []),
        ("[1] a\n[2] b", []),  # no colon
        ("[0]: a\n[01]: b\n[-1]: c\n[²]: d\n[x]: e\n[]: f", []),
        ("[1]: a\n[1]: b", [0, 0]),
        ("[2]: b\n[1]: a", [1, 0]),
        ("[" + "9" * 5000 + "]: a", []),  # int() would refuse so many digits
        ("[999999]: a", [999998]),
        ("", []),
    ],
)
def test_what_counts_as_a_label(body: str, images: list[int]) -> None:
    parsed = parse_response(f"<evidence>{body}</evidence>")
    assert [line.image_index for line in parsed.evidence_lines] == images


def test_a_repeated_label_counts_the_first_time() -> None:
    lines = parse_response("<evidence>[1]: a\n[1]: b</evidence>").first_lines()
    assert {index: line.text for index, line in lines.items()} == {0: "a"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"missing"}),
        (WELL_FORMED.replace("<think>so 12</think>", ""), {"missing"}),
        (WELL_FORMED.replace("</think>", ""), {"unclosed"}),
        (WELL_FORMED.replace("</answer>", ""), {"unclosed"}),
        (WELL_FORMED + WELL_FORMED, {"repeated"}),
        (WELL_FORMED + "<answer>13</answer>", {"repeated"}),
        (WELL_FORMED + "</think>", {"repeated"}),
        (WELL_FORMED.replace("<think>", "x <think>"), {"stray_text"}),
        ("Sure! " + WELL_FORMED, {"stray_text"}),
        (WELL_FORMED + " done", {"stray_text"}),
        (
            "<evidence></evidence><observe></observe><think></think><answer></answer>",
            {"order"},
        ),
        ("<observe></observe><evidence></evidence><think><answer></answer></think>", {"order"}),
        ("<observe></observe><evidence></evidence><think></think></answer><answer>3", {"unclosed", "order"}),
    ],
)
def test_each_defect_is_named(text: str, expected: set[str]) -> None:
    assert codes(text) == expected
    assert not parse_response(text).is_well_formed


def test_whitespace_around_sections_is_well_formed() -> None:
    assert parse_response(f" \n{WELL_FORMED}\n").is_well_formed


def test_tags_are_exact() -> None:
    assert codes(WELL_FORMED.replace("<think>", "<THINK>")) == {"missing"}
    assert codes(WELL_FORMED.replace("<think>", "< think>")) == {"missing"}


def test_an_unclosed_section_ends_at_the_next_one() -> None:
    parsed = parse_response("<evidence>[1]: a\n<think>t</think>")
    evidence = parsed.section("evidence")
    assert evidence is not None
    assert not evidence.is_closed
    assert (evidence.content_stop, evidence.stop) == (17, 17)  # len("<evidence>[1]: a\n")
    assert parsed.content("evidence") is None
    assert parsed.evidence_lines[0].text == "a"


def test_a_closing_tag_in_front_does_not_close() -> None:
    assert parse_response("</answer><answer>3").content("answer") is None
    assert parse_response("</answer><answer>3</answer>").content("answer") == "3"


@given(st.lists(st.sampled_from([*TAGS, "\n", "x", "<", ">", "[1]:", "[2]: y", " "]), max_size=30).map("".join))
def test_spans_hold_for_any_mixture(text: str) -> None:
    parsed = parse_response(text)
    for tag in TAGS:
        assert parsed.tag_start(tag) == text.find(tag)
    for name in EVISRAG.names:
        section = parsed.section(name)
        assert (section is None) == (f"<{name}>" not in text)
        if section is None:
            continue
        assert text.startswith(f"<{name}>", section.start)
        assert section.start < section.content_start <= section.content_stop <= section.stop <= len(text)
        if section.is_closed:
            # same as the naive reading: from the first opening tag to the next closing one
            assert parsed.content(name) == text.partition(f"<{name}>")[2].partition(f"</{name}>")[0]
        else:
            assert f"</{name}>" not in text[section.start :]
    # the well-formed ones are exactly: eight tags, once each, in order, with blanks in the gaps
    starts = [text.find(tag) for tag in TAGS]
    gaps = [text.partition(TAGS[0])[0], text.rpartition(TAGS[-1])[2]]
    gaps += [text[text.find(TAGS[i]) + len(TAGS[i]) : text.find(TAGS[i + 1])] for i in (1, 3, 5)]
    is_well_formed = (
        all(text.count(tag) == 1 for tag in TAGS) and starts == sorted(starts) and not "".join(gaps).strip()
    )
    assert parsed.is_well_formed == is_well_formed


@pytest.mark.parametrize(
    "piece",
    [
        *TAGS,
        "<",
        "<think",
        "[",
        "[1]: x\n",
        " ",
        "<observe></observe>",
        "</observe><observe>",
        "<observe></observe><evidence></evidence><think></think><answer></answer>",
    ],
)
def test_time_is_linear_in_repeated_tags(piece: str) -> None:
    # the public regular expression takes 17 s for 160 repeats; a quadratic scanner some minutes for these 100,000
    start = time.process_time()
    parsed = parse_response("<evidence>" + piece * 100_000)
    assert not parsed.is_well_formed
    assert time.process_time() - start < 10.0
    assert not parse_response("<evidence>" + piece * 160).is_well_formed
