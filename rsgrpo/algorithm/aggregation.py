"""How the tokens of a step add up: the denominators of the loss, fixed before the first backward pass.

With M the tokens of a reward's scope, |M_i| those in response i, R the responses that have any, and sums over
the responses of the whole optimizer step to which the reward applies (a response for which it returned None is
none of them: credit does not depend on what a reward says nothing about). Where ``outside`` is above 0, |M_i| counts
each other token of the response as that share of a token:

    scope_tokens    1 / sum_i |M_i|          sequence_mean    1 / (R |M_i|)
    token_mean      1 / sum_i |o_i|          constant         1 / (R L)

With one reward on the whole response, M is the response o: the token mean of DAPO (arXiv 2503.14476 eq. 8), the
mean of means of GRPO (2402.03300 eq. 3), and the constant of Dr. GRPO (2503.20783 §3.2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rsgrpo.algorithm.credit_table import CreditTable, Matrix, credit_table, whole_responses
from rsgrpo.config import CreditConfig
from rsgrpo.types import ResponseKey, ScoredGroup


def token_weights(tables: Sequence[CreditTable], config: CreditConfig) -> list[Matrix]:
    """What one token of each cell weighs in its reward's loss.

    Args:
        tables: the groups of one optimizer step.
        config: aggregation and ``constant_tokens``.

    Returns:
        One array [n, K] for each table; 0 where the cell has no token and the weight would depend on its number.
    """
    by_name = [_credited_tokens(table, config.outside) for table in tables]
    num_tokens: dict[str, float] = defaultdict(float)
    num_responses: dict[str, int] = defaultdict(int)
    for found in by_name:
        for name, counts in found.items():
            num_tokens[name] += float(counts.sum())
            num_responses[name] += int((counts > 0).sum())
    num_step_tokens: dict[str, int] = defaultdict(int)
    for table in tables:
        for name, applies in table.applies_by_name().items():
            num_step_tokens[name] += int(table.response_tokens[applies].sum())
    weights: list[Matrix] = []
    for table, found in zip(tables, by_name, strict=True):
        matrix = np.zeros(table.values.shape)
        for column, name in enumerate(table.names):
            responses = max(1, num_responses[name])
            match config.aggregation:
                case "scope_tokens":
                    matrix[:, column] = 1.0 / (num_tokens[name] or 1.0)
                case "token_mean":
                    matrix[:, column] = 1.0 / max(1, num_step_tokens[name])
                case "sequence_mean":
                    counts = found[name]
                    matrix[:, column] = np.where(counts > 0, 1.0 / (responses * np.where(counts > 0, counts, 1.0)), 0.0)
                case _:
                    matrix[:, column] = 1.0 / (responses * config.constant_tokens)
        weights.append(matrix)
    return weights


def _credited_tokens(table: CreditTable, outside: float) -> dict[str, NDArray[np.float64]]:
    """[n] by reward: the tokens of its scope over all images, and the share of the others that ``outside`` says."""
    applies = table.applies_by_name()
    return {
        name: counts + outside * np.where(applies[name], table.response_tokens - counts, 0)
        for name, counts in table.tokens_by_name().items()
    }


def response_weights(groups: Sequence[ScoredGroup], config: CreditConfig) -> dict[ResponseKey, float]:
    """What one token of each response weighs in a term over whole responses, such as the KL term.

    Args:
        groups: one optimizer step.
        config: aggregation and ``constant_tokens``.

    Returns:
        The weight of a token by the response's key (:attr:`Rollout.key`).

    Example:
        Responses of 2 and 3 tokens: 1/5 each for a token mean; 1/4 and 1/6 for ``sequence_mean``.
    """
    views = [whole_responses(group, [0.0] * len(group.rollouts)) for group in groups]  # any value: all of them count
    matrices = token_weights([credit_table(view) for view in views], config)
    return {
        rollout.key: float(weight)
        for group, matrix in zip(groups, matrices, strict=True)
        for rollout, weight in zip(group.rollouts, matrix[:, 0], strict=True)
    }
