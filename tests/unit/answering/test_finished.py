"""The finished answer."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from rsgrpo.answering.finished import finish_answer
from rsgrpo.answering.records import Spent
from rsgrpo.answering.streamed_sections import SectionStream
from rsgrpo.config import EVISRAG
from rsgrpo.text.sections import parse_response

SPENT = Spent(
    prompt_tokens=1,
    cached_tokens=None,
    response_tokens=1,
    choose_seconds=0.0,
    first_token_seconds=0.0,
    total_seconds=0.0,
)
NESTED = "<evidence>[1]: x<think>so</think>[2]: y</evidence><answer>3</answer>"


@given(
    st.lists(st.sampled_from([*EVISRAG.tags, "a", "<", "\n[1]: x", "b"]), max_size=14).map("".join),
    st.sampled_from(["", *EVISRAG.names]),
)
@example(NESTED, "")
def test_a_closed_section_says_at_the_end_what_its_stream_said(text, opened):
    stream = SectionStream(EVISRAG, opened)
    streamed: dict[str, str] = {}
    for piece in stream.feed(text) + stream.end():
        streamed[piece.section] = streamed.get(piece.section, "") + piece.text
    answer = finish_answer("which?", text, (), EVISRAG, SPENT, opened=opened)
    parsed = parse_response(text, EVISRAG, opened)
    closed = {name for name in EVISRAG.names if parsed.content(name) is not None}
    assert answer.sections == {name: streamed.get(name, "").strip() for name in closed}
    assert answer.answer == (answer.sections["answer"] if "answer" in closed else text.strip())


def test_words_of_a_section_inside_of_another_are_not_the_other_ones():
    answer = finish_answer("which?", NESTED, (), EVISRAG, SPENT)
    # Behind the thoughts the evidence is over for a reader: it stands once.
    assert answer.sections == {"evidence": "[1]: x", "think": "so", "answer": "3"}
    assert answer.problems
