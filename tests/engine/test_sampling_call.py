"""One call to several engines in processes of their own: who answers what when one is slow, silent or dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray

from rollout.engine import RolloutError
from rollout.requests import RequestQueue, requests_for
from rollout.sampling import SamplingCall
from rsgrpo.config import SamplingConfig
from rsgrpo.types import ChatPrompt, PromptedSample, Sample
from tests.engine.local_ray import local_ray
from tests.engine.sampling_actors import StubEngine

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with local_ray(num_cpus=4):
        yield


def _engine(**settings: Any) -> Any:
    worker = ray.remote(StubEngine).remote(**settings)
    ray.get(worker.num_answered.remote())  # started, before anybody's time counts
    return worker


def _call(workers: dict[int, Any], num_requests: int, *, timeout: float = 60.0, heirs: list[Any] | None = None) -> Any:
    prompted = [
        PromptedSample(sample=Sample(sample_id=f"q{n}"), prompt=ChatPrompt(sample_id=f"q{n}", text=""))
        for n in range(num_requests)
    ]
    requests = requests_for(prompted, num_samples=1, sampling=SamplingConfig(), seed=0)
    return SamplingCall(
        workers,
        RequestQueue(requests, list(workers), capacity=3),
        timeout_seconds=timeout,
        sending=threading.RLock(),
        replaced=lambda number, died, others_live: heirs.pop() if heirs and not others_live else None,
    ).groups()


def _ids(groups: Any) -> list[str]:
    return sorted(group.sample.sample_id for group in groups)


def _all(number: int) -> list[str]:
    return sorted(f"q{index}" for index in range(number))


def test_a_slow_engine_answers_less_and_everything_is_answered_once() -> None:
    # Dealt three each, the slow one works on its own for 3 s, in which the fast one could answer 150.
    workers = {0: _engine(seconds=0.02), 1: _engine(seconds=1.0)}
    assert _ids(_call(workers, 24)) == _all(24)
    fast, slow = (ray.get(worker.num_answered.remote()) for worker in workers.values())
    assert fast + slow == 24
    assert 1 <= slow <= 8


def test_the_others_answer_what_an_engine_held_when_it_died() -> None:
    workers = {0: _engine(seconds=0.02), 1: _engine(seconds=0.02, dies_after=2), 2: _engine(seconds=0.02)}
    assert _ids(_call(workers, 20)) == _all(20)


def test_the_replacement_of_the_only_engine_answers_the_rest() -> None:
    heir = _engine()
    assert _ids(_call({0: _engine(dies_after=2)}, 9, heirs=[heir])) == _all(9)
    # Of the two answers of the first engine, those that were still on their way when its process ended are asked again.
    assert 7 <= ray.get(heir.num_answered.remote()) <= 9


def test_a_silent_engine_is_named_with_the_setting_while_the_other_goes_on(tmp_path: Path) -> None:
    cleared = tmp_path / "cleared"
    workers = {0: _engine(seconds=0.05, cleared=cleared), 1: _engine(sleeps_after=1)}
    with pytest.raises(RolloutError, match=r"rollout worker 1 .* within rollout\.generate_timeout_seconds=8;"):
        list(_call(workers, 1000, timeout=8.0))
    _wait_for(cleared)
    ray.kill(workers[1])


def test_ended_early_it_has_the_engines_give_up_the_rest(tmp_path: Path) -> None:
    cleared = tmp_path / "cleared"
    worker = _engine(seconds=0.05, cleared=cleared)
    with closing(_call({0: worker}, 50)) as groups:
        next(groups)
    _wait_for(cleared)
    # It is ready for the next call, in which nothing of the first comes back.
    assert _ids(_call({0: worker}, 3)) == _all(3)


def _wait_for(file: Path) -> None:
    end = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < end, f"{file.name} did not appear"
        time.sleep(0.02)
