"""The queue in front of the engine: bounded, and fair between visitors.

visitors' questions ─► one line a visitor ─► by turns ─► at most ``at_once`` are worked on
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from recipes.serving.refusals import RefusedError


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueBounds:
    """How much a queue takes.

    Attributes:
        at_once: how many questions are worked on at a time.
        waiting: how many questions may wait, of all visitors together.
        waiting_of_one: how many questions of one visitor may wait.
    """

    at_once: int = 32
    waiting: int = 512
    waiting_of_one: int = 64


class Ticket:
    """A place in the queue.

    Args:
        visitor: the name of whoever waits.
    """

    def __init__(self, visitor: str) -> None:
        self.visitor = visitor
        self.called = asyncio.Event()


class FairQueue:
    """Lets questions in by turns of the visitors; used in one event loop.

    Args:
        bounds: how much the queue takes.

    Example:
        One visitor has three questions in the queue when another comes with one: that one is the next but one at the
        latest, not the fourth.
    """

    def __init__(self, bounds: QueueBounds) -> None:
        self._bounds = bounds
        self._lines: dict[str, deque[Ticket]] = {}  # in the order in which visitors have their turn
        self._working: set[Ticket] = set()

    @property
    def num_waiting(self) -> int:
        """How many questions wait."""
        return sum(map(len, self._lines.values()))

    @property
    def num_working(self) -> int:
        """How many questions are worked on."""
        return len(self._working)

    def enter(self, visitor: str) -> Ticket:
        """Take a place at the end of a visitor's line.

        Args:
            visitor: the name of the visitor.

        Returns:
            The place; its ``called`` is set when the question may be worked on. Whoever holds it calls :meth:`leave`.

        Raises:
            RefusedError: the queue is full.
        """
        if self.num_waiting >= self._bounds.waiting:
            raise RefusedError(f"{self.num_waiting} questions wait already; ask again later", 503)
        if len(self._lines.get(visitor, ())) >= self._bounds.waiting_of_one:
            raise RefusedError(f"{self._bounds.waiting_of_one} questions of yours wait already; let some finish", 429)
        ticket = Ticket(visitor)
        self._lines.setdefault(visitor, deque()).append(ticket)
        self._call()
        return ticket

    def ahead(self, ticket: Ticket) -> int:
        """Count the questions that will be called before a ticket, as the lines stand now.

        Args:
            ticket: a place in the queue.
        """
        order = list(self._lines)
        if ticket.called.is_set() or ticket.visitor not in self._lines:
            return 0
        line = self._lines[ticket.visitor]
        rounds = line.index(ticket)
        before = order.index(ticket.visitor)
        others = [len(self._lines[name]) for name in order]
        return rounds + sum(
            min(length, rounds + (place < before)) for place, length in enumerate(others) if place != before
        )

    def leave(self, ticket: Ticket) -> None:
        """Give a place back, whether it was called or not.

        Args:
            ticket: the place.
        """
        self._working.discard(ticket)
        line = self._lines.get(ticket.visitor)
        if line and ticket in line:
            line.remove(ticket)
            if not line:
                del self._lines[ticket.visitor]
        self._call()

    def _call(self) -> None:
        while self._lines and len(self._working) < self._bounds.at_once:
            visitor, line = next(iter(self._lines.items()))
            del self._lines[visitor]
            ticket = line.popleft()
            if line:
                self._lines[visitor] = line  # to the end: the others have their turn first
            self._working.add(ticket)
            ticket.called.set()
