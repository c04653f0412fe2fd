"""Train and evaluate: ``uv run train.py [recipe=NAME] [stage=sft|rl|eval|all] [key=value …]``.

``uv run train.py --cfg job`` prints the composed settings; rsgrpo/config/ says what each means.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rsgrpo.failures import run_program

if TYPE_CHECKING:  # what takes long to import is imported where Ctrl-C is already heeded
    from omegaconf import DictConfig

    from rsgrpo.config import Config

_begun: list[Config] = []


def compose() -> list[DictConfig]:
    """What the command line asks for, composed by hydra: one run, or as many as ``--multirun`` sweeps over.

    Nothing is composed where hydra itself answers: ``--cfg``, ``--help``, ``--info``.
    """
    import hydra

    from rsgrpo.failures.overrides import check_call, hydra_raises

    found: list[DictConfig] = []
    with hydra_raises():
        sys.argv[1:] = check_call(sys.argv[1:])
        configs = str(Path(__file__).resolve().parent / "configs")
        hydra.main(version_base=None, config_path=configs, config_name="config")(found.append)()
    return found


def check_apart(configs: Sequence[Config]) -> None:
    """Refuse runs of a sweep that write into one folder: the second would stop there, hours later.

    Raises:
        ConfigError: names the folder.
    """
    from rsgrpo.config import ConfigError
    from rsgrpo.errors import shown

    begun = Counter(str(Path(one.run_dir).absolute()) for one in configs if one.resume == "never")
    folder, count = max(begun.items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise ConfigError(
            f"{count} runs of --multirun share run_dir={shown(folder)}; give each its own, such as "
            "'run_dir=runs/${name}-${seed}'"
        )


def main() -> None:
    """Check the composed settings, then run the pipeline that they describe."""
    # Under `uv run`, Ray would ship this folder to its workers and have uv build them an environment each;
    # ours use the one that this process runs in. Ray reads the setting when it is imported.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    from rsgrpo.config import load_config, register_schema

    register_schema()
    configs = [load_config(composed) for composed in compose()]
    check_apart(configs)
    for config in configs:
        # One after the other: what is imported later takes seconds, and a slip need not wait for it.
        from recipes.setup.first_checks import check_first

        for line in check_first(config):
            print(line, file=sys.stderr)
        _begun.append(config)
        from recipes.pipeline import run

        run(config)


if __name__ == "__main__":
    run_program(main, log_folder=lambda: Path(_begun[-1].run_dir) if _begun else None)
