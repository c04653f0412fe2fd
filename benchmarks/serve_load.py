"""Load on ``rsgrpo serve``: many users ask at once, next to the engine alone, in one run.

    uv run python benchmarks/serve_load.py --run runs/quickstart --embedder runs/embedder --pages scans \\
        --questions train.jsonl --seconds 600 --kill-engine

Every user has a session of its own. An answer belongs to its asker if the stream's texts are those of the answer, the
answer is to the question that was asked, and the user's history afterwards holds these questions with these answers
and no others. The server starts its own engine. Before and after, an engine that is started with the same settings is
asked alone: the same questions, with prompts that are ready, are sent straight to vLLM's server by the same load
generator, as streams as well: token by token, as clients have it by default, and in pieces of as many tokens as the
server asks for. Each user goes round the same few questions in all phases, so that the engine's caches have as much to
give in each. Beside the times stand the milliseconds of processor time that an answer takes of the load generator, the
server (its search included) and the engine. ``--kill-engine`` kills the engine's process (SIGKILL) in the middle, and
compares nothing; ``--kill-server`` kills the server at the end, starts it again, and compares the histories.
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
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from json_line import report

from recipes.asking.chat_stream import ChatQuestion, Message, pieces_asked
from recipes.asking.engine_choice import engine_settings
from recipes.asking.engine_server import EngineServer
from recipes.asking.messages import MessageWriter
from recipes.asking.model_choice import ChosenModel, choose_model
from recipes.asking.page_choice import IndexPages, IndexPlace
from recipes.asking.page_images import PageImages
from recipes.indexing.settings import GivenSettings, embedder_settings
from recipes.serving.serve_command import ENGINE_NICENESS
from rsgrpo.answering.records import AskRequest
from rsgrpo.config import SamplingConfig
from rsgrpo.config.index import IndexConfig

_PROGRAM = [sys.executable, "-m", "recipes.commands.program"]
_START_SECONDS = 900.0
_NO_LIMIT = aiohttp.ClientTimeout(total=None, sock_read=900.0)
_QUESTIONS_OF_ONE = 16  # each user goes round so many
_WARM_UP = "What comes first?"


@dataclass(kw_only=True)
class Tally:
    """What came of a phase."""

    num_answers: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    processor_seconds: dict[str, float] = field(default_factory=dict)
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
            "processor_ms_per_answer": {
                name: round(1000 * seconds / max(1, self.num_answers), 1)
                for name, seconds in self.processor_seconds.items()
            },
            "problems": len(self.problems),
        }


def question_of(questions: Sequence[str], user: int, number: int) -> str:
    return questions[(user * 7919 + number % _QUESTIONS_OF_ONE) % len(questions)]


def ready_prompts(
    model: ChosenModel, index: Path, questions: Sequence[str], args: argparse.Namespace
) -> dict[str, Sequence[Message]]:
    """Search and write the prompts of the questions, so that the engine alone has nothing to wait for."""
    place = IndexPlace(
        folder=index,
        settings=IndexConfig(),
        embedder=lambda saved: embedder_settings(GivenSettings(), args.embedder, saved),
    )
    chooser, images = IndexPages(place), PageImages(model.settings.image_rules, is_near=True)
    writer = MessageWriter(model.settings.prompt, model.settings.response_format)
    most = model.settings.max_images
    ready: dict[str, Sequence[Message]] = {}
    asked = [question_of(questions, user, number) for user in range(args.users) for number in range(_QUESTIONS_OF_ONE)]
    for text in dict.fromkeys([_WARM_UP, *asked]):
        request = AskRequest(question=text, num_pages=min(args.num_pages, most))
        ready[text] = writer.messages(request, chooser.choose(request, most).pages, images.url)
    return ready


async def events(reply: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    """The events of a stream: their names and what they say."""
    name, rest = "", b""
    while data := await reply.content.readany():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"event: "):
                name = line[7:].decode()
            elif line.startswith(b"data: ") and line != b"data: [DONE]":
                yield name, json.loads(line[6:])


async def ask_engine(client: aiohttp.ClientSession, body: Mapping[str, object]) -> int:
    """Ask the engine itself; returns the number of tokens that it answers with."""
    tokens = 0
    async with client.post("/v1/chat/completions", json=body) as reply:
        if reply.status != 200:
            raise SystemExit(f"the engine refuses a question: {(await reply.text())[:400]}")
        async for _, document in events(reply):
            tokens = (document.get("usage") or {}).get("completion_tokens", tokens)
    return tokens


async def engine_alone(
    engine: EngineServer,
    sampling: SamplingConfig,
    ready: Mapping[str, Sequence[Message]],
    questions: Sequence[str],
    args: argparse.Namespace,
    pieces: Mapping[str, object],
) -> Tally:
    """Ask the engine itself, as many questions at once as there are users, with prompts that are ready."""
    address = engine.address
    bodies = {
        text: ChatQuestion(messages=messages, sampling=sampling).body(address.model) | dict(pieces)
        for text, messages in ready.items()
    }
    tally = Tally()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                aiohttp.ClientSession(address.url.removesuffix("/v1"), headers=address.headers, timeout=_NO_LIMIT)
            )
            for _ in range(args.users)
        ]
        await ask_engine(clients[0], bodies[_WARM_UP])  # the first compiles and warms
        spent = ProcessorTimes({"engine": engine.pid})
        begin = time.monotonic()

        async def user(number: int) -> None:
            count = 0
            while time.monotonic() - begin < args.alone_seconds:
                asked = time.monotonic()
                num_tokens = await ask_engine(clients[number], bodies[question_of(questions, number, count)])
                tally.num_tokens += num_tokens  # not in one line: the sum would be read before the wait
                tally.num_answers += 1
                tally.waits.append(time.monotonic() - asked)
                count += 1

        await asyncio.gather(*(user(number) for number in range(args.users)))
        tally.seconds = time.monotonic() - begin
        tally.processor_seconds = spent.so_far()
    return tally


async def both_ways(
    model: ChosenModel, ready: Mapping[str, Sequence[Message]], questions: Sequence[str], args: argparse.Namespace
) -> dict[str, Tally]:
    """Ask an engine of its own token by token, and in pieces as the server asks for them."""
    with EngineServer(engine_settings(model), niceness=ENGINE_NICENESS) as engine:
        ask = partial(engine_alone, engine, model.settings.sampling, ready, questions, args)
        by_token = await ask({})
        pieces = pieces_asked(args.users, by_token.num_tokens / sum(by_token.waits))
        return {"token by token": by_token, "in pieces": await ask(pieces)}


async def ask_server(client: aiohttp.ClientSession, question: str, num_pages: int) -> dict[str, Any]:
    """Ask the server; raises ValueError where the stream's texts are not the answer's."""
    sections: dict[str, str] = {}
    answer: dict[str, Any] | None = None
    async with client.post("/api/ask", json={"question": question, "num_pages": num_pages}) as reply:
        if reply.status != 200:
            raise ValueError(f"status {reply.status}: {(await reply.text())[:200]}")
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


def processes_below(parents: Iterable[int]) -> dict[int, str]:
    """The processes below some, with their command lines; the ones given among them."""
    told = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in told.splitlines()[1:]]
    below = set(parents)
    for _ in range(8):
        below |= {int(pid) for pid, parent, _ in rows if int(parent) in below}
    return {int(pid): words for pid, _, words in rows if int(pid) in below}


class ProcessorTimes:
    """Counts the processor time of some processes, those below them included, from its making on.

    What is below an engine is the engine's, also where the engine is below the server.
    """

    def __init__(self, parents: Mapping[str, int]) -> None:
        self._parents = parents
        self._begin = self._now()

    def so_far(self) -> dict[str, float]:
        """The seconds of each, and of this process."""
        return {name: seconds - self._begin[name] for name, seconds in self._now().items()}

    def _now(self) -> dict[str, float]:
        found = {"load generator": time.process_time()}
        seen: set[int] = set()
        for name, parent in self._parents.items():
            ticks = 0
            below = processes_below([parent]).keys() - seen
            seen |= below
            for pid in below:
                with suppress(OSError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    ticks += int(fields[11]) + int(fields[12])
            found[name] = ticks / os.sysconf("SC_CLK_TCK")
        return found


class Server:
    """``rsgrpo serve`` as a process."""

    def __init__(self, args: argparse.Namespace, index: Path) -> None:
        self._log = args.folder / "serve.log"
        self._call = [*_PROGRAM, "serve", "--index", str(index), "--sessions", "--port", "0", "--model", str(args.run)]
        if args.engine_threads:
            self._call.append(f"rollout.num_threads={args.engine_threads}")
        self.start()

    def start(self) -> None:
        """Start the process, and wait until it listens."""
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(self._call, stdout=log, stderr=subprocess.STDOUT)
        begin = time.monotonic()
        while not (found := re.search(r"^(http://\S+)", self._log.read_text(), re.MULTILINE)):
            if self.process.poll() is not None or time.monotonic() - begin > _START_SECONDS:
                raise SystemExit(f"the server does not start: {self._log.read_text()[-800:]}")
            time.sleep(0.2)
        self.address = found[1]
        self.start_seconds = time.monotonic() - begin

    @property
    def engine_pid(self) -> int:
        """The process of the engine that the server has started."""
        (pid,) = (pid for pid, words in processes_below([self.process.pid]).items() if "api_server" in words)
        return pid

    def end(self) -> int:
        """End it by Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


async def through_server(server: Server, questions: Sequence[str], args: argparse.Namespace) -> tuple[Tally, list[str]]:
    """Let all users ask, one question after the other each."""
    tally = Tally()
    clients = [session_of(server) for _ in range(args.users)]
    for client in clients:
        async with client.get("/") as reply:
            reply.raise_for_status()
    await ask_server(clients[0], _WARM_UP, args.num_pages)
    spent = ProcessorTimes({"engine": server.engine_pid, "server": server.process.pid})
    begin = time.monotonic()

    async def user(number: int) -> None:
        mine = tally.asked.setdefault(number, [])
        count = 0
        while time.monotonic() - begin < args.seconds:
            question = question_of(questions, number, count)
            asked = time.monotonic()
            try:
                answer = await ask_server(clients[number], question, args.num_pages)
            except (ValueError, aiohttp.ClientError, OSError) as error:
                tally.problems.append(f"user {number}: {type(error).__name__} {error}")
                continue
            mine.append((question, answer["response"]))
            tally.num_answers += 1
            tally.num_tokens += answer["spent"]["response_tokens"]
            tally.waits.append(time.monotonic() - asked)
            count += 1

    async def killer() -> None:
        await asyncio.sleep(args.seconds / 2)
        os.kill(server.engine_pid, signal.SIGKILL)

    await asyncio.gather(*(user(number) for number in range(args.users)), *([killer()] if args.kill_engine else []))
    tally.seconds = time.monotonic() - begin
    if not args.kill_engine:  # what a process took that is gone is not known
        tally.processor_seconds = spent.so_far()
    tally.problems += await strangers(clients, tally)
    for client in clients:
        await client.close()
    return tally, [f"{cookie.key}={cookie.value}" for client in clients for cookie in client.cookie_jar]


def session_of(server: Server, cookie: str = "") -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        server.address,
        headers={"X-Rsgrpo": "1", **({"Cookie": cookie} if cookie else {})},
        cookie_jar=aiohttp.DummyCookieJar() if cookie else aiohttp.CookieJar(unsafe=True),  # of an address, not a name
        timeout=_NO_LIMIT,
    )


async def json_of(client: aiohttp.ClientSession, path: str) -> Any:
    async with client.get(path) as reply:
        reply.raise_for_status()
        return await reply.json()


async def history_of(client: aiohttp.ClientSession) -> list[tuple[str, str]]:
    found = []
    for listed in (await json_of(client, "/api/history"))["conversations"]:
        turns = (await json_of(client, f"/api/history/{listed['conversation']}"))["turns"]
        found += [(turn["question"], turn["answer"]["response"]) for turn in turns if turn["state"] == "answered"]
    return found


async def strangers(clients: Sequence[aiohttp.ClientSession], tally: Tally) -> list[str]:
    """Compare each user's history with what the user was answered."""
    problems = []
    for number, client in enumerate(clients):
        kept = [pair for pair in await history_of(client) if pair[0] != _WARM_UP]
        if sorted(kept) != sorted(tally.asked.get(number, [])):
            problems.append(f"user {number}: the history is not what was answered")
    return problems


async def histories(server: Server, cookies: Sequence[str]) -> list[list[tuple[str, str]]]:
    found = []
    for cookie in cookies:
        async with session_of(server, cookie) as client:
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
    parser.add_argument("--engine-threads", type=int, default=0, help="threads of the engine; 0: as it chooses")
    parser.add_argument("--kill-engine", action="store_true", help="kill the engine in the middle")
    parser.add_argument("--kill-server", action="store_true", help="kill the server at the end, and compare")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    index = args.folder / "load.index"
    subprocess.run([*_PROGRAM, "index", args.pages, "--out", index, "--embedder", args.embedder], check=True)
    questions = read_questions(args.questions)
    threads = {"rollout": {"num_threads": args.engine_threads}} if args.engine_threads else {}
    model = choose_model(str(args.run), given=threads)
    compares = not args.kill_engine
    ready = ready_prompts(model, index, questions, args) if compares else {}
    alone = asyncio.run(both_ways(model, ready, questions, args)) if compares else {}
    with ExitStack() as stack:
        server = Server(args, index)
        stack.callback(lambda: server.process.kill())  # of no effect where it has ended
        served, cookies = asyncio.run(through_server(server, questions, args))
        _end(args, server, served, cookies)
    again = asyncio.run(both_ways(model, ready, questions, args)) if compares else {}  # others may use the machine
    ratios = {}
    for name, before in alone.items():
        both = [before, again[name]]
        for number, tally in enumerate(both, start=1):
            report("serve_load", {"phase": f"engine alone {number}, {name}", **tally.told()})
        ratios[f"of_engine_alone_{name.replace(' ', '_')}"] = _ratio(served, both)
    report("serve_load", {"phase": "served", "users": args.users, **served.told(), **ratios})
    for problem in served.problems[:20]:
        print(problem, file=sys.stderr)
    sys.exit(1 if served.problems else 0)


def _ratio(served: Tally, alone: Sequence[Tally]) -> float:
    of_engine = sum(tally.num_tokens for tally in alone) / sum(tally.seconds for tally in alone)
    return round(served.num_tokens / served.seconds / of_engine, 3)


def _end(args: argparse.Namespace, server: Server, served: Tally, cookies: Sequence[str]) -> None:
    if args.kill_server:
        before = asyncio.run(histories(server, cookies))
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        server.start()
        is_whole = asyncio.run(histories(server, cookies)) == before
        report("serve_load", {"phase": "server killed", "histories_whole": is_whole})
        served.problems += [] if is_whole else ["the histories differ after the server was killed"]
    report("serve_load", {"phase": "end", "exit_status_after_ctrl_c": server.end()})


if __name__ == "__main__":
    main()
