"""How soon the page of ``rsgrpo serve`` can be used: until a question can be typed and the documents are listed.

A new Chromium opens the page of a server that runs (any engine), each time with an empty cache. The clock is the
browser's own, from the start of the navigation. ``bytes`` is all that it loads until then.

    uv run python benchmarks/page_start.py --address http://127.0.0.1:8750
    uv run python benchmarks/page_start.py                  # an empty library of its own, without an engine
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from json_line import report

from recipes.asking.asker import ModelAsker
from recipes.asking.chat_server import RemoteServer, ServerAddress
from recipes.asking.model_choice import choose_model
from recipes.serving.access import AccessRules
from recipes.serving.answers import Answers
from recipes.serving.application import ServerParts, make_application
from recipes.serving.fair_queue import FairQueue, QueueBounds
from recipes.serving.history import History
from recipes.serving.library import Library
from recipes.serving.refusals import PathHider
from recipes.serving.search_thread import SearchThread
from recipes.serving.uploads import UploadBounds, UploadDesk
from rsgrpo.config.documents import RenderSettings
from rsgrpo.config.index import IndexConfig

# When both hold: the question box takes words, and the list of documents was filled in or said to be empty.
_USABLE = """
new Promise((resolve) => {
  const look = () => {
    const box = document.querySelector("#question");
    const is_listed = document.querySelector("#documents li")
      || document.querySelector("#documents-note")?.textContent.trim();
    if (box && !box.disabled && is_listed) resolve(performance.now());
    else setTimeout(look, 2);
  };
  look();
})
"""
_BYTES = """
[...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
  .reduce((sum, entry) => sum + entry.encodedBodySize, 0)
"""


def opened(address: str, rounds: int) -> tuple[list[float], int]:
    """Open the page some times; returns the seconds until it could be used, and the bytes that it loaded."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no chromium is installed; apt-get install chromium")
    seconds, num_bytes = [], 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(rounds):
            context = browser.new_context()  # with a cache of its own
            page: Any = context.new_page()
            page.goto(address, wait_until="commit")
            seconds.append(page.evaluate(_USABLE) / 1000)
            page.fill("#question", "What is it?")  # it does take words
            num_bytes = page.evaluate(_BYTES)
            context.close()
        browser.close()
    return seconds, num_bytes


@contextmanager
def empty_server() -> Iterator[str]:
    """Serve an empty library, without an engine: the page is the same."""
    with tempfile.TemporaryDirectory(prefix="page-start-") as folder:
        index, state = Path(folder) / "empty.index", Path(folder) / "served"

        def no_embedder() -> Any:
            raise SystemExit("an empty library embeds nothing")

        library = Library(index, IndexConfig(), RenderSettings(workers=1), no_embedder)
        hide = PathHider([index])
        engine = RemoteServer(ServerAddress(url="http://127.0.0.1:9/v1", model="none"))
        settings = choose_model(engine.address.url, served_name="none").settings
        answers = Answers(
            library=library,
            asker=ModelAsker(settings, engine),
            searcher=SearchThread(library),
            queue=FairQueue(QueueBounds()),
            hide=hide,
        )
        parts = ServerParts(
            answers=answers,
            desk=UploadDesk(library, state, UploadBounds(), hide),
            history=History(state),
            rules=AccessRules(secret=b"s" * 32),
            state_folder=state,
            model="none",
        )
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_application(parts), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            listener.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="", help="the address of a running server")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    if args.address:
        seconds, num_bytes = opened(args.address, args.rounds)
    else:
        with empty_server() as address:
            seconds, num_bytes = opened(address, args.rounds)
    report(
        "page_start",
        {
            "usable_seconds_median": round(statistics.median(seconds), 3),
            "usable_seconds_longest": round(max(seconds), 3),
            "rounds": args.rounds,
            "bytes": num_bytes,
        },
    )


if __name__ == "__main__":
    main()
