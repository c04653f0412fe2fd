"""How much of a reward's credit is signal: whether siblings that choose alike are pushed alike.

A reward gives siblings of a group advantages A_i, and these push each sibling's choices of tokens up or down. Where the
reward depends on a choice, all siblings that made it are pushed to the same side, and the pushes add up. Where it does
not, they cancel. So the length of the sum is compared with what it would be on average if the same advantages were
dealt out among the siblings at random:

    phi_i(c, y) = N_i(c, y) - N_i(c) p(y | c)        push = |sum_i A_i phi_i|^2        chance = sum_i |phi_i|^2

N_i(c, y) counts in sibling i how often token y follows the context c (the two tokens before it), and p is its share
among all siblings: phi_i is the gradient of the sibling's log-probability under a policy that is such a table. With
advantages of mean 0 and unbiased standard deviation 1, ``chance`` is the exact mean of ``push`` over all permutations
of the siblings. Only the text is needed, no gradient of the model: the figure costs milliseconds a step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsgrpo.algorithm.advantages import normalise
from rsgrpo.algorithm.credit_table import Matrix, credit_table
from rsgrpo.config import CreditConfig
from rsgrpo.types import ResponseKey, ScoredGroup, TokenSpan

SectionSpans = Mapping[ResponseKey, Mapping[str, Sequence[TokenSpan]]]
"""The tokens of every section of each response, by its sample id and response index."""

_CONTEXT_TOKENS = 2
_FEWEST_SIBLINGS = 4
_Cells = tuple[tuple[tuple[int, int], ...], ...]  # for each sibling the ranges of tokens that are looked at


@dataclass(frozen=True, kw_only=True, slots=True)
class CreditSignal:
    """What one reward's credit does in one section, summed over groups.

    Attributes:
        push: squared length of the push that the credit gives, in squared counts of tokens.
        chance: what it would be on average with the same advantages dealt out among siblings at random.
    """

    push: float
    chance: float

    @property
    def ratio(self) -> float:
        """Signal over noise: 0 where the reward depends on nothing here, n - 2 at most in groups of n siblings."""
        return self.push / self.chance - 1.0


def credit_signal(
    groups: Sequence[ScoredGroup], sections: SectionSpans, config: CreditConfig
) -> dict[tuple[str, str], CreditSignal]:
    """The signal of every reward in every section that its credit reaches.

    Args:
        groups: the scored groups of one step.
        sections: the tokens of the sections of each of their responses.
        config: which tokens a reward credits.

    Returns:
        By the names of reward and section; nothing where the credit changes nothing: no group in which the reward
        varies has siblings that differ in these tokens. Groups with fewer than four siblings that have a value do not
        count: with two the push is always the chance, and with three it can be no more than twice that.

    Raises:
        KeyError: ``sections`` lacks a response.

    Example:
        Eight siblings answer 3 or 7, four each, and the 7s are right: push 28, chance 4, ratio 6. Were the reward
        dealt out at random, the ratio would be 0 on average.
    """
    is_everywhere = config.scoping == "whole" or config.outside > 0.0
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for group in groups:
        table = credit_table(group, config.reach)
        advantages = normalise(table.values, CreditConfig(epsilon=0.0))
        choices = _Choices(group)
        own_sections = [sections[rollout.key] for rollout in group.rollouts]
        section_names = list(dict.fromkeys(name for own in own_sections for name in own))
        for column, name in enumerate(table.names):
            rows = np.flatnonzero(~np.isnan(table.values[:, column]))
            if len(rows) < _FEWEST_SIBLINGS or not advantages[:, column].any():
                continue
            for section in section_names:
                cells = tuple(
                    _common(
                        [TokenSpan(start=0, stop=group.rollouts[row].num_tokens)]
                        if is_everywhere
                        else table.spans[row][column],
                        own_sections[row].get(section, ()),
                    )
                    for row in rows
                )
                products = choices.products(rows, cells)
                chance = float(np.trace(products))
                if chance > 1e-9:
                    total = sums[name, section]
                    total[0] += float(advantages[rows, column] @ products @ advantages[rows, column])
                    total[1] += chance
    return {key: CreditSignal(push=push, chance=chance) for key, (push, chance) in sums.items()}


def signal_metrics(groups: Sequence[ScoredGroup], sections: SectionSpans, config: CreditConfig) -> dict[str, float]:
    """The signal over noise of every reward and section, as metrics of a step: :attr:`CreditSignal.ratio`.

    Args:
        groups: as for :func:`credit_signal`.
        sections: as there.
        config: as there.

    Returns:
        ``signal/<reward>/<section>``, for what the credit reaches and changes.
    """
    found = credit_signal(groups, sections, config)
    return {f"signal/{reward}/{section}": signal.ratio for (reward, section), signal in found.items()}


def _common(spans: Sequence[TokenSpan], others: Sequence[TokenSpan]) -> tuple[tuple[int, int], ...]:
    """The ranges that both lists of spans hold."""
    found = ((max(one.start, two.start), min(one.stop, two.stop)) for one in spans for two in others)
    return tuple((start, stop) for start, stop in found if start < stop)


class _Choices:
    """The choices of tokens in a group, as numbers: which token, and after which context."""

    def __init__(self, group: ScoredGroup) -> None:
        rows = [np.asarray(rollout.rollout.token_ids, dtype=np.int64) for rollout in group.rollouts]
        self._starts = np.cumsum([0, *(len(row) for row in rows)])
        tokens = np.concatenate(rows)
        self._contexts = np.zeros_like(tokens)
        for distance in range(1, _CONTEXT_TOKENS + 1):
            self._contexts = _paired(self._contexts, np.concatenate([_shifted(row, distance) for row in rows]))
        self._choices = _paired(self._contexts, tokens)
        self._seen: dict[tuple[tuple[int, ...], _Cells], Matrix] = {}

    def products(self, rows: NDArray[np.int64], cells: _Cells) -> Matrix:
        """[m, m] inner products of phi of these siblings, over the tokens in the cells; kept for the next reward."""
        key = (tuple(rows.tolist()), cells)
        if key not in self._seen:
            self._seen[key] = self._products(rows, cells)
        return self._seen[key]

    def _products(self, rows: NDArray[np.int64], cells: _Cells) -> Matrix:
        ranges = [
            np.arange(start, stop) + self._starts[row]
            for row, cell in zip(rows, cells, strict=True)
            for start, stop in cell
        ]
        place = np.concatenate([np.zeros(0, np.int64), *ranges])
        siblings = np.searchsorted(self._starts[rows], place, side="right") - 1
        _, first, choices = np.unique(self._choices[place], return_index=True, return_inverse=True)
        contexts = np.unique(self._contexts[place], return_inverse=True)[1]
        counts = _counted(siblings, choices, len(rows))
        of_context = _counted(siblings, contexts, len(rows))[:, contexts[first]]
        phi = counts - of_context * (counts.sum(axis=0) / of_context.sum(axis=0))
        products: Matrix = phi @ phi.T
        return products


def _counted(siblings: NDArray[np.int64], numbers: NDArray[np.int64], num_siblings: int) -> Matrix:
    """[num_siblings, N] how often each sibling has each of the numbers 0 … N - 1."""
    width = int(numbers.max(initial=-1)) + 1
    counts = np.bincount(siblings * width + numbers, minlength=num_siblings * width)
    return counts.reshape(num_siblings, width).astype(np.float64)


def _paired(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each pair, the same for equal pairs; ``second`` is -1 at least."""
    pairs = first * (int(second.max(initial=0)) + 2) + second + 1
    numbers: NDArray[np.int64] = np.unique(pairs, return_inverse=True)[1]
    return numbers


def _shifted(row: NDArray[np.int64], distance: int) -> NDArray[np.int64]:
    """The token that stands ``distance`` places before each one; -1 where there is none."""
    return np.concatenate((np.full(min(distance, len(row)), -1, np.int64), row[: max(0, len(row) - distance)]))
