"""A whole update (forward, backward, optimizer): shared prefixes, our own unshared path, and TRL's GRPOTrainer.

Ours is the production path without Ray: ``PolicyWorker`` as a rank runs it, DeepSpeed included. All ways update
the same model on the same prompts, images, responses and advantages, in turns within one run; pages are decoded and
processed beforehand for all of them. The learning rate is so small that every update sees the same weights, and
the gradients of all ways are compared. TRL runs in an environment of its own, in a second process.

    python benchmarks/update_step.py --trl-python trl-environment/bin/python
    python benchmarks/update_step.py --prompt-tokens 8192 --trl-python trl-environment/bin/python
    python benchmarks/update_step.py --family qwen3_5 --layers 4
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from workload import IMAGES, SHAPES, GroupShape, ModelShape, build_group, build_model, report, shape_text

from rsgrpo.config import Attention, Config, DataConfig, Dtype, LossConfig, ModelConfig, OptimizerConfig, TrainerConfig
from rsgrpo.model.families.table import FAMILIES
from rsgrpo.model.setup import WorkerSpec
from rsgrpo.trainer.worker import PolicyWorker
from rsgrpo.types import TrainingGroup

# Weights of about 0.04 do not move by 1e-12 in float32, and AdamW still does all of its work.
OPTIMIZER = OptimizerConfig(learning_rate=1e-12, weight_decay=0.0)
LOSS = LossConfig(importance_cap=0.0)


# TRL's process must neither find this library's packages nor join its process group.
_OURS = ("PYTHONPATH", "DS_ACCELERATOR", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One update.

    Attributes:
        seconds: wall clock.
        cpu_seconds: of all threads; on a busy machine the fairer figure.
        forward_tokens: packed tokens through the language model.
        micro_batches: rows.
    """

    seconds: float
    cpu_seconds: float
    forward_tokens: int
    micro_batches: int


class Clock:
    """A stopwatch that can be stopped and started again."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def start(self) -> None:
        """Let the stopwatch go on."""
        self.seconds -= time.perf_counter()
        self.cpu_seconds -= time.process_time()

    def stop(self) -> None:
        """Stop the stopwatch."""
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()


class MeasuredWorker(PolicyWorker):
    """A rank whose settings can change between updates, and which shows its gradient."""

    last_gradient: dict[str, torch.Tensor]

    @classmethod
    def start(cls, config: Config, folder: Path, *, device: str = "cpu", num_threads: int = 2) -> MeasuredWorker:
        """The only rank, in this process."""
        if device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        worker = cls(
            WorkerSpec(config=config, model_folder=folder, rank=0, world_size=1, device=device, num_threads=num_threads)
        )
        worker.load(worker.address())
        worker._model.lm_head.suppressed_bias = None  # TRL leaves no tokens out of the distribution
        worker.begin_stage(OPTIMIZER, 10**6)
        return worker

    def change(self, **trainer: Any) -> None:
        """Other trainer settings for the next update; those that the engine was built with stay."""
        self._config = dataclasses.replace(self._config, trainer=dataclasses.replace(self._config.trainer, **trainer))

    def timed_update(self, groups: list[TrainingGroup]) -> Timing:
        """Plan (not timed: pages are processed once and cached), then one update; its gradient is kept, untimed."""
        num_micro_batches = self.prepare(groups)
        clock = Clock()
        clock.start()
        update = self.accumulate(num_micro_batches, "policy", LOSS)
        clock.stop()
        self.last_gradient = self._gradient()
        clock.start()
        self.take_step()
        self._wait()
        clock.stop()
        return Timing(
            seconds=clock.seconds,
            cpu_seconds=clock.cpu_seconds,
            forward_tokens=update.totals.num_forward_tokens,
            micro_batches=num_micro_batches,
        )

    def _gradient(self) -> dict[str, torch.Tensor]:
        """The whole gradient by parameter, in float32, before clipping."""
        from deepspeed.utils import safe_get_full_grad

        named = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        return {name: safe_get_full_grad(p).float().cpu().clone() for name, p in named.items()}

    def work_for_trl(self, groups: list[TrainingGroup]) -> dict[str, Any]:
        """The same groups as TRL's trainer holds them after generation: everything once a response."""
        self.prepare(groups)
        sizes = [len(group.responses) for group in groups]
        responses = [response for group in groups for response in group.responses]
        prompts = [prompt for prompt, n in zip(self._prompts, sizes, strict=True) for _ in range(n)]
        prompt_ids = torch.stack([torch.from_numpy(prompt.token_ids) for prompt in prompts])
        completion_ids = torch.stack([torch.from_numpy(response.token_ids.astype(np.int64)) for response in responses])
        credit = torch.tensor(
            [float(response.positive_weights[0] - response.negative_weights[0]) for response in responses]
        )
        work: dict[str, Any] = {
            "prompt_ids": prompt_ids,
            "prompt_mask": torch.ones_like(prompt_ids),
            "completion_ids": completion_ids,
            "completion_mask": torch.ones_like(completion_ids),
            "advantages": credit * completion_ids.numel(),
            "num_items_in_batch": torch.tensor(float(completion_ids.numel())),
        }
        images = [image for prompt in prompts for image in prompt.images]
        if images:
            pixels = [self._encoder.pixels(image) for image in images]
            ids = torch.cat([prompt_ids, completion_ids], dim=1)
            work |= {
                "pixel_values": torch.cat(pixels),
                "image_grid_thw": torch.tensor([image.grid for image in images]),
                "num_images": [len(prompt.images) for prompt in prompts],
                "mm_token_type_ids": (ids == self._encoder.image_token_id).int(),
            }
        return work

    def _wait(self) -> None:
        if self._spec.device == "gpu":
            torch.cuda.synchronize()


class TrlPeer:
    """TRL's trainer in a process of its own, which updates when it is asked to.

    Args:
        options: the options of the command line.
        folder: the folder that holds the model.
        work: what TRL trains on, as ``work_for_trl`` returns it.
        place: the folder for the files that are exchanged with the process; made here.
    """

    def __init__(self, options: argparse.Namespace, folder: Path, work: dict[str, Any], place: Path) -> None:
        place.mkdir()
        torch.save(work, place / "work.pt")
        self.last_gradient: dict[str, torch.Tensor] = {}
        self._gradient_file = place / "gradient.pt"
        command = [options.trl_python, str(Path(__file__).with_name("trl_step.py"))]
        command += ["--model", str(folder), "--work", str(place / "work.pt"), "--scratch", str(place / "scratch")]
        command += ["--batch", str(options.trl_batch), "--threads", str(options.threads)]
        command += ["--train-vision"] if options.train_vision else []
        environment = {name: value for name, value in os.environ.items() if name not in _OURS}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.versions: dict[str, str] = {}
        self._num_micro_batches = len(work["advantages"]) // options.trl_batch
        self._num_tokens = work["prompt_ids"].numel() + work["completion_ids"].numel()

    def timed_update(self) -> Timing:
        """One optimizer step; its gradient is kept, untimed."""
        answer = self._ask()
        self.last_gradient = torch.load(self._gradient_file)
        return Timing(
            seconds=answer["seconds"],
            cpu_seconds=answer["cpu_seconds"],
            forward_tokens=self._num_tokens,
            micro_batches=self._num_micro_batches,
        )

    def _ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{self._gradient_file}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"TRL's process ended with exit status {self._process.wait()}; see its messages above")
        answer: dict[str, Any] = json.loads(line)
        self.versions = {name: answer[name] for name in ("trl", "torch")}
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def bench_config(
    *, budget: int, frozen: bool, dtype: Dtype = "float32", attention: Attention = "auto", **model: Any
) -> Config:
    """Settings of the recipe where they matter, without recomputation (everything fits)."""
    return Config(
        stage="sft",
        model=ModelConfig(
            dtype=dtype,
            freeze_vision=frozen,
            attention=attention,
            **({"gradient_checkpointing": False} | model),
        ),
        data=DataConfig(min_pixels=784, max_pixels=10**8, max_prompt_tokens=10**6),
        trainer=TrainerConfig(micro_batch_tokens=budget),
    )


def relative_gap(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    """|got - want| / |want| over all parameters together."""
    assert got.keys() == want.keys(), got.keys() ^ want.keys()
    apart = sum(float((got[name] - want[name]).double().square().sum()) for name in want)
    return math.sqrt(apart / sum(float(gradient.double().square().sum()) for gradient in want.values()))


def summary(name: str, timings: list[Timing]) -> dict[str, Any]:
    """A row of the table: medians."""
    return {
        "path": name,
        "seconds": round(statistics.median(timing.seconds for timing in timings), 3),
        "cpu_seconds": round(statistics.median(timing.cpu_seconds for timing in timings), 3),
        "packed_tokens": timings[0].forward_tokens,
        "micro_batches": timings[0].micro_batches,
        "updates": len(timings),
    }


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Options that the update benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small", help="of the model")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen2_5_vl", help="of the model")
    parser.add_argument("--layers", type=int, default=0, help="of both towers; 0: as the shape says")
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--response-tokens", type=int, default=256)
    parser.add_argument("--num-responses", type=int, default=8, help="n, the group's size")
    parser.add_argument("--pages", type=int, default=IMAGES, help="images, half of the prompt in all; 0: text only")
    parser.add_argument("--num-groups", type=int, default=1)
    parser.add_argument("--train-vision", action="store_true", help="train the vision tower too (the recipe does not)")
    parser.add_argument("--repeats", type=int, default=3, help="updates of each kind")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def shape_of(options: argparse.Namespace) -> ModelShape:
    """The model's sizes."""
    shape = SHAPES[options.shape]
    if not options.layers:
        return shape
    return dataclasses.replace(shape, layers=options.layers, vision_layers=options.layers)


def groups_of(options: argparse.Namespace, folder: Path) -> tuple[list[TrainingGroup], int]:
    """The step's groups, and the budget: one group's shared row, for both ways."""
    shape = GroupShape(
        prompt_tokens=options.prompt_tokens,
        response_tokens=options.response_tokens,
        num_responses=options.num_responses,
        num_images=options.pages,
        token_pixels=FAMILIES[options.family].token_pixels,
    )
    groups = [
        build_group(shape, folder, seed=seed, num_groups=options.num_groups) for seed in range(options.num_groups)
    ]
    return groups, options.prompt_tokens + options.num_responses * options.response_tokens


def measure(options: argparse.Namespace, place: Path) -> None:
    """Gradients of every way, then updates in turns, then the report."""
    model_shape = shape_of(options)
    folder = build_model(model_shape, place / "model", family=options.family)
    groups, budget = groups_of(options, place / "pages")
    config = bench_config(budget=budget, frozen=not options.train_vision)
    worker = MeasuredWorker.start(config, folder, num_threads=options.threads)
    peer = TrlPeer(options, folder, worker.work_for_trl(groups), place / "trl") if options.trl_python else None

    def ours(*, share_prefix: bool) -> tuple[Timing, dict[str, torch.Tensor]]:
        worker.change(share_prefix=share_prefix)
        return worker.timed_update(groups), worker.last_gradient

    ways: dict[str, Callable[[], tuple[Timing, dict[str, torch.Tensor]]]] = {
        "shared prefix": lambda: ours(share_prefix=True),
        "unshared": lambda: ours(share_prefix=False),
    }
    if peer:
        ways["TRL GRPOTrainer"] = lambda: (peer.timed_update(), peer.last_gradient)
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    gaps: dict[str, float] = {}
    for _ in range(options.repeats):
        for name, update in ways.items():
            timing, gradient = update()
            timings[name].append(timing)
            if name == "shared prefix":
                shared = gradient
            gaps[name] = relative_gap(gradient, shared)
    worker.close()
    if peer:
        peer.close()
    rows = [summary(name, own) for name, own in timings.items()]
    for row in rows:
        row["times shared"] = round(row["seconds"] / rows[0]["seconds"], 2)
        row["in CPU seconds"] = round(row["cpu_seconds"] / rows[0]["cpu_seconds"], 2)
    report(
        "update_step",
        options,
        rows,
        model=shape_text(model_shape),
        relative_gradient_gap=gaps,
        single_seconds={name: [round(timing.seconds, 3) for timing in own] for name, own in timings.items()},
        single_cpu_seconds={name: [round(timing.cpu_seconds, 3) for timing in own] for name, own in timings.items()},
        peak_memory_gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        trl=peer.versions if peer else None,
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trl-python", help="Python of an environment with trl; without it TRL is not measured")
    parser.add_argument("--trl-batch", type=int, default=1, help="responses a micro-batch of TRL's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        measure(options, Path(place))


if __name__ == "__main__":
    main()
