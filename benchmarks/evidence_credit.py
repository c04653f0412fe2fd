"""Which rewards without labels of evidence push the same lines as the labelled one? On responses that a run recorded.

    uv run python benchmarks/evidence_credit.py --run runs/scoping/pool --group-size 4

Every evidence line of every response gets an advantage among its siblings' lines about the same page, once from its own
labelled score (``rewards.functions.evidence:evidence_per_image``), and once from each reward that knows the answer
alone. The first table says how alike these are over all lines: the cosine, how much of the labelled push is found, and
the share of lines with any. The second sums the pushes by what the line says of which page: rewards that find one kind
more often than another drift. The counterfactual reward is judged where the run asked what the policy answers without
single pages (it was trained with it, at whatever rate). No model is needed.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from recorded_groups import recorded_groups

from rewards.gold import parsed_gold
from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.algorithm.advantages import normalise
from rsgrpo.config import CreditConfig, ResponseFormat, RewardConfig, ScopeConfig, load_config
from rsgrpo.failures.command import run_command
from rsgrpo.run.folder import RunFolder, read_settings
from rsgrpo.text.normalise import is_irrelevant, normalize_keeping_numbers
from rsgrpo.text.sections import ParsedResponse, parse_response
from rsgrpo.types import ScoredRollout

LABELLED = "labelled"
FUNCTIONS = {
    LABELLED: ("evidence:evidence_per_image", {}),
    "the answer": ("accuracy:accuracy", {}),
    "consensus": ("consensus:consensus_evidence", {}),
    "exchanges alone": ("counterfactual:counterfactual_evidence", {"by_consensus": False}),
    "exchanges, the rest by consensus": ("counterfactual:counterfactual_evidence", {}),
}
Vector = NDArray[np.float64]


def reward_configs() -> dict[str, RewardConfig]:
    """The compared rewards; the one for the answer has the whole response as its scope."""
    return {
        name: RewardConfig(
            function=f"rewards.functions.{function}",
            scope=ScopeConfig(start="begin", stop="end") if name == "the answer" else ScopeConfig(evidence_line=True),
            kwargs=dict(kwargs),
        )
        for name, (function, kwargs) in FUNCTIONS.items()
    }


def value_of(rollout: ScoredRollout, name: str, image_index: int) -> float | None:
    """What a reward gives a response for one image, or for the whole of it; None where it does not apply."""
    return next(
        (reward.value for reward in rollout.rewards if reward.name == name and reward.image_index in (image_index, -1)),
        None,
    )


def kind_of(parsed: ParsedResponse, gold: ParsedResponse, image_index: int) -> str:
    """What a line says of which page, in words."""
    line, right = parsed.first_lines().get(image_index), gold.first_lines()[image_index]
    matters = not is_irrelevant(right.text)
    if line is None:
        said = "left out"
    elif is_irrelevant(line.text):
        said = "irrelevant"
    elif matters and normalize_keeping_numbers(line.text) == normalize_keeping_numbers(right.text):
        said = "speaking, read rightly"
    else:
        said = "speaking, misread" if matters else "speaking"
    return f"{said}, about pages that {'matter' if matters else 'do not matter'}"


def pushes(run: Path, response_format: ResponseFormat, group_size: int) -> tuple[dict[str, Vector], list[str]]:
    """By reward the advantage of every line, and the kinds of these lines."""
    configs = reward_configs()
    scorer = Scorer(load_rewards(configs, Path.cwd(), response_format), None, response_format)
    found: dict[str, list[Vector]] = defaultdict(list)
    kinds: list[str] = []
    for group in recorded_groups(run, group_size):
        (scored,) = scorer.score([group])
        gold = parsed_gold(group.sample.gold_response, response_format, group.sample.page_numbers)
        parsed = [
            parse_response(rollout.text, response_format, page_numbers=group.sample.page_numbers)
            for rollout in group.rollouts
        ]
        for image_index in gold.first_lines():
            kinds += [kind_of(one, gold, image_index) for one in parsed]
            for name in configs:
                values = [value_of(one, name, image_index) for one in scored.rollouts]
                numbers = np.array([np.nan if value is None else value for value in values])
                found[name].append(normalise(numbers, CreditConfig()))
    return {name: np.concatenate(parts) for name, parts in found.items()}, kinds


def alike_table(found: Mapping[str, Vector]) -> str:
    """How alike the pushes of each reward and the labelled one are."""
    labelled = found[LABELLED]
    lines = ["| reward | cosine with the labelled push | of that push found | lines with a push |", "|---|---|---|---|"]
    for name, push in found.items():
        inner, length = float(push @ labelled), float(np.linalg.norm(push) * np.linalg.norm(labelled))
        share, nonzero = inner / float(labelled @ labelled), float((push != 0.0).mean())
        cosine = f"{inner / length:.2f}" if length else "none"
        lines.append(f"| {name} | {cosine} | {100 * share:.0f} % | {100 * nonzero:.0f} % |")
    return "\n".join(lines)


def kind_table(found: Mapping[str, Vector], kinds: Sequence[str]) -> str:
    """The sum of each reward's pushes by kind of line."""
    lines = [f"| lines | number | {' | '.join(found)} |", f"|---|---|{'---|' * len(found)}"]
    for kind in sorted(set(kinds)):
        chosen = np.array([one == kind for one in kinds])
        sums = " | ".join(f"{push[chosen].sum():+.0f}" for push in found.values())
        lines.append(f"| {kind} | {chosen.sum()} | {sums} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the folder of a run; its questions have gold evidence")
    parser.add_argument("--group-size", type=int, default=4)
    options = parser.parse_args()
    config = load_config(read_settings(RunFolder(root=options.run).config_file))
    found, kinds = pushes(options.run, config.response.format, options.group_size)
    print(alike_table(found))
    print(kind_table(found, kinds))


if __name__ == "__main__":
    sys.exit(run_command(main))
