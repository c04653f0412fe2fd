"""What is asked of engines, and who answers it: all draw from one queue, the longest first."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rollout.engine import RolloutError
from rsgrpo.config import SamplingConfig
from rsgrpo.types import PromptedSample

_MAX_SEED = 2**31 - 1
# How much of its share an engine is not dealt at first: the least, where all have been alike, and the most.
_MIN_HELD_BACK_FRAC = 0.1
_MAX_HELD_BACK_FRAC = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRequest:
    """One question that is to be answered ``num_samples`` times.

    Attributes:
        prompted: the question with its prompt.
        num_samples: n, how many responses are wanted.
        sampling: how the responses are drawn.
        seed: the seed that together with the sample's id fixes every response.
        named_token_ids: tokens whose log-probabilities at the first position are wanted too; empty: none.
        max_pixels: the area in pixels that larger pages are scaled down to; 0: ``data.max_pixels``.
    """

    prompted: PromptedSample
    num_samples: int
    sampling: SamplingConfig
    seed: int
    named_token_ids: tuple[int, ...] = ()
    max_pixels: int = 0

    @property
    def sample_id(self) -> str:
        """The id of the sample that is to be answered."""
        return self.prompted.sample.sample_id


def requests_for(
    prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
) -> list[RolloutRequest]:
    """One request for each question, all with the same number of samples, sampling and seed."""
    return [
        RolloutRequest(prompted=prompt, num_samples=num_samples, sampling=sampling, seed=seed) for prompt in prompted
    ]


def request_seed(seed: int, sample_id: str) -> int:
    """A request's seed: the same in every process, whichever engine draws it.

    Example:
        ``request_seed(0, "q7")`` is the same number on every machine.
    """
    digest = hashlib.blake2b(f"{seed}/{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _MAX_SEED


def longest_first(requests: Sequence[RolloutRequest]) -> list[RolloutRequest]:
    """Requests by how long their responses are expected to be.

    A response says something of every page, and works through the whole of a long prompt: pages first, then the
    prompt's text. Lengths of earlier responses are not asked: few questions come twice in a run, and the order, which
    sampling depends on, has to be the same after a resume.
    """
    return sorted(
        requests, key=lambda request: (-len(request.prompted.prompt.images), -len(request.prompted.prompt.text))
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginePace:
    """How fast an engine answered in its last call.

    Attributes:
        tokens_per_second: response tokens a second, over the time in which the engine had requests.
        request_seconds: the mean number of seconds from when a request was given to the engine until it was answered.
    """

    tokens_per_second: float
    request_seconds: float


@dataclass(kw_only=True, slots=True)
class _Engine:
    """The requests that one engine holds, and what it has answered in this call."""

    held: dict[str, tuple[RolloutRequest, float]] = field(default_factory=dict)
    num_answers: int = 0
    num_tokens: int = 0
    waited_seconds: float = 0.0
    busy_seconds: float = 0.0

    def pace(self) -> EnginePace | None:
        if not self.num_tokens or not self.busy_seconds or not self.waited_seconds:
            return None
        return EnginePace(
            tokens_per_second=self.num_tokens / self.busy_seconds,
            request_seconds=self.waited_seconds / self.num_answers,
        )


class RequestQueue:
    """Requests of one call on their way to engines and back.

    An engine gets as many as keep it busy, but at first not quite its share: where one turns out slow, the others draw
    what it would have been given. At the end of the queue a slow engine leaves to the others what they answer sooner.
    An engine alone is dealt by nothing but numbers of requests, so that its batches come the same again.

    Args:
        requests: the requests to deal out, with different sample ids.
        engines: the numbers of the engines.
        capacity: how many requests keep an engine busy.
        paces: how fast each engine was in the last call, as far as known.

    Raises:
        RolloutError: two requests have the same sample id.

    Example:
        With 8 requests, engines 0 and 1 and a capacity of 2, ``deal`` gives each 2; after
        ``answered(0, {"q0": 57}, now_seconds=1.5)`` engine 0 gets the next.
    """

    def __init__(
        self,
        requests: Sequence[RolloutRequest],
        engines: Sequence[int],
        *,
        capacity: int,
        paces: Mapping[int, EnginePace] | None = None,
    ) -> None:
        ids = {request.sample_id for request in requests}
        if len(ids) < len(requests):
            raise RolloutError(
                f"{len(requests)} questions have {len(ids)} different sample ids; responses are told apart by them: "
                "give every question an id of its own"
            )
        self._waiting = deque(longest_first(requests))
        self._engines = {engine: _Engine() for engine in engines}
        self._capacity = max(1, capacity)
        self._earlier = dict(paces or {})
        self._begin_seconds = 0.0

    @property
    def num_open(self) -> int:
        """How many requests are not answered yet."""
        return len(self._waiting) + sum(len(engine.held) for engine in self._engines.values())

    def num_held(self, engine: int) -> int:
        """How many requests an engine has not answered yet; 0 for an engine that was lost."""
        return len(self._engines[engine].held) if engine in self._engines else 0

    def deal(self, *, now_seconds: float) -> dict[int, list[RolloutRequest]]:
        """Give each engine its first requests."""
        self._begin_seconds = now_seconds
        speeds = {
            number: self._earlier[number].tokens_per_second for number in self._engines if number in self._earlier
        }
        held_back = _MAX_HELD_BACK_FRAC
        if len(speeds) < len(self._engines):
            speeds = dict.fromkeys(self._engines, 1.0)
        else:
            unevenness = 1.0 - min(speeds.values()) / max(speeds.values())
            held_back = min(held_back, _MIN_HELD_BACK_FRAC + unevenness)
        if len(speeds) == 1:
            held_back = 0.0
        num_dealt = (1.0 - held_back) * len(self._waiting) / math.fsum(speeds.values())
        each = {
            number: min(self._capacity, max(1, math.floor(num_dealt * speed + 1e-9)))
            for number, speed in speeds.items()
        }
        dealt: dict[int, list[RolloutRequest]] = {number: [] for number in each}
        while self._waiting and any(len(dealt[number]) < each[number] for number in each):
            # In turns, so that no engine gets all of the long ones.
            for number in each:
                if self._waiting and len(dealt[number]) < each[number]:
                    dealt[number].append(self._give(number, now_seconds))
        return dealt

    def answered(self, number: int, num_tokens: Mapping[str, int], *, now_seconds: float) -> list[RolloutRequest]:
        """Note an engine's answers, and say what it takes in their place.

        Args:
            number: the number of the engine.
            num_tokens: how many response tokens it gave, by sample id.
            now_seconds: the time on the clock of ``deal``, in seconds.
        """
        engine = self._engines[number]
        for sample_id, count in num_tokens.items():
            _, given_seconds = engine.held.pop(sample_id)
            engine.num_answers += 1
            engine.num_tokens += count
            engine.waited_seconds += now_seconds - given_seconds
            engine.busy_seconds = now_seconds - self._begin_seconds
        drawn: list[RolloutRequest] = []
        # Two for one: an engine that was dealt too few at first comes to its capacity.
        most = min(self._capacity - len(engine.held), 2 * len(num_tokens))
        while self._waiting and len(drawn) < most and not self._comes_sooner_elsewhere(number):
            drawn.append(self._give(number, now_seconds))
        return drawn

    def _comes_sooner_elsewhere(self, number: int) -> bool:
        """Whether the other engines work through the queue, and answer its last request, before this one would."""
        own = self._pace(number)
        others = {
            other: pace
            for other, engine in self._engines.items()
            if other != number and engine.held and (pace := self._pace(other))
        }
        if own is None or not others:
            return False
        requests_per_second = math.fsum(
            len(self._engines[other].held) / pace.request_seconds for other, pace in others.items()
        )
        soonest = min(pace.request_seconds for pace in others.values())
        return len(self._waiting) / requests_per_second + soonest < own.request_seconds

    def _pace(self, number: int) -> EnginePace | None:
        return self._engines[number].pace() or self._earlier.get(number)

    def _give(self, number: int, now_seconds: float) -> RolloutRequest:
        request = self._waiting.popleft()
        self._engines[number].held[request.sample_id] = (request, now_seconds)
        return request

    def lost(self, number: int) -> None:
        """Take back the requests of an engine that died; the other engines answer them before all else."""
        engine = self._engines.pop(number)
        self._waiting.extendleft(request for request, _ in reversed(engine.held.values()))

    def draw(self, number: int, *, now_seconds: float) -> list[RolloutRequest]:
        """As many requests as keep an engine busy: one that comes in the middle of a call, or when another was lost.

        Args:
            number: the number of the engine.
            now_seconds: the time on the clock of ``deal``, in seconds.
        """
        engine = self._engines.setdefault(number, _Engine())
        room = min(self._capacity - len(engine.held), len(self._waiting))
        return [self._give(number, now_seconds) for _ in range(room)]

    def paces(self) -> dict[int, EnginePace]:
        """How fast each engine was; one that answered nothing keeps its earlier pace."""
        return {number: pace for number in self._engines if (pace := self._pace(number))}
