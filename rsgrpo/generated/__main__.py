"""``python -m rsgrpo.generated grounding|haystack|choice FOLDER``: write a small data set of coloured shapes."""

from __future__ import annotations

import argparse
from pathlib import Path

from rsgrpo.generated.tasks import MAX_PAGES, TASKS, write_task


def main() -> None:
    """Write one data set and say how to train on it."""
    parser = argparse.ArgumentParser(prog="python -m rsgrpo.generated", description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=512, help="questions to train on")
    parser.add_argument("--test", type=int, default=64, help="questions held out")
    parser.add_argument("--pages", type=int, default=3, help=f"pages of a question, 2 to {MAX_PAGES}")
    parser.add_argument("--pixels", type=int, default=224, help="width and height of a page")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_task(
        options.task,
        options.folder,
        num_train=options.train,
        num_test=options.test,
        num_pages=options.pages,
        page_pixels=options.pixels,
        seed=options.seed,
    )
    print(f"data.rl_path={options.folder / 'train.jsonl'} data.test_path={options.folder / 'test.jsonl'}")


if __name__ == "__main__":
    main()
