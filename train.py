"""Train and evaluate: ``uv run train.py [recipe=NAME] [stage=sft|rl|eval|all] [key=value …]``.

The same as ``uv run rsgrpo train …``. ``uv run train.py --cfg job`` prints the composed settings; rsgrpo/config/ says
what each means.
"""

from __future__ import annotations

from recipes.commands.train import main

if __name__ == "__main__":
    main(program="train.py")
