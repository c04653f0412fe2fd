"""Load on ``rsgrpo serve``: many users ask at once, next to the engine alone, in one run.

    uv run python benchmarks/serve_load.py --run runs/quickstart --embedder runs/embedder --pages scans \\
        --questions train.jsonl --seconds 600 --kill-engine

Every user has a session of its own. An answer belongs to its asker if the stream's texts are those of the answer, the
answer is to the question that was asked, and the user's history afterwards holds these questions with these answers
and no others. The engine is asked alone before and after, on the same questions with prompts that are ready. With
``--kill-engine`` the server has an engine of its own, whose process is killed (SIGKILL) in the middle, and nothing is
compared; ``--kill-server`` kills the server at the end, starts it again, and compares the histories.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from json_line import report

from recipes.asking.chat_server import ChatServer, ServerAddress
from recipes.asking.chat_stream import ChatClient, ChatEnd, ChatQuestion, Message
from recipes.asking.engine_choice import open_server
from recipes.asking.messages import MessageWriter
from recipes.asking.model_choice import ChosenModel, choose_model
from recipes.asking.page_choice import IndexPages, IndexPlace
from recipes.asking.page_images import PageImages
from recipes.indexing.settings import GivenSettings, embedder_settings
from rsgrpo.answering.records import AskRequest
from rsgrpo.config import SamplingConfig
from rsgrpo.config.index import IndexConfig

_PROGRAM = [sys.executable, "-m", "recipes.commands.program"]
_START_SECONDS = 900.0
_ANSWER_SECONDS = 900.0
_WARM_UP = "What comes first?"
_KEY_VARIABLE = "SERVE_LOAD_ENGINE_KEY"


@dataclass(kw_only=True)
class Tally:
    """What came of a phase."""

    num_answers: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    asked: dict[int, list[tuple[str, str]]] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """Give it in numbers."""
        ordered = sorted(self.waits)
        return {
            "answers": self.num_answers,
            "answers_per_second": round(self.num_answers / self.seconds, 3),
            "response_tokens_per_second": round(self.num_tokens / self.seconds, 2),
            "seconds": round(self.seconds, 1),
            "median_answer_seconds": round(ordered[len(ordered) // 2], 2) if ordered else None,
            "longest_answer_seconds": round(ordered[-1], 2) if ordered else None,
            "problems": len(self.problems),
        }


def question_of(questions: Sequence[str], user: int, number: int) -> str:
    return questions[(user * 7919 + number) % len(questions)]


def ready_prompts(
    model: ChosenModel, index: Path, questions: Sequence[str], args: argparse.Namespace
) -> dict[str, Sequence[Message]]:
    """Search and write the prompts of the questions, so that the engine alone has nothing to wait for."""
    place = IndexPlace(
        folder=index,
        settings=IndexConfig(),
        embedder=lambda saved: embedder_settings(GivenSettings(), args.embedder, saved),
    )
    chooser, images = IndexPages(place), PageImages(model.settings.image_rules)
    writer = MessageWriter(model.settings.prompt, model.settings.response_format)
    most = model.settings.max_images
    ready: dict[str, Sequence[Message]] = {}
    for text in dict.fromkeys(
        question_of(questions, user, number) for user in range(args.users) for number in range(8)
    ):
        request = AskRequest(question=text, num_pages=min(args.num_pages, most))
        ready[text] = writer.messages(request, chooser.choose(request, most).pages, images.url)
    return ready


async def engine_alone(
    server: ChatServer, sampling: SamplingConfig, ready: Mapping[str, Sequence[Message]], args: argparse.Namespace
) -> Tally:
    """Ask the engine itself, as many questions at once as there are users, with prompts that are ready."""
    texts = list(ready)
    tally = Tally()
    async with ChatClient(server) as client:

        async def ask(text: str) -> int:
            tokens = 0
            async for piece in client.stream(ChatQuestion(messages=ready[text], sampling=sampling)):
                tokens = piece.response_tokens if isinstance(piece, ChatEnd) else tokens
            return tokens

        await ask(texts[0])  # the first compiles and warms
        begin = time.monotonic()

        async def user(number: int) -> None:
            count = number
            while time.monotonic() - begin < args.alone_seconds:
                asked = time.monotonic()
                num_tokens = await ask(texts[count % len(texts)])
                tally.num_tokens += num_tokens  # not in one line: the sum would be read before the wait
                tally.num_answers += 1
                tally.waits.append(time.monotonic() - asked)
                count += 1

        await asyncio.gather(*(user(number) for number in range(args.users)))
        tally.seconds = time.monotonic() - begin
    return tally


async def events(reply: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in reply.aiter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


async def ask_server(client: httpx.AsyncClient, question: str, num_pages: int) -> dict[str, Any]:
    """Ask the server; raises ValueError where the stream's texts are not the answer's."""
    sections: dict[str, str] = {}
    answer: dict[str, Any] | None = None
    async with client.stream("POST", "/api/ask", json={"question": question, "num_pages": num_pages}) as reply:
        if reply.status_code != 200:
            raise ValueError(f"status {reply.status_code}: {(await reply.aread()).decode()[:200]}")
        async for name, document in events(reply):
            if name == "text":
                sections[document["section"]] = sections.get(document["section"], "") + document["text"]
            elif name == "problem":
                raise ValueError(document["error"]["message"])
            elif name == "answered":
                answer = document
    if answer is None:
        raise ValueError("the stream ended without an answer")
    streamed = {name: text.strip() for name, text in sections.items() if name and text.strip()}
    finished = {name: text.strip() for name, text in answer["sections"].items() if text.strip()}
    # A section that the model leaves open streams, and is none of the finished answer's.
    if answer["question"] != question or any(streamed.get(name) != text for name, text in finished.items()):
        raise ValueError(f"the answer to {question!r} is {answer['question']!r} with {streamed} and {finished}")
    return answer


class Server:
    """``rsgrpo serve`` as a process."""

    def __init__(self, args: argparse.Namespace, index: Path, engine: ServerAddress | None) -> None:
        self._log = args.folder / "serve.log"
        self._call = [*_PROGRAM, "serve", "--index", str(index), "--sessions", "--port", "0"]
        self._environment = dict(os.environ)
        if engine is None:
            self._call += ["--model", str(args.run)]
        else:
            self._call += ["--model", engine.url, "--model-name", engine.model, "--settings", str(args.run)]
            self._call += ["--at-once", str(args.users)]
            if engine.key:
                self._environment[_KEY_VARIABLE] = engine.key
                self._call += ["--api-key-variable", _KEY_VARIABLE]
        self.start()

    def start(self) -> None:
        """Start the process, and wait until it listens."""
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(self._call, stdout=log, stderr=subprocess.STDOUT, env=self._environment)
        begin = time.monotonic()
        while not (found := re.search(r"^(http://\S+)", self._log.read_text(), re.MULTILINE)):
            if self.process.poll() is not None or time.monotonic() - begin > _START_SECONDS:
                raise SystemExit(f"the server does not start: {self._log.read_text()[-800:]}")
            time.sleep(0.2)
        self.address = found[1]
        self.start_seconds = time.monotonic() - begin

    def kill_engine(self) -> int:
        """Kill the process of the engine that the server has started; returns how many were killed."""
        told = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in told.splitlines()[1:]]
        below = {self.process.pid}
        for _ in range(8):
            below |= {int(pid) for pid, parent, _ in rows if int(parent) in below}
        engines = [int(pid) for pid, _, words in rows if int(pid) in below and "api_server" in words]
        for pid in engines:
            os.kill(pid, signal.SIGKILL)
        return len(engines)

    def end(self) -> int:
        """End it by Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


async def through_server(server: Server, questions: Sequence[str], args: argparse.Namespace) -> tuple[Tally, list[str]]:
    """Let all users ask, one question after the other each."""
    tally = Tally()
    headers = {"X-Rsgrpo": "1"}
    clients = [
        httpx.AsyncClient(base_url=server.address, headers=headers, timeout=_ANSWER_SECONDS) for _ in range(args.users)
    ]
    for client in clients:
        (await client.get("/")).raise_for_status()
    await ask_server(clients[0], _WARM_UP, args.num_pages)
    begin = time.monotonic()

    async def user(number: int) -> None:
        mine = tally.asked.setdefault(number, [])
        count = 0
        while time.monotonic() - begin < args.seconds:
            question = question_of(questions, number, count)
            asked = time.monotonic()
            try:
                answer = await ask_server(clients[number], question, args.num_pages)
            except (ValueError, httpx.HTTPError) as error:
                tally.problems.append(f"user {number}: {type(error).__name__} {error}")
                continue
            mine.append((question, answer["response"]))
            tally.num_answers += 1
            tally.num_tokens += answer["spent"]["response_tokens"]
            tally.waits.append(time.monotonic() - asked)
            count += 1

    async def killer() -> None:
        await asyncio.sleep(args.seconds / 2)
        print(f"engines killed: {server.kill_engine()}", file=sys.stderr)

    await asyncio.gather(*(user(number) for number in range(args.users)), *([killer()] if args.kill_engine else []))
    tally.seconds = time.monotonic() - begin
    tally.problems += await strangers(clients, tally)
    for client in clients:
        await client.aclose()
    return tally, [f"{name}={value}" for client in clients for name, value in client.cookies.items()]


async def history_of(client: httpx.AsyncClient) -> list[tuple[str, str]]:
    found = []
    for listed in (await client.get("/api/history")).json()["conversations"]:
        turns = (await client.get(f"/api/history/{listed['conversation']}")).json()["turns"]
        found += [(turn["question"], turn["answer"]["response"]) for turn in turns if turn["state"] == "answered"]
    return found


async def strangers(clients: Sequence[httpx.AsyncClient], tally: Tally) -> list[str]:
    """Compare each user's history with what the user was answered."""
    problems = []
    for number, client in enumerate(clients):
        kept = [pair for pair in await history_of(client) if pair[0] != _WARM_UP]
        if sorted(kept) != sorted(tally.asked.get(number, [])):
            problems.append(f"user {number}: the history is not what was answered")
    return problems


async def histories(address: str, cookies: Sequence[str]) -> list[list[tuple[str, str]]]:
    found = []
    for cookie in cookies:
        async with httpx.AsyncClient(base_url=address, headers={"Cookie": cookie}, timeout=60) as client:
            found.append(sorted(await history_of(client)))
    return found


def read_questions(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    questions = [str(row.get("question") or row.get("query")) for row in rows]
    return list(dict.fromkeys(question for question in questions if question and question != "None"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run folder of the policy")
    parser.add_argument("--embedder", required=True, help="the folder of the embedder")
    parser.add_argument("--pages", type=Path, required=True, help="a folder of documents")
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with a question (or query) each")
    parser.add_argument("--folder", type=Path, required=True, help="where index, history and logs lie")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--num-pages", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the users ask the server")
    parser.add_argument("--alone-seconds", type=float, default=120.0, help="how long the engine is asked alone")
    parser.add_argument("--kill-engine", action="store_true", help="kill the engine in the middle")
    parser.add_argument("--kill-server", action="store_true", help="kill the server at the end, and compare")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    index = args.folder / "load.index"
    subprocess.run([*_PROGRAM, "index", args.pages, "--out", index, "--embedder", args.embedder], check=True)
    questions = read_questions(args.questions)
    model = choose_model(str(args.run))
    with ExitStack() as stack:
        alone: list[Tally] = []
        engine = None
        if not args.kill_engine:  # one engine for both: what the server costs is all that differs
            ready = ready_prompts(model, index, questions, args)
            engine = stack.enter_context(open_server(model))
            alone.append(asyncio.run(engine_alone(engine, model.settings.sampling, ready, args)))
        server = Server(args, index, engine.address if engine is not None else None)
        stack.callback(lambda: server.process.kill())  # of no effect where it has ended
        served, cookies = asyncio.run(through_server(server, questions, args))
        if engine is not None:  # once more, since others may use the machine
            alone.append(asyncio.run(engine_alone(engine, model.settings.sampling, ready, args)))
        for number, tally in enumerate(alone, start=1):
            report("serve_load", {"phase": f"engine alone {number}", **tally.told()})
        report("serve_load", {"phase": "served", "users": args.users, **served.told(), **_ratio(served, alone)})
        _end(args, server, served, cookies)
    for problem in served.problems[:20]:
        print(problem, file=sys.stderr)
    sys.exit(1 if served.problems else 0)


def _ratio(served: Tally, alone: Sequence[Tally]) -> dict[str, Any]:
    if not alone:
        return {}
    of_engine = sum(tally.num_tokens for tally in alone) / sum(tally.seconds for tally in alone)
    return {"of_engine_alone": round(served.num_tokens / served.seconds / of_engine, 3)}


def _end(args: argparse.Namespace, server: Server, served: Tally, cookies: Sequence[str]) -> None:
    if args.kill_server:
        before = asyncio.run(histories(server.address, cookies))
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        server.start()
        is_whole = asyncio.run(histories(server.address, cookies)) == before
        report("serve_load", {"phase": "server killed", "histories_whole": is_whole})
        served.problems += [] if is_whole else ["the histories differ after the server was killed"]
    report("serve_load", {"phase": "end", "exit_status_after_ctrl_c": server.end()})


if __name__ == "__main__":
    main()
