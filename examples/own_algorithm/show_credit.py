"""Your own algorithm: a file of values, and the credit that it gives beside that of others.

    uv run python examples/own_algorithm/show_credit.py
    uv run python examples/own_algorithm/show_credit.py dr_grpo scoped_rloo      # any of configs/algorithm/, or yours

``algorithm/scoped_rloo.yaml`` beside this file combines choices that the shipped algorithms make one by one. The script
composes the settings as a run does and prints what three responses earn: of four tokens the first two are evidence,
the last two the answer. The second response read the page well and answered wrongly. GRPO, which adds the rewards up,
gives it nothing; with scopes its evidence is pushed up and its answer down. Nothing is written, no model is loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipes.doctor.settings import read_settings
from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.config import Config
from rsgrpo.failures import CommandParser, run_command
from rsgrpo.types import (
    ChatPrompt,
    Group,
    Rollout,
    Sample,
    ScopedReward,
    ScoredGroup,
    ScoredRollout,
    TokenSpan,
)

FOLDER = Path(__file__).resolve().parent
_REWARDS = {
    "evidence": (TokenSpan(start=0, stop=2), (1.0, 1.0, 0.0)),
    "answer": (TokenSpan(start=2, stop=4), (1.0, 0.0, 0.0)),
}
_NUM_TOKENS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the credit under each algorithm; 0 on success."""
    return run_command(lambda: _command(arguments))


def _command(arguments: Sequence[str] | None) -> None:
    parser = CommandParser(
        prog="show_credit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("algorithms", nargs="*", default=["grpo", "rs_grpo", "scoped_rloo"], metavar="algorithm")
    for name in parser.parse_args(arguments).algorithms:
        _show(name)
    print(f"train with it:\n  uv run rsgrpo train --config-dir {FOLDER} algorithm=scoped_rloo")


def _show(name: str) -> None:
    config: Config = read_settings([f"hydra.searchpath=[file://{FOLDER}]", f"algorithm={name}"])
    credit = config.rl.credit
    print(f"{name}: {credit.scoping}, {credit.baseline} / {credit.scale}, {credit.aggregation}")
    (group,) = credit_groups([_scored_group()], dict.fromkeys(_REWARDS, 1.0), credit)
    for rollout in group.rollouts:
        values = [f"{reward.name} {reward.value:.0f}" for reward in rollout.rewards]
        advantages = [f"{advantage:+.3f}" for advantage in rollout.advantages]
        tokens = [f"{weight:+.4f}" for weight in rollout.positive_weights - rollout.negative_weights]
        print(f"  {', '.join(values)}   advantages {' '.join(advantages)}   tokens {' '.join(tokens)}")
    print()


def _scored_group() -> ScoredGroup:
    """Three responses as the rewards have judged them."""
    sample = Sample(sample_id="q", question="What is the total?")
    rollouts = [
        Rollout(
            sample_id="q",
            response_index=index,
            token_ids=np.arange(_NUM_TOKENS, dtype=np.int32),
            logprobs=np.zeros(_NUM_TOKENS, dtype=np.float32),
            text="abcd",
            token_char_starts=np.arange(_NUM_TOKENS, dtype=np.int32),
            finish_reason="stop",
            policy_version=0,
        )
        for index in range(3)
    ]
    return Group(
        sample=sample,
        prompt=ChatPrompt(sample_id="q", text=sample.question),
        prompt_token_ids=np.zeros(0, dtype=np.int32),
        rollouts=tuple(
            ScoredRollout(
                rollout=rollout,
                rewards=tuple(
                    ScopedReward(name=name, value=values[rollout.response_index], spans=(span,), scope_found=True)
                    for name, (span, values) in _REWARDS.items()
                ),
            )
            for rollout in rollouts
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
