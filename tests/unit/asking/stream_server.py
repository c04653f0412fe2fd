"""A chat server whose streamed answers a test decides, and an asker on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from recipes.asking.chat_server import RemoteServer, ServerAddress
from tests.fake_server import FakeServer, Reply

RESPONSE = (
    "<observe> a two, a three</observe>\n<evidence>\n[1]: two\n[2]: no relevant information\n</evidence>\n"
    "<think> so two</think>\n<answer> two</answer>"
)


def streamed(text: str, *, finish_reason: str = "stop", usage: dict[str, Any] | None = None, cut: int = 3) -> Reply:
    """The reply that streams a text in pieces of ``cut`` characters."""
    events: list[dict[str, Any]] = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    events += [{"choices": [{"delta": {"content": text[at : at + cut]}}]} for at in range(0, len(text), cut)]
    events.append({"choices": [{"delta": {}, "finish_reason": finish_reason}]})
    events.append({"choices": [], "usage": usage or {"prompt_tokens": 40, "completion_tokens": 12}})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return 200, "".join(lines) + "data: [DONE]\n\n", {"content-type": "text/event-stream"}


def error(status: int, message: str) -> Reply:
    return status, json.dumps({"error": {"message": message, "code": status}}), {}


def answering(server: FakeServer, text: str = RESPONSE) -> None:
    """Let a server answer everything with one text."""
    server.reply = lambda question, attempt: streamed(text)


def remote(server: FakeServer, **settings: Any) -> RemoteServer:
    return RemoteServer(ServerAddress(url=server.url, model="m"), backoff_seconds=0.0, **settings)


def draw_pages(folder: Path, num_pages: int) -> list[Path]:
    """Page images of different colours, 56 × 56 pixels."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number}.png" for number in range(1, num_pages + 1)]
    for number, file in enumerate(files):
        Image.new("RGB", (56, 56), (40 * number, 80, 200)).save(file)
    return files


def texts_of(body: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The turns of a request: who speaks, and the texts and ``image`` for each page in their order."""
    return [
        (
            turn["role"],
            [turn["content"]]
            if isinstance(turn["content"], str)
            else [part.get("text", "image") for part in turn["content"]],
        )
        for turn in body["messages"]
    ]
