"""``rsgrpo make-data grounding|haystack|choice|tickets FOLDER``: write a small data set of generated pages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rsgrpo.config.quickstart import MAX_TEST_PAGES, MIN_TEST_PAGES, MIN_TICKET_PIXELS, QuickstartConfig
from rsgrpo.data.synthetic.tasks import MAX_PAGES, TASKS, write_task
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures.command import CommandParser, UsageError, run_command

_TICKETS = "tickets"
_PATCH_PIXELS = 28
_EXAMPLES = """\
examples:
  uv run rsgrpo make-data grounding data/grounding
  uv run rsgrpo make-data haystack data/haystack --train 2000 --pages 6
  uv run rsgrpo make-data tickets data/tickets --train 4096 --test 500
then, with the settings that it prints:
  uv run rsgrpo train recipe=rl_grounding +machine=laptop stage=all \\
      data.sft_path=data/grounding/train.jsonl data.sft_sections=[] \\
      data.rl_path=data/grounding/train.jsonl data.test_path=data/grounding/test.jsonl
  uv run rsgrpo train recipe=retriever_modern model.path=MODEL \\
      'retriever.data=[data/tickets/train.jsonl]' retriever.test_path=data/tickets/test
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Number:
    """What a numeric option of the command may be.

    Attributes:
        default: the value where the option is left out.
        least: the smallest value.
        most: the largest value.
    """

    default: int
    least: int
    most: int


_SHAPES = {
    "train": _Number(default=512, least=1, most=1_000_000),
    "test": _Number(default=64, least=1, most=1_000_000),
    "pages": _Number(default=3, least=2, most=MAX_PAGES),
    "pixels": _Number(default=224, least=28, most=4096),
    "seed": _Number(default=0, least=0, most=2**32 - 1),
}
_OF_TICKETS = {
    "train": _Number(default=4096, least=1, most=1_000_000),
    "test": _Number(default=500, least=MIN_TEST_PAGES, most=MAX_TEST_PAGES),
    "pixels": _Number(default=MIN_TICKET_PIXELS, least=MIN_TICKET_PIXELS, most=2800),
    "seed": _SHAPES["seed"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one data set and say how to train on it; 0 on success."""
    return run_command(lambda: _command(arguments))


def command_parser() -> CommandParser:
    """What the command takes."""
    parser = CommandParser(
        prog="rsgrpo make-data",
        description="Write a small data set of generated pages, and print the settings that train on it: coloured "
        "shapes as\ntrain.jsonl and test.jsonl for a policy, or tickets as train.jsonl and a folder test for a page "
        "retriever.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "task",
        choices=(*TASKS, _TICKETS),
        help="grounding: find a shape, answer with its box; haystack: which page, yes or no; choice: pick an option; "
        "tickets: pairs of a question and its page, and pages to search in",
    )
    parser.add_argument("folder", type=Path, help="where to write; made if need be")
    for name, meaning in (
        ("train", "questions to train on"),
        ("test", "questions held out; of tickets, one a page"),
        ("pages", f"pages of a question, 2 to {MAX_PAGES}"),
        ("pixels", f"width and height of a page; of tickets a multiple of {_PATCH_PIXELS}"),
        ("seed", "another one draws other questions"),
    ):
        defaults = [str(limits[name].default) for limits in (_SHAPES, _OF_TICKETS) if name in limits]
        told = defaults[0] if len(set(defaults)) == 1 else f"{defaults[0]}; tickets: {defaults[1]}"
        parser.add_argument(f"--{name}", type=int, help=f"{meaning} (default {told})")
    return parser


def _command(arguments: Sequence[str] | None) -> None:
    options = command_parser().parse_args(arguments)
    limits = _OF_TICKETS if options.task == _TICKETS else _SHAPES
    for name in _SHAPES:
        given = getattr(options, name)
        if name not in limits and given is not None:
            raise UsageError(f"--{name} is for coloured shapes; a question over {options.task} has one page")
    numbers = {}
    for name, limit in limits.items():
        given = getattr(options, name)
        numbers[name] = limit.default if given is None else given
        if not limit.least <= numbers[name] <= limit.most:
            raise RsgrpoError(
                f"--{name} {numbers[name]} does not fit; it must lie between {limit.least} and {limit.most}"
            )
    print(_write_tickets(options.folder, numbers) if options.task == _TICKETS else _write_shapes(options, numbers))


def _write_shapes(options: argparse.Namespace, numbers: dict[str, int]) -> str:
    write_task(
        options.task,
        options.folder,
        num_train=numbers["train"],
        num_test=numbers["test"],
        num_images=numbers["pages"],
        image_pixels=numbers["pixels"],
        seed=numbers["seed"],
    )
    return f"data.rl_path={options.folder / 'train.jsonl'} data.test_path={options.folder / 'test.jsonl'}"


def _write_tickets(folder: Path, numbers: dict[str, int]) -> str:
    from rsgrpo.data.synthetic.ticket_sets import build_retriever_data  # here: scans come with scikit-learn

    if numbers["pixels"] % _PATCH_PIXELS:
        raise RsgrpoError(f"--pixels {numbers['pixels']} does not fit; it must be a multiple of {_PATCH_PIXELS}")
    if folder.exists():
        raise RsgrpoError(f"{shown(folder)} is there already; name a folder that is not, or remove it")
    config = QuickstartConfig(
        task="tickets",
        num_retriever_samples=numbers["train"],
        num_test_pages=numbers["test"],
        image_pixels=numbers["pixels"],
    )
    paths = build_retriever_data(config, folder, numbers["seed"])
    return f"'retriever.data=[{paths.train_path}]' retriever.test_path={paths.test_path}"


if __name__ == "__main__":
    sys.exit(main())
