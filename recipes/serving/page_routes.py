"""What the page in the browser calls, under ``/api``: questions, documents, pages, history."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from recipes.serving.access import LOGIN_PATH, AccessRules, Visitor, cookie_header
from recipes.serving.answers import Answers, VisitorQuestion, Waiting
from recipes.serving.event_json import Json, answer_json, page_id_of, pages_json, section_json
from recipes.serving.event_streams import EventStream, server_event
from recipes.serving.exports import markdown_export, turn_json
from recipes.serving.history import History, TurnState
from recipes.serving.marks import box_tokens_of, marked_words
from recipes.serving.page_images import image_reply
from recipes.serving.pdf_probe import ProbeError
from recipes.serving.refusals import RefusedError, error_body
from recipes.serving.requests import Fields, json_body, visitor_of
from recipes.serving.uploads import Upload, UploadDesk
from recipes.serving.visible_documents import shown_document
from rsgrpo.answering.records import Answered, PagesChosen, SectionText
from rsgrpo.documents.records import PlacedWord
from rsgrpo.errors import RsgrpoError

P = ParamSpec("P")
T = TypeVar("T")

_EARLIER_TURNS = 3  # of a conversation that the model sees again
_EVERYBODY = "everybody"  # owns the history where there are no sessions
_NOBODY = "nobody"  # the beginning of owners that nobody can be
_MOST_EVIDENCE_CHARACTERS = 2000
_KEPT_WORDS = 64  # pages whose words need not be read again
_CLOSE_SECONDS = 1.0
_LOG = logging.getLogger("rsgrpo.serve")
_ASK_FIELDS = frozenset({"question", "conversation", "num_pages", "documents", "by", "pages"})


class PageRoutes:
    """The routes under ``/api``.

    Args:
        answers: all that answers questions.
        desk: takes documents in.
        history: the history.
        rules: who may ask.
        answer_section: the name of the section that holds the answer.
    """

    def __init__(
        self, answers: Answers, desk: UploadDesk, history: History, rules: AccessRules, answer_section: str
    ) -> None:
        self._answers = answers
        self._library = answers.library
        self._desk = desk
        self._history = history
        self._rules = rules
        self._answer_section = answer_section
        self._words: dict[tuple[Path, int], tuple[PlacedWord, ...]] = {}
        # One thread: another program that writes to the history's file may hold it up for seconds, and nothing else.
        self._historian = ThreadPoolExecutor(1, thread_name_prefix="history")

    async def close(self) -> None:
        """Write down what was handed over, as far as that takes no longer than a moment."""
        written = asyncio.wrap_future(self._historian.submit(lambda: None))
        with suppress(TimeoutError):
            await asyncio.wait_for(written, _CLOSE_SECONDS)
        self._historian.shutdown(wait=False, cancel_futures=True)

    async def _in_history(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something with the history; who is cancelled meanwhile does not undo it."""
        return await asyncio.shield(
            asyncio.get_running_loop().run_in_executor(self._historian, partial(work, *args, **kwargs))
        )

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route(LOGIN_PATH, self._login, methods=["POST"]),
            Route("/api/ask", self._ask, methods=["POST"]),
            Route("/api/documents", self._documents, methods=["GET"]),
            Route("/api/documents", self._add_document, methods=["POST"]),
            Route("/api/documents", self._remove_document, methods=["DELETE"]),
            Route("/api/documents/{key}/progress", self._progress, methods=["GET"]),
            Route("/api/pages/{key}.png", self._image, methods=["GET"]),
            Route("/api/pages/{key}/marks", self._marks, methods=["POST"]),
            Route("/api/history", self._conversations, methods=["GET"]),
            Route("/api/history/{conversation}", self._conversation, methods=["GET"]),
            Route("/api/history/{conversation}", self._delete_conversation, methods=["DELETE"]),
        ]

    async def _login(self, request: Request) -> Response:
        fields = Fields(await json_body(request), ["token"])
        if not self._rules.is_token(fields.text("token")):
            raise RefusedError("this is not the token; whoever started the server knows it", 401)
        return JSONResponse({"ok": True}, headers={"Set-Cookie": cookie_header(self._rules, self._rules.new_cookie())})

    def _owner(self, visitor: Visitor) -> str:
        if not self._library.has_sessions:
            return _EVERYBODY
        if not visitor.has_session:  # all programs at one address would share a history
            raise RefusedError("history belongs to a browser's session here; open the server's page first", 403)
        return visitor.name

    async def _ask(self, request: Request) -> Response:
        visitor = visitor_of(request)
        fields = Fields(await json_body(request), _ASK_FIELDS)
        conversation = fields.text("conversation", "")
        has_history = visitor.has_session or not self._library.has_sessions
        owner = self._owner(visitor) if has_history or conversation else f"{_NOBODY} {secrets.token_urlsafe(16)}"
        earlier = (
            await self._in_history(self._history.earlier, owner, conversation, _EARLIER_TURNS) if conversation else ()
        )
        question = VisitorQuestion(
            text=fields.text("question"),
            num_pages=fields.number("num_pages", 5),
            documents=fields.texts("documents"),
            by=fields.search_by(),
            page_ids=tuple(map(page_id_of, fields.texts("pages"))),
            earlier=earlier,
        )
        self._answers.library.chosen(visitor, question.documents)  # what can be refused at once is
        turn = await self._in_history(self._history.begin, owner, question.text, conversation)
        return EventStream(self._told(visitor, question, *turn))

    async def _told(
        self, visitor: Visitor, question: VisitorQuestion, conversation: str, number: int
    ) -> AsyncGenerator[bytes]:
        """Stream an answer, and write down what came of it."""
        state: TurnState = "stopped"
        is_written = False
        problem = "it was stopped before it was answered"
        try:
            yield server_event("turn", {"conversation": conversation, "number": number})
            async with aclosing(self._answers.ask(visitor, question)) as events:
                async for event in events:
                    if isinstance(event, Answered):
                        answer = {**answer_json(event), "answer_section": self._answer_section}
                        is_written = True  # also where this is cancelled while it is written
                        try:
                            await self._in_history(self._history.finish, conversation, number, "answered", answer)
                        except Exception:  # of whatever kind: the turn must not stay as one that is asked
                            is_written = False
                            raise
                        yield server_event("answered", answer)
                    else:
                        yield server_event(*self._event(event))
        except RsgrpoError as error:
            state, problem = "failed", self._answers.hide(str(error))
            status = error.status if isinstance(error, RefusedError) else 500
            yield server_event("problem", error_body(problem, status))
        except Exception:  # a mistake of ours: the stream ends in a sentence, and it goes on to the log
            state, problem = "failed", "the server made a mistake with this question; its log says which"
            yield server_event("problem", error_body(problem, 500))
            raise
        finally:
            if not is_written:  # without waiting for it: whoever is cancelled may not
                with suppress(RuntimeError):  # the server ends: its next start marks the question as stopped
                    writing = self._historian.submit(self._history.finish, conversation, number, state, None, problem)
                    writing.add_done_callback(_log_failure)

    def _event(self, event: Waiting | PagesChosen | SectionText) -> tuple[str, Json]:
        if isinstance(event, Waiting):
            return "waiting", {"ahead": event.ahead}
        if isinstance(event, PagesChosen):
            return "pages", pages_json(event)
        return "text", {**section_json(event), "is_answer": event.section == self._answer_section}

    async def _documents(self, request: Request) -> Response:
        visitor = visitor_of(request)
        documents = [
            {
                "name": shown_document(entry.document),
                "num_pages": entry.num_pages,
                "date": entry.date,
                "can_remove": entry.is_own or not self._library.has_sessions,
            }
            for entry in self._library.documents(visitor)
        ]
        return JSONResponse(
            {"documents": documents, "uploads": [upload.json() for upload in self._desk.uploads(visitor)]}
        )

    async def _add_document(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("multipart/") or kind == "application/x-www-form-urlencoded":
            raise RefusedError("send the file itself as the body, and its name as ?name=; no form", 415)
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._desk.bounds.most_bytes:
            most = self._desk.bounds.most_bytes / (1 << 20)
            raise RefusedError(f"the file is larger than {most:g} MiB, the most that is taken; split it", 413)
        name = request.query_params.get("name", "")
        upload = await self._desk.take(visitor_of(request), name, request.stream())
        return JSONResponse(upload.json(), status_code=202)

    async def _remove_document(self, request: Request) -> Response:
        name = request.query_params.get("name", "")
        await self._desk.remove(visitor_of(request), name)
        return JSONResponse({"ok": True})

    async def _progress(self, request: Request) -> Response:
        uploads = self._desk.follow(visitor_of(request), request.path_params["key"])
        first = await anext(uploads)  # a key that there is not is refused as everything else

        async def events() -> AsyncGenerator[bytes]:
            async with aclosing(uploads):
                yield server_event("upload", first.json())
                upload: Upload
                async for upload in uploads:
                    yield server_event("upload", upload.json())

        return EventStream(events())

    async def _image(self, request: Request) -> Response:
        page = self._library.page(visitor_of(request), page_id_of(request.path_params["key"]))
        is_small = request.query_params.get("size") == "small"
        return await asyncio.to_thread(image_reply, page, is_small=is_small)

    async def _marks(self, request: Request) -> Response:
        fields = Fields(await json_body(request), ["text"])
        page = self._library.page(visitor_of(request), page_id_of(request.path_params["key"]))
        text = fields.text("text")[:_MOST_EVIDENCE_CHARACTERS]
        origin: Literal["response", "words", "page"] = "response"
        boxes = box_tokens_of(text)
        if not boxes:
            source = await asyncio.to_thread(self._library.source_file, page.document)
            words = await self._words_of(source, page.page_number) if source is not None else ()
            boxes, origin = await asyncio.to_thread(marked_words, text, words), "words"
        found = [[box.left, box.top, box.right, box.bottom] for box in boxes]
        return JSONResponse({"boxes": found, "origin": origin if found else "page"})

    async def _words_of(self, path: Path, page_number: int) -> tuple[PlacedWord, ...]:
        words = self._words.get((path, page_number))
        if words is None:
            try:
                words = await self._desk.probes.page_words(path, page_number)
            except ProbeError:
                return ()  # the whole page is framed then; next time it may be read
            while len(self._words) >= _KEPT_WORDS:
                del self._words[next(iter(self._words))]
            self._words[path, page_number] = words
        return words

    async def _conversations(self, request: Request) -> Response:
        found = await self._in_history(self._history.conversations, self._owner(visitor_of(request)))
        return JSONResponse(
            {
                "conversations": [
                    {
                        "conversation": conversation.key,
                        "title": conversation.title,
                        "begun": conversation.begun,
                        "changed": conversation.changed,
                        "num_turns": conversation.num_turns,
                    }
                    for conversation in found
                ]
            }
        )

    async def _conversation(self, request: Request) -> Response:
        conversation = request.path_params["conversation"]
        turns = await self._in_history(self._history.turns, self._owner(visitor_of(request)), conversation)
        form = request.query_params.get("format", "")
        if form not in ("", "json", "markdown"):
            raise RefusedError("format must be json or markdown")
        attached = {
            "Content-Disposition": f'attachment; filename="conversation.{"md" if form == "markdown" else "json"}"'
        }
        if form == "markdown":
            return PlainTextResponse(markdown_export(turns), media_type="text/markdown", headers=attached)
        document = {"conversation": conversation, "turns": [turn_json(turn) for turn in turns]}
        return JSONResponse(document, headers=attached if form else {})

    async def _delete_conversation(self, request: Request) -> Response:
        owner = self._owner(visitor_of(request))
        await self._in_history(self._history.delete, owner, request.path_params["conversation"])
        return JSONResponse({"ok": True})


def _log_failure(writing: Future[None]) -> None:
    if not writing.cancelled() and (error := writing.exception()) is not None:
        _LOG.error("what came of a question cannot be written down", exc_info=error)
