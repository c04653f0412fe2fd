"""The model that answers tasks, our own or a server's: found, checked against kept answers, opened, asked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.evaluation.answer_journal import AnswerJournal
from recipes.evaluation.answering import Answer, Answerer, EngineAnswerer
from recipes.evaluation.endpoint import EndpointAnswerer
from recipes.setup.preparation import PromptLengths, find_base_model
from recipes.setup.workers import open_workers
from rollout.pool import RolloutPool
from rsgrpo.cluster.ray_cluster import open_cluster
from rsgrpo.config import Config, SamplingConfig
from rsgrpo.data.images.image_view import ImageView, endpoint_view, model_view
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.evaluation.prompts.turns import TaskPrompt, chat_prompt
from rsgrpo.io.atomic_files import write_json
from rsgrpo.model.folder import load_processor
from rsgrpo.prompts.chat_template import template_request, with_arguments
from rsgrpo.run.folder import RunFolder, begin_run
from rsgrpo.run.progress import Progress

_ASKED_CHUNK = 64


class BenchmarkRunError(RsgrpoError):
    """A benchmark run cannot go on as asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweringModel:
    """The model that answers.

    Attributes:
        folder: the folder of the model; None: a server answers.
        processor: its tokenizer and image processor; None: a server answers.
        view: says at which size it sees images.
    """

    folder: Path | None
    processor: Any
    view: ImageView


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedAnswerer:
    """A model that is ready to answer.

    Attributes:
        answerer: answers prompts.
        engine: the engine behind it; None: a server.
    """

    answerer: Answerer
    engine: RolloutPool | None


def find_answering_model(config: Config, folder: RunFolder) -> AnsweringModel:
    """Find the model that answers, without starting it.

    Args:
        config: the settings of the run.
        folder: the folder of the run, whose trained model is taken where none is named.

    Raises:
        RsgrpoError: there is no model, or its folder cannot be used.
    """
    if config.eval.endpoint.url:
        return AnsweringModel(folder=None, processor=None, view=endpoint_view(config.data, config.eval.endpoint))
    model = _model_folder(config, folder)
    processor = load_processor(model)
    with_arguments(processor, config.prompt.template_arguments)  # refuses what the template does not read
    return AnsweringModel(folder=model, processor=processor, view=model_view(config.data, processor.image_processor))


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


def too_long_prompts(
    name: str, prompts: Sequence[TaskPrompt], sampling: SamplingConfig, config: Config, processor: Any
) -> set[str]:
    """Find prompts that do not fit into the model; none with a server, which counts for itself.

    Args:
        name: the name of the task, for messages.
        prompts: the prompts of the task.
        sampling: how long a response may be.
        config: the settings of the run.
        processor: the model's tokenizer and image processor; None: a server answers.

    Returns:
        The ids of the prompts that do not fit (``data.on_bad_sample=skip``).

    Raises:
        RsgrpoError: a prompt does not fit (``data.on_bad_sample=reject``).
    """
    if processor is None:
        return set()
    lengths = PromptLengths(config, processor, sampling.max_response_tokens)
    chat = with_arguments(processor, config.prompt.template_arguments)
    fitting, _ = lengths.checked(name, [chat_prompt(prompt, chat) for prompt in prompts])
    return {prompt.prompt_id for prompt in prompts} - {prompted.sample.sample_id for prompted in fitting}


def check_same_answerer(root: Path, config: Config, model: AnsweringModel) -> None:
    """Refuse to go on with answers of another model or other settings; note whose answers they are.

    Args:
        root: the folder that the answers lie in.
        config: the settings of the run.
        model: the model that answers.

    Raises:
        BenchmarkRunError: the answers differ in something, or the note cannot be read.
    """
    endpoint = config.eval.endpoint
    answered_by = {
        "model": endpoint.model if model.folder is None else str(model.folder),
        "endpoint": endpoint.url,
        "seed": config.seed,
        "sampling": dataclasses.asdict(config.eval.sampling),
        "min_pixels": config.data.min_pixels,
        "max_pixels": config.data.max_pixels,
        "background": config.data.background,
        "template_arguments": config.prompt.template_arguments,
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
        before = {"background": "white", "template_arguments": {}} | before  # older runs knew no other
        differing = [name for name, value in answered_by.items() if before.get(name) != value]
        if differing:
            raise BenchmarkRunError(
                f"{root} holds answers that differ in {', '.join(differing)} "
                f"({', '.join(f'{before.get(name)!r}' for name in differing)}); choose another run_dir"
            )
    write_json(file, answered_by, indent=2)


@contextmanager
def open_answerer(
    config: Config, model: AnsweringModel, folder: RunFolder, progress: Progress, *, wants_logprobs: bool = False
) -> Iterator[OpenedAnswerer]:
    """Start what answers, for the length of the block.

    Args:
        config: the settings of the run.
        model: the model that answers.
        folder: the folder of the run.
        progress: shows what is under way.
        wants_logprobs: whether a server is asked for log-probabilities; our engines always give them.

    Raises:
        RsgrpoError: it cannot be started.
    """
    if model.folder is None:
        server = EndpointAnswerer(
            config.eval.endpoint,
            config.data,
            config.seed,
            extra=template_request(config.prompt.template_arguments),
            wants_logprobs=wants_logprobs,
        )
        yield OpenedAnswerer(answerer=server, engine=None)
        return
    with open_cluster(config.cluster) as cluster, open_workers(config, model.folder, cluster) as workers:
        assert workers.engine is not None
        for line in workers.fitted.lines:
            progress.line(line)
        begin_run(folder, workers.fitted.config)
        chat = with_arguments(model.processor, config.prompt.template_arguments)
        answerer = EngineAnswerer(workers.engine, chat, config.seed)
        yield OpenedAnswerer(answerer=answerer, engine=workers.engine)


def ask_missing(
    answerer: Answerer,
    name: str,
    num_prompts: int,
    missing: Sequence[TaskPrompt],
    sampling: SamplingConfig,
    journal: AnswerJournal,
    progress: Progress,
) -> None:
    """Ask what is not answered yet; every answer is kept at once.

    Args:
        answerer: answers prompts.
        name: the name of the task.
        num_prompts: how many prompts the task has.
        missing: those of them that have no answer.
        sampling: how responses are drawn.
        journal: keeps the answers.
        progress: shows what is under way.

    Raises:
        RsgrpoError: no further prompt can be answered.
    """
    if not missing:
        progress.line(f"{name}: all {num_prompts} answers are there")
        return
    with progress.phase(f"Answering {name}", total=num_prompts) as phase:
        phase.advance(count=num_prompts - len(missing))
        num_answered = num_shown = 0

        def keep(answers: Sequence[Answer]) -> None:
            nonlocal num_answered, num_shown
            journal.add(answers)
            num_answered += len(answers)
            is_line_due = num_answered - num_shown >= _ASKED_CHUNK or num_answered == len(missing)
            num_shown = num_answered if is_line_due else num_shown
            phase.advance(f"{num_answered}/{len(missing)} answered" if is_line_due else "", count=len(answers))

        answerer.answer(missing, sampling, keep)
