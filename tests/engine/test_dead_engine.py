"""Engines laid out as on GPUs, EngineCore and vLLM's workers in their own processes, and a death under every call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from transformers import Qwen2_5_VLForConditionalGeneration

import rollout.pool
from rollout.pool import RolloutPool
from rollout.requests import requests_for
from rsgrpo.cluster.environments import engine_environment
from rsgrpo.cluster.ray_cluster import REPOSITORY
from rsgrpo.config import Config, DataConfig, ModelConfig, RolloutConfig, SamplingConfig
from rsgrpo.model.folder import load_processor
from rsgrpo.system.processes import is_alive
from rsgrpo.types import PromptedSample, Sample
from tests.engine.answers import MAX_GAP_NATS, largest_gap, weight_update
from tests.engine.broken_model import engine_processes
from tests.engine.local_ray import local_ray
from tests.tiny_model import build_tiny_model, make_group, write_images

pytestmark = pytest.mark.engine

# vLLM waits a few seconds for its other workers to go by themselves, then terminates and at last kills them.
NOTICE_SECONDS = 30.0
UNDER_WAY_SECONDS = 1.0
ENDED_WITH_ITS_ENGINE = 1


@dataclass
class Workers:
    """The process that forks workers, one after the other."""

    root: Path
    process: subprocess.Popen[str]
    number: int = 0
    """Of the worker begun last."""

    def begin(self, call: str) -> tuple[int, list[int]]:
        """A worker that waits to do this; its id, and those of its engine's processes, EngineCore's first."""
        (self.root / "go").unlink(missing_ok=True)
        assert self.process.stdin is not None
        self.number += 1
        print(self.number, call, file=self.process.stdin, flush=True)
        begun = self.read()
        return begun["worker"], begun["engine"]

    def go(self) -> None:
        (self.root / "go").touch()

    def read(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # vLLM's log is among it, and what a test before this one left unread
            if line.startswith("{"):
                said = json.loads(line)
                if said.pop("number") == self.number:
                    return said
        raise AssertionError(f"the process that forks workers ended with {self.process.wait()}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and a page."""
    folder = tmp_path_factory.mktemp("engines")
    for name, seed in (("model", 0), ("other", 5)):
        build_tiny_model(folder / name, hidden=128, tie=True, seed=seed)
    write_images(folder, [(56, 56)])
    return folder


@pytest.fixture(scope="module")
def workers(root: Path) -> Iterator[Workers]:
    config = Config(stage="eval", rollout=RolloutConfig(num_threads=1))
    variables = engine_environment(config, "cpu", 1) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.forked_worker", str(root)],
        cwd=REPOSITORY,
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield Workers(root=root, process=process)
    process.kill()
    process.wait()


def test_an_engine_of_several_processes_takes_weights_and_agrees_with_transformers(workers: Workers) -> None:
    worker, engine = workers.begin("compare")
    workers.go()
    gaps = workers.read()["returned"]
    assert gaps.keys() == {"all", "language model"}
    assert max(gaps.values()) < MAX_GAP_NATS
    assert workers.read() == {"status": ENDED_WITH_ITS_ENGINE}
    _check_gone(worker, engine)


def test_responses_under_way_wait_for_new_weights_and_go_on_under_them(workers: Workers) -> None:
    workers.begin("go_on")
    workers.go()
    found = workers.read()["returned"]
    assert found["mixed"] == 2
    assert found["gap"] < MAX_GAP_NATS
    assert found["gap under the first weights"] > 10 * MAX_GAP_NATS
    assert workers.read() == {"status": ENDED_WITH_ITS_ENGINE}


@pytest.mark.parametrize(
    ("call", "victim"),
    [
        ("sample", 0),
        ("take_weights", 0),
        ("fall_asleep", 0),
        ("wake_up", 0),
        ("sample", 2),  # one of vLLM's workers
    ],
)
def test_a_worker_goes_with_its_engine_whatever_call_it_is_in(workers: Workers, call: str, victim: int) -> None:
    worker, engine = workers.begin(call)
    # Stopped it answers nothing: the call is surely under way when the process dies.
    os.kill(engine[victim], signal.SIGSTOP)
    workers.go()
    time.sleep(UNDER_WAY_SECONDS)
    assert is_alive(worker)
    os.kill(engine[victim], signal.SIGKILL)
    _check_gone(worker, engine)
    assert workers.read() == {"status": ENDED_WITH_ITS_ENGINE}


def test_a_worker_goes_with_an_engine_whose_model_fails(workers: Workers) -> None:
    worker, engine = workers.begin("fail")
    workers.go()
    assert workers.read() == {"status": ENDED_WITH_ITS_ENGINE}
    _check_gone(worker, engine)


def _check_gone(worker: int, engine: list[int]) -> None:
    deadline = time.monotonic() + NOTICE_SECONDS
    while any(map(is_alive, [worker, *engine])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, [worker, *engine]))


def test_the_pool_replaces_an_engine_that_died_and_gives_it_the_newest_weights(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SamplingConfig(max_response_tokens=8)
    config = Config(
        stage="eval",
        model=ModelConfig(dtype="float32"),
        data=DataConfig(min_pixels=784, max_pixels=10**6, max_images=1),
        rollout=RolloutConfig(
            sampling=sampling,
            max_model_tokens=128,
            max_num_sequences=4,
            max_batched_tokens=128,
            enforce_eager=True,
            num_threads=1,
            max_restarts=1,
        ),
    )
    images = write_images(root, [(56, 56)])
    prompted = PromptedSample(
        sample=Sample(sample_id="q", question="?", images=tuple(images)), prompt=make_group("q", images, [1]).prompt
    )
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(root / "other").eval()
    # Of several processes is only the engine that dies; each would import vLLM anew in the one that replaces it.
    layouts = iter([{"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}])
    monkeypatch.setattr(
        rollout.pool, "engine_environment", lambda *arguments: engine_environment(*arguments) | next(layouts, {})
    )
    with local_ray():
        pool = RolloutPool(config, root / "model", device="cpu", num_threads=1)
        pool.update_weights(weight_update(model.named_parameters(), 1))
        worker = ray.get(pool._workers[0].ready.remote())
        core, *others = ray.get(pool._workers[0].__ray_call__.remote(engine_processes))
        assert core != worker
        os.kill(core, signal.SIGSTOP)
        call = pool._workers[0].advance.remote(requests_for([prompted], num_samples=2, sampling=sampling, seed=0))
        assert ray.wait([call], timeout=UNDER_WAY_SECONDS) == ([], [call])
        os.kill(core, signal.SIGKILL)
        _check_gone(worker, [core, *others])
        groups = pool.generate([prompted], num_samples=2, sampling=sampling, seed=0)
        assert pool.num_restarts == 1
        assert {rollout.policy_version for rollout in groups[0].rollouts} == {1}
        assert largest_gap(groups, model, load_processor(root / "other")) < MAX_GAP_NATS
        pool.close()
