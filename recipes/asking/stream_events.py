"""The lines of a streamed chat completion, as servers of OpenAI's API write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rsgrpo.errors import shown

SHOWN_REPLY = 200
"""How many characters of a server's reply a message shows."""


def sentence_of(body: bytes) -> str:
    """The words of an error reply, whichever of the usual forms it has.

    Args:
        body: the body of the reply, JSON or any text.

    Example:
        ``sentence_of(b'{"error": {"message": "no memory"}}')`` is ``"no memory"``.
    """
    text = body.decode(errors="replace")
    try:
        found: Any = json.loads(text)
        found = found.get("error", found)
        return str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError, RecursionError):
        return text


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamEvents:
    """What some lines of a stream say: events, and behind them its end, or what is wrong with it.

    Attributes:
        events: the JSON of each event, in order.
        is_done: whether the stream's ``[DONE]`` stands behind them.
        problem: what is no event of a chat completion, as a phrase for people; empty: nothing.
    """

    events: list[Mapping[str, Any]]
    is_done: bool = False
    problem: str = ""

    @classmethod
    def of(cls, lines: Iterable[bytes]) -> StreamEvents:
        """Read lines of a stream, up to its end or to the first problem.

        Args:
            lines: whole lines, without their ends.
        """
        events: list[Mapping[str, Any]] = []
        for line in lines:
            if not line.startswith(b"data:"):
                continue  # comments and names of events
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return cls(events=events, is_done=True)
            try:
                event = json.loads(data)
            except (ValueError, RecursionError):
                event = None
            if not isinstance(event, dict):
                told = shown(data.decode(errors="replace"), 80)
                return cls(events=events, problem=f"no chat completion comes: {told}")
            if "error" in event:
                return cls(events=events, problem=shown(sentence_of(data), SHOWN_REPLY))
            events.append(event)
        return cls(events=events)
