"""What requests may bring: how much, which texts, which options of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.serving.answers import MOST_RESPONSE_CHARACTERS, VisitorQuestion
from recipes.serving.refusals import RefusedError
from recipes.serving.requests import MOST_JSON_BYTES, BesideImages
from rsgrpo.answering.records import EarlierTurn
from tests.unit.serving.served import Served, serving
from tests.unit.serving.test_serving_programs import png_url

QUESTION = {"role": "user", "content": "total?"}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with one document, for tests that change nothing but the history."""
    with serving(tmp_path_factory.mktemp("full")) as served:
        served.bring()
        yield served


def _post(served: Served, address: str, content: bytes) -> tuple[int, str]:
    reply = served.client.post(address, content=content, headers={"Content-Type": "application/json"})
    return reply.status_code, reply.text


def _chat(served: Served, *before: dict[str, Any], **options: Any) -> tuple[int, str]:
    return _post(served, "/v1/chat/completions", json.dumps({"messages": [*before, QUESTION], **options}).encode())


def _image_call(num_bytes: int, **options: Any) -> bytes:
    """A call with an image of so many bytes; what is behind a PNG's end is no part of it."""
    url = png_url("red").rstrip("=")
    url += "A" * (num_bytes - len(url) - (num_bytes - url.index(",") - 1) % 4)
    image = {"type": "image_url", "image_url": {"url": url}}
    content = [image, {"type": "text", "text": "red?"}]
    return json.dumps({"messages": [{"role": "user", "content": content}], **options}).encode()


def test_only_images_make_a_body_large(full: Served) -> None:
    junk: list[dict[str, str]] = [{}] * (MOST_JSON_BYTES // 4)
    status, text = _chat(full, junk=junk)
    assert status == 413 and "1,048,576 bytes beside its images" in text
    assert _chat(full, {"role": "user", "content": "a" * MOST_JSON_BYTES})[0] == 413
    status, text = _post(full, "/v1/chat/completions", _image_call(3 * MOST_JSON_BYTES))
    assert status in (200, 415), text  # read, whatever the image is
    assert _post(full, "/v1/chat/completions", _image_call(3 * MOST_JSON_BYTES, junk=junk))[0] == 413
    assert _post(full, "/v1/search", _image_call(3 * MOST_JSON_BYTES))[0] == 413


@given(
    st.lists(st.sampled_from([b'"data:image/', b'"', b'\\"', b"{},", b"da", b'"data:', b"A" * 30]), max_size=20),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_images_are_told_from_the_rest_however_a_body_is_cut(pieces: list[bytes], cuts: list[int]) -> None:
    body = b"".join(pieces)
    at_once, in_parts = BesideImages(), BesideImages()
    for cut in sorted(cut for cut in cuts if cut < len(body)):
        in_parts.num_bytes(bytearray(body[:cut]))
    assert in_parts.num_bytes(bytearray(body)) == at_once.num_bytes(bytearray(body))
    # what stands in an image is what lies between its mark and the next quote
    beside = body
    counted = 0
    while b'"data:image/' in beside:
        before, _, beside = beside.partition(b'"data:image/')
        counted += len(before) + 12
        _, quote, beside = beside.partition(b'"')
        beside = quote + beside
    # the last 11 bytes may begin a mark
    assert at_once.num_bytes(bytearray(body)) == counted + max(0, len(beside) - 11)


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (EarlierTurn(question="a" * 8001, response="b"), "an earlier question has 8,001 characters"),
        (EarlierTurn(question="a", response="b" * (MOST_RESPONSE_CHARACTERS + 1)), "the answer to an earlier question"),
    ],
    ids=["question", "response"],
)
def test_earlier_turns_have_bounds(turn: EarlierTurn, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        VisitorQuestion(text="?", earlier=(turn,))


HALVES = [
    ("/api/ask", rb'{"question": "a \ud800 b"}'),
    ("/api/ask", rb'{"question": "a", "conversation": "\ud800"}'),
    ("/api/ask", rb'{"question": "a", "documents": ["\udfff"]}'),
    ("/api/ask", rb'{"question": "a", "pages": ["\ud800"]}'),
    ("/api/ask", b'{"question": "a \xed\xa0\x80 b"}'),
    ("/v1/search", rb'{"query": "\ud800"}'),
    ("/v1/search", rb'{"query": "a", "\ud800": 1}'),
    ("/v1/search", rb'{"query": "a", "by": "\ud800"}'),
    ("/v1/chat/completions", rb'{"messages": [{"role": "user", "content": "\ud800"}]}'),
    ("/v1/chat/completions", rb'{"messages": [{"role": "\ud800", "content": "a"}]}'),
    ("/v1/chat/completions", rb'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]}'),
    (
        "/v1/chat/completions",
        rb'{"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "\ud800"}, '
        rb'{"role": "user", "content": "a"}]}',
    ),
]


@pytest.mark.parametrize(("address", "body"), HALVES, ids=[f"half-{number}" for number in range(len(HALVES))])
def test_half_a_character_is_no_mistake_of_the_server(full: Served, address: str, body: bytes) -> None:
    status, text = _post(full, address, body)
    assert status < 500 and "made a mistake" not in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": "x"}, "max_tokens must be a whole number"),
        ({"temperature": True}, "temperature must be a number"),
        ({"stop": 3}, "stop must be a list"),
        ({"stream_options": []}, "stream_options must be an object"),
        ({"stream_options": {"include_usage": "yes"}}, "include_usage must be true or false"),
        ({"response_format": {"type": "json_object"}}, 'response_format can only be {"type": "text"}'),
        ({"tool_choice": "required"}, 'tool_choice can only be "none" or "auto"'),
        ({"modalities": ["audio"]}, "modalities can only be"),
        ({"logprobs": True}, "logprobs is not something"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be_heeded_are_refused(full: Served, options: dict[str, Any], reason: str) -> None:
    status, text = _chat(full, **options)
    assert status == 400 and reason in json.loads(text)["error"]["message"]


def test_options_that_change_nothing_are_taken(full: Served) -> None:
    drawn = {"temperature": 0, "top_p": 0.5, "max_tokens": 10, "seed": 1, "stop": ["a"], "presence_penalty": 0.1}
    plain = {"n": 1, "response_format": {"type": "text"}, "tool_choice": "auto", "tools": [], "logprobs": False}
    others = {"user": "ada", "metadata": {}, "store": False, "stream_options": None, "modalities": ["text"]}
    status, text = _chat(full, **drawn, **plain, **others)
    assert status == 200, text


def test_turns_before_are_read_in_every_form_that_openais_api_has(full: Served) -> None:
    parts = [{"type": "text", "text": "so"}, {"type": "refusal", "refusal": "no more"}]
    assert _chat(full, {"role": "user", "content": "first?"}, {"role": "assistant", "content": parts})[0] == 200
    (turn,) = full.asker.requests[-1].earlier
    assert (turn.question, turn.response) == ("first?", "so\nno more")
    status, text = _chat(full, {"role": "user", "content": "first?"}, {"role": "assistant", "content": [{}]})
    assert status == 400 and "a part of a message" in text
    status, text = _chat(full, {"role": ["tool"], "content": "x"})
    assert status == 400 and "role" in text


def test_citations_are_the_same_streamed_or_not_and_an_image_that_came_along_has_no_address(full: Served) -> None:
    def cited(body: dict[str, Any]) -> list[dict[str, Any]]:
        whole = json.loads(_post(full, "/v1/chat/completions", json.dumps(body).encode())[1])
        _, text = _post(full, "/v1/chat/completions", json.dumps({**body, "stream": True}).encode())
        (streamed,) = (
            json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["annotations"]
            for line in text.split("\n\n")
            if '"annotations"' in line
        )
        assert streamed == whole["choices"][0]["message"]["annotations"]
        return [annotation["url_citation"] for annotation in streamed]

    (found,) = cited({"messages": [QUESTION]})
    assert found["url"].startswith("http://127.0.0.1/api/pages/") and full.client.get(found["url"]).status_code == 200
    image = {"type": "image_url", "image_url": {"url": png_url("red")}}
    (given_page,) = cited({"messages": [{"role": "user", "content": [image, {"type": "text", "text": "red?"}]}]})
    assert (given_page["url"], given_page["title"]) == ("", "image 1")
