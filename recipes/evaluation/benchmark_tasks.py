"""Published benchmarks: ask what is not answered yet, keep every answer at once, score it both ways.

run_dir/benchmarks/answered_by.json        who answers, and how; another model needs another run folder
run_dir/benchmarks/<task>/answers.jsonl    every response as it came, raw; a rerun asks only what is missing
run_dir/benchmarks/<task>/predictions/     the same in the original's file format, for its own scripts
run_dir/benchmarks/<task>/scores.json      official and strict: metrics with intervals, groups, anomalies
run_dir/benchmarks/<task>/items.jsonl      every question's scores in both modes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from recipes.evaluation.answer_journal import AnswerJournal
from recipes.evaluation.answerers import (
    ask_missing,
    check_same_answerer,
    find_answering_model,
    open_answerer,
    too_long_prompts,
)
from recipes.evaluation.benchmark_requests import load_tasks
from recipes.evaluation.benchmark_scores import TaskScores, score_task, summarise_benchmarks, table_lines
from recipes.evaluation.chosen_answers import count_questions
from recipes.evaluation.pipeline_evaluation import run_pipelines
from recipes.evaluation.pipeline_results import table_lines as pipeline_lines
from recipes.evaluation.retrieval_evaluation import run_retrieval
from recipes.evaluation.retrieval_evaluation import table_lines as retrieval_lines
from recipes.evaluation.visrag_gen_requests import find_gen_sets, load_gen_tasks
from recipes.indexing.command_line import MakeEmbedder
from recipes.setup.preparation import describe_template
from rsgrpo.cluster.ray_cluster import REPOSITORY
from rsgrpo.config import Config
from rsgrpo.config.eval import is_pipeline_task
from rsgrpo.data.images.counts import ImageCounts, update_report
from rsgrpo.evaluation.benchmarks.visrag_gen import is_visrag_gen
from rsgrpo.evaluation.prompts.milebench import ContextLimit
from rsgrpo.evaluation.retrieval_sets import split_tasks
from rsgrpo.io.timers import StageClock
from rsgrpo.run.folder import RunFolder, begin_run, open_run_folder
from rsgrpo.run.progress import Progress
from rsgrpo.run.report import build_report
from rsgrpo.run.summary import RunSummary, collect_versions, write_summary


def run_benchmarks(config: Config, make_embedder: MakeEmbedder | None = None) -> Path:
    """Answer and score, or search and measure, everything that ``eval.tasks`` names.

    Args:
        config: checked settings; ``eval.endpoint.url`` decides between a server and our own engines.
        make_embedder: the function that makes the embedder; None: an embedder of sentence-transformers is made.

    Returns:
        The report's path.

    Raises:
        RsgrpoError: an error that a user can act on; the answers and vectors so far are kept.
    """
    answered, searched = split_tasks(config.eval.tasks)
    with open_run_folder(config) as folder:
        progress = Progress(config.logging.progress)
        clock = StageClock(folder.stage_seconds_file)
        searches = run_retrieval(config, searched, folder, progress, clock, make_embedder) if searched else {}
        plain = [name for name in answered if not is_pipeline_task(name)]
        scores = _answered_and_scored(config, plain, folder, progress, clock, make_embedder) if plain else []
        piped = [name for name in answered if is_pipeline_task(name)]
        pipelines = run_pipelines(config, piped, folder, progress, clock, make_embedder) if piped else {}
        lines = [
            *(retrieval_lines(searches) if searches else ()),
            *(table_lines(scores) if scores else ()),
            *(pipeline_lines(pipelines) if pipelines else ()),
        ]
        for line in lines:
            progress.line(line)
        write_summary(
            folder.summary_file,
            RunSummary(
                name=config.name,
                stage=config.stage,
                recipe=config.name,
                seed=config.seed,
                versions=collect_versions(REPOSITORY),
                prompt_fingerprint=describe_template(config.prompt),
                stage_seconds=clock.seconds,
                benchmarks=summarise_benchmarks(scores),
                searches=searches,
                pipelines=pipelines,
            ),
        )
        report = build_report(folder.root)
        progress.line(f"report: {report}", indent=0)
    return report


def _answered_and_scored(
    config: Config,
    names: Sequence[str],
    folder: RunFolder,
    progress: Progress,
    clock: StageClock,
    make_embedder: MakeEmbedder | None,
) -> list[TaskScores]:
    root = folder.root / "benchmarks"
    model = find_answering_model(config, folder)
    generated = [name for name in names if is_visrag_gen(name)]
    sets = find_gen_sets(config, generated, folder, progress, clock, make_embedder) if generated else {}
    with progress.phase("Reading benchmarks"):
        limit = _context_limit(config, None if model.processor is None else model.processor.tokenizer)
        tasks = load_tasks(config, limit, root / "canvases", [name for name in names if name not in generated])
        tasks += load_gen_tasks(config, generated, sets, root)
        too_long = {
            task.name: too_long_prompts(task.name, task.prompts, task.sampling, config, model.processor)
            for task in tasks
        }
        for task in tasks:
            progress.line(f"{task.name}: {count_questions(task.requests)} questions")
            left_out = sum(task.skipped.values())
            if left_out:
                progress.line(f"left out {left_out} records that cannot be used: {_reasons(task.skipped)}", indent=2)
        images = ImageCounts.total(task.images for task in tasks)
        update_report(folder.root, {"images": images.document()})
        for line in images.lines():
            progress.line(line)
    journals = {task.name: AnswerJournal(task.name, root / task.name, task.prompts) for task in tasks}
    begin_run(folder, config)
    check_same_answerer(root, config, model)
    missing = {name: journal.missing(too_long[name]) for name, journal in journals.items()}
    if any(missing.values()):
        wants_logprobs = any(request.page_score is not None for task in tasks for request in task.requests)
        with (
            open_answerer(config, model, folder, progress, wants_logprobs=wants_logprobs) as opened,
            clock.stage("benchmarks"),
        ):
            for task in tasks:
                journal, prompts = journals[task.name], missing[task.name]
                ask_missing(opened.answerer, task.name, len(task.requests), prompts, task.sampling, journal, progress)
    return [
        score_task(
            config,
            task,
            journals[task.name].answers,
            count_questions(task.requests, too_long[task.name]),
            root / task.name,
            model.view,
        )
        for task in tasks
    ]


def _reasons(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in skipped.items())


def _context_limit(config: Config, tokenizer: PreTrainedTokenizerBase | None) -> ContextLimit | None:
    if tokenizer is None or not config.eval.max_context_tokens:
        return None
    return ContextLimit(
        max_tokens=config.eval.max_context_tokens,
        image_tokens=config.eval.image_tokens,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=lambda ids: str(tokenizer.decode(ids)),
    )
