"""The pool of rollout workers: they draw from one queue; a dead one is replaced, and its requests run again."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import ray

from rollout.engine import NamedLogprobs, RolloutError
from rollout.requests import EnginePace, RequestQueue, RolloutRequest, request_seed, requests_for
from rollout.sampling import SamplingCall
from rollout.weight_stream import EngineDiedError, WeightStream
from rollout.worker_calls import explained
from rsgrpo.cluster.environments import engine_environment
from rsgrpo.cluster.gpu_sharing import GpuSharing, OnGpu, Phase
from rsgrpo.cluster.placement import ON_CPU, Placement
from rsgrpo.config import Config, SamplingConfig
from rsgrpo.failures import reason
from rsgrpo.model.setup import features_folder
from rsgrpo.types import PromptedSample, RolloutGroup
from rsgrpo.weights.transfer import WeightSender
from rsgrpo.weights.update import WeightUpdate

_WAITING_REQUESTS = 4


class RolloutPool:
    """Engines behind one call. They load in the background.

    Args:
        config: the run's settings.
        model_folder: a model folder that every node can read.
        device: ``cpu`` or ``gpu``.
        num_threads: CPU threads of each worker, unless ``rollout.num_threads`` says otherwise; one number: of all.
        placement: where the workers run.
        rank_gpus: GPU of each training rank, where they are shared.
    """

    def __init__(
        self,
        config: Config,
        model_folder: Path,
        *,
        device: str,
        num_threads: int | Sequence[int],
        placement: Placement = ON_CPU,
        rank_gpus: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._model_folder = model_folder
        self._device = device
        own = config.rollout.num_threads or num_threads
        self._num_threads = [own] * config.rollout.num_workers if isinstance(own, int) else list(own)
        self._num_restarts = 0
        self._version = 0
        self._whole: Callable[[], WeightUpdate] | None = None
        self._is_streamed = False
        self._is_ready = False
        self._is_closed = False
        self._behind: set[int] = set()
        self._paces: dict[int, EnginePace] = {}
        self._placement = placement
        self._rank_gpus = tuple(rank_gpus)
        self._gpu_sharing: GpuSharing | None = None
        # New weights may come from another thread in the middle of a stream: its calls wait until all engines have
        # them.
        self._sending = threading.RLock()
        self._stream = WeightStream(
            gpus_per_engine=config.rollout.tensor_parallel_size,
            timeout_seconds=config.rollout.generate_timeout_seconds,
        )
        self._workers = [self._new_worker(index) for index in range(config.rollout.num_workers)]

    @property
    def policy_version(self) -> int:
        """Version of the weights that the workers hold."""
        return self._version

    @property
    def num_restarts(self) -> int:
        """How many workers were replaced so far."""
        return self._num_restarts

    def _new_worker(self, index: int) -> Any:
        # Here, so that importing the pool imports no vLLM: that takes many seconds.
        from rollout.vllm_engine import EngineSpec
        from rollout.worker import RolloutWorker

        environment = engine_environment(self._config, self._device, self._num_threads[index])
        return (
            ray.remote(RolloutWorker)
            .options(**self._placement.for_engine(index, environment, self._rank_gpus))
            .remote(
                EngineSpec(
                    config=self._config,
                    model_folder=self._model_folder,
                    device=self._device,
                    features_folder=features_folder(self._config),
                )
            )
        )

    def wait_ready(self) -> None:
        """Wait until every worker's engine answers.

        Raises:
            RolloutError: a worker failed to load, or took longer than ``rollout.start_timeout_seconds``.
        """
        if not self._is_ready:
            for index in range(len(self._workers)):
                self._wait_for(index)
            self._is_ready = True

    def share_gpus(self, gpu_sharing: GpuSharing) -> None:
        """Share the GPUs with the trainer from here on.

        Args:
            gpu_sharing: the one that the trainer takes part in as well.
        """
        self._gpu_sharing = gpu_sharing

    def set_on_gpu(self, parts: OnGpu) -> None:
        """Offload and onload in all workers (``rsgrpo.cluster.gpu_sharing``); a dead worker holds no GPU memory."""
        self.wait_ready()
        self._answers(
            {index: worker.set_on_gpu.remote(parts) for index, worker in enumerate(self._workers)},
            "go to sleep or wake up",
        )

    def _take(self, phase: Phase) -> None:
        if self._gpu_sharing is not None:
            self._gpu_sharing.begin(phase)

    def _wait_for(self, index: int) -> None:
        timeout = self._config.rollout.start_timeout_seconds
        try:
            ray.get(self._workers[index].ready.remote(), timeout=timeout)
        except ray.exceptions.GetTimeoutError as error:
            raise RolloutError(
                f"rollout worker {index} did not load its engine within rollout.start_timeout_seconds={timeout:g}; "
                "raise it, or look at the worker's log in Ray's session folder"
            ) from error
        except ray.exceptions.RayError as error:
            raise RolloutError(f"rollout worker {index} could not load its engine: {reason(error)}") from error

    def stream(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> Generator[RolloutGroup, None, None]:
        """Answer questions, and hand over each group once complete; see :class:`rollout.engine.RolloutEngine`.

        Raises:
            RolloutError: workers died more than ``rollout.max_restarts`` times, or took too long.
        """
        yield from self._answered(requests_for(prompted, num_samples=num_samples, sampling=sampling, seed=seed))

    def named_logprobs(
        self, prompted: Sequence[PromptedSample], token_ids: Sequence[int], *, max_pixels: int
    ) -> list[NamedLogprobs]:
        """Look at the first token behind each prompt, see :class:`rollout.engine.TokenJudge`; raises as ``stream``."""
        greedy = SamplingConfig(temperature=0.0, max_response_tokens=1)
        requests = [
            dataclasses.replace(request, named_token_ids=tuple(token_ids), max_pixels=max_pixels)
            for request in requests_for(prompted, num_samples=1, sampling=greedy, seed=0)
        ]
        found: dict[str, NamedLogprobs] = {}
        paces = self._paces
        for group in self._answered(requests) if requests else ():
            logprobs = group.rollouts[0].named_logprobs
            assert logprobs is not None
            found[group.sample_id] = NamedLogprobs(
                logprobs=tuple(map(float, logprobs)), num_prompt_tokens=len(group.prompt_token_ids)
            )
        self._paces = paces  # answers of one token say nothing of how fast responses come
        return [found[prompt.sample.sample_id] for prompt in prompted]

    def _answered(self, requests: Sequence[RolloutRequest]) -> Generator[RolloutGroup, None, None]:
        """Answer requests that all want as many samples by one seed, and hand over each group once complete."""
        self.wait_ready()
        with self._sending:
            self._take(Phase.SAMPLING)
            self._catch_up()
        settings = self._config.rollout
        num_samples, seed = (requests[0].num_samples, requests[0].seed) if requests else (1, 0)
        # As many responses as run at once, and further requests that are made ready meanwhile.
        capacity = math.ceil(settings.max_num_sequences / num_samples) + _WAITING_REQUESTS
        queue = RequestQueue(requests, range(len(self._workers)), capacity=capacity, paces=self._paces)
        call_seed = request_seed(seed, "/".join(request.sample_id for request in requests))
        for worker in self._workers:
            worker.seed_call.remote(call_seed)
        call = SamplingCall(
            dict(enumerate(self._workers)),
            queue,
            timeout_seconds=settings.generate_timeout_seconds,
            sending=self._sending,
            replaced=lambda number, died, others_live: self._replaced(number, died, call_seed, others_live),
        )
        with closing(call.groups()) as groups:
            yield from groups
        self._paces = queue.paces()

    def generate(
        self, prompted: Sequence[PromptedSample], *, num_samples: int, sampling: SamplingConfig, seed: int
    ) -> list[RolloutGroup]:
        """Answer questions, see :class:`rollout.engine.RolloutEngine`; raises as ``stream`` does."""
        groups = {
            group.sample.sample_id: group
            for group in self.stream(prompted, num_samples=num_samples, sampling=sampling, seed=seed)
        }
        return [groups[prompt.sample.sample_id] for prompt in prompted]

    def _replaced(self, number: int, died: Any, call_seed: int, others_live: bool) -> Any | None:
        """Start a worker in place of one that died while it sampled; wait for it only if no other is left."""
        with self._sending:
            if self._is_closed or self._workers[number] is died:  # else an update found it dead before
                self._begin_anew([number])
            if others_live:
                return None
            if self._is_streamed and self._config.rl.max_staleness_steps:
                raise RolloutError(
                    "the last rollout worker died while the trainer worked on newer weights, which it cannot send now "
                    "(rl.max_staleness_steps=1); go on with resume=auto"
                )
            self._catch_up()
            self._workers[number].seed_call.remote(call_seed)
            return self._workers[number]

    def _answers(self, calls: dict[int, ray.ObjectRef], what: str) -> dict[int, Any]:
        """The values of calls to workers, by the worker's number, without those of workers that died.

        Args:
            calls: the calls under way, by the number of the worker.
            what: what the worker was to do, for the message.
        """
        timeout = self._config.rollout.generate_timeout_seconds
        values: dict[int, Any] = {}
        for worker, call in calls.items():
            with suppress(ray.exceptions.RayActorError), explained(f"rollout worker {worker}", what, timeout):
                values[worker] = ray.get(call, timeout=timeout)
        return values

    def _begin_anew(self, dead: Iterable[int]) -> None:
        """Start workers in place of dead ones; they load in the background, and lack the newest weights."""
        dead = list(dead)
        if not dead:
            return
        self._count_restarts(dead)
        self._stream.forget()
        # As at the start: an engine measures the memory that it finds free.
        self._take(Phase.SAMPLING)
        for worker in dead:
            self._workers[worker] = self._new_worker(worker)
        self._behind.update(dead)

    def _catch_up(self) -> None:
        """Give workers that were started anew the newest weights; one that dies on the way is replaced as well."""
        while self._behind:
            behind, self._behind = sorted(self._behind), set()
            for worker in behind:
                self._wait_for(worker)
            if self._whole is None:
                return
            self._begin_anew(self._hand_over(self._whole(), behind))
            self._take(Phase.SAMPLING)

    def _count_restarts(self, dead: Sequence[int]) -> None:
        if self._is_closed:
            raise RolloutError("the rollout workers were ended while they sampled")
        self._num_restarts += len(dead)
        if self._num_restarts > self._config.rollout.max_restarts:
            raise RolloutError(
                f"rollout worker {dead[0]} died, and {self._num_restarts - len(dead)} workers were replaced before "
                f"(rollout.max_restarts={self._config.rollout.max_restarts}); look for its cause in Ray's session "
                "folder (often memory: lower rollout.max_num_sequences or rollout.kv_cache_gib), then go on with "
                "resume=auto"
            )

    def update_weights(self, update: WeightUpdate) -> None:
        """Give the workers new weights (:class:`rollout.engine.RolloutEngine`); one that died meanwhile is replaced."""
        self.wait_ready()
        with self._sending:
            self._update_weights(update)

    def _update_weights(self, update: WeightUpdate) -> None:
        # Not the update itself: it would keep a copy of the weights in memory for as long as the run lasts.
        self._version, self._whole, self._is_streamed = update.version.version, update.whole, update.sender is not None
        for worker in sorted(self._behind):
            self._wait_for(worker)
        self._behind.clear()
        self._begin_anew(self._hand_over(update, range(len(self._workers))))
        self._catch_up()

    def _hand_over(self, update: WeightUpdate, workers: Iterable[int]) -> list[int]:
        """Give weights to these workers, or to all where they are streamed; returns those that died under it."""
        if update.sender is not None:
            return self._stream_to_all(update, update.sender)
        self._take(Phase.TRANSFER)
        calls = {
            worker: self._workers[worker].update_weights.remote(
                list(update.buckets), update.version, update.is_complete
            )
            for worker in workers
        }
        taken = self._answers(calls, "take new weights")
        return [worker for worker in calls if worker not in taken]

    def _stream_to_all(self, update: WeightUpdate, sender: WeightSender) -> list[int]:
        self._take(Phase.TRANSFER)
        dead = self._dead()
        if dead:
            return dead
        try:
            self._stream.send(self._workers, sender, update.version.version, is_complete=update.is_complete)
        except EngineDiedError:
            if sender.kind == "nccl":
                raise  # the trainer's end waits in a broadcast that the dead engine cannot join any more
            return self._dead()
        return []

    def _dead(self) -> list[int]:
        calls = {index: worker.ready.remote() for index, worker in enumerate(self._workers)}
        alive = self._answers(calls, "answer")
        return [worker for worker in calls if worker not in alive]

    def close(self) -> None:
        """End the workers; a call that another thread still waits for raises."""
        self._is_closed = True
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []
