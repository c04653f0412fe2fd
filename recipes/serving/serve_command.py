"""``rsgrpo serve``: a page in the browser, an API and tools for agents, over an index and a model."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.asking.chat_server import is_loopback
from recipes.asking.cores import leave_cores
from recipes.asking.model_choice import ChosenModel, choose_model, split_ask_settings
from recipes.indexing.command_line import MakeEmbedder
from recipes.indexing.places import is_there, make_any_embedder, saved_embedder
from recipes.indexing.settings import GivenSettings, embedder_settings, index_settings, render_settings, split_settings
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures.command import CommandParser, UsageError, run_command
from rsgrpo.run.progress import Progress

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from recipes.asking.asker import ModelAsker
    from recipes.asking.chat_server import ChatServer
    from recipes.serving.answers import Answers
    from recipes.serving.application import ServerParts
    from recipes.serving.filter_thread import FilterThread
    from recipes.serving.library import Library
    from recipes.serving.shared_embedder import SharedEmbedder
    from rsgrpo.io.writer_lock import WriterLock

TOKEN_VARIABLE = "RSGRPO_SERVE_TOKEN"
"""The environment variable that may hold the token."""

_DEFAULT_PORT = 8750
_SHORTEST_TOKEN = 16
_LOCK_FILE = "server.lock"
_SECRET_FILE = "secret"
_SECRET_BYTES = 32
_GRACE_SECONDS = 3
_BACKLOG = 2048
# The embedder lets go of Python's lock at each of its hundreds of operations, and would wait 5 ms for it each time.
_SWITCH_SECONDS = 0.0005
ENGINE_NICENESS = 5
"""By how many steps of niceness the server goes before its engine: a question that waits for its search is one that the
engine cannot work on yet."""
_MAX_PORT = 65_535
_HOST_NAME = re.compile(r"[^\s/:\[\]]+|\[[0-9a-fA-F:.]+\]")
_MIB = 1 << 20
_EXAMPLES = """\
examples:
  uv run rsgrpo serve --index manuals.index --model runs/quickstart        # then open http://127.0.0.1:8750
  uv run rsgrpo serve --index new.index --embedder runs/embedder           # no index yet: drop PDFs on the page
  uv run rsgrpo serve --index manuals.index --sessions --host 0.0.0.0 --token-file token.txt
  uv run rsgrpo serve --index manuals.index --model http://localhost:8000/v1 --model-name qwen
  uv run rsgrpo serve --index manuals.index 'filter.stages=[{scorer: yes_no, top_k: 3}]'   # as in rsgrpo ask
  uv run rsgrpo serve --index manuals.index --mcp-stdio                    # tools for an agent that starts it
"""


def command_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo serve`` takes beside settings."""
    parser = CommandParser(
        prog="rsgrpo serve",
        description="Serve an index and a model: a page in the browser, an OpenAI-compatible API, tools for agents.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--index", type=Path, required=True, metavar="INDEX", help="the index's folder; may be new")
    parser.add_argument(
        "--model", default="", help="a run folder, a model folder, or the address of an OpenAI-compatible server"
    )
    parser.add_argument("--model-name", default="", metavar="NAME", help="the model's name on that server")
    parser.add_argument("--api-key-variable", default="", metavar="NAME", help="the variable with that server's key")
    parser.add_argument("--settings", default="", metavar="RUN", help="ask as this run asks, as in rsgrpo ask")
    parser.add_argument("--embedder", metavar="MODEL", default="", help="where the index's embedder lies now")
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="history and documents brought (INDEX.served)")
    parser.add_argument("--mcp-stdio", action="store_true", help="serve the tools alone, over standard streams")
    place = parser.add_argument_group("who may ask")
    place.add_argument("--host", default="127.0.0.1", help="the address to listen at (127.0.0.1: this machine alone)")
    place.add_argument("--port", type=int, default=_DEFAULT_PORT, help=f"the port ({_DEFAULT_PORT})")
    place.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"what visitors must know; or set {TOKEN_VARIABLE}"
    )
    place.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name that it is called by")
    place.add_argument("--sessions", action="store_true", help="each browser has documents and history of its own")
    bounds = parser.add_argument_group("bounds")
    bounds.add_argument("--max-upload-mib", type=int, default=100, metavar="N", help="the largest document (100)")
    bounds.add_argument("--max-upload-pages", type=int, default=2000, metavar="N", help="the longest document (2000)")
    bounds.add_argument("--at-once", type=int, metavar="N", help="questions that the engine works on at a time")
    parser.add_argument_group(
        "settings",
        "prompt.NAME=VALUE, response.NAME, data.NAME, rollout.NAME, model.dtype and eval.sampling.NAME as in rsgrpo "
        "ask; filter.NAME lets a filter look at what a search finds; embedder.NAME, index.NAME and documents.NAME as "
        "in rsgrpo index; docs/settings.md lists them",
    )
    return parser


def main(arguments: Sequence[str] | None = None, make_embedder: MakeEmbedder | None = None) -> int:
    """Run ``rsgrpo serve``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.
        make_embedder: the function that makes the embedder; None: the one that the settings describe is made.

    Returns:
        The exit status of the process.
    """
    return run_command(
        lambda: _serve(sys.argv[1:] if arguments is None else arguments, make_embedder or make_any_embedder),
        way_on="history and documents are kept; the same command serves them again",
    )


def _serve(arguments: Sequence[str], make_embedder: MakeEmbedder) -> None:
    from recipes.filtering.command_settings import filter_settings, split_filter_settings

    rest, asked = split_ask_settings(arguments)
    rest, filtered = split_filter_settings(rest)
    rest, given = split_settings(rest)
    options = command_parser().parse_args(rest)
    token = _token(options)
    _check(options, token)
    filtering = filter_settings(filtered, index=str(options.index)) if filtered else None
    with ExitStack() as stack:
        listener = None if options.mcp_stdio else stack.enter_context(_listener(options))
        if listener is not None:
            stack.enter_context(_state_lock(_state(options)))
        model = choose_model(
            options.model,
            served_name=options.model_name,
            key_variable=options.api_key_variable,
            settings_from=options.settings,
            given=asked,
        )
        library, embedder = _library(options, given, make_embedder)
        if not model.url or is_loopback(model.url):
            leave_cores()
        from recipes.asking.asker import ModelAsker
        from recipes.asking.engine_choice import open_server, opened_section_of
        from recipes.asking.page_filter import filter_maker
        from recipes.serving.filter_thread import FilterThread

        with _Starting() as starting:
            server: ChatServer = stack.enter_context(
                open_server(model, on_wait=starting.show, niceness=ENGINE_NICENESS)
            )
        asker = ModelAsker(model.settings, server, opened=opened_section_of(model))
        filter_thread = (
            FilterThread(filter_maker(filtering, model.settings, lambda: server), server, model.settings.max_images)
            if filtering is not None
            else None
        )
        answers = _answers(options, model, library, asker, filter_thread)
        if listener is not None:
            parts = _parts(options, token, model, answers, asker)
            _listen(options, parts, listener, embedder.stop)
            return
        # No desk and no history: agents start this beside a server, whose state it must not touch.
        from recipes.serving.agent_tools import make_agent_server

        async def talk() -> None:
            async with asker:
                await make_agent_server(answers).run_stdio_async()

        asyncio.run(talk())


class _Starting:
    """Says on standard error that the engine starts, where one does."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._is_shown = False

    def __enter__(self) -> _Starting:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, what: str, seconds: float) -> None:
        """See :data:`~recipes.asking.engine_server.OnWait`."""
        if not self._is_shown:
            self._is_shown = True
            self._stack.enter_context(Progress(True, sys.stderr).phase("Starting the engine"))


def _token(options: argparse.Namespace) -> str:
    """Read the token; empty: none is set."""
    if options.token_file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        source = TOKEN_VARIABLE
    else:
        source = f"--token-file {shown(options.token_file)}"
        try:
            token = options.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{source} cannot be read ({shown(error, 80)}); write the token into it") from error
        if not token:
            raise UsageError(f"{source} is empty; write the token into it")
    if token and (len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise UsageError(
            f"the token of {source} must be at least {_SHORTEST_TOKEN} ASCII characters without spaces; make one: "
            "python -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check(options: argparse.Namespace, token: str) -> None:
    """Refuse what cannot work, or is not safe, before anything is loaded."""
    if not (_is_loopback(options.host) or token or options.mcp_stdio):
        raise UsageError(
            f"--host {shown(options.host, 80)} lets other machines ask, index and read; set a token by --token-file or "
            f"{TOKEN_VARIABLE}"
        )
    if not 0 <= options.port <= _MAX_PORT:
        raise UsageError(f"--port {options.port} is no port; give one from 1 to {_MAX_PORT}, or 0 for a free one")
    bounds = {
        "--max-upload-mib": options.max_upload_mib,
        "--max-upload-pages": options.max_upload_pages,
        "--at-once": 1 if options.at_once is None else options.at_once,
    }
    for name in options.allow_host:
        if not _HOST_NAME.fullmatch(name):
            raise UsageError(f"--allow-host {shown(name, 80)} is no name alone; leave out scheme, port and path")
    for name, value in bounds.items():
        if value < 1:
            raise UsageError(f"{name} {value} lets nothing through; give 1 or more")


def _library(
    options: argparse.Namespace, given: GivenSettings, make_embedder: MakeEmbedder
) -> tuple[Library, SharedEmbedder]:
    from recipes.serving.library import Library
    from recipes.serving.shared_embedder import SharedEmbedder

    settings = index_settings(given)
    saved = saved_embedder(options.index, settings) if is_there(options.index, settings) else None
    config = embedder_settings(given, options.embedder, saved)
    documents = {"on_bad_document": "skip_page", **given.documents}
    rendering = render_settings(GivenSettings(embedder=given.embedder, index=given.index, documents=documents), config)
    # Before the engine is started: what does not fit is said at once, and no question waits for it.
    with Progress(True, sys.stderr).phase("Loading the embedder"):
        embedder = SharedEmbedder(make_embedder(config))
    library = Library(options.index, settings, rendering, lambda: embedder, has_sessions=options.sessions)
    return library, embedder


def _state(options: argparse.Namespace) -> Path:
    state: Path = options.state or options.index.with_name(f"{options.index.name}.served")
    return state


def _state_lock(state: Path) -> WriterLock:
    """Hold what a server keeps: another one would delete what this one receives, and end what it answers."""
    from rsgrpo.io.writer_lock import LockHeldError, WriterLock

    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        return WriterLock(state / _LOCK_FILE)
    except LockHeldError as error:
        raise UsageError(
            f"another rsgrpo serve keeps its history and documents in {shown(state)} ({error.holder}); use that one, "
            "end it, or name another folder by --state"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{shown(state)} cannot be written ({error.strerror}); name another folder by --state"
        ) from error


def _answers(
    options: argparse.Namespace,
    model: ChosenModel,
    library: Library,
    asker: ModelAsker,
    filter_thread: FilterThread | None,
) -> Answers:
    from recipes.serving.answers import MOST_PAGES, Answers
    from recipes.serving.fair_queue import FairQueue, QueueBounds
    from recipes.serving.refusals import PathHider
    from recipes.serving.search_thread import SearchThread

    state = _state(options)
    folders = [options.index, state, *([model.folder] if model.folder else []), *([model.run] if model.run else [])]
    at_once = options.at_once or (QueueBounds().at_once if model.url else model.settings.rollout.max_num_sequences)
    return Answers(
        library=library,
        asker=asker,
        searcher=SearchThread(library),
        queue=FairQueue(QueueBounds(at_once=at_once)),
        hide=PathHider(folders),
        most_pages=min(MOST_PAGES, model.settings.max_images),
        filter=filter_thread,
    )


def _parts(
    options: argparse.Namespace, token: str, model: ChosenModel, answers: Answers, asker: ModelAsker
) -> ServerParts:
    from recipes.serving.access import AccessRules
    from recipes.serving.application import ServerParts
    from recipes.serving.history import History
    from recipes.serving.uploads import UploadBounds, UploadDesk

    state = _state(options)
    history = History(state)
    bounds = UploadBounds(most_bytes=options.max_upload_mib * _MIB, most_pages=options.max_upload_pages)
    rules = AccessRules(
        secret=_secret(state),
        hosts=frozenset(name.lower() for name in (options.host, *options.allow_host)),
        is_loopback=_is_loopback(options.host),
        token=token,
    )
    return ServerParts(
        answers=answers,
        desk=UploadDesk(answers.library, state, bounds, answers.hide),
        history=history,
        rules=rules,
        state_folder=state,
        model=model.served_name or (model.run or model.folder or Path("model")).name,
        answer_section=model.settings.response_format.answer_section,
        at_end=asker.close,
    )


def _secret(state: Path) -> bytes:
    """Read the key by which cookies are signed, or make it; with another one all visitors would be strangers."""
    path = state / _SECRET_FILE
    try:
        if not path.exists():
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(file, "wb") as output:
                output.write(secrets.token_bytes(_SECRET_BYTES))
        secret = path.read_bytes()
    except OSError as error:
        raise RsgrpoError(f"{shown(path)} cannot be used ({error.strerror}); name another folder by --state") from error
    if len(secret) != _SECRET_BYTES:
        raise RsgrpoError(f"{shown(path)} is damaged; delete it, and visitors get new sessions")
    return secret


def _listener(options: argparse.Namespace) -> socket.socket:
    """Take the port, before anything is loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"nothing can listen at {shown(options.host, 80)}:{options.port} ({error.strerror}); give another --port"
        ) from error


def _listen(
    options: argparse.Namespace, parts: ServerParts, listener: socket.socket, at_end: Callable[[], None]
) -> None:
    import uvicorn

    from recipes.serving.application import make_application

    config = uvicorn.Config(
        make_application(parts),
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        lifespan="on",
        ws="none",
    )

    class Server(uvicorn.Server):
        """Says where it listens once it does, and breaks off what would hold up its end."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            print(_told(listener, parts, options), flush=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            at_end()
            parts.desk.stop()
            await super().shutdown(sockets=sockets)

    if not _is_loopback(options.host):
        print(
            "warning: other machines reach this server, and nothing is encrypted on the way: put a proxy with TLS in "
            "front of it, and give the token to nobody else",
            file=sys.stderr,
        )
    sys.setswitchinterval(_SWITCH_SECONDS)
    Server(config).run(sockets=[listener])


def _told(listener: socket.socket, parts: ServerParts, options: argparse.Namespace) -> str:
    address = listener.getsockname()
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    library = parts.answers.library
    lines = [
        f"http://{host}:{address[1]}  {library.num_pages} pages of {shown(options.index, 80)}, asked of {parts.model}",
        "the API is under /v1, tools for agents are at /mcp; Ctrl-C ends",
    ]
    if options.sessions:
        lines.append("each browser has documents and history of its own")
    return "\n".join(lines)
