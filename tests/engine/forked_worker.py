"""Engines laid out as on GPUs, at the price of a fork: EngineCore and vLLM's workers are processes of their own.

Importing vLLM takes longer than all that is tested here. This process does it once; for each line that it reads, a
number and a call, it forks a worker, whose engine vLLM forks in turn, and writes down how that worker ended. Whatever
is written of a worker carries its number.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch._dynamo
import torch._inductor.config  # noqa: F401
import vllm.model_executor.models.qwen2_5_vl
import vllm.v1.engine.core
import vllm.v1.engine.utils
import vllm.v1.executor.multiproc_executor
import vllm.v1.worker.cpu_worker
from transformers import Qwen2_5_VLForConditionalGeneration

from rollout.requests import RolloutRequest, requests_for
from rollout.vllm_engine import EngineSpec, VllmEngine
from rsgrpo.cluster.gpu_sharing import OnGpu
from rsgrpo.config import Config, DataConfig, ModelConfig, RolloutConfig, SamplingConfig
from rsgrpo.model.folder import load_processor
from rsgrpo.types import ImageRef, PromptedSample, RolloutGroup, Sample
from rsgrpo.weights.buckets import WeightVersion, bucket_checksum, flatten_bucket, format_checksum
from tests.engine.answers import largest_gap, largest_gap_by_version, num_mixed
from tests.engine.broken_model import break_model, engine_processes
from tests.tiny_model import checkpoint_name, make_group

RAISED = 8
MAX_MODEL_TOKENS = 512
SAMPLING = SamplingConfig(max_response_tokens=16)


class Worker:
    """What a rollout worker does with its engine.

    Args:
        root: holds the model folders ``model`` and ``other``, and a page.
    """

    def __init__(self, root: Path) -> None:
        self._first = Qwen2_5_VLForConditionalGeneration.from_pretrained(root / "model").eval()
        self._other = Qwen2_5_VLForConditionalGeneration.from_pretrained(root / "other").eval()
        self._processor = load_processor(root / "other")
        images = [ImageRef(path="imgs/0.png", file=str(root / "0.png"))]
        self._question = PromptedSample(
            sample=Sample(sample_id="q", question="?", images=tuple(images)), prompt=make_group("q", images, [1]).prompt
        )
        config = Config(
            stage="eval",
            model=ModelConfig(dtype="float32"),
            data=DataConfig(min_pixels=784, max_pixels=10**6, max_images=1),
            rollout=RolloutConfig(
                sampling=SAMPLING,
                tensor_parallel_size=2,
                max_model_tokens=MAX_MODEL_TOKENS,
                max_num_sequences=4,
                max_batched_tokens=128,
                enforce_eager=True,
                num_threads=1,
            ),
        )
        self._engine = VllmEngine(EngineSpec(config=config, model_folder=root / "model", device="cpu"))

    def processes(self) -> list[int]:
        """Ids of EngineCore and of vLLM's workers."""
        return engine_processes(self)

    def sample(self) -> list[RolloutGroup]:
        return self._engine.generate(requests_for([self._question], num_samples=2, sampling=SAMPLING, seed=0))

    def take_weights(self, names: str = "") -> None:
        """Those of the other model, or of its parameters with such names; a bucket for every eight of them."""
        named = [(checkpoint_name(name), value) for name, value in self._other.named_parameters() if names in name]
        buckets = [flatten_bucket(named[start : start + 8]) for start in range(0, len(named), 8)]
        checksum = 0
        for bucket in buckets:
            checksum = bucket_checksum(bucket, checksum)
        stamp = WeightVersion(version=1, checksum=format_checksum(checksum))
        self._engine.update_weights(buckets, stamp, is_complete=not names)

    def fall_asleep(self) -> None:
        self._engine.set_on_gpu(OnGpu.NOTHING)

    def wake_up(self) -> None:
        self._engine.set_on_gpu(OnGpu.ALL)

    def fail(self) -> None:
        self._engine._in_workers(break_model)
        self.sample()

    def compare(self) -> dict[str, float]:
        """Gaps to transformers, in nats: after all weights came, and after the language model's alone came."""
        self.take_weights()
        self.fall_asleep()
        self.wake_up()
        gaps = {"all": largest_gap(self.sample(), self._other, self._processor)}
        for name, parameter in self._other.named_parameters():
            if "language_model" in name:
                parameter.data.mul_(1.1)
        self.take_weights("language_model")
        return gaps | {"language model": largest_gap(self.sample(), self._other, self._processor)}

    def go_on(self) -> dict[str, float]:
        """Gap to transformers of responses that are half done when weights come, each token under its own version.

        No response may be complete before: none ends by itself, and all are longer by far than EngineCore, which waits
        for nobody, gets ahead of a call.
        """
        parameters = self._engine._parameters

        def endless(request: RolloutRequest) -> Any:
            found = parameters(request)
            found.ignore_eos = True
            return found

        # In this worker alone, which ends with the call: no setting of ours lets a response go on behind its end.
        self._engine._parameters = endless  # type: ignore[method-assign]
        sampling = SamplingConfig(max_response_tokens=MAX_MODEL_TOKENS - 64)
        (request,) = requests_for([self._question], num_samples=2, sampling=sampling, seed=0)
        assert not self._engine.advance([request])
        self.take_weights()
        groups: list[RolloutGroup] = []
        while not groups:
            groups += self._engine.advance(())
        models = {0: self._first, 1: self._other}
        return {
            "mixed": num_mixed(groups),
            "gap": largest_gap_by_version(groups, models, self._processor),
            "gap under the first weights": largest_gap_by_version(groups, {1: self._first}, self._processor),
        }


def _work(root: Path, number: int, call: str) -> None:
    """In the forked process: get ready, wait for leave to begin, and call."""
    try:
        worker = Worker(root)
        if call == "wake_up":
            worker.fall_asleep()
        _say(number, {"worker": os.getpid(), "engine": worker.processes()})
        while not (root / "go").exists():
            time.sleep(0.05)
        found = getattr(worker, call)()
        _say(number, {"returned": found if call in ("compare", "go_on") else None})
        worker._engine._watch.leave()
    except BaseException:
        traceback.print_exc()
        os._exit(RAISED)


def _say(number: int, what: dict[str, object]) -> None:
    print(json.dumps({"number": number} | what), flush=True)


def main() -> None:
    """Read calls, one a line, until there are no more."""
    root = Path(sys.argv[1])
    # vLLM's CPU build always spawns, which means importing everything anew in three processes.
    for module in (vllm.v1.engine.utils, vllm.v1.executor.multiproc_executor):
        module.get_mp_context = lambda: multiprocessing.get_context("fork")
    for line in sys.stdin:
        number, call = line.split()
        pid = os.fork()
        if not pid:
            _work(root, int(number), call)
        _, status = os.waitpid(pid, 0)
        _say(int(number), {"status": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    main()
