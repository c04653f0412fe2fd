"""Answer questions with the engine, score the answers, and compare it with the trainer; no weights change."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rewards.scorer import Scorer
from rollout.engine import RolloutEngine
from rsgrpo.algorithm.metrics import gap_metrics
from rsgrpo.config import Config, ResponseFormat
from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.evisrag import public_id
from rsgrpo.evaluation.metrics import EvaluationMetrics, ResponseScore, aggregate, score_response
from rsgrpo.io.atomic_files import FileError, read_json_object, write_json
from rsgrpo.io.jsonl import write_rows
from rsgrpo.io.record_codec import RecordError, from_plain
from rsgrpo.retrieval.filtering.page_filter import FilterMetrics
from rsgrpo.trainer.policy import Policy, unweighted
from rsgrpo.types import PromptedSample, RolloutGroup, ScoredGroup

_METRICS_FILE = "metrics.json"
_REWARDS_FILE = "rewards.json"
FILTER_FILE = "filter.json"
_CHUNK_PROMPTS = 256  # between two signs of progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What answers to held-out questions are worth.

    Attributes:
        metrics: EVisRAG's metrics over all questions.
        rewards: the mean of each of the run's rewards that can judge all of the questions, over the answers to which it
            applies.
        filter: what the filter in front of the model found and cost; None where there was none.
    """

    metrics: EvaluationMetrics
    rewards: Mapping[str, float]
    filter: FilterMetrics | None = None

    def numbers(self) -> dict[str, float]:
        """All numbers by the name under which they are logged: ``eval/<name>``, ``eval/reward/<name>``, …."""
        found = dataclasses.asdict(self.filter) if self.filter else {}
        filtered = {f"filter/{name}": float(value) for name, value in found.items()}
        rewards = {f"reward/{name}": value for name, value in self.rewards.items()}
        return {name: float(value) for name, value in dataclasses.asdict(self.metrics).items()} | rewards | filtered


def read_evaluation(folder: Path) -> Evaluation | None:
    """What :func:`evaluate` found before.

    Args:
        folder: the folder of the evaluation, with ``metrics.json`` and ``rewards.json``.

    Returns:
        The evaluation's means; None if this point was not scored yet.

    Raises:
        FileError: the point was scored, but its files are empty, cut or something else.
    """
    file = folder / _METRICS_FILE
    if not file.exists() and not file.is_symlink():
        return None
    try:
        metrics = from_plain(EvaluationMetrics, read_json_object(file))
    except RecordError as error:
        raise FileError(f"{shown(file)}: {error}") from error
    rewards_file = folder / _REWARDS_FILE
    rewards = read_json_object(rewards_file) if rewards_file.exists() else {}  # earlier versions wrote none
    if not all(type(value) in (int, float) and math.isfinite(value) for value in rewards.values()):
        raise FileError(f"{shown(rewards_file)} does not hold numbers by reward")
    try:
        filter_file = folder / FILTER_FILE
        found = from_plain(FilterMetrics, read_json_object(filter_file)) if filter_file.exists() else None
    except RecordError as error:
        raise FileError(f"{shown(filter_file)}: {error}") from error
    return Evaluation(metrics=metrics, rewards={name: float(value) for name, value in rewards.items()}, filter=found)


def _score(group: RolloutGroup, response_format: ResponseFormat) -> ResponseScore:
    sample = group.sample
    return score_response(
        group.rollouts[0].text,
        sample.answers,
        is_sufficient=sample.is_sufficient,
        gold_response=sample.gold_response,
        response_format=response_format,
        opened=group.prompt.opened_section,
        page_numbers=sample.page_numbers,
    )


def _judge(groups: Sequence[RolloutGroup], scorer: Scorer) -> list[ScoredGroup]:
    return scorer.limited_to([group.sample for group in groups]).score(groups)


def _reward_values(judged: ScoredGroup) -> dict[str, float]:
    """Each reward's value for the first answer; of one value per image, the mean."""
    values: dict[str, list[float]] = defaultdict(list)
    for reward in judged.rollouts[0].rewards:
        if reward.value is not None:
            values[reward.name].append(reward.value)
    return {name: math.fsum(found) / len(found) for name, found in values.items()}


def _evaluation(scores: Sequence[ResponseScore], rewards: Sequence[Mapping[str, float]]) -> Evaluation:
    columns: dict[str, list[float]] = defaultdict(list)
    for reward in rewards:
        for name, value in reward.items():
            columns[name].append(value)
    means = {name: math.fsum(values) / len(values) for name, values in columns.items()}
    return Evaluation(metrics=aggregate(scores), rewards=means)


def validate(engine: RolloutEngine, prompts: Sequence[PromptedSample], config: Config, scorer: Scorer) -> Evaluation:
    """Score greedy answers to held-out questions in the middle of training; nothing is written.

    Args:
        engine: an engine that has loaded the weights to judge.
        prompts: prompts that training does not see.
        config: ``eval`` says how to sample.
        scorer: the run's rewards.
    """
    groups = engine.generate(prompts, num_samples=1, sampling=config.eval.sampling, seed=0)
    scores = [_score(group, config.response.format) for group in groups]
    return _evaluation(scores, [_reward_values(group) for group in _judge(groups, scorer)])


def evaluate(
    engine: RolloutEngine,
    prompts: Sequence[PromptedSample],
    config: Config,
    scorer: Scorer,
    folder: Path,
    advance: Callable[[int], None],
    filter_metrics: FilterMetrics | None = None,
) -> tuple[Evaluation, list[RolloutGroup]]:
    """Greedy answers to ``prompts``, their scores, and predictions in the originals' format.

    Args:
        engine: loaded with the weights to judge.
        prompts: the test set.
        config: ``eval`` says how to sample.
        scorer: the run's rewards.
        folder: gets ``predictions.jsonl`` (``qid``, ``imgs``, ``pred``: what the public evaluation script
            reads, plus our scores), ``rewards.json`` and ``metrics.json``.
        advance: is called with the number of questions answered since the last call.
        filter_metrics: what a filter found and cost that chose the pages of the prompts; None: there was none.

    Returns:
        The means over all questions, and the answered groups.
    """
    groups: list[RolloutGroup] = []
    for start in range(0, len(prompts), _CHUNK_PROMPTS):
        chunk = prompts[start : start + _CHUNK_PROMPTS]
        groups.extend(engine.generate(chunk, num_samples=1, sampling=config.eval.sampling, seed=config.seed))
        advance(len(chunk))
    scores = [_score(group, config.response.format) for group in groups]
    rewards = [_reward_values(judged) for judged in _judge(groups, scorer)]
    write_rows(
        folder / "predictions.jsonl",
        [
            {
                "qid": public_id(group.sample),
                "query": group.sample.question,
                "imgs": [image.path for image in group.sample.images],
                "pred": group.rollouts[0].text,
                "answer": list(group.sample.answers),
                "is_sufficient": group.sample.is_sufficient,
                **dataclasses.asdict(score),
                "rewards": values,
                **({"page_numbers": list(group.sample.page_numbers)} if group.sample.page_numbers else {}),
            }
            for group, score, values in zip(groups, scores, rewards, strict=True)
        ],
    )
    found = dataclasses.replace(_evaluation(scores, rewards), filter=filter_metrics)
    if filter_metrics is not None:
        write_json(folder / FILTER_FILE, dataclasses.asdict(filter_metrics), indent=2)
    # The metrics come last: they say that this point is done.
    write_json(folder / _REWARDS_FILE, dict(found.rewards), indent=2)
    write_json(folder / _METRICS_FILE, dataclasses.asdict(found.metrics), indent=2)
    return found, groups


def compare_engine(
    policy: Policy, engine: RolloutEngine, prompted: Sequence[PromptedSample], config: Config
) -> dict[str, float]:
    """|engine - trainer| log-probability gap in nats, of fresh responses: between steps both hold the same weights.

    Steps with ``rl.max_staleness_steps=1`` do not show it, since older weights sampled what they train on.

    Args:
        policy: the ranks that hold the weights.
        engine: the rollout workers.
        prompted: the prompts, each of which is answered once.
        config: how responses are sampled.

    Returns:
        ``engine/logprob_gap_mean`` and ``engine/logprob_gap_max``.
    """
    groups = engine.generate(prompted, num_samples=1, sampling=config.rollout.sampling, seed=config.seed)
    seen = policy.score([unweighted(group) for group in groups])
    logprobs = {response.sample_id: response.logprobs for response in seen}
    return gap_metrics(
        np.concatenate([group.rollouts[0].logprobs - logprobs[group.sample.sample_id] for group in groups])
    )
