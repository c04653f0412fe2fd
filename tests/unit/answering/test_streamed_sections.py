"""Sections of a response as it comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.answering.streamed_sections import SectionStream
from rsgrpo.config import EVISRAG, ResponseFormat
from rsgrpo.config.response import SectionRule
from rsgrpo.text.sections import parse_response

LOOKS = ResponseFormat(
    sections=(
        SectionRule(name="think", order=0, repeatable=True),
        SectionRule(name="look", order=0, repeatable=True, per_image_lines=True),
        SectionRule(name="answer", order=1),
    )
)
TEXTS = ("a", "<", ">", "</", "\n[1]: x", "<obs", "<p>", "answer>", "é")


def pieces_of(response_format: ResponseFormat) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from([*response_format.tags, *TEXTS]), max_size=12)


def streamed(response_format: ResponseFormat, pieces: list[str], opened: str = "") -> dict[str, str]:
    stream = SectionStream(response_format, opened)
    found: dict[str, str] = {}
    for event in [event for piece in pieces for event in stream.feed(piece)] + stream.end():
        assert event.text
        found[event.section] = found.get(event.section, "") + event.text
    assert stream.text == "".join(pieces)
    return found


def bare(text: str, response_format: ResponseFormat) -> str:
    """The text without tags, found from the left as the parser finds them."""
    kept, start = "", 0
    while start < len(text):
        tag = next((tag for tag in response_format.tags if text.startswith(tag, start)), "")
        kept += "" if tag else text[start]
        start += len(tag) or 1
    return kept


@given(st.sampled_from([EVISRAG, LOOKS]), st.data())
def test_wherever_a_response_is_cut_its_sections_are_those_of_the_whole(response_format, data):
    text = "".join(data.draw(pieces_of(response_format)))
    opened = data.draw(st.sampled_from(["", response_format.names[0]]))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=len(text))))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = streamed(response_format, pieces, opened)
    assert found == streamed(response_format, [text], opened)
    # Nothing but tags is lost.
    assert sorted("".join(found.values())) == sorted(bare(text, response_format))
    parsed = parse_response(text, response_format, opened)
    contents = {
        name: [text[section.content_start : section.content_stop] for section in parsed.all_of(name)]
        for name in response_format.names
    }
    others = {name: [f"<{other}>" for other in response_format.names if other != name] for name in contents}
    if any(tag in content for name, found_ in contents.items() for content in found_ for tag in others[name]):
        return  # sections in one another: which text is whose only the whole response shows
    for name, texts in contents.items():
        assert found.get(name, "") == "".join(bare(content, response_format) for content in texts)


def test_no_piece_of_a_tag_is_ever_text():
    text = "<observe>two < three</observe>\n<evidence>\n[1]: <b>x</b></evidence><answer>3</answer>"
    stream = SectionStream(EVISRAG)
    seen = [event for letter in text for event in stream.feed(letter)] + stream.end()
    assert "".join(event.text for event in seen if event.section == "observe") == "two < three"
    assert "".join(event.text for event in seen if event.section == "evidence") == "\n[1]: <b>x</b>"
    assert "".join(event.text for event in seen if event.section == "answer") == "3"


def test_text_is_handed_on_as_soon_as_it_is_no_tag():
    stream = SectionStream(EVISRAG)
    assert [event.text for event in stream.feed("so <obs")] == ["so "]
    assert [event.text for event in stream.feed("cure")] == ["<obscure"]


def test_a_response_begins_in_the_section_that_the_prompt_opened():
    (event,) = SectionStream(EVISRAG, "think").feed("so")
    assert (event.section, event.text) == ("think", "so")


def test_a_section_that_came_already_is_not_shown_as_that_section_again():
    found = streamed(EVISRAG, ["<answer>3</answer><answer>4</answer>"])
    assert found == {"answer": "3", "": "4"}
