"""Steps per minute with ``rl.max_staleness_steps=1`` against 0, in one run, blocks of steps taking turns.

Real engine, real trainer, the quickstart's model and data; each side gets ``--threads`` threads, so that on two
cores the engine has one and the trainer the other. ``--response-tokens`` and ``--set`` move the balance between
sampling and training; ``share`` in the result says how alike they cost.

    uv run python benchmarks/asynchronous.py --steps 5 --blocks 6
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence

from json_line import report
from quickstart_setup import Setup, quickstart

from recipes.rs_grpo import RsGrpo, RsGrpoState
from recipes.setup.workers import open_workers


def timed_block(training: RsGrpo, num_steps: int) -> tuple[float, list[dict[str, float]]]:
    """Seconds of a block of steps, behind one that is not counted: asynchronous, that one samples the first batch."""
    training.train_step()
    begin = time.perf_counter()
    reports = [training.train_step() for _ in range(num_steps)]
    return time.perf_counter() - begin, [dict(step.metrics) for step in reports]


def measure(setup: Setup, num_steps: int, num_blocks: int) -> dict[str, object]:
    config = setup.config
    seconds: dict[int, list[float]] = {0: [], 1: []}
    phases: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    step = 0
    with open_workers(config, setup.prepared.base_model, setup.cluster) as workers:
        assert workers.policy is not None and workers.engine is not None
        workers.policy.begin_stage(config.rl.optimizer, 10_000)
        workers.engine.wait_ready()
        for block in range(num_blocks):
            for staleness in (0, 1) if block % 2 == 0 else (1, 0):
                settings = dataclasses.replace(config.rl, max_staleness_steps=staleness)
                training = RsGrpo(
                    config=dataclasses.replace(config, rl=settings),
                    policy=workers.policy,
                    engine=workers.engine,
                    scorer=setup.prepared.scorer,
                    prompts=setup.prepared.rl,
                    state=RsGrpoState(step=step, position=step * config.rl.prompts_per_step),
                )
                block_seconds, metrics = timed_block(training, num_steps)
                step += num_steps + 1
                # The first block of each kind warms up caches and allocators.
                if block:
                    seconds[staleness].append(block_seconds / num_steps)
                    phases[staleness].extend(metrics)
    return summarise(seconds, phases)


def summarise(seconds: dict[int, list[float]], phases: dict[int, list[dict[str, float]]]) -> dict[str, object]:
    def phase(staleness: int, *names: str) -> float:
        return statistics.mean(sum(step.get(f"time/{name}", 0.0) for name in names) for step in phases[staleness])

    sampling, training = phase(0, "generate", "score"), phase(0, "credit", "update", "telemetry", "weights")
    step = {staleness: statistics.median(values) for staleness, values in seconds.items()}
    return {
        "sync_steps_per_minute": round(60 / step[0], 2),
        "async_steps_per_minute": round(60 / step[1], 2),
        "ratio": round(step[0] / step[1], 3),
        "ratio_by_block": [round(a / b, 3) for a, b in zip(seconds[0], seconds[1], strict=True)],
        "sync_sampling_seconds": round(sampling, 3),
        "sync_training_seconds": round(training, 3),
        "share": round(sampling / (sampling + training), 3),
        "best_possible_ratio": round((sampling + training) / max(sampling, training), 3),
        "async_sampling_seconds": round(phase(1, "generate", "score"), 3),
        "async_training_seconds": round(phase(1, "credit", "update", "telemetry"), 3),
        "async_waiting_seconds": round(phase(1, "wait_for_samples"), 3),
        "target": 1.3,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps of a block")
    parser.add_argument("--blocks", type=int, default=6, help="blocks of each kind, the first not counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--response-tokens", type=int, default=48)
    parser.add_argument("--set", nargs="*", default=[], help="further settings, as for train.py")
    options = parser.parse_args(arguments)
    overrides = [
        f"rollout.sampling.max_response_tokens={options.response_tokens}",
        f"rollout.num_threads={options.threads}",
        f"trainer.num_threads={options.threads}",
        "rl.filter.mode=none",
        *options.set,
    ]
    with quickstart(overrides) as setup:
        report("asynchronous", measure(setup, options.steps, options.blocks))


if __name__ == "__main__":
    main()
