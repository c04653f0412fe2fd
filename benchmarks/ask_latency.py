"""How fast ``rsgrpo ask`` begins to answer with a warm engine: beside the engine alone, and a second time.

A small model with random weights answers questions about pages of text, each page new to the engine. Every round
measures, in seconds from the question until the first token:

    alone      the engine alone: the request is made ready beforehand, pages of the same size
    asked      through the asker: pages read, scaled and packed, then asked, its stream taken apart
    second     another question about the pages of ``asked``, alone in its conversation
    follow_up  another question about the pages of ``asked``, in the same conversation

With ``--index`` each round also asks a question of the index, of pages that were loaded before: the time of the search,
which is added to that of loading new pages.

    uv run python benchmarks/ask_latency.py
    uv run python benchmarks/ask_latency.py --order text_first
    uv run python benchmarks/ask_latency.py --model runs/quickstart --index pages.index --question "What is it?"
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import aclosing
from pathlib import Path

import httpx
from image_reading import written_image
from json_line import report
from PIL import ImageDraw
from workload import SHAPES, build_model

from recipes.asking.asker import ModelAsker
from recipes.asking.chat_server import ChatServer
from recipes.asking.chat_stream import ChatQuestion
from recipes.asking.engine_choice import open_server
from recipes.asking.messages import MessageWriter
from recipes.asking.model_choice import AskSettings, choose_model
from recipes.asking.page_choice import IndexPages, IndexPlace, named_pages
from recipes.asking.page_images import PageImages
from recipes.indexing.settings import GivenSettings, embedder_settings
from rsgrpo.answering.records import Answered, AskRequest, EarlierTurn, LookedAtPage, SectionText
from rsgrpo.config.index import IndexConfig

_RESPONSE_TOKENS = 64
_FIRST, _SECOND = "By how much did the revenue grow?", "What was the revenue of the third quarter?"


def new_pages(folder: Path, number: int, num_pages: int, size: tuple[int, int]) -> tuple[str, ...]:
    """Pages of text that differ from all others in their first line."""
    files = []
    for place in range(num_pages):
        image = written_image(*size)
        ImageDraw.Draw(image).text((60, 15), f"Report {number}, page {place + 1}", fill="black")
        file = folder / f"{number}-{place}.png"
        image.save(file)
        files.append(str(file))
    return tuple(files)


async def asked(asker: ModelAsker, request: AskRequest) -> tuple[float, Answered]:
    """Seconds until the first text of an answer, and the answer."""
    begin = time.perf_counter()
    first = 0.0
    async with aclosing(asker.ask(request)) as events:
        async for event in events:
            if isinstance(event, SectionText):
                first = first or time.perf_counter() - begin
            elif isinstance(event, Answered):
                return first, event
    raise AssertionError("the last event is the answer")


async def alone(client: httpx.AsyncClient, server: ChatServer, body: bytes) -> float:
    """Seconds until the first text of the engine's stream, where the request is ready."""
    begin = time.perf_counter()
    url = f"{server.address.url}/chat/completions"
    headers = {**server.address.headers, "content-type": "application/json"}
    first = 0.0
    async with client.stream("POST", url, content=body, headers=headers) as reply:
        async for line in reply.aiter_lines():
            if not first and line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                if choices and choices[0]["delta"].get("content"):
                    first = time.perf_counter() - begin
    return first


class Bench:
    """One engine, asked both ways."""

    def __init__(self, options: argparse.Namespace, settings: AskSettings, server: ChatServer, folder: Path) -> None:
        self.options = options
        self.settings = settings
        self.server = server
        self.folder = folder
        self.writer = MessageWriter(settings.prompt, settings.response_format)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.num_pages = 0

    def pages(self) -> tuple[LookedAtPage, ...]:
        """Pages that the engine has not seen."""
        self.num_pages += 1
        files = new_pages(self.folder, self.num_pages, self.options.pages, (self.options.width, self.options.height))
        return named_pages(files, self.folder, self.settings.image_rules)

    def body(self) -> bytes:
        """A request that is ready to be sent."""
        request = AskRequest(question=_FIRST, pages=self.pages())
        messages = self.writer.messages(request, request.pages, PageImages(self.settings.image_rules, is_near=True).url)
        question = ChatQuestion(messages=messages, sampling=self.settings.sampling)
        return json.dumps(question.body(self.server.address.model)).encode()

    async def round(self, asker: ModelAsker, client: httpx.AsyncClient, number: int) -> None:
        """Ask once each way."""
        pages, body = self.pages(), self.body()

        async def by_engine() -> None:
            self.seconds["alone"].append(await alone(client, self.server, body))

        async def by_asker() -> Answered:
            first, answered = await asked(asker, AskRequest(question=_FIRST, pages=pages))
            self.seconds["asked"].append(first)
            self.seconds["loading"].append(answered.spent.choose_seconds)
            self.seconds["total"].append(answered.spent.total_seconds)
            return answered

        if number % 2:
            await by_engine()
            answered = await by_asker()
        else:
            answered = await by_asker()
            await by_engine()
        first, again = await asked(asker, AskRequest(question=_SECOND, pages=pages))
        self.seconds["second"].append(first)
        self.seconds["second_cached_share"].append((again.spent.cached_tokens or 0) / again.spent.prompt_tokens)
        earlier = (EarlierTurn(question=_FIRST, response=answered.response),)
        first, again = await asked(asker, AskRequest(question=_SECOND, pages=pages, earlier=earlier))
        self.seconds["follow_up"].append(first)
        self.seconds["follow_up_cached_share"].append((again.spent.cached_tokens or 0) / again.spent.prompt_tokens)
        if self.options.index:
            question = f"{self.options.question} ({number})"
            first, found = await asked(asker, AskRequest(question=question, num_pages=self.options.pages))
            self.seconds["index_first"].append(first)
            self.seconds["searching"].append(found.spent.choose_seconds)

    async def run(self, chooser: IndexPages | None) -> None:
        """Ask in rounds, the first of which does not count."""
        async with (
            ModelAsker(self.settings, self.server, chooser) as asker,
            httpx.AsyncClient(timeout=None, trust_env=False) as client,
        ):
            await self.round(asker, client, 0)  # warms up
            self.seconds.clear()
            for number in range(1, self.options.rounds + 1):
                await self.round(asker, client, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a run or model folder; default: random weights of --shape")
    parser.add_argument("--shape", default="narrow", choices=sorted(SHAPES))
    parser.add_argument("--order", default="images_first", choices=("images_first", "text_first"))
    parser.add_argument("--index", type=Path)
    parser.add_argument("--question", default="What does it cost?")
    parser.add_argument("--pages", type=int, default=2)
    parser.add_argument("--width", type=int, default=1064, help="of a page, in pixels")
    parser.add_argument("--height", type=int, default=1484)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or str(build_model(SHAPES[options.shape], folder / "model"))
        given = (
            {}
            if options.model
            else {
                "prompt": {"image_order": options.order},
                "sampling": {"max_response_tokens": _RESPONSE_TOKENS},
                "rollout": {"max_model_tokens": 8192, "max_batched_tokens": 8192, "enforce_eager": True},
                "model": {"dtype": "float32"},
            }
        )
        chosen = choose_model(model, given=given)
        chooser = None
        if options.index:
            place = IndexPlace(
                folder=options.index,
                settings=IndexConfig(),
                embedder=lambda saved: embedder_settings(GivenSettings(), "", saved),
            )
            chooser = IndexPages(place)
            chooser.prepare()
        # Conversations are measured with every model.
        settings = dataclasses.replace(chosen.settings, keeps_turns=True)
        with open_server(chosen) as server:
            bench = Bench(options, settings, server, folder)
            asyncio.run(bench.run(chooser))
    medians = {name: statistics.median(values) for name, values in bench.seconds.items()}
    searching = medians.get("searching", 0.0)
    first_times = {name: f"{statistics.median(values):.4f}" for name, values in bench.seconds.items()}
    ratios = [one / other for one, other in zip(bench.seconds["asked"], bench.seconds["alone"], strict=True)]
    report(
        "ask_latency",
        {
            "options": {key: str(value) for key, value in vars(options).items()},
            "medians": first_times,
            "choosing_share": round((searching + medians["loading"]) / (searching + medians["total"]), 4),
            "asked_over_alone": round(medians["asked"] / medians["alone"], 3),
            "asked_over_alone_by_round": [round(ratio, 2) for ratio in ratios],
            "first_over_second": round(medians["asked"] / medians["second"], 2),
            "first_over_follow_up": round(medians["asked"] / medians["follow_up"], 2),
        },
    )


if __name__ == "__main__":
    main()
