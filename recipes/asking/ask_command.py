"""``rsgrpo ask``: a question about pages, answered with evidence."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from recipes.asking.model_choice import ChosenModel, choose_model, split_ask_settings
from recipes.indexing.settings import GivenSettings, split_settings
from rsgrpo.errors import shown
from rsgrpo.failures.command import CommandParser, UsageError, run_command
from rsgrpo.run.progress import Progress

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from recipes.asking.answer_view import AnswerView
    from recipes.asking.asker import ModelAsker
    from recipes.asking.chat_server import ChatServer
    from recipes.asking.example import Example
    from recipes.asking.page_choice import IndexPages
    from rsgrpo.answering.records import Answered, AskRequest
    from rsgrpo.config import QueryFilterConfig

_DEFAULT_PAGES = 5
_STARTS = "Starting the engine (--keep-engine-minutes 10 keeps it for later calls)"
_EXAMPLES = """\
examples:
  uv run rsgrpo ask --example                                      # a test question of the newest run
  uv run rsgrpo ask "What does it cost?" scan.png offer.pdf#3 --model runs/quickstart
  uv run rsgrpo ask "Who signed?" contract.pdf#2-5 --model Qwen2.5-VL-3B-Instruct --keep-engine-minutes 10
  uv run rsgrpo ask "How is an axis scaled?" --index manuals.index --pages 3 --document plot.pdf
  uv run rsgrpo ask "Who signed?" --index contracts.index 'filter.stages=[{scorer: yes_no, top_k: 3}]' --pages 20
  uv run rsgrpo ask "Who signed?" contract.pdf --model http://localhost:8000/v1 --api-key-variable KEY --json
"""


def command_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo ask`` takes beside settings."""
    parser = CommandParser(
        prog="rsgrpo ask",
        description="Answer a question about pages: what each page contributes, and the answer, as the model writes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("question", nargs="?", default="", help="in one argument, so in quotes")
    parser.add_argument("files", metavar="PAGE", nargs="*", help="image files, documents, pages of them: a.pdf#3, #2-5")
    parser.add_argument(
        "--index", type=Path, metavar="INDEX", help="an index whose pages are searched, in place of PAGE"
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default="",
        help="a run folder, a model folder, or the address of an OpenAI-compatible server; default: the newest run in "
        "runs/ that has a model",
    )
    model.add_argument("--model-name", default="", metavar="NAME", help="the model's name on the server")
    model.add_argument(
        "--api-key-variable", default="", metavar="NAME", help="the environment variable with the server's key"
    )
    model.add_argument(
        "--settings", default="", metavar="RUN", help="ask as this run asks: its prompt, sections, images, sampling"
    )
    model.add_argument(
        "--keep-engine-minutes",
        type=float,
        metavar="N",
        help="let the engine stay for later calls until nobody has asked for N minutes; 0 ends one that stayed",
    )
    search = parser.add_argument_group("search in an index")
    search.add_argument("--pages", type=int, metavar="N", help=f"pages to find ({_DEFAULT_PAGES}, or as many as fit)")
    search.add_argument("--by", choices=("vector", "text", "hybrid"), help="what is searched, as in rsgrpo search")
    search.add_argument(
        "--document", "--documents", action="append", default=[], help="only pages of it; may stand more than once"
    )
    search.add_argument("--embedder", metavar="MODEL", default="", help="where the index's embedder lies now")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object at the end, and nothing else")
    output.add_argument("--json-events", action="store_true", help="print each event as a line of JSON as it comes")
    output.add_argument("--open", action="store_true", help="show the pages in a browser")
    output.add_argument(
        "--example", type=int, nargs="?", const=1, metavar="N", help="ask the Nth test question of the model's run (1)"
    )
    parser.add_argument_group(
        "settings",
        "prompt.NAME=VALUE, response.NAME, data.NAME, rollout.NAME, model.dtype and eval.sampling.NAME say how the "
        "model is asked (default: as its run does), filter.NAME lets a filter look at what a search finds, "
        "embedder.NAME and index.NAME are those of rsgrpo search; docs/settings.md lists them",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``rsgrpo ask``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.

    Returns:
        The exit status of the process.
    """
    return run_command(lambda: _ask(sys.argv[1:] if arguments is None else arguments), way_on="ask again")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """A checked call."""

    options: argparse.Namespace
    model: ChosenModel
    index: GivenSettings
    filter: QueryFilterConfig | None
    example: Example | None


def _ask(arguments: Sequence[str]) -> None:
    call = _checked(arguments)
    from recipes.asking.engine_choice import open_server
    from recipes.asking.messages import MessageWriter

    MessageWriter(call.model.settings.prompt, call.model.settings.response_format)  # refuses a bad template
    with tempfile.TemporaryDirectory(prefix="rsgrpo-ask-") as folder, ExitStack() as stack:
        request = _request(call, Path(folder))
        servers: list[ChatServer] = []
        chooser = _chooser(call, lambda: servers[0])
        loader = stack.enter_context(ThreadPoolExecutor(1))
        # The embedder is loaded while the engine starts.
        loading = loader.submit(chooser.prepare, request.by) if chooser is not None else None
        with _EngineWait(loading) as waiting:
            server = open_server(call.model, keep_minutes=call.options.keep_engine_minutes, on_wait=waiting.show)
            servers.append(stack.enter_context(server))
        if loading is not None:
            loading.result()
        asyncio.run(_answer(call, request, servers[0], chooser))


class _EngineWait:
    """Says on standard error that an engine starts, where it does; stops waiting where the index cannot be searched."""

    def __init__(self, loading: Future[None] | None) -> None:
        self._loading = loading
        self._stack = ExitStack()
        self._is_shown = False

    def __enter__(self) -> _EngineWait:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def show(self, what: str, seconds: float) -> None:
        """See :data:`~recipes.asking.engine_server.OnWait`."""
        if self._loading is not None and self._loading.done():
            self._loading.result()
        if not self._is_shown:
            self._is_shown = True
            self._stack.enter_context(Progress(True, sys.stderr).phase(_STARTS))


def _checked(arguments: Sequence[str]) -> _Call:
    """Read the command line, and refuse what cannot work before anything is loaded."""
    from recipes.filtering.command_settings import filter_settings, split_filter_settings

    rest, asked = split_ask_settings(arguments)
    rest, filtered = split_filter_settings(rest)
    rest, given = split_settings(rest)
    options = command_parser().parse_intermixed_args(rest)
    if options.index is not None and options.files:
        raise UsageError("pages and --index are both given; ask about the ones, or search in the other")
    if options.pages is not None and options.pages < 1:
        raise UsageError(f"--pages {options.pages} asks for no number of pages; give 1 or more")
    if options.keep_engine_minutes is not None and not 0 <= options.keep_engine_minutes <= 1e6:
        raise UsageError(f"--keep-engine-minutes {options.keep_engine_minutes:g} is no time to keep an engine")
    if options.index is None and (filtered or options.pages or options.by or options.document):
        raise UsageError("--pages, --by, --document and filter settings choose among the pages of an --index; name one")
    model = choose_model(
        options.model,
        served_name=options.model_name,
        key_variable=options.api_key_variable,
        settings_from=options.settings,
        given=asked,
    )
    example = _example(options, model)
    if example is not None:
        options.question, options.files = example.question, list(example.pages)
    if not options.question.strip():
        raise UsageError(f"no question is given; ask something, in quotes{_try_this(model)}")
    if not options.files and options.index is None:
        what = shown(options.question, 60)
        hint = " (a question of several words belongs in quotes)" if _is_file(options.question) else ""
        raise UsageError(f"no page is given for {what!r}{hint}; name pages behind it, or --index{_try_this(model)}")
    settings = filter_settings(filtered, index=str(options.index or "")) if filtered else None
    return _Call(options=options, model=model, index=given, filter=settings, example=example)


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # longer than any file name, as questions may be
        return False


def _example(options: argparse.Namespace, model: ChosenModel) -> Example | None:
    if options.example is None:
        return None
    if options.question or options.index is not None:
        raise UsageError("--example brings its own question and pages; leave yours out")
    if model.run is None:
        raise UsageError(f"--example asks a test question of a run, and {shown(model.name)} is of none; name a run")
    from recipes.asking.example import example_of

    return example_of(model.run, options.example)


def _try_this(model: ChosenModel) -> str:
    return f"; or try one of its test questions: rsgrpo ask --example --model {shown(model.run)}" if model.run else ""


def _request(call: _Call, folder: Path) -> AskRequest:
    from recipes.asking.page_choice import named_pages
    from rsgrpo.answering.records import AskRequest

    options, most = call.options, call.model.settings.max_images
    pages = named_pages(options.files, folder, call.model.settings.image_rules) if options.files else ()
    if len(pages) > most:
        raise UsageError(
            f"{shown(call.model.name, 120)} takes at most {most} page{'s' * (most != 1)} (data.max_images), and "
            f"{len(pages)} are given; name fewer, or some pages of a document: {shown(pages[0].document, 80)}#1-{most}"
        )
    return AskRequest(
        question=options.question,
        pages=pages,
        num_pages=options.pages or min(_DEFAULT_PAGES, most),
        documents=tuple(options.document),
        by=options.by,
    )


def _chooser(call: _Call, find_server: Callable[[], ChatServer]) -> IndexPages | None:
    options = call.options
    if options.index is None:
        return None
    from recipes.asking.page_choice import IndexPages, IndexPlace
    from recipes.asking.page_filter import filter_maker
    from recipes.indexing.settings import embedder_settings, index_settings

    place = IndexPlace(
        folder=options.index,
        settings=index_settings(call.index),
        embedder=lambda saved: embedder_settings(call.index, options.embedder, saved),
    )
    make_filter = filter_maker(call.filter, call.model.settings, find_server) if call.filter is not None else None
    return IndexPages(place, make_filter)


async def _answer(call: _Call, request: AskRequest, server: ChatServer, chooser: IndexPages | None) -> None:
    """Ask, and show what comes."""
    from recipes.asking.answer_view import AnswerView, view_console
    from recipes.asking.asker import ModelAsker
    from recipes.asking.engine_choice import opened_section_of
    from recipes.asking.event_json import event_json
    from rsgrpo.answering.records import Answered, PagesChosen

    options = call.options
    view = AnswerView(view_console(is_terminal=sys.stdout.isatty()), call.model.settings.response_format)
    is_json = options.json or options.json_events
    remarks: tuple[str, ...] = ()
    if call.example is not None and not is_json:
        view.show_question(call.example.question, call.example.pages)
    async with (
        ModelAsker(call.model.settings, server, chooser, opened=opened_section_of(call.model)) as asker,
        aclosing(asker.ask(request)) as events,
    ):
        async for event in events:
            if isinstance(event, PagesChosen):
                remarks = event.remarks
            if options.json_events:
                print(json.dumps(event_json(event), ensure_ascii=False), flush=True)
            elif options.json and isinstance(event, Answered):
                told = {**event_json(event), "model": call.model.name, "remarks": list(remarks)}
                print(json.dumps(told, ensure_ascii=False))
            elif not is_json:
                view.show(event)
            if isinstance(event, Answered):
                _end(call, event, asker, view if not is_json else None)


def _end(call: _Call, answered: Answered, asker: ModelAsker, view: AnswerView | None) -> None:
    """What comes behind the answer: the accepted answers of a test question, the pages in a browser."""
    if call.example is not None and view is not None:
        view.show_accepted(call.example.answers, is_sufficient=call.example.is_sufficient)
    if call.options.open:
        from recipes.asking.page_show import show_pages

        print(f"pages: {show_pages(answered, asker.image_url)}", file=sys.stderr)
