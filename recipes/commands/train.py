"""``rsgrpo train``, and ``train.py``: compose the settings, check them, run the pipeline that they describe."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rsgrpo.failures.command import CommandParser, run_program

if TYPE_CHECKING:  # what takes long to import is imported where Ctrl-C is already heeded
    from omegaconf import DictConfig

    from rsgrpo.config import Config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""The settings files, in the repository as in the installed package."""

_EXAMPLES = """\
examples:
  uv run {program}                        # the quickstart: a small model on a CPU, nothing to download
  uv run {program} resume=auto            # go on after a crash, a kill or Ctrl-C
  uv run {program} algorithm=dapo seed=1 run_dir=runs/dapo-1 rl.max_steps=50
  uv run {program} stage=eval run_dir=runs/eval eval.checkpoint=runs/quickstart/models/rl
  uv run {program} --cfg job              # every setting with its value
"""

_begun: list[Config] = []


def main(arguments: Sequence[str] | None = None, program: str = "rsgrpo train") -> NoReturn:
    """Train, and end the process with the exit status.

    Args:
        arguments: settings and options; None: those of this process.
        program: how the command was called, for messages.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    run_program(lambda: train(given, program), log_folder=lambda: Path(_begun[-1].run_dir) if _begun else None)


def train(arguments: Sequence[str], program: str) -> None:
    """Check the composed settings, then run the pipeline that they describe.

    Args:
        arguments: settings, such as ``recipe=quickstart``, and hydra's options.
        program: how the command was called, for messages.

    Raises:
        RsgrpoError: an error that the user can act on; the message names the setting, path or sample.
    """
    if {"-h", "--help"} & set(arguments):
        help_parser(program).print_help()
        return
    # Under `uv run`, Ray would ship this folder to its workers and have uv build them an environment each;
    # ours use the one that this process runs in. Ray reads the setting when it is imported.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    from rsgrpo.config import load_config, register_schema

    register_schema()
    configs = [load_config(composed) for composed in compose(arguments, program)]
    check_apart(configs)
    for config in configs:
        # One after the other: what is imported later takes seconds, and a slip need not wait for it.
        from recipes.setup.first_checks import check_first

        for line in check_first(config):
            print(line, file=sys.stderr)
        _begun.append(config)
        from recipes.pipeline import run

        run(config)


def help_parser(
    program: str,
    description: str = "Train and evaluate: supervised stage, reinforcement stage, evaluations, report.",
    examples: str = _EXAMPLES,
) -> argparse.ArgumentParser:
    """What ``--help`` prints; the arguments themselves are read by hydra.

    Args:
        program: how the command was called.
        description: what it does.
        examples: the last lines; ``{program}`` stands for the program.
    """
    parser = CommandParser(
        prog=program,
        usage=f"{program} [recipe=NAME] [algorithm=NAME] [+machine=NAME] [key=value …] [options]",
        description=description,
        epilog=examples.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    settings = parser.add_argument_group("settings")
    for key, meaning in (
        ("recipe=NAME", f"what is trained, on which data and with which rewards: {_names('recipe')}"),
        ("algorithm=NAME", f"the objective of the reinforcement stage: {_names('algorithm')}"),
        ("+machine=NAME", f"values for a small machine: {_names('machine')}"),
        ("stage=NAME", "sft, rl, eval, all or retriever"),
        ("key=value", "any other setting; `--cfg job` prints all of them, rsgrpo/config/ says what each means"),
    ):
        settings.add_argument(key, nargs="?", help=meaning)
    parser.add_argument("--cfg", choices=["job", "hydra", "all"], help="print the composed settings, run nothing")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: put values in place of ${…}")
    parser.add_argument("--info", metavar="KIND", help="print how the settings were put together: defaults, …")
    parser.add_argument("--multirun", action="store_true", help="one run for each value, as in seed=1,2,3")
    parser.add_argument("--config-dir", metavar="FOLDER", help="look for recipes and algorithms there as well")
    parser.add_argument("--hydra-help", action="store_true", help="hydra's other options")
    return parser


def _names(group: str) -> str:
    return ", ".join(sorted(file.stem for file in (CONFIGS / group).glob("*.yaml")))


def compose(arguments: Sequence[str], program: str) -> list[DictConfig]:
    """What the command line asks for, composed by hydra: one run, or as many as ``--multirun`` sweeps over.

    Nothing is composed where hydra itself answers: ``--cfg``, ``--info``, ``--hydra-help``.

    Args:
        arguments: settings and options.
        program: how the command was called, for messages.
    """
    import hydra

    from rsgrpo.failures.overrides import check_call, hydra_raises

    found: list[DictConfig] = []
    with hydra_raises():
        sys.argv = [program, *check_call(arguments, program)]  # where hydra looks
        hydra.main(version_base=None, config_path=str(CONFIGS), config_name="config")(found.append)()
    return found


def check_apart(configs: Sequence[Config]) -> None:
    """Refuse runs of a sweep that write into one folder: the second would stop there, hours later.

    Raises:
        ConfigError: two runs write into one folder; the message names the folder.
    """
    from rsgrpo.config import ConfigError
    from rsgrpo.errors import shown

    begun = Counter(str(Path(config.run_dir).absolute()) for config in configs if config.resume == "never")
    folder, count = max(begun.items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise ConfigError(
            f"{count} runs of --multirun share run_dir={shown(folder)}; give each its own, such as "
            "'run_dir=runs/${name}-${seed}'"
        )
