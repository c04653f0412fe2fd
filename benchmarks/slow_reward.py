"""Seconds of a training step with an asynchronous reward that sleeps, against the same step without it, turn by turn.

The reward stands for a judge that is served elsewhere: it waits ``--seconds`` for every response and computes nothing.
Its waits pass beside one another and beside the sampling, except for those of the responses that come last. What is
left of them is the reward's own wait, once a step: it weighs little in a step of minutes and much in one of seconds,
so ``--prompts`` matters. Real engine, real trainer, the quickstart's model and data.

    uv run python benchmarks/slow_reward.py --prompts 256
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import statistics
import time
from collections.abc import Sequence

from json_line import report
from quickstart_setup import Setup, quickstart

from recipes.rs_grpo import RsGrpo, RsGrpoState
from recipes.setup.workers import open_workers
from rewards.base import RewardCall
from rewards.plugins import LoadedReward
from rewards.scorer import Scorer
from rsgrpo.config import RewardConfig, ScopeConfig


def sleeping_reward(seconds: float) -> LoadedReward:
    """An asynchronous reward that gives every response 0 after so many seconds."""

    async def judge(call: RewardCall) -> float:
        await asyncio.sleep(seconds)
        return 0.0

    return LoadedReward(
        name="judge",
        config=RewardConfig(
            function="slow_reward:judge", scope=ScopeConfig(start="begin", stop="end"), weight=1.0, timeout_seconds=60.0
        ),
        function=judge,
        is_async=True,
        is_batch=False,
        gold_sections=(),
    )


def measure(setup: Setup, num_rounds: int, seconds: float) -> dict[str, object]:
    judge = sleeping_reward(seconds)
    plain = setup.config
    judged = dataclasses.replace(plain, rewards={**plain.rewards, judge.name: judge.config})
    sides = {
        "without": (plain, setup.prepared.scorer),
        "with": (judged, Scorer([*setup.prepared.scorer.rewards, judge], setup.prepared.scorer._view)),
    }
    found: dict[str, list[float]] = {side: [] for side in sides}
    with open_workers(plain, setup.prepared.base_model, setup.cluster) as workers:
        assert workers.policy is not None and workers.engine is not None
        workers.policy.begin_stage(plain.rl.optimizer, 10_000)
        workers.engine.wait_ready()
        step = 0
        for round_index in range(num_rounds + 1):
            for side in ("without", "with") if round_index % 2 else ("with", "without"):
                config, scorer = sides[side]
                training = RsGrpo(
                    config=config,
                    policy=workers.policy,
                    engine=workers.engine,
                    scorer=scorer,
                    prompts=setup.prepared.rl,
                    state=RsGrpoState(step=step, position=step * config.rl.prompts_per_step),
                )
                begin = time.perf_counter()
                training.train_step(is_last=True)
                if round_index:  # the first round warms up caches and allocators
                    found[side].append(time.perf_counter() - begin)
                step += 1
    more = [slow / fast - 1 for slow, fast in zip(found["with"], found["without"], strict=True)]
    return {
        "prompts": plain.rl.prompts_per_step,
        "samples": plain.rl.samples_per_prompt,
        "reward_seconds": seconds,
        "step_seconds_without": round(statistics.median(found["without"]), 2),
        "step_seconds_with": round(statistics.median(found["with"]), 2),
        "more": round(statistics.median(more), 3),
        "more_by_round": [round(share, 3) for share in more],
        "target": 0.1,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--set", nargs="*", default=[], help="further settings, as for train.py")
    options = parser.parse_args(arguments)
    overrides = [f"rl.prompts_per_step={options.prompts}", "rl.filter.mode=none", *options.set]
    with quickstart(overrides) as setup:
        report("slow_reward", measure(setup, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
