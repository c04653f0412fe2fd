"""Where a model answers: a server of ours that can be started again, or somebody else's."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from rsgrpo.errors import RsgrpoError, shown

MAX_WAIT_SECONDS = 60.0


class ServerError(RsgrpoError):
    """The model cannot be asked; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerAddress:
    """Where an OpenAI-compatible server is asked.

    Attributes:
        url: the base address, such as ``http://localhost:8000/v1``.
        model: the name of the model there.
        key: the key that is sent along; empty: none. It is not shown where the record is printed.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


class ChatServer(Protocol):
    """A server that answers chat completions."""

    @property
    def address(self) -> ServerAddress:
        """Where to ask; it may be another one after :meth:`recover`."""

    @property
    def is_ours(self) -> bool:
        """Whether it is a vLLM that we start, on this machine: what not every server can, this one can."""

    async def recover(self, attempt: int, reason: str) -> None:
        """Wait until the server may be asked again after a request has failed; start it again where that is ours.

        Args:
            attempt: how many requests for the same answer have failed before, from 0.
            reason: what failed.

        Raises:
            ServerError: it is of no use to ask again.
        """


class RemoteServer:
    """A :class:`ChatServer` that somebody else runs.

    Args:
        address: where it is.
        retries: how often a request is tried again.
        backoff_seconds: the longest wait before the first retry; it doubles with each.
    """

    def __init__(self, address: ServerAddress, *, retries: int = 3, backoff_seconds: float = 1.0) -> None:
        self._address = address
        self._retries = retries
        self._backoff_seconds = backoff_seconds

    @property
    def address(self) -> ServerAddress:
        """See :class:`ChatServer`."""
        return self._address

    @property
    def is_ours(self) -> bool:
        """See :class:`ChatServer`."""
        return False

    async def recover(self, attempt: int, reason: str) -> None:
        """See :class:`ChatServer`."""
        if attempt >= self._retries:
            raise ServerError(
                f"{shown(self._address.url)} does not answer ({reason}; {attempt + 1} attempts); see that the server "
                "is up and the address right: it ends in /v1 as a rule"
            )
        longest = min(self._backoff_seconds * 2.0**attempt, MAX_WAIT_SECONDS)
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine.

    Args:
        url: the address.
    """
    try:
        return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    except ValueError:
        return False
