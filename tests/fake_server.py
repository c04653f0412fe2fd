"""A chat-completions server on a free port, whose replies a test decides."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, str, dict[str, str]]


class FakeServer:
    """Speaks chat completions; ``reply`` decides by question and attempt (counted from 1)."""

    def __init__(self) -> None:
        self.reply: Callable[[str, int], Reply] = lambda question, _: ok(f"re: {question}")
        self.attempts: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.clients: set[object] = set()  # the address of each connection
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.clients.add(self.client_address)
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, text, headers = server.take(self.path, body, dict(self.headers))
                data = text.encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # clients that time out hang up

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def take(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        assert path == "/v1/chat/completions"
        content = body["messages"][-1]["content"]
        question = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.attempts[question] += 1
            attempt = self.attempts[question]
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return self.reply(question, attempt)
        finally:
            with self._lock:
                self.in_flight -= 1

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def ok(text: object, finish_reason: str = "stop") -> Reply:
    message = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}]}
    return 200, json.dumps(message), {}
