"""The application: routes, the guard in front of them, and one form of error for whatever goes wrong.

Guard (access.py) ─► Errors ─► /            the page: page/*.html, .css, .js, all of the package
                               /api/…       page_routes.py
                               /v1/…        chat_routes.py
                               /mcp         agent_tools.py
                               /health
"""

from __future__ import annotations

import logging
import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from recipes.serving.access import AccessRules, Guard
from recipes.serving.agent_tools import MCP_PATH, make_agent_server
from recipes.serving.answers import Answers
from recipes.serving.chat_routes import ChatRoutes
from recipes.serving.history import History, HistoryError
from recipes.serving.page_routes import PageRoutes
from recipes.serving.refusals import RefusedError, error_response
from recipes.serving.uploads import UploadDesk
from rsgrpo.errors import RsgrpoError, shown

_ASSETS = (
    "index.html",
    "page.css",
    "icon.svg",
    "app.js",
    "dom.js",
    "calls.js",
    "answer.js",
    "documents.js",
    "history.js",
    "viewer.js",
)
_LOG = logging.getLogger("rsgrpo.serve")
_HUNG_UP = 499  # what nginx calls it; nobody reads this reply


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerParts:
    """What an application is made of.

    Attributes:
        answers: all that answers questions.
        desk: takes documents in.
        history: the history.
        rules: who may ask.
        state_folder: the folder of what the server keeps.
        model: the model's name.
        answer_section: the name of the section that holds the answer.
        at_end: is called when the application ends, in its event loop, such as to close the connections to the engine.
    """

    answers: Answers
    desk: UploadDesk
    history: History
    rules: AccessRules
    state_folder: Path
    model: str
    answer_section: str = "answer"
    at_end: Callable[[], Awaitable[None]] | None = None


def make_application(parts: ServerParts) -> ASGIApp:
    """Make the application.

    Args:
        parts: what it is made of; they are closed when the application ends.

    Returns:
        The application, for any ASGI server.
    """
    answers = parts.answers
    # The guard has looked at Host and Origin already.
    agents = make_agent_server(answers).streamable_http_app(
        streamable_http_path=MCP_PATH,
        stateless_http=True,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )

    async def health(request: Request) -> Response:
        queue = answers.queue
        return JSONResponse({"status": "ok", "working": queue.num_working, "waiting": queue.num_waiting})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with agents.router.lifespan_context(agents):
            parts.desk.catch_up()
            try:
                yield
            finally:
                parts.desk.close()
                answers.searcher.close()
                if answers.filter is not None:
                    answers.filter.close()
                await page.close()
                parts.history.close()
                if parts.at_end is not None:
                    await parts.at_end()

    async def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect):
            return Response(status_code=_HUNG_UP)
        if isinstance(error, RefusedError):
            return error_response(answers.hide(str(error)), error.status)
        if isinstance(error, HistoryError):
            return error_response(answers.hide(str(error)), 404)
        if isinstance(error, RsgrpoError):
            return error_response(answers.hide(str(error)), 422)
        if isinstance(error, HTTPException):
            return error_response(_told(error, request), error.status_code)
        _LOG.error("%s %s failed", request.method, shown(request.url.path, 200), exc_info=error)
        return error_response("the server made a mistake with this request; its log says which", 500)

    chat = ChatRoutes(answers, parts.state_folder / "images", parts.model, parts.answer_section)
    page = PageRoutes(answers, parts.desk, parts.history, parts.rules, parts.answer_section)
    application = Starlette(
        routes=[
            *_asset_routes(),
            Route("/health", health, methods=["GET"]),
            *page.routes(),
            *chat.routes(),
            *agents.routes,
        ],
        exception_handlers={
            RsgrpoError: failed,
            ClientDisconnect: failed,
            HTTPException: failed,
            404: failed,
            500: failed,
        },
        lifespan=lifespan,
    )
    return Guard(application, parts.rules)


def _told(error: HTTPException, request: Request) -> str:
    path = shown(request.url.path, 120)
    if error.status_code == 404:
        return f"there is nothing at {path}; the page is at /, the API at /v1"
    if error.status_code == 405:
        return f"{request.method} is not possible at {path}"
    return shown(error.detail, 200)


def _asset_routes() -> list[Route]:
    """Make a route of each file of the page; they are read once, and no path of a request names a file."""
    folder = resources.files("recipes.serving") / "assets"
    routes = []
    for name in _ASSETS:
        content = (folder / name).read_bytes()
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"

        async def asset(request: Request, content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

        routes.append(Route("/" if name == "index.html" else f"/assets/{name}", asset, methods=["GET"]))
    return routes
