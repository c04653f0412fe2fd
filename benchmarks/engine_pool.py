"""Tokens per second through the pool of engines against vLLM alone on the same requests, turn by turn.

All run the same vLLM with the same settings, in processes of their own. "Alone" is timed around ``LLM.generate``
inside that process, with images read beforehand and without texts; the pool is timed in the driver, with everything
that training gets: pages read, requests sent, texts with offsets, log-probabilities, records sent back. "Step" is
what a training step waits for: the same, each group scored by the recipe's rewards as it comes, until the last one is
scored. Before every call all caches are emptied, as new weights do, and questions come once on each side. The same
tokens are suppressed everywhere, or responses would differ in length by a twentieth.

    uv run python benchmarks/engine_pool.py --rounds 6
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import ray
from json_line import report
from quickstart_setup import Setup, quickstart

from recipes.setup.workers import open_workers
from rewards.scorer import Scorer
from rollout.engine import RolloutEngine
from rsgrpo.cluster.environments import engine_environment
from rsgrpo.config import SamplingConfig
from rsgrpo.data.images.loading import load_image
from rsgrpo.types import PromptedSample


class PlainEngine:
    """vLLM alone.

    Args:
        spec: what an engine is built from.
    """

    def __init__(self, spec: Any) -> None:
        from rollout.vllm_engine import VllmEngine

        self._engine = VllmEngine(spec)
        self._rules = spec.config.data.image_rules

    def generate(self, prompted: Sequence[PromptedSample], num_samples: int, max_tokens: int) -> tuple[int, float]:
        """Response tokens and seconds."""
        from vllm import SamplingParams

        forget(self)
        prompts = [self._prompt(sample) for sample in prompted]
        parameters = SamplingParams(n=num_samples, temperature=1.0, max_tokens=max_tokens, logprobs=0, detokenize=False)
        begin = time.perf_counter()
        outputs = self._engine._llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - begin
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs), seconds

    def _prompt(self, prompted: PromptedSample) -> Any:
        from vllm.inputs import TokensPrompt

        images = [load_image(image, self._rules) for image in prompted.prompt.images]
        ids = self._engine._tokenizer.encode(prompted.prompt.text, add_special_tokens=False)
        return TokensPrompt(prompt_token_ids=ids, multi_modal_data={"image": images})


def forget(holder: Any) -> None:
    """Empty the caches of the engine that a worker holds."""
    engine = holder._engine
    engine._take_version(engine.policy_version)
    engine._llm.llm_engine.reset_mm_cache()


def timed_step(
    engine: RolloutEngine, scorer: Scorer, prompts: Sequence[PromptedSample], num_samples: int, max_tokens: int
) -> tuple[int, float]:
    """Response tokens, and seconds until all of them are scored."""
    begin = time.perf_counter()
    sampling = SamplingConfig(max_response_tokens=max_tokens)
    with closing(scorer.scoring()) as scoring:
        for group in engine.stream(prompts, num_samples=num_samples, sampling=sampling, seed=0):
            scoring.add(group)
        scored = scoring.scored()
    seconds = time.perf_counter() - begin
    return sum(len(rollout.rollout.token_ids) for group in scored for rollout in group.rollouts), seconds


def measure(setup: Setup, num_rounds: int, num_questions: int, num_samples: int) -> dict[str, object]:
    from rollout.vllm_engine import EngineSpec

    config, model, cluster = setup.config, setup.prepared.base_model, setup.cluster
    sampling = SamplingConfig(max_response_tokens=config.rollout.sampling.max_response_tokens)
    sides = ("pool", "alone", "step")
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    with open_workers(config, model, cluster) as workers:
        device = workers.fitted.config.cluster.device
        environment = engine_environment(config, device, config.rollout.num_threads or cluster.num_cores)
        num_gpus = config.rollout.tensor_parallel_size if device == "gpu" else 0
        plain = (
            ray.remote(PlainEngine)
            .options(num_cpus=0, num_gpus=num_gpus, runtime_env={"env_vars": environment})
            .remote(EngineSpec(config=config, model_folder=model, device=device))
        )
        assert workers.engine is not None
        workers.engine.wait_ready()
        # The first round is not counted: it fills caches and allocators.
        for index in range(num_rounds + 1):
            prompts = setup.prepared.test[index * num_questions : (index + 1) * num_questions]
            for side in (*sides[index % 3 :], *sides[: index % 3]):
                if side != "alone":
                    ray.get([worker.__ray_call__.remote(forget) for worker in workers.engine._workers])
                if side == "alone":
                    call = plain.generate.remote(prompts, num_samples, sampling.max_response_tokens)
                    tokens, seconds = ray.get(call)
                elif side == "step":
                    tokens, seconds = timed_step(
                        workers.engine, setup.prepared.scorer, prompts, num_samples, sampling.max_response_tokens
                    )
                else:
                    begin = time.perf_counter()
                    groups = workers.engine.generate(prompts, num_samples=num_samples, sampling=sampling, seed=index)
                    seconds = time.perf_counter() - begin
                    tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
                if index:
                    speeds[side].append(tokens / seconds)
        ray.kill(plain)
    ratios = {
        side: [speed / alone for speed, alone in zip(speeds[side], speeds["alone"], strict=True)]
        for side in ("pool", "step")
    }
    return {
        "questions": num_questions,
        "samples": num_samples,
        "max_response_tokens": sampling.max_response_tokens,
        "pool_tokens_per_second": round(statistics.median(speeds["pool"])),
        "alone_tokens_per_second": round(statistics.median(speeds["alone"])),
        "step_tokens_per_second": round(statistics.median(speeds["step"])),
        "ratio": round(statistics.median(ratios["pool"]), 3),
        "ratio_by_round": [round(ratio, 3) for ratio in ratios["pool"]],
        "step_ratio": round(statistics.median(ratios["step"]), 3),
        "step_ratio_by_round": [round(ratio, 3) for ratio in ratios["step"]],
        "target": 0.95,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--set", nargs="*", default=[], help="further settings, as for train.py")
    options = parser.parse_args(arguments)
    num_test = options.prompts * (options.rounds + 1)
    with quickstart(["stage=eval", f"quickstart.num_test_samples={num_test}", *options.set]) as setup:
        report("engine_pool", measure(setup, options.rounds, options.prompts, options.samples))


if __name__ == "__main__":
    main()
