"""The API as OpenAI has it, and a search: ``/v1/chat/completions``, ``/v1/models``, ``/v1/search``.

The answer section is a message's ``content``; the other sections are its ``reasoning_content``; the pages that the
answer draws on are its ``annotations``. Pages that come along as images are looked at instead of searched ones.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from recipes.indexing.searching import Findings
from recipes.serving.access import Visitor
from recipes.serving.answers import Answers, VisitorQuestion, looked_at
from recipes.serving.chat_calls import MOST_BYTES, ChatCall, read_call
from recipes.serving.event_json import Json, page_json
from recipes.serving.event_streams import EventStream, server_event, unless_hung_up
from recipes.serving.refusals import RefusedError, error_body
from recipes.serving.requests import Fields, json_body, visitor_of
from rsgrpo.answering.records import Answered, SectionText
from rsgrpo.errors import RsgrpoError

_SEARCH_FIELDS = frozenset({"query", "num_pages", "documents", "by"})


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
        folder = self._folder / secrets.token_urlsafe(12)

        def clean() -> None:
            shutil.rmtree(folder, ignore_errors=True)

        try:
            # In a thread, for images take their time; and the body is kept nowhere while the answer is on its way.
            call = await asyncio.to_thread(read_call, await json_body(request, MOST_BYTES), folder)
            visitor = visitor_of(request)
            if not call.question.given:
                self._answers.library.chosen(visitor, call.question.documents)  # what can be refused at once is
            if call.is_streamed:
                return EventStream(self._streamed(visitor, call, str(request.base_url)), clean)
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
            "annotations": _annotations(answer, call, str(request.base_url)),
        }
        choice = {"index": 0, "message": message, "finish_reason": _finish(answer), "logprobs": None}
        return JSONResponse({**self._head(call.key, "chat.completion"), "choices": [choice], "usage": _usage(answer)})

    async def _whole(self, visitor: Visitor, call: ChatCall) -> Answered:
        async with aclosing(self._answers.ask(visitor, call.question)) as events:
            return [event async for event in events if isinstance(event, Answered)][-1]

    def _reasoning(self, answer: Answered) -> str:
        sections = {name: text for name, text in answer.sections.items() if name != self._answer_section}
        return "\n\n".join(f"{name}:\n{text.strip()}" for name, text in sections.items())

    async def _streamed(self, visitor: Visitor, call: ChatCall, base: str) -> AsyncGenerator[bytes]:
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
                        yield chunk({"annotations": _annotations(event, call, base)}, _finish(event))
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


def _annotations(answer: Answered, call: ChatCall, base: str) -> list[Json]:
    """Name the pages that an answer draws on, as OpenAI's citations; each stands for the whole answer.

    An image that came along has no address here; its URL is empty, since OpenAI's clients take it to be there.
    """
    relevant = {evidence.number for evidence in answer.evidence if evidence.is_relevant}
    is_given = bool(call.question.given)
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "url": "" if is_given else f"{base}{page_json(page)['image'].lstrip('/')}",
                "title": page.document if is_given else f"{page.document}, page {page.page_number}",
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
