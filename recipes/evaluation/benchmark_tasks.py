"""Published benchmarks: ask what is not answered yet, keep every answer at once, score it both ways.

run_dir/benchmarks/answered_by.json        who answers, and how; another model needs another run folder
run_dir/benchmarks/<task>/answers.jsonl    every response as it came, raw; a rerun asks only what is missing
run_dir/benchmarks/<task>/predictions/     the same in the original's file format, for its own scripts
run_dir/benchmarks/<task>/scores.json      official and strict: metrics with intervals, groups, anomalies
run_dir/benchmarks/<task>/items.jsonl      every question's scores in both modes
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from recipes.evaluation.answering import Answer, Answerer, EngineAnswerer
from recipes.evaluation.benchmark_requests import TaskRequests, load_tasks
from recipes.evaluation.benchmark_scores import TaskScores, score_task, summarise_benchmarks, table_lines
from recipes.evaluation.endpoint import EndpointAnswerer
from recipes.evaluation.retrieval_evaluation import run_retrieval
from recipes.evaluation.retrieval_evaluation import table_lines as retrieval_lines
from recipes.indexing.command_line import MakeEmbedder
from recipes.setup.preparation import PromptLengths, describe_template, find_base_model
from recipes.setup.workers import open_workers
from rsgrpo.cluster.ray_cluster import REPOSITORY, open_cluster
from rsgrpo.config import Config
from rsgrpo.data.images.counts import ImageCounts, update_report
from rsgrpo.data.images.image_view import endpoint_view, model_view
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.evaluation.prompts.milebench import ContextLimit
from rsgrpo.evaluation.prompts.turns import TaskPrompt, chat_prompt
from rsgrpo.evaluation.retrieval_sets import split_tasks
from rsgrpo.io.atomic_files import write_json
from rsgrpo.io.ids import well_formed
from rsgrpo.io.jsonl import append_rows, read_rows
from rsgrpo.io.timers import StageClock
from rsgrpo.model.folder import load_processor
from rsgrpo.run.folder import RunFolder, begin_run, open_run_folder
from rsgrpo.run.progress import Progress
from rsgrpo.run.report import build_report
from rsgrpo.run.summary import RunSummary, collect_versions, write_summary

_ASKED_CHUNK = 64
_ANSWER_FIELDS = ("text", "finish_reason", "failure")


class BenchmarkRunError(RsgrpoError):
    """A benchmark run cannot go on as asked."""


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
        scores = _answered_and_scored(config, answered, folder, progress, clock) if answered else []
        lines = [*(retrieval_lines(searches) if searches else ()), *(table_lines(scores) if scores else ())]
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
                prompt_fingerprint=describe_template(config.prompt.path),
                stage_seconds=clock.seconds,
                benchmarks=summarise_benchmarks(scores),
                searches=searches,
            ),
        )
        report = build_report(folder.root)
        progress.line(f"report: {report}", indent=0)
    return report


def _answered_and_scored(
    config: Config, names: Sequence[str], folder: RunFolder, progress: Progress, clock: StageClock
) -> list[TaskScores]:
    root = folder.root / "benchmarks"
    with ExitStack() as stack:
        with progress.phase("Reading benchmarks"):
            model = None if config.eval.endpoint.url else _model_folder(config, folder)
            processor = None if model is None else load_processor(model)
            view = (
                endpoint_view(config.data, config.eval.endpoint)
                if processor is None
                else model_view(config.data, processor.image_processor)
            )
            limit = _context_limit(config, None if processor is None else processor.tokenizer)
            tasks = load_tasks(config, limit, root / "canvases", names)
            too_long = {task.name: _too_long(task, config, processor) for task in tasks}
            for task in tasks:
                progress.line(f"{task.name}: {len(task.requests)} questions")
                left_out = sum(task.skipped.values())
                if left_out:
                    progress.line(
                        f"left out {left_out} records that cannot be used: {_reasons(task.skipped)}", indent=2
                    )
            images = ImageCounts.total(task.images for task in tasks)
            update_report(folder.root, {"images": images.document()})
            for line in images.lines():
                progress.line(line)
        journals = {task.name: _Journal(root / task.name, task) for task in tasks}
        begin_run(folder, config)
        _check_same_answerer(root, config, model)
        missing = {name: journal.missing(too_long[name]) for name, journal in journals.items()}
        if any(missing.values()):
            answerer = stack.enter_context(_open_answerer(config, model, processor, folder, progress))
            with clock.stage("benchmarks"):
                for task in tasks:
                    _answer(answerer, task, missing[task.name], journals[task.name], progress)
        return [
            score_task(config, task, journals[task.name].answers, len(too_long[task.name]), root / task.name, view)
            for task in tasks
        ]


class _Journal:
    """The answers of one task, appended as they come; only those to the prompts of this run count."""

    def __init__(self, folder: Path, task: TaskRequests) -> None:
        self._file = folder / "answers.jsonl"
        self._digests = {request.prompt.prompt_id: request.prompt.digest() for request in task.requests}
        if len(self._digests) != len(task.requests):
            counts = Counter(request.prompt.prompt_id for request in task.requests)
            twice = next(prompt_id for prompt_id, count in counts.items() if count > 1)
            raise BenchmarkRunError(f"{task.name}: two questions have the id {twice!r}; make the ids unique")
        self._prompts = {request.prompt.prompt_id: request.prompt for request in task.requests}
        self.answers: dict[str, Answer] = {}
        try:
            for number, row in enumerate(read_rows(self._file), start=1):
                self._check_row(number, row)
                if self._digests.get(row["id"]) == row["digest"]:
                    self._take(Answer(prompt_id=row["id"], **{name: row[name] for name in _ANSWER_FIELDS}))
        except ValueError as error:
            raise BenchmarkRunError(f"{shown(error, 400)}: its question is then asked again") from error

    def _check_row(self, number: int, row: dict[str, Any]) -> None:
        wrong = [name for name in ("id", "digest", *_ANSWER_FIELDS) if not isinstance(row.get(name), str)]
        if wrong:
            raise BenchmarkRunError(
                f"{shown(self._file)}, line {number}: no text under {', '.join(wrong)}, so no answer of a benchmark "
                "run; remove the line: its question is then asked again"
            )

    def _take(self, answer: Answer) -> None:
        self.answers[answer.prompt_id] = answer

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep answers: they are written to the disk first, then counted as given."""
        # A server may send half characters, which no file can hold.
        answers = [
            Answer(
                prompt_id=answer.prompt_id, **{name: well_formed(getattr(answer, name))[0] for name in _ANSWER_FIELDS}
            )
            for answer in answers
        ]
        rows = [
            {
                "id": answer.prompt_id,
                "digest": self._digests[answer.prompt_id],
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "failure": answer.failure,
            }
            for answer in answers
        ]
        append_rows(self._file, rows)
        for answer in answers:
            self._take(answer)

    def missing(self, not_asked: set[str]) -> list[TaskPrompt]:
        """The prompts without an answer; those whose request failed are asked again."""
        return [
            prompt
            for prompt_id, prompt in self._prompts.items()
            if prompt_id not in not_asked and (prompt_id not in self.answers or self.answers[prompt_id].failure)
        ]


def _reasons(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {reason}" for reason, count in skipped.items())


def _model_folder(config: Config, folder: RunFolder) -> Path:
    if config.eval.checkpoint:
        path = Path(config.eval.checkpoint).absolute()
        if not (path / "config.json").is_file():
            raise BenchmarkRunError(f"eval.checkpoint={config.eval.checkpoint!r} is no model folder (no config.json)")
        return path
    finished = [folder.model(stage) for stage in ("rl", "sft") if folder.model(stage).exists()]
    if not finished and not config.model.path:
        raise BenchmarkRunError(
            "there is no model to answer with: set eval.checkpoint or model.path, eval.endpoint.url for a server, or "
            "run_dir to the folder of a finished training"
        )
    return finished[0] if finished else find_base_model(config, folder)


def _context_limit(config: Config, tokenizer: PreTrainedTokenizerBase | None) -> ContextLimit | None:
    if tokenizer is None or not config.eval.max_context_tokens:
        return None
    return ContextLimit(
        max_tokens=config.eval.max_context_tokens,
        image_tokens=config.eval.image_tokens,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=lambda ids: str(tokenizer.decode(ids)),
    )


def _too_long(task: TaskRequests, config: Config, processor: Any) -> set[str]:
    """The ids of prompts that do not fit into the model; none with a server, which counts for itself."""
    if processor is None:
        return set()
    lengths = PromptLengths(config, processor, task.sampling.max_response_tokens)
    fitting, _ = lengths.checked(task.name, [chat_prompt(request.prompt, processor) for request in task.requests])
    return {request.prompt.prompt_id for request in task.requests} - {prompted.sample.sample_id for prompted in fitting}


def _check_same_answerer(root: Path, config: Config, model: Path | None) -> None:
    endpoint = config.eval.endpoint
    answered_by = {
        "model": endpoint.model if model is None else str(model),
        "endpoint": endpoint.url,
        "seed": config.seed,
        "sampling": dataclasses.asdict(config.eval.sampling),
        "min_pixels": config.data.min_pixels,
        "max_pixels": config.data.max_pixels,
        "background": config.data.background,
    }
    file = root / "answered_by.json"
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            before = error
        if not isinstance(before, dict):
            raise BenchmarkRunError(
                f"{shown(file)} does not say whose answers lie beside it ({shown(before, 60)}); choose another "
                "run_dir, or remove the file if the answers are of the same model and settings"
            )
        before.setdefault("background", "white")  # older runs knew no other
        differing = [name for name, value in answered_by.items() if before.get(name) != value]
        if differing:
            raise BenchmarkRunError(
                f"{root} holds answers that differ in {', '.join(differing)} "
                f"({', '.join(f'{before.get(name)!r}' for name in differing)}); choose another run_dir"
            )
    write_json(file, answered_by, indent=2)


@contextmanager
def _open_answerer(
    config: Config, model: Path | None, processor: Any, folder: RunFolder, progress: Progress
) -> Iterator[Answerer]:
    if model is None:
        yield EndpointAnswerer(config.eval.endpoint, config.data, config.seed)
        return
    with open_cluster(config.cluster) as cluster, open_workers(config, model, cluster) as workers:
        assert workers.engine is not None
        for line in workers.fitted.lines:
            progress.line(line)
        begin_run(folder, workers.fitted.config)
        yield EngineAnswerer(workers.engine, processor, config.seed)


def _answer(
    answerer: Answerer, task: TaskRequests, prompts: Sequence[TaskPrompt], journal: _Journal, progress: Progress
) -> None:
    if not prompts:
        progress.line(f"{task.name}: all {len(task.requests)} answers are there")
        return
    with progress.phase(f"Answering {task.name}", total=len(task.requests)) as phase:
        phase.advance(count=len(task.requests) - len(prompts))
        num_answered = num_shown = 0

        def keep(answers: Sequence[Answer]) -> None:
            nonlocal num_answered, num_shown
            journal.add(answers)
            num_answered += len(answers)
            is_line_due = num_answered - num_shown >= _ASKED_CHUNK or num_answered == len(prompts)
            num_shown = num_answered if is_line_due else num_shown
            phase.advance(f"{num_answered}/{len(prompts)} answered" if is_line_due else "", count=len(answers))

        answerer.answer(prompts, task.sampling, keep)
