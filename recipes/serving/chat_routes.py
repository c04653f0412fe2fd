"""The API as OpenAI has it, and a search: ``/v1/chat/completions``, ``/v1/models``, ``/v1/search``.

The answer section is a message's ``content``; the other sections are its ``reasoning_content``; the pages that the
answer draws on are its ``annotations``. Pages that come along as images are looked at instead of searched ones.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from recipes.indexing.searching import Findings
from recipes.serving.access import Visitor
from recipes.serving.answers import MOST_PAGES, Answers, VisitorQuestion, looked_at
from recipes.serving.event_json import Json, page_json
from recipes.serving.event_streams import EventStream, server_event, unless_hung_up
from recipes.serving.refusals import RefusedError, error_body
from recipes.serving.requests import Fields, json_body, visitor_of
from rsgrpo.answering.records import Answered, EarlierTurn, LookedAtPage, SectionText
from rsgrpo.data.images.kinds import describe_non_image
from rsgrpo.data.inline_media import media_suffix
from rsgrpo.errors import RsgrpoError
from rsgrpo.types import ImageRef

_MOST_BYTES = 64 << 20
_MOST_EARLIER = 3
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".gif", ".webp", ".bmp"})
_NOT_DONE = ("tools", "functions", "audio", "prediction", "logit_bias")
_SEARCH_FIELDS = frozenset({"query", "num_pages", "documents", "by"})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """A chat completion that is asked for.

    Attributes:
        key: the completion's id.
        question: the question.
        is_streamed: whether the answer comes in pieces.
        has_usage: whether a stream ends with the tokens that it took.
    """

    key: str
    question: VisitorQuestion
    is_streamed: bool
    has_usage: bool


class ChatRoutes:
    """The routes under ``/v1``.

    Args:
        answers: all that answers questions.
        folder: the folder in which images that come along lie while they are looked at.
        model: the model's name.
        answer_section: the name of the section that holds the answer.
    """

    def __init__(self, answers: Answers, folder: Path, model: str, answer_section: str) -> None:
        self._answers = answers
        self._folder = folder
        self._model = model
        self._answer_section = answer_section
        self._begun = int(time.time())
        shutil.rmtree(folder, ignore_errors=True)  # of a server that was killed

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/v1/search", self._search, methods=["POST"]),
        ]

    async def _models(self, request: Request) -> Response:
        model = {"id": self._model, "object": "model", "created": self._begun, "owned_by": "rsgrpo"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _search(self, request: Request) -> Response:
        fields = Fields(await json_body(request), _SEARCH_FIELDS)
        question = VisitorQuestion(
            text=fields.text("query"),
            num_pages=fields.number("num_pages", 5),
            documents=fields.texts("documents"),
            by=fields.search_by(),
        )
        found = await self._answers.search(visitor_of(request), question)
        return JSONResponse({"object": "list", "data": search_json(found), "remarks": list(found.remarks)})

    async def _complete(self, request: Request) -> Response:
        body = await json_body(request, _MOST_BYTES)
        folder = self._folder / secrets.token_urlsafe(12)

        def clean() -> None:
            shutil.rmtree(folder, ignore_errors=True)

        try:
            call = _call(body, folder)
            visitor = visitor_of(request)
            if not call.question.given:
                self._answers.library.chosen(visitor, call.question.documents)  # what can be refused at once is
            if call.is_streamed:
                return EventStream(self._streamed(visitor, call), clean)
        except BaseException:
            clean()
            raise
        try:
            answer = await unless_hung_up(self._whole(visitor, call), request.receive)
        finally:
            clean()
        if answer is None:
            raise RefusedError("the caller has hung up", 499)
        message = {
            "role": "assistant",
            "content": answer.answer,
            "reasoning_content": self._reasoning(answer),
            "refusal": None,
            "annotations": _annotations(answer, str(request.base_url)),
        }
        choice = {"index": 0, "message": message, "finish_reason": _finish(answer), "logprobs": None}
        return JSONResponse({**self._head(call.key, "chat.completion"), "choices": [choice], "usage": _usage(answer)})

    async def _whole(self, visitor: Visitor, call: _Call) -> Answered:
        async with aclosing(self._answers.ask(visitor, call.question)) as events:
            return [event async for event in events if isinstance(event, Answered)][-1]

    def _reasoning(self, answer: Answered) -> str:
        sections = {name: text for name, text in answer.sections.items() if name != self._answer_section}
        return "\n\n".join(f"{name}:\n{text.strip()}" for name, text in sections.items())

    async def _streamed(self, visitor: Visitor, call: _Call) -> AsyncGenerator[bytes]:
        head = self._head(call.key, "chat.completion.chunk")

        def chunk(delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
            return server_event("", {**head, "choices": [choice]})

        is_answered, section = False, ""
        try:
            yield chunk({"role": "assistant", "content": ""})
            async with aclosing(self._answers.ask(visitor, call.question)) as events:
                async for event in events:
                    if isinstance(event, SectionText) and event.section == self._answer_section:
                        is_answered = True
                        yield chunk({"content": event.text})
                    elif isinstance(event, SectionText) and event.section:
                        title = f"{event.section}:\n" if not section else f"\n\n{event.section}:\n"
                        is_new, section = event.section != section, event.section
                        yield chunk({"reasoning_content": (title if is_new else "") + event.text})
                    elif isinstance(event, Answered):
                        if not is_answered:  # a response without sections is all answer
                            yield chunk({"content": event.answer})
                        yield chunk({"annotations": _annotations(event, "/")}, _finish(event))
                        if call.has_usage:
                            yield server_event("", {**head, "choices": [], "usage": _usage(event)})
        except RsgrpoError as error:
            status = error.status if isinstance(error, RefusedError) else 500
            yield server_event("", error_body(self._answers.hide(str(error)), status))
        yield b"data: [DONE]\n\n"

    def _head(self, key: str, kind: str) -> Json:
        return {"id": key, "object": kind, "created": int(time.time()), "model": self._model}


def search_json(found: Findings) -> list[Json]:
    """Write found pages as JSON.

    Args:
        found: what a search found.
    """
    return [page_json(looked_at(hit.page, hit.rank, hit.score)) for hit in found.pages]


def _call(body: Mapping[str, Any], folder: Path) -> _Call:
    """Read a call; images that it brings are written into the folder.

    Raises:
        RefusedError: it asks for what there is not.
    """
    fields = Fields(body)
    for name in _NOT_DONE:
        if body.get(name):
            raise RefusedError(f"{name} is not something that this server does; leave it out")
    if fields.number("n", 1) != 1:
        raise RefusedError("n must be 1: a question gets one answer")
    messages = _messages(body)
    options = body.get("stream_options")
    *before, last = messages
    text, given = _content(last, folder)
    question = VisitorQuestion(
        text=text,
        num_pages=fields.number("num_pages", 5),
        documents=fields.texts("documents"),
        by=fields.search_by(),
        given=given,
        earlier=_earlier(before),
    )
    return _Call(
        key=f"chatcmpl-{secrets.token_hex(12)}",
        question=question,
        is_streamed=fields.flag("stream"),
        has_usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def _messages(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise RefusedError("messages is missing; send a list of messages, of which the last is the question")
    if messages[-1].get("role") != "user":
        raise RefusedError("the last message must be the user's: it is the question")
    return messages


def _content(message: Mapping[str, Any], folder: Path | None) -> tuple[str, tuple[LookedAtPage, ...]]:
    """Read a message's text and its images, which are written into the folder; None: images are passed over."""
    content = message.get("content")
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise RefusedError("a message's content must be a text or a list of parts")
    texts: list[str] = []
    pages: list[LookedAtPage] = []
    for part in content:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            if folder is not None:
                pages.append(_page(part.get("image_url"), folder, len(pages) + 1))
        else:
            raise RefusedError("a part of a message must be of the type text or image_url")
    return "\n".join(texts), tuple(pages)


def _page(address: object, folder: Path, number: int) -> LookedAtPage:
    """Write an image that stands in a message to a file; nothing is fetched from anywhere."""
    url = address.get("url") if isinstance(address, dict) else address
    if number > MOST_PAGES:
        raise RefusedError(f"a question is answered from {MOST_PAGES} pages at most; give fewer")
    if not isinstance(url, str) or not url.startswith("data:") or ";base64," not in url[:200]:
        raise RefusedError("an image must come along as data:image/png;base64,…; this server fetches none")
    try:
        data = base64.b64decode(url.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(f"image {number} is no base64") from None
    suffix = media_suffix(data)
    if suffix not in _IMAGE_SUFFIXES:
        raise RefusedError(f"image {number} is {describe_non_image(data)[0]}; send PNG or JPEG", 415)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / f"{number}{suffix}"
    file.write_bytes(data)
    name = f"image {number}"
    return LookedAtPage(
        number=number, page_id=name, document=name, page_number=1, image=ImageRef(path=name, file=str(file))
    )


def _earlier(messages: list[Mapping[str, Any]]) -> tuple[EarlierTurn, ...]:
    """Read the turns of a conversation; what the system or a developer says is passed over."""
    turns: list[EarlierTurn] = []
    question = ""
    for message in messages:
        role = message.get("role")
        if role == "user":
            question = _content(message, None)[0]
        elif role == "assistant" and question and isinstance(message.get("content"), str):
            turns.append(EarlierTurn(question=question, response=message["content"]))
            question = ""
    return tuple(turns[-_MOST_EARLIER:])


def _annotations(answer: Answered, base: str) -> list[Json]:
    """Name the pages that an answer draws on, as OpenAI's citations; each stands for the whole answer."""
    relevant = {evidence.number for evidence in answer.evidence if evidence.is_relevant}
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "url": f"{base}{page_json(page)['image'].lstrip('/')}",
                "title": f"{page.document}, page {page.page_number}",
                "start_index": 0,
                "end_index": len(answer.answer),
            },
        }
        for page in answer.pages
        if page.number in relevant
    ]


def _finish(answer: Answered) -> str:
    return "length" if answer.is_cut else "stop"


def _usage(answer: Answered) -> Json:
    spent = answer.spent
    return {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.response_tokens,
        "total_tokens": spent.prompt_tokens + spent.response_tokens,
        "prompt_tokens_details": {"cached_tokens": spent.cached_tokens or 0},
    }
