"""``rsgrpo plan``: ``rsgrpo train … plan=true``, under a name of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from recipes.commands.train import help_parser, train
from rsgrpo.failures.command import run_command

_PROGRAM = "rsgrpo plan"
_DESCRIPTION = (
    "Compute memory, time and cost of a training run on a kind of GPU, from its settings, the model's config and the\n"
    "data. Nothing is started. What does not fit is refused (exit status 1), with settings that would fit.\n"
    "The settings are those of `rsgrpo train`. The plan's own: plan_for.gpu, plan_for.price_per_gpu_hour,\n"
    "plan_for.host_memory_gib, plan_for.response_frac, plan_for.max_samples, plan_for.file (the same as JSON)."
)
_EXAMPLES = """\
examples:
  uv run {program} recipe=rl_grounding data.rl_path=data/grounding/train.jsonl data.test_path=data/grounding/test.jsonl
  uv run {program} recipe=evisrag_7b plan_for.gpu=A100-80 plan_for.price_per_gpu_hour=2.5 plan_for.file=plan.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a plan.

    Args:
        arguments: settings and options as for ``rsgrpo train``; None: those of this process.

    Returns:
        The exit status: 0 if the run fits, 1 if it does not.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _plan(given))


def _plan(arguments: Sequence[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        help_parser(_PROGRAM, _DESCRIPTION, _EXAMPLES).print_help()
        return
    train([*arguments, "plan=true"], _PROGRAM)
