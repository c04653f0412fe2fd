"""``rsgrpo make-data grounding|haystack|choice FOLDER``: write a small data set of coloured shapes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rsgrpo.data.synthetic.tasks import MAX_PAGES, TASKS, write_task
from rsgrpo.errors import RsgrpoError
from rsgrpo.failures import CommandParser, run_command

_MAX_QUESTIONS = 1_000_000
_MAX_PIXELS = 4096
_EXAMPLES = """\
examples:
  uv run rsgrpo make-data grounding data/grounding
  uv run rsgrpo make-data haystack data/haystack --train 2000 --pages 6
then, with the settings that it prints:
  uv run rsgrpo train recipe=rl_grounding +machine=laptop stage=all \\
      data.sft_path=data/grounding/train.jsonl data.sft_sections=[] \\
      data.rl_path=data/grounding/train.jsonl data.test_path=data/grounding/test.jsonl
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one data set and say how to train on it; 0 on success."""
    return run_command(lambda: _command(arguments))


def command_parser() -> CommandParser:
    """What the command takes."""
    parser = CommandParser(
        prog="rsgrpo make-data",
        description="Write a small data set of coloured shapes, train.jsonl and test.jsonl with their pages, and print "
        "the settings\nthat train on it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "task",
        choices=TASKS,
        help="grounding: find a shape, answer with its box; haystack: which page, yes or no; choice: pick an option",
    )
    parser.add_argument("folder", type=Path, help="where to write; made if need be")
    parser.add_argument("--train", type=int, default=512, help="questions to train on (default 512)")
    parser.add_argument("--test", type=int, default=64, help="questions held out (default 64)")
    parser.add_argument("--pages", type=int, default=3, help=f"pages of a question, 2 to {MAX_PAGES} (default 3)")
    parser.add_argument("--pixels", type=int, default=224, help="width and height of a page (default 224)")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other questions (default 0)")
    return parser


def _command(arguments: Sequence[str] | None) -> None:
    options = command_parser().parse_args(arguments)
    for name, least, most in (
        ("train", 1, _MAX_QUESTIONS),
        ("test", 1, _MAX_QUESTIONS),
        ("pages", 2, MAX_PAGES),
        ("pixels", 28, _MAX_PIXELS),
        ("seed", 0, 2**32 - 1),
    ):
        if not least <= getattr(options, name) <= most:
            raise RsgrpoError(f"--{name} {getattr(options, name)} does not fit; it must lie between {least} and {most}")
    write_task(
        options.task,
        options.folder,
        num_train=options.train,
        num_test=options.test,
        num_images=options.pages,
        image_pixels=options.pixels,
        seed=options.seed,
    )
    print(f"data.rl_path={options.folder / 'train.jsonl'} data.test_path={options.folder / 'test.jsonl'}")


if __name__ == "__main__":
    sys.exit(main())
