"""Run a script as on a machine where little is installed: ``python tests/bare_python.py SCRIPT [ARGUMENT …]``."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ABSENT = frozenset(
    {"av", "datasets", "deepspeed", "flash_attn", "hydra", "omegaconf"}
    | {"peft", "qwen_vl_utils", "ray", "simplejpeg", "vllm", "wandb"}
)
"""What a bare GPU machine with torch and transformers does not have."""


class FewPackages(PathFinder):
    """Finds everything but the absent packages."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As ``PathFinder``'s, None for what is absent."""
        return None if fullname.partition(".")[0] in ABSENT else PathFinder.find_spec(fullname, path, target)


if __name__ == "__main__":
    sys.meta_path[:] = [FewPackages if finder is PathFinder else finder for finder in sys.meta_path]
    script, *sys.argv[1:] = sys.argv[1:]
    sys.argv[0] = script
    # As Python does for a script, and the repository itself, where nobody has installed it.
    sys.path[0:1] = [str(Path(script).resolve().parent), str(Path(__file__).resolve().parent.parent)]
    runpy.run_path(script, run_name="__main__")
