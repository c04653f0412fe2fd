"""``rsgrpo serve`` as a process of its own, with a fake model server behind it; slips in the call."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from recipes.serving.serve_command import TOKEN_VARIABLE, main
from rsgrpo.io.writer_lock import WriterLock
from tests.fake_server import FakeServer, Reply
from tests.programs import TIMEOUT_SECONDS, start_python
from tests.unit.asking.stream_server import answering, streamed
from tests.unit.documents.handmade_pdfs import make_pdf, text_pages
from tests.unit.serving.served import OWN, TOKEN, events

CODE = """
import sys
from recipes.serving.serve_command import main
from tests.unit.serving.served import FileEmbedder
status = main(sys.argv[1:], make_embedder=lambda config: FileEmbedder())
import torch
print("threads:", torch.get_num_threads(), file=sys.stderr)
sys.exit(status)
"""


@contextmanager
def running(folder: Path, model: str, *more: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Serve; gives the process and a client of it."""
    arguments = ["--index", str(folder / "my.index"), "--model", model, "--model-name", "m", *more]
    process = start_python(CODE, *arguments, "--port", "0", "--embedder", "any", "documents.workers=1")
    assert process.stdout is not None and process.stderr is not None
    try:
        found = re.match(r"http://\S+", process.stdout.readline())
        assert found, process.stderr.read()
        with httpx.Client(base_url=found[0], headers=OWN, timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.wait(TIMEOUT_SECONDS)


def late(question: str, attempt: int) -> Reply:
    """A reply that comes after its server was killed."""
    time.sleep(3)
    return streamed("late")


def _bring(client: httpx.Client) -> None:
    content = make_pdf(text_pages("Total amount 4210 EUR"))
    key = client.post("/api/documents", params={"name": "a.pdf"}, content=content).json()["key"]
    *_, (_, last) = events(client.get(f"/api/documents/{key}/progress").text)
    assert last["state"] == "done", last


def test_it_serves_survives_a_kill_with_history_and_index_and_ends_by_ctrl_c(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    model = FakeServer()
    with closing(model):
        answering(model)
        with running(tmp_path, model.url) as (process, client):
            client.get("/")
            _bring(client)
            found = events(client.post("/api/ask", json={"question": "which?"}).text)
            assert found[-1][1]["answer"] == "two" and [name for name, _ in found][:2] == ["turn", "pages"]
            model.reply = late
            with client.stream("POST", "/api/ask", json={"question": "killed?"}) as reply:
                next(reply.iter_lines())
                process.kill()
        answering(model)
        with running(tmp_path, model.url) as (process, client):
            assert [entry["name"] for entry in client.get("/api/documents").json()["documents"]] == ["a.pdf"]
            titles = {
                entry["title"]: entry["conversation"] for entry in client.get("/api/history").json()["conversations"]
            }
            (turn,) = client.get(f"/api/history/{titles['killed?']}").json()["turns"]
            assert turn["state"] == "stopped" and set(titles) == {"which?", "killed?"}
            assert (
                client.post("/v1/search", json={"query": "total", "by": "text"}).json()["data"][0]["document"]
                == "a.pdf"
            )
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT_SECONDS) == 130
            assert process.stderr is not None
            said = process.stderr.read()
    assert "Traceback" not in said
    # The engine is on this machine: the embedder leaves it three of four cores.
    assert f"threads: {max(1, len(os.sched_getaffinity(0)) // 4)}\n" in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host", "0.0.0.0"], "set a token by --token-file or"),
        (["--host", "192.168.1.5"], "lets other machines ask"),
        (["--port", "70000"], "is no port"),
        (["--max-upload-mib", "0"], "lets nothing through"),
        (["--token-file", "missing.txt"], "cannot be read"),
        (["--at-once", "0"], "lets nothing through"),
        (["--allow-host", "docs.example:8080"], "leave out scheme, port and path"),
        (["--allow-host", "https://docs.example"], "leave out scheme, port and path"),
        (["embedder.modle=x"], "there is no setting embedder.modle"),
    ],
    ids=["everywhere", "another", "port", "upload", "token", "at-once", "host-port", "host-url", "setting"],
)
def test_what_is_unsafe_or_a_slip_is_refused_before_anything_is_loaded(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert main(["--index", str(tmp_path / "i"), *arguments]) in (1, 2)
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("token", ["short", "has a space in the middle", "ümlaute-sind-keine-ascii"])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    assert main(["--index", str(tmp_path / "i")]) == 2
    assert "at least 16 ASCII characters" in capsys.readouterr().err


def test_a_taken_port_is_named_before_anything_is_loaded(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert main(["--index", str(tmp_path / "i"), "--port", str(port)]) == 2
    assert f"nothing can listen at 127.0.0.1:{port}" in capsys.readouterr().err


def test_a_second_server_of_the_same_state_is_refused_before_it_touches_it(tmp_path: Path, capsys) -> None:
    state = tmp_path / "i.served"
    (state / "receiving" / "key").mkdir(parents=True)
    with WriterLock(state / "server.lock"):
        assert main(["--index", str(tmp_path / "i"), "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert f"another rsgrpo serve keeps its history and documents in {state}" in said and "--state" in said
    assert f"process {os.getpid()}" in said  # which one
    assert (state / "receiving" / "key").is_dir()


def test_tools_over_standard_streams_work_beside_a_server_and_leave_its_state_alone(tmp_path: Path) -> None:
    model = FakeServer()
    with closing(model):
        answering(model)
        with running(tmp_path, model.url) as (_, client):
            _bring(client)
        state = tmp_path / "my.index.served"
        shutil.rmtree(state)
        state.mkdir()
        begin = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        messages: list[dict[str, object]] = [
            {"id": 1, "method": "initialize", "params": begin},
            {"method": "notifications/initialized"},
            {"id": 2, "method": "tools/call", "params": {"name": "search_pages", "arguments": {"query": "total"}}},
        ]
        sent = "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages)
        arguments = ["--index", str(tmp_path / "my.index"), "--model", model.url, "--model-name", "m", "--mcp-stdio"]
        with WriterLock(state / "server.lock"):
            before = sorted(state.iterdir())
            agent = start_python(CODE, *arguments, "--embedder", "any", stdin=subprocess.PIPE)
            assert agent.stdin is not None and agent.stdout is not None
            agent.stdin.write(sent)
            agent.stdin.flush()
            replies = [json.loads(agent.stdout.readline()) for _ in range(2)]
            agent.communicate(timeout=TIMEOUT_SECONDS)
        assert "a.pdf" in json.dumps(replies[1]) and sorted(state.iterdir()) == before
