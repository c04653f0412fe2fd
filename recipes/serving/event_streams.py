"""Server-sent events: a stream that notices when nobody reads on, and that keeps the connection alive meanwhile.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

KEEP_ALIVE_SECONDS = 10.0
"""The longest silence of a stream; proxies close what is silent for long."""

_KEEP_ALIVE = b": the answer is on its way\n\n"

Item = TypeVar("Item")


def server_event(kind: str, document: object) -> bytes:
    """Write an event.

    Args:
        kind: the event's name; empty: it has none, as in OpenAI's API.
        document: JSON.

    Example:
        ``server_event("text", {"a": 1})`` is ``b'event: text\\ndata: {"a":1}\\n\\n'``.
    """
    head = f"event: {kind}\n" if kind else ""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"{head}data: {text}\n\n".encode("utf-8", "replace")


class EventStream(Response):
    """A reply of server-sent events; where the reader hangs up, the generator is closed at once.

    Args:
        events: the events, as :func:`server_event` writes them.
        at_end: is called when the reply is over, however it ends.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], at_end: Callable[[], object] = lambda: None) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._at_end = at_end
        self._last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await unless_hung_up(self._send(send), receive)
        finally:
            self._at_end()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._last = time.monotonic()
        talking = asyncio.ensure_future(self._keep_alive(send))
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    self._last = time.monotonic()
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        finally:
            talking.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._last + KEEP_ALIVE_SECONDS - time.monotonic()))
            if time.monotonic() - self._last >= KEEP_ALIVE_SECONDS:
                self._last = time.monotonic()
                await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})


async def unless_hung_up(work: Coroutine[object, object, Item], receive: Receive) -> Item | None:
    """Do some work for a request whose body was read; it is broken off where whoever sent the request hangs up.

    Args:
        work: the work.
        receive: gives the request's messages.

    Returns:
        What the work gives; None: it was broken off.
    """
    working = asyncio.ensure_future(work)
    hanging_up = asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait({working, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (hanging_up, working):
            task.cancel()
        await asyncio.gather(hanging_up, working, return_exceptions=True)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
