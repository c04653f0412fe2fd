"""What a run reads: which data sets its stage wants, where they lie, and what a trajectory must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rsgrpo.config import EVISRAG, Config, ConfigError, EmbedderConfig, ResponseFormat, SourceConfig
from rsgrpo.data.files import DataError
from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.evaluation.retrieval_sets import split_tasks
from rsgrpo.prompts.template import PromptTemplateError
from rsgrpo.run.folder import RunFolder
from rsgrpo.text.control_tokens import control_token
from rsgrpo.text.sections import parse_response
from rsgrpo.types import Sample

WANTED: Mapping[str, tuple[str, ...]] = {
    "all": ("sft", "rl", "test"),
    "sft": ("sft", "test"),
    "rl": ("rl", "test"),
    "eval": ("test",),
    "retriever": (),
}
"""The names of the data sets that each stage wants."""


def uses_mixture(config: Config) -> bool:
    """Whether the supervised stage reads conversations from their files instead of trajectories into memory."""
    return bool(
        config.data.mixture or config.data.format != "evisrag" or any(phase.mixture for phase in config.sft.phases)
    )


def builds_quickstart_data(config: Config) -> bool:
    """Whether no data are named, so that the run builds the quickstart's."""
    if config.stage == "retriever":
        return False
    return not any((config.data.sft_path, config.data.rl_path, config.data.test_path)) and not uses_mixture(config)


def has_engines(config: Config) -> bool:
    """Whether anything is sampled: a supervised stage samples answers to its test questions, where it has some.

    Data sets that an embedder searches need no engine.
    """
    if config.stage == "retriever" or (config.eval.tasks and not split_tasks(config.eval.tasks)[0]):
        return False
    return config.stage != "sft" or bool(config.data.test_path) or builds_quickstart_data(config)


def find_embedder(config: Config) -> EmbedderConfig:
    """Find the embedder that ``eval.tasks`` is searched with.

    Args:
        config: the settings of the run.

    Returns:
        The settings of the embedder; where they name no model, with the one that the run has trained.

    Raises:
        ConfigError: no model is named and the run has trained none.
    """
    if config.embedder.model:
        return config.embedder
    trained = RunFolder(root=Path(config.run_dir).absolute()).model("retriever")
    if not trained.is_dir():
        raise ConfigError(
            "eval.tasks names data sets that an embedder searches, and embedder.model is empty; name a model of "
            "sentence-transformers that reads images (a folder, or a name on the hub), or set run_dir to the folder of "
            "a run that has trained a retriever"
        )
    return replace(config.embedder, model=str(trained))


def default_sources(config: Config) -> list[SourceConfig]:
    """The mixture of a phase that names none.

    Raises:
        DataError: neither ``data.mixture`` nor ``data.sft_path`` is set.
    """
    data = config.data
    if data.mixture:
        return data.mixture
    if not data.sft_path:
        raise DataError("a phase of sft.phases has no mixture, and neither data.mixture nor data.sft_path is set")
    return [SourceConfig(format=data.format, path=data.sft_path, media_root=data.image_root)]


def sample_check(
    config: Config, name: str, word: Callable[[Sample], tuple[str | None, ...]]
) -> Callable[[Sample], None]:
    """What a data set's samples must have beyond what they are read from.

    Args:
        config: prompt and sections.
        name: ``sft``, ``rl`` or ``test``.
        word: puts a question into words (:meth:`rsgrpo.prompts.template.PromptWriter.parts`).

    Returns:
        A function that raises BadRecordError if a trajectory cannot be imitated, the prompt's template fails on the
        question, or a text holds a control token.
    """

    def check(sample: Sample) -> None:
        if name == "sft":
            problem = trajectory_problem(sample, config.trajectory_sections, config.response.format)
            if problem:
                raise BadRecordError("gold", problem)
        try:
            texts = [part for part in word(sample) if part is not None]
        except PromptTemplateError as error:
            raise BadRecordError("text", str(error)) from error
        trained = [sample.gold_response] if name == "sft" else []
        for where, parts in (("prompt", texts), ("gold response", trained)):
            token = control_token(*parts)
            if token:
                raise BadRecordError("text", f"its {where} holds the control token {token!r}; take it out")

    return check


def trajectory_problem(sample: Sample, wanted: Sequence[str], response_format: ResponseFormat = EVISRAG) -> str:
    """Why a sample cannot be imitated; empty if it can.

    Args:
        sample: a sample with a tagged gold response.
        wanted: sections that it must have.
        response_format: the declared sections.
    """
    if not sample.gold_response.strip():
        return "it has no gold response to imitate"
    parsed = parse_response(sample.gold_response, response_format)
    problems = [f"missing: it has no <{name}>" for name in wanted if parsed.section(name) is None]
    problems += [f"{problem.code}: {problem.detail}" for problem in parsed.problems if problem.code != "missing"]
    return f"its gold response is not well formed ({problems[0]})" if problems else ""
