"""Speaks as vLLM's own server does, without a model: a program for tests of what starts, asks and ends it.

What it does depends on the model's folder: ``broken`` in its name ends it with an error, ``slow`` lets it start for a
minute. Of a question ``die …`` it answers two pieces and is gone, the first time that it is started; behind the word
``wait`` it pauses for long. All other answers repeat the question word by word.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_PAUSE_SECONDS = 60.0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen = Path()

    def do_GET(self) -> None:
        self._reply(200, "")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self._reply(401, json.dumps({"error": "Unauthorized"}))
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        pieces = answer_to(body)
        for place, piece in enumerate(pieces):
            if place == 2 and "die" in pieces[1] and not (self.seen / "died").exists():
                (self.seen / "died").touch()
                os._exit(9)
            self._send({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
            if piece == "wait ":
                time.sleep(_PAUSE_SECONDS)
        self._send({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 7, "completion_tokens": len(pieces), "prompt_tokens_details": {"cached_tokens": 3}}
        self._send({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _send(self, event: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(event)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


def answer_to(body: dict[str, Any]) -> list[str]:
    """The pieces that are left of the answer: a question's words in an answer section."""
    messages = body["messages"]
    begun = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
    content = messages[-1]["content"]
    question = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    words = question.split()
    pieces = ["<answer>", *(f"{word} " for word in words), "</answer>"]
    while begun and pieces:
        begun = begun.removeprefix(pieces.pop(0))
    return pieces


def seen_by(model: Path) -> Path:
    """The folder for what has happened; not the model's own, whose files tell one model from another."""
    return model.with_name(f"{model.name}-seen")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--port", type=int)
    options, _ = parser.parse_known_args()
    if "broken" in options.model.name:
        print("Traceback (most recent call last):\nValueError: No room for the cache.")
        print("RuntimeError: Engine core initialization failed. See root cause above.")
        raise SystemExit(1)
    Handler.seen = seen = seen_by(options.model)
    seen.mkdir(exist_ok=True)
    (seen / "starts").open("a").write("x")
    if "slow" in options.model.name:
        time.sleep(_PAUSE_SECONDS)
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
