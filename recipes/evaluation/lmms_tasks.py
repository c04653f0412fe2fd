"""Write our benchmarks as lmms-eval tasks.

    uv run rsgrpo tasks --tasks evisrag/chartqa,vhs/single --data-root DATA --out TASKS
    lmms-eval eval --model rsgrpo --model_args checkpoint=FOLDER --include_path TASKS --tasks rsgrpo_evisrag_chartqa

The folder gets, for every task, its questions as JSON lines (official prompts, images by path) and a task file whose
functions are ``rsgrpo.evaluation.prompts.lmms_tasks``. A task reports two metrics, ``official`` and ``strict``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.evaluation.benchmark_requests import load_tasks
from recipes.evaluation.task_records import TaskRequests
from rsgrpo.config import Config, DataConfig, EvalConfig
from rsgrpo.config.response import check_tag_name
from rsgrpo.evaluation.benchmarks.base import ANSWER_SECTION
from rsgrpo.evaluation.prompts.lmms_tasks import document
from rsgrpo.failures import CommandParser, run_command
from rsgrpo.io.jsonl import append_rows

_EXAMPLES = """\
examples:
  uv run rsgrpo tasks --tasks evisrag/chartqa,vhs/single --data-root DATA --out TASKS
  uv run rsgrpo tasks --tasks mig_bench --data-root DATA --out TASKS --max-samples 100
then:
  uv run --extra lmms lmms-eval eval --model rsgrpo --model_args checkpoint=FOLDER \\
      --include_path TASKS --tasks rsgrpo_evisrag_chartqa
"""
_FUNCTIONS = "rsgrpo.evaluation.prompts.lmms_tasks"
_TASK_FILE = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_messages: !function {functions}.doc_to_messages
doc_to_visual: !function {functions}.doc_to_visual
doc_to_text: !function {functions}.doc_to_text
doc_to_target: !function {functions}.doc_to_target
process_results: !function {functions}.process_results
generation_kwargs:
  max_new_tokens: {max_tokens}
  temperature: 0
  do_sample: false
  repetition_penalty: {penalty}
metric_list:
  - metric: official
    aggregation: !function {functions}.aggregate_official
    higher_is_better: true
  - metric: strict
    aggregation: !function {functions}.aggregate_strict
    higher_is_better: true
metadata:
  - version: 1.0
"""


def task_name(name: str) -> str:
    """lmms-eval's name of a task: letters, digits and underscores.

    Example:
        ``task_name("vhs/single@10")`` is ``"rsgrpo_vhs_single_10"``.
    """
    return "rsgrpo_" + re.sub(r"\W+", "_", name).lower()


def write_lmms_tasks(config: Config, out: Path, answer_section: str = ANSWER_SECTION) -> list[str]:
    """Write one task file and one data file a task.

    Args:
        config: ``eval`` names tasks and data.
        out: the folder to write, made if need be; files of the same tasks are replaced.
        answer_section: the section of a response that holds the answer.

    Returns:
        The names of the tasks in lmms-eval.

    Raises:
        RsgrpoError: a task is not known or its data cannot be used, as in
            :func:`recipes.evaluation.benchmark_requests.load_tasks`.
    """
    tasks = load_tasks(config, None, out / "canvases")
    for task in tasks:
        _write_task(task, out, answer_section)
    return [task_name(task.name) for task in tasks]


def _write_task(task: TaskRequests, out: Path, answer_section: str) -> None:
    name = task_name(task.name)
    rows = (out / f"{name}.jsonl").absolute()
    rows.unlink(missing_ok=True)
    append_rows(
        rows,
        (
            document(task.benchmark.name, request.prompt, request.sample, request.needle_position, answer_section)
            for request in task.requests
        ),
    )
    text = _TASK_FILE.format(
        name=name,
        rows=rows,
        functions=_FUNCTIONS,
        max_tokens=task.sampling.max_response_tokens,
        penalty=task.sampling.repetition_penalty,
    )
    (out / f"{name}.yaml").write_text(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 on success."""
    return run_command(lambda: _command(arguments))


def command_parser() -> CommandParser:
    """What the command takes."""
    parser = CommandParser(
        prog="rsgrpo tasks",
        description="Write the benchmarks as task files for lmms-eval, and print lmms-eval's names of them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", required=True, help="with commas between them, such as evisrag/chartqa,vhs/single")
    parser.add_argument("--data-root", required=True, help="folder that holds the benchmarks as they are downloaded")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to; lmms-eval's --include_path")
    parser.add_argument("--image-root", default="", help="COCO's photographs (Visual Haystacks)")
    parser.add_argument("--max-samples", type=int, default=0, help="questions a task; 0: all")
    parser.add_argument(
        "--answer-section",
        default=ANSWER_SECTION,
        metavar="NAME",
        help=f"section of a response that holds the answer (default {ANSWER_SECTION}, the public tag)",
    )
    return parser


def _command(arguments: Sequence[str] | None) -> None:
    given = command_parser().parse_args(arguments)
    check_tag_name("--answer-section", given.answer_section)
    settings = EvalConfig(
        tasks=given.tasks.split(","),
        data_root=given.data_root,
        image_root=given.image_root,
        max_samples=given.max_samples,
    )
    # Whoever answers brings its own limit on images.
    config = Config(stage="eval", eval=settings, data=DataConfig(max_images=sys.maxsize))
    for name in write_lmms_tasks(config, given.out, given.answer_section):
        print(name)


if __name__ == "__main__":
    sys.exit(main())
