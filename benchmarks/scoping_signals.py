"""The signal of every reward in every section: of the policy's true gradients, and as a run estimates it from texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scoping_estimators import PoolGroup

from rewards.scopes import section_spans
from rsgrpo.algorithm.advantages import normalise
from rsgrpo.algorithm.credit_signal import CreditSignal, credit_signal
from rsgrpo.algorithm.credit_table import credit_table
from rsgrpo.config import CreditConfig, ResponseFormat

_EVERYWHERE = CreditConfig(outside=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalRow:
    """One reward in one section.

    Attributes:
        reward: the name of the reward.
        section: the name of the section.
        gradients: signal over noise of the gradients: how much longer the sum of A_i times sibling i's gradient is,
            squared, than with the same advantages dealt out at random; minus 1.
        texts: the same of the texts alone, as ``signal/<reward>/<section>`` of a run has it.
    """

    reward: str
    section: str
    gradients: float
    texts: float


def gradient_signal(pool: Sequence[PoolGroup]) -> dict[tuple[str, str], CreditSignal]:
    """The signal of every reward's gradient, by reward and section, whatever its scope.

    Args:
        pool: the groups with their gradients.
    """
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for group in pool:
        table = credit_table(group.scored)
        advantages = normalise(table.values, CreditConfig(epsilon=0.0))
        names = {stretch.section for stretches in group.stretches for stretch in stretches}
        for section in names:
            rows = np.stack(
                [
                    gradients[[stretch.section == section for stretch in stretches]].astype(np.float64).sum(axis=0)
                    for stretches, gradients in zip(group.stretches, group.gradients, strict=True)
                ]
            )
            for column, name in enumerate(table.names):
                applies = ~np.isnan(table.values[:, column])
                credit = advantages[applies, column]
                if not credit.any():
                    continue
                centred = rows[applies] - rows[applies].mean(axis=0)
                total = sums[name, section]
                total[0] += float(((credit @ centred) ** 2).sum())
                total[1] += float((centred**2).sum())
    return {key: CreditSignal(push=push, chance=chance) for key, (push, chance) in sums.items() if chance > 0.0}


def signal_rows(pool: Sequence[PoolGroup], response_format: ResponseFormat) -> list[SignalRow]:
    """Both signals side by side, for every reward and section that have both.

    Args:
        pool: the groups with their gradients.
        response_format: the declared sections.
    """
    of_gradients = gradient_signal(pool)
    scored = [group.scored for group in pool]
    of_texts = credit_signal(scored, section_spans(scored, response_format), _EVERYWHERE)
    return [
        SignalRow(reward=key[0], section=key[1], gradients=of_gradients[key].ratio, texts=of_texts[key].ratio)
        for key in sorted(of_gradients.keys() & of_texts.keys())
    ]


def signal_table(rows: Sequence[SignalRow]) -> str:
    """Write rows as Markdown."""
    lines = [
        "| reward | section | signal over noise of the gradients | as estimated from the texts |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.reward} | {row.section} | {row.gradients:.2f} | {row.texts:.2f} |" for row in rows]
    return "\n".join(lines)
