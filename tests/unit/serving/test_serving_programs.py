"""What programs call: OpenAI's own client, MCP's own client."""

from __future__ import annotations

import base64
import io
import json
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest
import uvicorn
from mcp.client.client import Client
from PIL import Image

from recipes.serving.agent_tools import make_agent_server
from recipes.serving.application import make_application
from recipes.serving.history import HISTORY_FILE, History, HistoryError
from tests.unit.serving.served import Served, serving, wait_until


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    """A server with one document, for tests that change nothing; and its address."""
    folder = tmp_path_factory.mktemp("full")
    with serving(folder) as served, closing(socket.create_server(("127.0.0.1", 0))) as listener:
        served.bring()
        server = uvicorn.Server(uvicorn.Config(make_application(served.parts), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield served, f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


def _client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)


def png_url(colour: str) -> str:
    """An image as a data URL."""
    Image.new("RGB", (60, 40), colour).save(output := io.BytesIO(), "PNG")
    return f"data:image/png;base64,{base64.b64encode(output.getvalue()).decode()}"


def test_openais_client_reads_an_answer_with_its_reasoning_and_its_sources(full: tuple[Served, str]) -> None:
    served, address = full
    with _client(address) as client:
        assert [model.id for model in client.models.list()] == ["small"]
        answer = client.chat.completions.create(
            model="small",
            messages=[
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "first?"},
                {"role": "assistant", "content": "so it is"},
                {"role": "user", "content": "total amount?"},
            ],
            extra_body={"by": "text", "documents": ["invoice.pdf"]},
        )
    (choice,) = answer.choices
    assert choice.message.content == "You asked: total amount?" and choice.finish_reason == "stop"
    assert choice.message.model_dump()["reasoning_content"] == "evidence:\n[1]: It says Total amount 4210 EUR."
    (annotation,) = choice.message.annotations or []
    assert annotation.url_citation.title == "invoice.pdf, page 2"
    assert annotation.url_citation.url.startswith(f"{address}/api/pages/")
    assert answer.usage is not None and answer.usage.total_tokens == 107
    assert answer.usage.prompt_tokens_details is not None and answer.usage.prompt_tokens_details.cached_tokens == 40
    (turn,) = served.asker.requests[-1].earlier
    assert (turn.question, turn.response) == ("first?", "so it is")


def test_openais_client_reads_a_stream(full: tuple[Served, str]) -> None:
    _, address = full
    with _client(address) as client:
        chunks = list(
            client.chat.completions.create(
                model="small",
                messages=[{"role": "user", "content": [{"type": "text", "text": "total?"}]}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "You asked: total?"
    reasoning = "".join(delta.model_dump().get("reasoning_content") or "" for delta in deltas)
    assert reasoning == "evidence:\n[1]: It says Total amount 4210 EUR."
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert deltas[-1].model_dump()["annotations"][0]["url_citation"]["title"].startswith("invoice.pdf, page ")
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 7


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_images_that_come_along_are_the_pages_and_leave_nothing_behind(
    full: tuple[Served, str], is_streamed: bool
) -> None:
    served, address = full
    parts = [{"type": "image_url", "image_url": {"url": png_url(colour)}} for colour in ("red", "blue")]
    content = [*parts, {"type": "text", "text": "which is red?"}]
    with _client(address) as client:
        create: Any = client.chat.completions.create  # its types want a class for each part
        reply = create(model="small", messages=[{"role": "user", "content": content}], stream=is_streamed)
        if isinstance(reply, openai.Stream):
            list(reply)
    pages = served.asker.requests[-1].pages
    assert [(page.number, page.document) for page in pages] == [(1, "image 1"), (2, "image 2")]
    assert served.asker.requests[-1].question == "which is red?"
    wait_until(lambda: not any(path.is_file() for path in (served.state / "images").rglob("*")))


REFUSED = [
    ({"messages": []}, "messages is missing"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "the last message must be the user's"),
    ({"messages": [{"role": "user", "content": "x"}], "n": 2}, "n must be 1"),
    ({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, "tools is not something"),
    ({"messages": [{"role": "user", "content": "x"}], "documents": ["b.pdf"]}, "there is no document 'b.pdf'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}]}]},
        "this server fetches none",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
            ]
        },
        "this server fetches none",
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,PGh0bWw+"}}],
                }
            ]
        },
        "image 1 is",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "of the type text or image_url"),
]


@pytest.mark.parametrize(("body", "reason"), REFUSED, ids=[f"refused-{number}" for number in range(len(REFUSED))])
def test_what_cannot_be_done_is_refused_in_openais_form(
    full: tuple[Served, str], body: dict[str, Any], reason: str
) -> None:
    served, address = full
    num_asked = len(served.asker.requests)
    for is_streamed in (False, True):
        with _client(address) as client, pytest.raises(openai.APIStatusError) as refused:
            client.post("/chat/completions", body={"model": "small", **body, "stream": is_streamed}, cast_to=object)
        assert reason in str(refused.value.body) and refused.value.status_code in (400, 404, 415)
    assert len(served.asker.requests) == num_asked


def test_agents_search_and_ask_over_http_and_within_a_process(full: tuple[Served, str]) -> None:
    served, address = full

    async def use(place: Any) -> None:
        def text(result: Any) -> str:
            return str(result.content[0].text)

        async with Client(place) as client:
            tools = await client.list_tools()
            assert [tool.name for tool in tools.tools] == ["search_pages", "ask"]
            found = await client.call_tool("search_pages", {"query": "total", "num_pages": 1})
            (page,) = json.loads(text(found))["pages"]
            assert page["document"] == "invoice.pdf" and page["image"].startswith("/api/pages/")
            answered = json.loads(text(await client.call_tool("ask", {"question": "total?"})))
            assert answered["answer"] == "You asked: total?" and answered["evidence"][0]["number"] == 1
            refused = await client.call_tool("ask", {"question": "?", "documents": ["b.pdf"]})
            assert refused.is_error and "there is no document 'b.pdf'" in text(refused)

    anyio.run(use, f"{address}/mcp")
    anyio.run(use, make_agent_server(served.parts.answers))


def test_a_search_finds_pages_with_scores(full: tuple[Served, str]) -> None:
    served, _ = full
    found = served.client.post("/v1/search", json={"query": "anything", "num_pages": 2}).json()["data"]
    assert [page["number"] for page in found] == [1, 2]
    assert found[0]["score"] >= found[1]["score"] and {page["page_number"] for page in found} == {1, 2}


def test_history_is_whole_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from recipes.serving.history import History\n"
        "history = History(Path(sys.argv[1])); key, number = history.begin('ada', 'kept?')\n"
        "history.finish(key, number, 'answered', {'answer': 'yes'}); history.begin('ada', 'asked', key)\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, cwd=Path(__file__).parents[3])
    history = History(tmp_path)
    (conversation,) = history.conversations("ada")
    states = [(turn.question, turn.state) for turn in history.turns("ada", conversation.key)]
    assert states == [("kept?", "answered"), ("asked", "stopped")]
    with pytest.raises(HistoryError):
        history.turns("grace", conversation.key)
    history.close()


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 2", "PRAGMA application_id = 7"], ids=["newer", "other"])
def test_a_history_of_something_else_is_refused(tmp_path: Path, statement: str) -> None:
    History(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / HISTORY_FILE)) as base:
        base.execute(statement)
    with pytest.raises(HistoryError, match="move it away"):
        History(tmp_path)
