"""Your own reward: what it says of a few responses, which words it reaches, and which tricks it pays.

    uv run python examples/own_reward/try_it.py

The rewards are in ``my_rewards.py`` beside this file. First they judge three responses to one question: the value, the
advantage among the three, and the words that get the credit, since the scope is the thinking section. Then the reward
lab plays known tricks on them (``rsgrpo lab lint``): ``short_thinking`` alone pays for a wrong answer and for a cut
response; ``short_and_right`` asks for the right answer as well. Last, the command that trains with it. Nothing is
written.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from rewards.lab.__main__ import main as lab
from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.config import CreditConfig, RewardConfig, ScopeConfig
from rsgrpo.failures import run_command
from rsgrpo.types import ChatPrompt, Group, Rollout, Sample

FILE = Path(__file__).resolve().parent / "my_rewards.py"
KWARGS = {"max_words": 8}

_SECTIONS = "<observe>One bill.</observe><evidence>[1]: total 310</evidence>"
_RESPONSES = {
    "short, right": f"{_SECTIONS}<think>Page 1 gives the total.</think><answer>310</answer>",
    "long, right": f"{_SECTIONS}<think>Let me see, this bill has a total, so that is it.</think><answer>310</answer>",
    "short, wrong": f"{_SECTIONS}<think>A guess.</think><answer>17</answer>",
}


def main() -> int:
    """Try both rewards; 0 on success."""
    return run_command(_command)


def _command() -> None:
    for name in ("short_thinking", "short_and_right"):
        _judge(name)
    for name in ("short_thinking", "short_and_right"):
        print(f"\n$ rsgrpo lab lint {FILE.name}:{name} max_words=40\n", flush=True)
        lab(["lint", f"{FILE}:{name}", "max_words=40"])  # its exit status is 1 if a trick pays
    setting = f'rewards.brief={{function: "{FILE}:short_and_right", scope: {{section: think}}, weight: 0.5}}'
    print(f"\ntrain with it beside the recipe's own rewards:\n  uv run rsgrpo train '{setting}'")


def _judge(name: str) -> None:
    """Value, advantage and credited words of every response."""
    config = RewardConfig(function=f"{FILE}:{name}", scope=ScopeConfig(section="think"), kwargs=KWARGS)
    scorer = Scorer(load_rewards({name: config}, Path.cwd()))
    sample = Sample(sample_id="bill", question="What is the total?", answers=("310",))
    group = Group(
        sample=sample,
        prompt=ChatPrompt(sample_id=sample.sample_id, text=sample.question),
        prompt_token_ids=np.zeros(0, dtype=np.int32),
        rollouts=tuple(_rollout(sample, index, text) for index, text in enumerate(_RESPONSES.values())),
    )
    (credited,) = credit_groups(scorer.score([group]), {name: 1.0}, CreditConfig())
    print(f"{name}, max_words={KWARGS['max_words']}, scope {{section: think}}")
    for title, response in zip(_RESPONSES, credited.rollouts, strict=True):
        (reward,) = response.rewards
        weights = response.positive_weights - response.negative_weights
        starts = [*response.rollout.token_char_starts, len(response.rollout.text)]
        words = "".join(
            response.rollout.text[start:stop]
            for start, stop, weight in zip(starts, starts[1:], [*weights], strict=False)
            if weight
        )
        print(f"  {title:13} value {reward.value:.0f}  advantage {response.advantages[0]:+.3f}  on {words!r}")


def _rollout(sample: Sample, index: int, text: str) -> Rollout:
    """A written response as if it had been sampled, each tag and each word one token."""
    starts = [found.start() for found in re.finditer(r"</?\w+>|[^\s<]+\s*", text)] + [len(text)]
    return Rollout(
        sample_id=sample.sample_id,
        response_index=index,
        token_ids=np.arange(len(starts), dtype=np.int32),
        logprobs=np.zeros(len(starts), dtype=np.float32),
        text=text,
        token_char_starts=np.array(starts, dtype=np.int32),
        finish_reason="stop",
        policy_version=0,
    )


if __name__ == "__main__":
    sys.exit(main())
