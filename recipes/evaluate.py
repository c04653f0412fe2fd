"""Answer the test questions with the engine and score the answers; no weights change."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rollout.engine import RolloutEngine
from rsgrpo.config import Config
from rsgrpo.evisrag_metrics import EvaluationMetrics, ResponseScore, aggregate, score_response
from rsgrpo.types import PromptedSample, RolloutGroup

_CHUNK_QUESTIONS = 256  # between two signs of progress


def _write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(path)


def _score(group: RolloutGroup) -> ResponseScore:
    sample = group.sample
    return score_response(
        group.rollouts[0].text,
        sample.answers,
        is_sufficient=sample.is_sufficient,
        gold_response=sample.gold_response,
    )


def validate(engine: RolloutEngine, questions: Sequence[PromptedSample], config: Config) -> EvaluationMetrics:
    """Score greedy answers to held-out questions in the middle of training; nothing is written.

    Args:
        engine: with the weights to judge.
        questions: that training does not see.
        config: ``eval`` says how to sample.
    """
    return aggregate(
        [_score(one) for one in engine.generate(questions, num_samples=1, sampling=config.eval.sampling, seed=0)]
    )


def evaluate(
    engine: RolloutEngine,
    questions: Sequence[PromptedSample],
    config: Config,
    folder: Path,
    advance: Callable[[int], None],
) -> tuple[EvaluationMetrics, list[RolloutGroup]]:
    """Greedy answers to ``questions``, their scores, and predictions in the originals' format.

    Args:
        engine: loaded with the weights to judge.
        questions: the test set.
        config: ``eval`` says how to sample.
        folder: gets ``predictions.jsonl`` (``qid``, ``imgs``, ``pred``: what the public evaluation script
            reads, plus our scores) and ``metrics.json``.
        advance: called with the number of questions answered since the last call.

    Returns:
        The metrics over all questions, and the answered groups.
    """
    groups: list[RolloutGroup] = []
    for start in range(0, len(questions), _CHUNK_QUESTIONS):
        chunk = questions[start : start + _CHUNK_QUESTIONS]
        groups.extend(engine.generate(chunk, num_samples=1, sampling=config.eval.sampling, seed=config.seed))
        advance(len(chunk))
    scores = [_score(group) for group in groups]
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(
        folder / "predictions.jsonl",
        [
            {
                "qid": group.sample.sample_id,
                "query": group.sample.question,
                "imgs": [image.path for image in group.sample.images],
                "pred": group.rollouts[0].text,
                "answer": list(group.sample.answers),
                "is_sufficient": group.sample.is_sufficient,
                **dataclasses.asdict(score),
            }
            for group, score in zip(groups, scores, strict=True)
        ],
    )
    metrics = aggregate(scores)
    partial = folder / "metrics.json.partial"
    partial.write_text(json.dumps(dataclasses.asdict(metrics), indent=2))
    partial.replace(folder / "metrics.json")
    return metrics, groups
