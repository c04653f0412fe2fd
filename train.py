"""Train and evaluate: ``uv run train.py [recipe=NAME] [stage=sft|rl|eval|all] [key=value …]``.

``uv run train.py --cfg job`` prints the composed settings; rsgrpo/config/ says what each means.
"""

import errno
import os
import sys

import hydra
from omegaconf import DictConfig

from rsgrpo.config import load_config, register_schema
from rsgrpo.errors import RsgrpoError


@hydra.main(version_base=None, config_path="configs", config_name="config")
def main(composed: DictConfig) -> None:
    """Check the composed settings, then run the pipeline that they describe."""
    # Under `uv run`, Ray would ship this folder to its workers and have uv build them an environment each;
    # ours use the one that this process runs in. Ray reads the setting when it is imported.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        config = load_config(composed)
        from recipes.pipeline import run  # after the check: the engines' imports take seconds

        run(config)
    except RsgrpoError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command with resume=auto goes on from the newest checkpoint")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"error: no space left on the disk ({error}); free some, then go on with resume=auto")


if __name__ == "__main__":
    register_schema()
    main()
