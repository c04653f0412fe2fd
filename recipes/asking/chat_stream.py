"""One answer of an OpenAI-compatible server, token by token (server-sent events).

    429, 5xx, 408, broken connections  -> the server says when to ask again (ChatServer.recover), then once more
    401, 403, 404, other 4xx           -> nothing will ever work: one sentence

An answer that broke off after its first words is gone on with where the server can: the words so far are sent back as
the beginning of the answer (vLLM's ``continue_final_message``), and whoever reads sees no seam.

Every piece costs the server and its reader time, so many answers at once come in larger pieces: the first words of
each at once, after them some tokens together, as a server of ours is asked to send them (vLLM's ``stream_interval``);
or what has come meanwhile, where the server is another.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from types import TracebackType
from typing import Any, cast

import aiohttp
import httpx

from recipes.asking.chat_server import ChatServer, ServerAddress, ServerError, is_loopback
from recipes.asking.stream_events import SHOWN_REPLY, StreamEvents, sentence_of
from rsgrpo.config import SamplingConfig
from rsgrpo.errors import shown
from rsgrpo.prompts.chat_template import template_request

Message = Mapping[str, object]
"""A message of a chat request, as OpenAI's interface has it."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRIED = frozenset({408, 409, 425, 429})
_HOPELESS = {
    401: "the key is missing or wrong: --api-key-variable names the environment variable that holds it",
    403: "the key may not use this model: check the key and --model-name",
    404: "there is no such address or model: check --model (it ends in /v1 as a rule) and --model-name",
}
_CONNECT_SECONDS = 10.0
# Of all answers together; one answer alone comes token by token.
_PIECES_READ_PER_SECOND = 250.0  # where they gather here: the end of an answer waits as long as any piece
_PIECES_SENT_PER_SECOND = 100.0  # where a server of ours gathers them: the end comes at once
_LONGEST_SECONDS = 0.25  # between the pieces of one answer
_TOO_LONG = ("maximum context length", "context_length_exceeded", "context length", "too long")


class PromptTooLongError(ServerError):
    """The prompt and its images are beyond the model's context."""


class _BrokenError(Exception):
    """A request failed in a way that may pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPiece:
    """Text of the answer, which goes on from the last piece.

    Attributes:
        text: the text, never empty.
        num_tokens: how many tokens it is made of; where the server does not say, how many events: nearly the same.
    """

    text: str
    num_tokens: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatEnd:
    """The end of an answer.

    Attributes:
        finish_reason: why it ended: ``stop`` or ``length`` (cut at the limit), or what the server says.
        prompt_tokens: the tokens of the prompt, images included; 0: the server does not say.
        cached_tokens: those of them that the server had already; None: it does not say.
        response_tokens: the tokens of the answer; 0: the server does not say.
    """

    finish_reason: str
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    response_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatQuestion:
    """What is asked.

    Attributes:
        messages: the turns before the answer.
        sampling: how the answer is drawn.
        seed: the seed of the drawing.
        begun: the answer's first words, which are not said again; empty: none.
        template_arguments: what the chat template gets beside the messages.
        may_go_on: whether an answer that broke off may be gone on with; not where the chat template opens a section,
            whose words it would move to another place.
    """

    messages: Sequence[Message]
    sampling: SamplingConfig
    seed: int = 0
    begun: str = ""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    may_go_on: bool = True

    def body(self, model: str) -> dict[str, object]:
        """The request as the server reads it; what not every server knows is left out where it says nothing.

        Args:
            model: the name of the model.
        """
        sampling = self.sampling
        body: dict[str, object] = {
            "model": model,
            "messages": list(self.messages),
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_response_tokens,
            "seed": self.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            **template_request(self.template_arguments),
        }
        if sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        if sampling.top_k != -1:
            body["top_k"] = sampling.top_k
        if sampling.repetition_penalty != 1.0:
            body["repetition_penalty"] = sampling.repetition_penalty
        if self.begun:
            body["messages"] = [*self.messages, {"role": "assistant", "content": self.begun}]
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body


def pieces_asked(num_streams: int, tokens_per_second: float) -> dict[str, object]:
    """What of a request asks vLLM for larger pieces, and to say how many tokens the answer has so far.

    Args:
        num_streams: how many answers are read at once; the more, the larger are the pieces.
        tokens_per_second: how fast an answer comes; 0: it is not known.

    Returns:
        The fields of the request's body; none where the answer is to come token by token.

    Example:
        Of 64 answers at once, at 40 tokens a second each, every piece holds 10 tokens: a quarter of a second.
    """
    num_tokens = int(tokens_per_second * min(num_streams / _PIECES_SENT_PER_SECOND, _LONGEST_SECONDS))
    if num_tokens < 2:
        return {}
    told = {"include_usage": True, "continuous_usage_stats": True}
    return {"stream_interval": num_tokens, "stream_options": told}


class ChatClient:
    """Asks a server, any number of questions at once; close it when done, in the event loop that it asked in.

    Args:
        server: the server.
        timeout_seconds: the longest silence of the server.
    """

    def __init__(self, server: ChatServer, *, timeout_seconds: float = 300.0) -> None:
        self._server = server
        self._timeout_seconds = timeout_seconds
        self._http: aiohttp.ClientSession | None = None
        self._num_streams = 0
        self._tokens_per_second = 0.0  # of the last answer

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()

    def _session(self) -> aiohttp.ClientSession:
        """The connections, of the event loop that asks first (httpx takes several times as long to read a stream)."""
        if self._http is None:
            self._http = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT_SECONDS, sock_read=self._timeout_seconds
                ),
                connector=aiohttp.TCPConnector(limit=0),
                # A proxy of the environment does not know this machine.
                trust_env=not is_loopback(self._server.address.url),
            )
        return self._http

    async def stream(self, question: ChatQuestion) -> AsyncGenerator[TextPiece | ChatEnd, None]:
        """Ask one question.

        Args:
            question: what is asked.

        Yields:
            The pieces of the answer as they come, then its end. Closing the iterator ends the work on it.

        Raises:
            PromptTooLongError: the prompt is beyond the model's context.
            ServerError: the server refuses, or does not come back.
        """
        attempt = 0
        begun = ""
        num_tokens = num_before = 0
        while True:
            asked = replace(question, begun=question.begun + begun)
            try:
                async with aclosing(self._attempt(asked)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, ChatEnd):
                            yield replace(piece, response_tokens=piece.response_tokens + num_before)
                            return
                        begun += piece.text
                        num_tokens += piece.num_tokens
                        yield piece
            except _BrokenError as error:
                if begun and not (self._server.is_ours and question.may_go_on):
                    raise ServerError(
                        f"{shown(self._server.address.url)} broke off in the middle of the answer ({error}); ask again"
                    ) from error
                await self._server.recover(attempt, str(error))
                attempt += 1
                num_before = num_tokens

    async def _attempt(self, question: ChatQuestion) -> AsyncGenerator[TextPiece | ChatEnd, None]:
        address = self._server.address
        url = address.url.rstrip("/") + "/chat/completions"
        end: ChatEnd | None = None
        self._num_streams += 1
        try:
            body = question.body(address.model)
            if self._server.is_ours:
                body |= pieces_asked(self._num_streams, self._tokens_per_second)
            async with self._post(url, body, address) as reply:
                await _check_status(reply, url)
                num_tokens = num_yielded = 0
                begin = 0.0
                async with aclosing(self._batches(reply)) as batches:
                    async for events in batches:
                        text = ""
                        for event in events:
                            new, end, told = _read(event, end)
                            text += new
                            num_tokens = told or num_tokens + bool(new)
                        if text:
                            begin = begin or time.monotonic()
                            yield TextPiece(text=text, num_tokens=num_tokens - num_yielded)
                            num_yielded = num_tokens
                if num_tokens > 1:  # an answer that comes in one piece takes no time
                    self._tokens_per_second = (num_tokens - 1) / max(time.monotonic() - begin, 0.05)
        except TimeoutError as error:
            raise _BrokenError(f"silent for {self._timeout_seconds:g} s") from error
        except aiohttp.InvalidURL as error:
            raise ServerError(f"{shown(url)} is no address of a server ({shown(error, 80)})") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _BrokenError(shown(f"{type(error).__name__}: {error}", 120)) from error
        finally:
            self._num_streams -= 1
        if end is None:
            raise _BrokenError("the stream ended before the answer did")
        yield end

    def _post(
        self, url: str, body: Mapping[str, object], address: ServerAddress
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        # As a file: pages of several megabytes then go out in parts, between which other answers go on.
        return self._session().post(
            url,
            data=io.BytesIO(json.dumps(body).encode()),
            headers={"Content-Type": "application/json", **address.headers},
            allow_redirects=False,
        )

    async def _batches(self, reply: aiohttp.ClientResponse) -> AsyncGenerator[list[Mapping[str, Any]], None]:
        """The events of a stream, up to its ``[DONE]``: those that have come since the last ones together.

        The stream is read to its end, since its connection is of use again only then.

        Raises:
            _BrokenError: what comes is no event of a chat completion.
        """
        rest = b""
        is_done = is_over = False
        while not is_over:
            data = await reply.content.readany()
            is_over = not data
            *lines, rest = (rest + data + b"\n" * is_over).split(b"\n")
            if is_done:
                continue
            found = StreamEvents.of(lines)
            if found.events:
                yield found.events
            if found.problem:
                raise _BrokenError(found.problem)
            is_done = found.is_done
            if not (is_done or reply.content.is_eof()):
                await self._let_pieces_gather(reply)

    async def _let_pieces_gather(self, reply: aiohttp.ClientResponse) -> None:
        """Leave what comes to the system for a while, where there are several answers.

        All answers wait for the same moments: to be woken for each token of each of them would cost more than the rest.
        """
        if self._server.is_ours or self._num_streams == 1:
            return
        if reply.connection is None or reply.connection.transport is None:
            return
        transport = cast("asyncio.ReadTransport", reply.connection.transport)
        interval = min(self._num_streams / _PIECES_READ_PER_SECOND, _LONGEST_SECONDS)
        transport.pause_reading()
        try:
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(interval - now % interval)
        finally:
            if not transport.is_closing():
                transport.resume_reading()

    async def count_tokens(
        self, messages: Sequence[Message], template_arguments: Mapping[str, Any] | None = None
    ) -> int | None:
        """Ask vLLM how many tokens a prompt has, images included.

        Args:
            messages: the turns of the prompt.
            template_arguments: what the chat template gets beside them; None: nothing.

        Returns:
            The number; None where the server does not count.
        """
        address = self._server.address
        url = address.url.rstrip("/").removesuffix("/v1") + "/tokenize"
        try:
            body = {"model": address.model, "messages": list(messages)} | template_request(template_arguments or {})
            async with self._post(url, body, address) as reply:
                count = json.loads(await reply.read())["count"]
        except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError):
            return None
        return count if isinstance(count, int) else None


async def _check_status(reply: aiohttp.ClientResponse, url: str) -> None:
    """Refuse a reply that is no stream.

    Raises:
        PromptTooLongError: the prompt is beyond the model's context.
        ServerError: nothing will ever work.
        _BrokenError: it may work later.
    """
    status = reply.status
    if status == HTTPStatus.OK:
        return
    if status in _REDIRECTS and "location" in reply.headers:
        raise ServerError(
            f"{shown(url)} leads on to {shown(reply.headers['location'])} (status {status}); give --model the address "
            "that answers itself"
        )
    text = shown(sentence_of(await reply.read()), SHOWN_REPLY)
    if status in _HOPELESS:
        raise ServerError(f"{shown(url)} answers {status} ({text}); {_HOPELESS[status]}")
    if status in _RETRIED or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _BrokenError(f"status {status}: {text}")
    if any(words in text for words in _TOO_LONG):
        raise PromptTooLongError(text)
    raise ServerError(f"{shown(url)} refuses the question (status {status}: {text})")


def _read(event: Mapping[str, Any], end: ChatEnd | None) -> tuple[str, ChatEnd | None, int]:
    """The text of an event, the end as far as it is known, and how many tokens the answer has so far; 0: not said."""
    text, num_tokens = "", 0
    try:
        for choice in event.get("choices") or ():
            text += (choice.get("delta") or {}).get("content") or ""
            if choice.get("finish_reason"):
                end = ChatEnd(finish_reason=str(choice["finish_reason"]))
        usage = event.get("usage") or {}
        num_tokens = int(usage.get("completion_tokens") or 0)
        if usage and end is not None:
            details = usage.get("prompt_tokens_details") or {}
            end = replace(
                end,
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                cached_tokens=details.get("cached_tokens"),
                response_tokens=num_tokens,
            )
    except (AttributeError, TypeError, ValueError) as error:
        raise _BrokenError(f"no chat completion comes: {shown(event, 80)}") from error
    return text, end, num_tokens


def address_of(url: str, model: str, key: str) -> ServerAddress:
    """Find out where and as what a server's model is asked.

    Args:
        url: the base address.
        model: the name of the model; empty: the one that the server has, where it has one.
        key: the key; empty: none.

    Returns:
        The address.

    Raises:
        ServerError: the server is down, refuses the key, or has several models or none.
    """
    asked = ServerAddress(url=url.rstrip("/"), model=model, key=key)
    if model:
        return asked
    try:
        reply = httpx.get(
            f"{asked.url}/models", headers=asked.headers, timeout=_CONNECT_SECONDS, trust_env=not is_loopback(url)
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerError(
            f"{shown(url)} does not answer ({shown(f'{type(error).__name__}: {error}', 120)}); see that the server is "
            "up and the address right: it ends in /v1 as a rule"
        ) from error
    if reply.status_code != HTTPStatus.OK:
        way_out = _HOPELESS.get(reply.status_code, "name the model with --model-name")
        raise ServerError(
            f"{shown(url)}/models answers {reply.status_code} ({shown(sentence_of(reply.content), SHOWN_REPLY)}); "
            f"{way_out}"
        )
    try:
        names = [str(entry["id"]) for entry in reply.json()["data"]]
    except (ValueError, LookupError, TypeError) as error:
        raise ServerError(f"{shown(url)}/models lists no models; name one with --model-name") from error
    if len(names) != 1:
        told = ", ".join(names[:10])
        raise ServerError(
            f"{shown(url)} has {len(names)} models{f' ({shown(told)})' if names else ''}; name one with --model-name"
        )
    return replace(asked, model=names[0])
