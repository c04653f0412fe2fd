"""``rsgrpo distill-relevance``: training pairs of a retriever from what a policy says of its pages."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsgrpo.config.building import build
from rsgrpo.config.checks import ConfigError
from rsgrpo.config.distill import SCORES, DistillConfig
from rsgrpo.errors import shown
from rsgrpo.failures.command import CommandParser, UsageError, run_command

if TYPE_CHECKING:
    from recipes.distilling.asking import Asking
    from recipes.distilling.pairs import Distilled
    from rsgrpo.config import Config
    from rsgrpo.run.recorder import RecordedGroup

_DEFAULT_SAMPLES = 8
_PREFIX = "distill."
_EXAMPLES = """\
examples:
  uv run rsgrpo distill-relevance runs/quickstart --samples 8
  uv run rsgrpo distill-relevance runs/quickstart --questions more.jsonl --samples 8 --out pairs
  uv run rsgrpo distill-relevance runs/quickstart distill.correctness=accuracy distill.min_agreement=0.9
"""


def command_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo distill-relevance`` takes beside settings."""
    parser = CommandParser(
        prog="rsgrpo distill-relevance",
        description="Make training pairs of a page retriever from what a trained policy says of its pages: pages that "
        "correct answers cite become positives, pages that they call irrelevant hard negatives.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run_dir of a run that trained an answering policy")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="let the trained policy answer anew, N times a question"
    )
    parser.add_argument(
        "--questions",
        default="",
        metavar="DATA",
        help=f"questions to ask, in EVisRAG's form; --samples is then {_DEFAULT_SAMPLES} unless given (without: those "
        "that the run's reinforcement stage trains on)",
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="ask the first N questions only (0: all)")
    parser.add_argument(
        "--stage",
        default="rl",
        help="without --samples: whose recorded responses are used (rl; after_rl and others are evaluations)",
    )
    parser.add_argument("--out", type=Path, help="the folder to write (RUN/distilled)")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="NAME=VALUE",
        help="distill.NAME=VALUE; docs/settings.md lists them. With --samples also settings of the run that concern "
        "sampling, such as rollout.sampling.temperature=0.8 or cluster.device=cpu",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``rsgrpo distill-relevance``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.

    Returns:
        The exit status of the process.
    """
    return run_command(
        lambda: _distill(arguments), way_on="responses that were sampled are kept; give the same command again"
    )


def _distill(arguments: Sequence[str] | None) -> None:
    options = command_parser().parse_intermixed_args(arguments)
    settings, overrides = _split(options.settings)
    is_asked = options.samples is not None or bool(options.questions)
    num_samples = _DEFAULT_SAMPLES if options.samples is None else options.samples
    if num_samples < 1:
        raise UsageError(f"--samples {num_samples} asks for no response; give at least 1")
    if options.limit < 0:
        raise UsageError(f"--limit {options.limit} is no number of questions; give 0 for all of them")
    if not is_asked and (overrides or options.limit):
        given = overrides[0] if overrides else f"--limit {options.limit}"
        raise UsageError(f"{shown(given, 80)} concerns sampling, and nothing is sampled; add --samples {num_samples}")

    from recipes.distilling.writing import held_folder, write_distilled
    from rewards.lab.settings import run_settings

    out = options.out or options.run / "distilled"
    asking = None
    if is_asked:
        from recipes.distilling.asking import Asking, sampling_settings, trained_model

        config = sampling_settings(options.run, overrides)
        trained_model(options.run)  # it is missed here already, before the long import
        asking = Asking(
            questions=options.questions,
            num_samples=num_samples,
            limit=options.limit,
            reward="" if settings.correctness in SCORES else settings.correctness,
        )
    else:
        config = run_settings(options.run)
    with held_folder(out):
        groups = _sampled(config, options.run, out, asking) if asking else _recorded(options.run, options.stage)
        distilled = write_distilled(groups, config, settings, out, options.run)
    print_counts(distilled, out)


def _sampled(config: Config, run_folder: Path, out: Path, asking: Asking) -> Sequence[RecordedGroup]:
    from recipes.distilling.sampling import sample_responses
    from rsgrpo.run.progress import Progress
    from rsgrpo.run.recorder import read_groups

    file = sample_responses(config, run_folder, out, asking, Progress(config.logging.progress))
    return sorted(read_groups(file), key=lambda group: group.sample_id)  # they were written as they came


def _split(arguments: Sequence[str]) -> tuple[DistillConfig, list[str]]:
    """Settings of ``distill``, and settings of the run."""
    given: dict[str, str] = {}
    overrides: list[str] = []
    known = [f"{_PREFIX}{field.name}" for field in dataclasses.fields(DistillConfig)]
    for argument in arguments:
        key, is_setting, value = argument.partition("=")
        if not is_setting:
            raise UsageError(
                f"{shown(argument, 80)!r} is no setting; write NAME=VALUE, such as distill.max_negatives=4"
            )
        if not key.startswith(_PREFIX):
            overrides.append(argument)
        elif key not in known:
            from rsgrpo.config.refusals import nearest  # here, because it imports hydra

            raise ConfigError(f"there is no setting {shown(key)}{nearest(key, known) or f'; there are {known}'}")
        else:
            given[key.removeprefix(_PREFIX)] = value
    return _settings(given), overrides


def _settings(given: Mapping[str, str]) -> DistillConfig:
    schema = OmegaConf.structured(DistillConfig)
    OmegaConf.set_readonly(schema, False)  # as it is of a frozen class
    try:
        found = build(OmegaConf.merge(schema, dict(given)), "distill")
    except OmegaConfBaseException as error:
        name = error.full_key or ""
        raise ConfigError(
            f"{_PREFIX}{name}={shown(given.get(name, ''), 80)} does not fit ({shown(str(error).splitlines()[0], 160)})"
        ) from error
    assert isinstance(found, DistillConfig)
    return found


def _recorded(run_folder: Path, stage: str) -> list[RecordedGroup]:
    from recipes.distilling.judging import DistillError
    from rsgrpo.run.folder import RunFolder
    from rsgrpo.run.recorder import read_groups

    file = RunFolder(root=run_folder).rollouts_file
    every = read_groups(file)
    groups = [group for group in every if group.stage == stage]
    if not groups:
        stages = ", ".join(sorted({group.stage for group in every}))
        raise DistillError(
            f"{shown(file)} holds no responses of stage {shown(stage, 80)!r}, only of {stages or 'none'}; add "
            f"--samples {_DEFAULT_SAMPLES} to let the trained policy answer, or name another --stage"
        )
    if all(len(group.rollouts) == 1 for group in groups):
        print(
            f"note: stage {shown(stage, 80)} has one response a question: nothing shows whether responses agree. If "
            "these are test questions, do not measure on them what is trained on these pairs",
            file=sys.stderr,
        )
    return groups


def print_counts(distilled: Distilled, out: Path) -> None:
    """Print what was made, and of what.

    Args:
        distilled: the rows and counts.
        out: the folder that was written.
    """
    counts = distilled.counts()
    gold: dict[str, Any] = counts["gold"]
    share = "" if counts["correct_frac"] is None else f", {counts['correct_frac']:.1%} correct"
    print(f"{distilled.questions} questions, {distilled.responses} responses{share}")
    print(
        f"{len(distilled.rows)} rows of {distilled.used_questions} questions: {distilled.positives} positives, "
        f"{distilled.negatives} hard negatives"
    )
    for title, reasons in (
        ("questions left out", distilled.left_out_questions),
        ("pages left out", distilled.left_out_pages),
    ):
        if reasons:
            print(f"{title}: " + ", ".join(f"{count} {reason}" for reason, count in reasons.items()))
    if gold["questions"]:
        print(
            f"against gold ({gold['questions']} questions): positives precision {_share(gold['positive_precision'])}, "
            f"recall {_share(gold['positive_recall'])}; negatives precision {_share(gold['negative_precision'])}"
        )
    if distilled.queries_with_several_positives:
        print(
            f"{distilled.queries_with_several_positives} queries have several positives: look whether they make sense "
            "without their pages"
        )
    print(f"{out / 'pairs.jsonl'}, counts.json, and sample.html to look at")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
