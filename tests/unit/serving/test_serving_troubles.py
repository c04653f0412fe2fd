"""What goes wrong around a server: visitors who hang up, slow files, another program that writes, no memory."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recipes.serving.history import HISTORY_FILE
from recipes.serving.pdf_probe import ProbeError
from recipes.serving.serve_command import TOKEN_VARIABLE
from recipes.serving.uploads import UploadBounds
from rsgrpo.retrieval.embedders.embedder import PageImage
from rsgrpo.types import FloatArray
from tests.programs import TIMEOUT_SECONDS
from tests.unit.documents.handmade_pdfs import make_pdf, text_pages
from tests.unit.serving.served import (
    INVOICE,
    LETTER,
    TOKEN,
    FileEmbedder,
    Served,
    events,
    make_parts,
    serving,
    wait_until,
)

Message = MutableMapping[str, Any]


async def request(
    served: Served, path: str, first: bytes, then: Callable[[], Awaitable[Message]], query: bytes = b""
) -> tuple[int, bytes]:
    """A POST request whose body comes in two parts; gives the status and the body of the reply."""
    headers = [(b"host", b"127.0.0.1"), (b"x-rsgrpo", b"1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": query}
    scope |= {"raw_path": path.encode(), "http_version": "1.1", "scheme": "http", "root_path": ""}
    scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}
    parts: list[Message] = [{"type": "http.request", "body": first, "more_body": True}]
    sent: list[Message] = []

    async def receive() -> Message:
        return parts.pop() if parts else await then()

    async def send(message: Message) -> None:
        sent.append(message)

    await asyncio.wait_for(served.client.app(scope, receive, send), TIMEOUT_SECONDS)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


async def hang_up() -> Message:
    return {"type": "http.disconnect"}


def call(served: Served, work: Callable[[], Awaitable[Any]]) -> Any:
    """Do something in the server's event loop."""
    assert served.client.portal is not None
    return served.client.portal.call(work)


def last_event(served: Served, name: str, content: bytes) -> Message:
    reply = served.client.post("/api/documents", params={"name": name}, content=content)
    assert reply.status_code == 202, reply.text
    *_, (_, last) = events(served.client.get(f"/api/documents/{reply.json()['key']}/progress").text)
    return last


def listed(served: Served) -> list[str]:
    return [found["name"] for found in served.client.get("/api/documents").json()["documents"]]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def pictures(number: int) -> bytes:
    frames = [Image.linear_gradient("L").rotate(90 * place) for place in range(number)]
    frames[0].save(output := io.BytesIO(), "TIFF", save_all=True, append_images=frames[1:])
    return output.getvalue()


def test_files_that_are_being_received_count_among_those_that_wait(tmp_path: Path) -> None:
    with serving(tmp_path, bounds=UploadBounds(waiting=2, waiting_of_one=1)) as served:

        async def bring_many() -> list[int]:
            rest = asyncio.Event()

            async def late() -> Message:
                await rest.wait()
                return {"type": "http.request", "body": LETTER[1:], "more_body": False}

            bringing = [
                asyncio.ensure_future(request(served, "/api/documents", LETTER[:1], late, b"name=a.pdf"))
                for _ in range(6)
            ]
            await asyncio.wait(bringing, return_when=asyncio.FIRST_COMPLETED)
            rest.set()
            return sorted([status for status, _ in await asyncio.gather(*bringing)])

        assert call(served, bring_many) == [202, *[429] * 5]
        wait_until(lambda: not served.client.get("/api/documents").json()["uploads"], TIMEOUT_SECONDS)
        assert listed(served) == ["a.pdf"]
        call(served, lambda: request(served, "/api/documents", LETTER[:1], hang_up))  # one that does not come whole
        assert served.bring("b.pdf") == "b.pdf: 2 pages"


def test_each_picture_of_a_tiff_file_counts_as_a_page(tmp_path: Path) -> None:
    with serving(tmp_path, bounds=UploadBounds(most_pages=2)) as served:
        refused = served.client.post("/api/documents", params={"name": "a.tif"}, content=pictures(3))
        assert refused.status_code == 413 and "3 pages, more than 2" in refused.json()["error"]["message"]
        assert served.bring("a.tif", pictures(2)) == "a.tif: 2 pages"


def test_whoever_hangs_up_while_sending_leaves_no_file_and_no_word_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for path in ("/api/documents", "/api/ask", "/v1/chat/completions"):
            status, _ = call(served, partial(request, served, path, LETTER[:100], hang_up))
            assert status == 499
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert files(served.state / "receiving") == []


@pytest.fixture
def slow_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Looking into a file takes a minute; gives the file in which each probe notes its id and what it knows."""
    notes = tmp_path / "probes"
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "pid=$$" >> {notes}\nenv >> {notes}\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setattr("recipes.serving.pdf_probe.sys.executable", str(program))
    return notes


def test_slow_files_hold_up_nothing_else_and_are_let_go_at_the_end(
    tmp_path: Path, slow_probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with serving(tmp_path) as served:

        async def bring_many() -> tuple[float, float, list[int]]:
            async def rest() -> Message:
                return {"type": "http.request", "body": LETTER[1:], "more_body": False}

            bringing = [
                asyncio.ensure_future(request(served, "/api/documents", LETTER[:1], rest)) for _ in range(40)
            ]  # more than the event loop has threads for all purposes
            while not slow_probe.exists():
                await asyncio.sleep(0.01)
            begin = time.monotonic()
            await asyncio.to_thread(served.parts.history.conversations, "ada")
            held_up = time.monotonic() - begin
            begin = time.monotonic()
            served.parts.desk.stop()
            statuses = [status for status, _ in await asyncio.gather(*bringing)]
            return held_up, time.monotonic() - begin, statuses

        held_up, ending, statuses = call(served, bring_many)
        assert held_up < 20 and ending < 20 and statuses == [503] * 40
    notes = slow_probe.read_text()
    assert TOKEN not in notes
    for line in notes.splitlines():
        if line.startswith("pid="):
            assert not Path("/proc", line.removeprefix("pid=")).exists()


def test_words_that_could_not_be_read_once_are_read_the_next_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.bring()
    key = served.client.post("/v1/search", json={"query": "total", "by": "text"}).json()["data"][0]["key"]

    async def too_slow(path: Path, page_number: int) -> tuple[()]:
        raise ProbeError("it takes longer than 30 seconds to open")

    def origin() -> str:
        return str(served.client.post(f"/api/pages/{key}/marks", json={"text": "Total amount 4210"}).json()["origin"])

    with monkeypatch.context() as patch:
        patch.setattr(served.parts.desk.probes, "page_words", too_slow)
        assert origin() == "page"
    assert origin() == "words"
    monkeypatch.setattr(served.parts.desk.probes, "page_words", too_slow)
    assert origin() == "words"  # kept


def test_a_document_that_fails_in_whatever_way_does_not_turn_up_later(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, num_calls = FileEmbedder.embed_pages, 0

    def no_memory(self: FileEmbedder, pages: Sequence[PageImage]) -> FloatArray:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 1:
            raise MemoryError
        return embed(self, pages)

    with monkeypatch.context() as patch:
        patch.setattr(FileEmbedder, "embed_pages", no_memory)
        patch.setattr("recipes.indexing.updating._FIRST_PAGES", 1)  # the first page is in the index when it fails
        assert last_event(served, "a.pdf", INVOICE)["state"] == "failed"
    assert files(served.state / "uploads") == []
    assert make_parts(served.index.parent).answers.library.num_pages == 0  # as another start finds it
    served.bring("b.pdf", LETTER)
    assert listed(served) == ["b.pdf"]
    assert served.bring("a.pdf") == "a.pdf: 2 pages"


def test_a_document_of_blank_pages_alone_is_not_kept(served: Served) -> None:
    blank = make_pdf(text_pages("", ""))
    for _ in range(2):
        last = last_event(served, "blank.pdf", blank)
        assert (last["state"], last["message"]) == ("failed", "every page is blank, so nothing was added")
    assert files(served.state / "uploads") == [] and listed(served) == []
    assert not served.parts.answers.library.is_behind
    assert served.bring("blank.pdf") == "blank.pdf: 2 pages"  # the name is free
    assert served.bring("half.pdf", make_pdf(text_pages("", "words"))) == "half.pdf: 2 pages, 1 blank ones left out"


def _states(served: Served) -> list[str]:
    (conversation,) = served.client.get("/api/history").json()["conversations"]
    turns = served.client.get(f"/api/history/{conversation['conversation']}").json()["turns"]
    return [turn["state"] for turn in turns]


def test_another_program_that_writes_into_the_history_holds_up_no_other_visitor(served: Served) -> None:
    served.bring()
    served.asker.pause.clear()
    held: list[float] = []
    with closing(sqlite3.connect(served.state / HISTORY_FILE, isolation_level=None, check_same_thread=False)) as other:

        async def ask() -> None:
            body = json.dumps({"question": "late?"}).encode()
            rest = [{"type": "http.request", "body": body[1:], "more_body": False}]
            gone = asyncio.Event()

            async def then() -> Message:
                if rest:
                    return rest.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            asking = asyncio.ensure_future(request(served, "/api/ask", body[:1], then))
            while not served.asker.requests:
                await asyncio.sleep(0.01)
            other.execute("BEGIN IMMEDIATE")
            gone.set()
            begin = time.monotonic()
            await asking  # what came of the question is written when the other program is done
            held.append(time.monotonic() - begin)
            other.execute("ROLLBACK")

        call(served, ask)
    assert held[0] < 8 and _states(served) == ["stopped"]


def test_an_answer_that_cannot_be_written_down_is_a_failed_one(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.bring()
    finish = served.parts.history.finish

    def full(conversation: str, number: int, state: Any, *more: Any) -> None:
        if state == "answered":
            raise sqlite3.OperationalError("database or disk is full")
        finish(conversation, number, state, *more)

    monkeypatch.setattr(served.parts.history, "finish", full)
    with pytest.raises(sqlite3.OperationalError):  # it goes on to the log
        served.ask("total?")
    assert _states(served) == ["failed"]
