"""Answers of OpenAI-compatible servers, piece by piece."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.asking.chat_server import RemoteServer, ServerAddress, ServerError, is_loopback
from recipes.asking.chat_stream import (
    ChatClient,
    ChatEnd,
    ChatQuestion,
    PromptTooLongError,
    TextPiece,
    address_of,
    pieces_asked,
)
from rsgrpo.config import SamplingConfig
from tests.fake_server import FakeServer
from tests.unit.asking.stream_server import error, remote, streamed

QUESTION = ChatQuestion(
    messages=[{"role": "user", "content": "Q?"}],
    sampling=SamplingConfig(temperature=0.0, top_p=0.9, max_response_tokens=20),
)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


def listening(server: asyncio.Server) -> RemoteServer:
    return RemoteServer(ServerAddress(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", model="m"))


def ask(server: RemoteServer, question: ChatQuestion = QUESTION) -> tuple[list[str], ChatEnd]:
    async def work() -> list[TextPiece | ChatEnd]:
        async with ChatClient(server, timeout_seconds=10.0) as client:
            return [piece async for piece in client.stream(question)]

    *pieces, end = asyncio.run(work())
    assert isinstance(end, ChatEnd)
    return [piece.text for piece in pieces if isinstance(piece, TextPiece)], end


def test_the_text_comes_whole_and_the_end_says_what_it_cost(server):
    usage = {"prompt_tokens": 30, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 16}}
    server.reply = lambda question, attempt: streamed("abcdefg", usage=usage, finish_reason="length")
    pieces, end = ask(remote(server))
    assert "".join(pieces) == "abcdefg"
    assert end == ChatEnd(finish_reason="length", prompt_tokens=30, cached_tokens=16, response_tokens=4)
    (body,) = server.bodies
    assert (body["stream"], body["max_tokens"], body["top_p"], body["temperature"]) == (True, 20, 0.9, 0.0)
    # What says nothing is left out: not every server knows it.
    assert not {"top_k", "repetition_penalty", "continue_final_message"} & body.keys()


def test_the_first_words_wait_for_no_more_and_every_event_is_counted():
    # The second event is sent only after the first one was handed on: this would never end if pieces waited for others.
    events = [f'data: {{"choices": [{{"delta": {{"content": "{letter}\u2028"}}}}]}}\r\n\r\n' for letter in "abcd"]
    end = 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\r\n\r\ndata: [DONE]'  # no newline behind it
    is_read = asyncio.Event()

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{events[0]}".encode())
        await is_read.wait()
        writer.write("".join([*events[1:], end]).encode())
        writer.close()

    async def work() -> list[TextPiece | ChatEnd]:
        server = await asyncio.start_server(reply, "127.0.0.1")
        address = ServerAddress(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", model="m")
        found = []
        async with server, ChatClient(RemoteServer(address), timeout_seconds=20.0) as client:
            async for piece in client.stream(QUESTION):
                is_read.set()
                found.append(piece)
        return found

    pieces = [piece for piece in asyncio.run(work()) if isinstance(piece, TextPiece)]
    assert pieces[0] == TextPiece(text="a\u2028", num_tokens=1)
    assert "".join(piece.text for piece in pieces) == "a\u2028b\u2028c\u2028d\u2028"
    assert sum(piece.num_tokens for piece in pieces) == 4


@pytest.mark.parametrize("num_answers", [2, 12])
def test_many_answers_at_once_come_whole_and_their_events_are_all_counted(num_answers):
    letters = "abcdefghijklmnop"
    end = 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for letter in letters:
            writer.write(f'data: {{"choices": [{{"delta": {{"content": "{letter}"}}}}]}}\n\n'.encode())
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.write(end.encode())
        writer.close()

    async def work() -> list[list[TextPiece | ChatEnd]]:
        server = await asyncio.start_server(reply, "127.0.0.1")
        async with server, ChatClient(listening(server), timeout_seconds=20.0) as client:

            async def answer() -> list[TextPiece | ChatEnd]:
                return [piece async for piece in client.stream(QUESTION)]

            async with aclosing(client.stream(QUESTION)) as pieces:  # one hangs up at its first word
                await anext(pieces)
                found = asyncio.gather(*(answer() for _ in range(num_answers)))
                await asyncio.sleep(0.005)
            return await found

    for pieces in asyncio.run(work()):
        texts = [piece for piece in pieces if isinstance(piece, TextPiece)]
        assert "".join(piece.text for piece in texts) == letters
        assert sum(piece.num_tokens for piece in texts) == len(letters)
        assert pieces[-1] == ChatEnd(finish_reason="stop")


class OurServer(RemoteServer):
    is_ours = True


def counted(pieces: list[tuple[str, int]], end: str) -> str:
    """A stream whose events say how many tokens the answer has so far."""
    events = [
        {"choices": [{"delta": {"content": text}}], "usage": {"completion_tokens": tokens}} for text, tokens in pieces
    ]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end


def test_of_several_answers_a_server_of_ours_sends_larger_pieces_and_their_tokens_are_counted(server):
    # The answer breaks off after 7 tokens in two pieces, and goes on for 4 more: 11 in all.
    finish = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": 4}}
    done = f"data: {json.dumps(finish)}\n\ndata: [DONE]\n\n"
    whole, broken = counted([("a", 1), ("bcdefg", 7)], ""), counted([("hijk", 4)], done)
    server.reply = lambda question, attempt: (200, whole if question == "Q?" else broken, {})

    async def work() -> list[list[TextPiece | ChatEnd]]:
        async with ChatClient(OurServer(ServerAddress(url=server.url, model="m"), backoff_seconds=0.0)) as client:

            async def answer() -> list[TextPiece | ChatEnd]:
                return [piece async for piece in client.stream(QUESTION)]

            first = await answer()  # from it on it is known how fast answers come
            return [first, *await asyncio.gather(*(answer() for _ in range(32)))]

    for pieces in asyncio.run(work()):
        assert "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)) == "abcdefghijk"
        assert sum(piece.num_tokens for piece in pieces if isinstance(piece, TextPiece)) == 11
        assert pieces[-1] == ChatEnd(finish_reason="stop", response_tokens=11)
    alone, *together = server.bodies
    assert "stream_interval" not in alone
    assert max(body.get("stream_interval", 1) for body in together) > 1
    for body in together:
        is_counted = "continuous_usage_stats" in body["stream_options"]
        assert body["stream_options"]["include_usage"] and is_counted == ("stream_interval" in body)


@given(num_streams=st.integers(1, 1000), tokens_per_second=st.floats(0.0, 1e4))
def test_no_piece_of_an_answer_takes_longer_than_a_quarter_of_a_second(num_streams, tokens_per_second):
    num_tokens = cast("int", pieces_asked(num_streams, tokens_per_second).get("stream_interval", 1))
    assert num_tokens == 1 or 2 <= num_tokens <= 0.25 * tokens_per_second
    # 64 answers at 40 tokens a second: a quarter of a second is 10 tokens; two answers: 2/100 s are less than one.
    assert pieces_asked(64, 40.0)["stream_interval"] == 10
    assert pieces_asked(2, 40.0) == {}


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000", True),
        ("http://10.0.0.7/v1", False),
        ("http://[", False),
    ],
)
def test_an_address_is_on_this_machine_or_not(url, is_here):
    assert is_loopback(url) is is_here


def test_answers_that_follow_one_another_share_a_connection(server):
    server.reply = lambda question, attempt: streamed("abc")

    async def work() -> None:
        async with ChatClient(remote(server)) as client:
            for _ in range(3):
                async for _ in client.stream(QUESTION):
                    pass

    asyncio.run(work())
    assert len(server.clients) == 1


def test_what_may_pass_is_tried_again(server):
    replies = [error(503, "busy"), error(429, "slow down"), streamed("ok")]
    server.reply = lambda question, attempt: replies[attempt - 1]
    assert ask(remote(server))[0] == ["ok"]


def test_a_server_that_stays_down_ends_with_its_own_words(server):
    server.reply = lambda question, attempt: error(500, "no memory")
    with pytest.raises(ServerError, match=r"status 500: no memory; 3 attempts"):
        ask(remote(server, retries=2))


def test_nobody_listens(server):
    server.close()
    with pytest.raises(ServerError, match="does not answer"):
        ask(remote(server, retries=0))
    with pytest.raises(ServerError, match="does not answer"):
        address_of(server.url, "", "")


@pytest.mark.parametrize(
    ("status", "way_out"), [(401, "--api-key-variable"), (403, "--model-name"), (404, "--model-name")]
)
def test_a_refusal_for_good_is_not_tried_again(server, status, way_out):
    server.reply = lambda question, attempt: error(status, "no")
    with pytest.raises(ServerError, match=way_out):
        ask(remote(server))
    assert server.attempts["Q?"] == 1


def test_a_prompt_beyond_the_context_is_told_from_other_refusals(server):
    server.reply = lambda question, attempt: error(400, "This model's maximum context length is 320 tokens.")
    with pytest.raises(PromptTooLongError):
        ask(remote(server))
    server.reply = lambda question, attempt: error(400, "At most 4 image(s) may be provided in one prompt.")
    with pytest.raises(ServerError, match="At most 4 image") as told:
        ask(remote(server))
    assert not isinstance(told.value, PromptTooLongError)


@pytest.mark.parametrize(
    "text",
    ["data: {not json}\n\n", 'data: "words"\n\n', 'data: {"choices": [3]}\n\n', "<html>hello</html>", ""],
    ids=["no-json", "a-text", "no-choice", "a-web-page", "nothing"],
)
def test_what_is_no_stream_is_no_answer(server, text):
    server.reply = lambda question, attempt: (200, text, {})
    with pytest.raises(ServerError, match="does not answer"):
        ask(remote(server, retries=0))


def test_an_error_in_the_middle_of_a_strangers_answer_ends_it(server):
    broken = 'data: {"choices": [{"delta": {"content": "ab"}}]}\n\ndata: {"error": {"message": "engine died"}}\n\n'
    server.reply = lambda question, attempt: (200, broken, {})
    with pytest.raises(ServerError, match=r"in the middle of the answer \(engine died\)"):
        ask(remote(server))


def test_whoever_stops_reading_closes_the_connection(server):
    server.reply = lambda question, attempt: streamed("abcdef")

    async def work() -> str:
        async with ChatClient(remote(server)) as client, aclosing(client.stream(QUESTION)) as pieces:
            async for piece in pieces:
                assert isinstance(piece, TextPiece)
                return piece.text
        return ""

    assert "abcdef".startswith(asyncio.run(work()))


def test_an_address_that_leads_elsewhere_is_not_followed(server):
    server.reply = lambda question, attempt: (307, "", {"location": "http://elsewhere/v1"})
    with pytest.raises(ServerError, match="leads on to http://elsewhere/v1"):
        ask(remote(server))


def test_a_name_that_is_given_is_not_asked_for():
    assert address_of("http://nowhere.invalid/v1/", "m", "k") == ServerAddress(
        url="http://nowhere.invalid/v1", model="m", key="k"
    )
