"""Seconds and GB/s of a weight update, trainer to engine, by size of the model.

Small Qwen2.5-VL models of growing size, every parameter trained, through the object store on a CPU and from GPU to GPU
on GPUs. The two parts are the trainer's (gather, flatten, checksum) and the engine's (checksum, load, repack). An
update's share of a step is in every run's ``summary.json`` (``benchmarks/step_phases.py`` shows it).

With ``--adapters RANK`` the same models train adapters of that rank: once their merged weights are sent, once the
adapters alone, which vLLM adds to its base. The engine's speed is measured in both ways, for that addition has a price.

    uv run python benchmarks/weight_update.py --sizes 128x3 512x6 1024x12
    uv run python benchmarks/weight_update.py --sizes 128x3 512x6 --adapters 16
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import ray
from json_line import report
from quickstart_setup import Setup, quickstart

from recipes.setup.workers import open_workers

_NUM_CALLS = 3  # to the engine, the first of which is not counted


def measure(setup: Setup, num_updates: int) -> dict[str, object]:
    gather_seconds, load_seconds, num_bytes = [], [], 0
    with open_workers(setup.config, setup.prepared.base_model, setup.cluster) as workers:
        engine, policy = workers.engine, workers.policy
        assert policy is not None and engine is not None
        engine.wait_ready()
        for index in range(num_updates + 1):
            begin = time.perf_counter()
            update = policy.weights(trainable_only=True)
            middle = time.perf_counter()
            engine.update_weights(update)
            end = time.perf_counter()
            # The first update is not counted: it fills allocators.
            if index:
                gather_seconds.append(middle - begin)
                load_seconds.append(end - middle)
            else:
                num_bytes = sum(bucket.data.nbytes for bucket in ray.get(list(update.buckets)))
        prompts = setup.prepared.rl
        speeds = []
        for seed in range(_NUM_CALLS):
            begin = time.perf_counter()
            groups = engine.generate(prompts, num_samples=1, sampling=setup.config.rollout.sampling, seed=seed)
            num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
            speeds.append(num_tokens / (time.perf_counter() - begin))
    seconds = [gather + load for gather, load in zip(gather_seconds, load_seconds, strict=True)]
    return {
        "megabytes": round(num_bytes / 1e6, 3),
        "seconds": round(statistics.median(seconds), 4),
        "seconds_of_each": [round(duration, 4) for duration in seconds],
        "trainer_seconds": round(statistics.median(gather_seconds), 4),
        "engine_seconds": round(statistics.median(load_seconds), 4),
        "gigabytes_per_second": round(num_bytes / 1e9 / statistics.median(seconds), 3),
        "sampled_tokens_per_second": round(statistics.median(speeds[1:])),
    }


def compare(overrides: Sequence[str], rank: int, num_updates: int) -> dict[str, object]:
    """Merged weights against adapters alone; ratios above 1 speak for the adapters."""
    found: dict[str, Any] = {}
    for way in ("merged", "adapter"):
        lora = f"model.lora={{rank: {rank}, update: {way}}}"
        with quickstart([*overrides, "model.freeze_vision=true", lora]) as setup:
            found[way] = measure(setup, num_updates)
    merged, adapter = found["merged"], found["adapter"]
    return found | {
        "fewer_bytes": round(merged["megabytes"] / adapter["megabytes"], 1),
        "shorter_update": round(merged["seconds"] / adapter["seconds"], 2),
        "sampling_speed": round(adapter["sampled_tokens_per_second"] / merged["sampled_tokens_per_second"], 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["128x3", "512x6", "1024x12"], help="hidden size x layers")
    parser.add_argument("--updates", type=int, default=7)
    parser.add_argument("--adapters", type=int, default=0, metavar="RANK", help="compare both ways to send adapters")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, as for train.py")
    options = parser.parse_args(arguments)
    rows = []
    for size in options.sizes:
        hidden, layers = map(int, size.split("x"))
        shape = [
            f"quickstart.text_hidden={hidden}",
            f"quickstart.text_layers={layers}",
            f"quickstart.text_heads={max(4, hidden // 64)}",
            "quickstart.num_rl_samples=32",
        ]
        if options.adapters:
            found = compare([*shape, *options.set], options.adapters, options.updates)
            rows.append({"hidden": hidden, "layers": layers, "rank": options.adapters, **found})
            continue
        with quickstart([*shape, *options.set]) as setup:
            rows.append({"hidden": hidden, "layers": layers, **measure(setup, options.updates)})
    report("weight_update", {"sizes": rows})


if __name__ == "__main__":
    main()
