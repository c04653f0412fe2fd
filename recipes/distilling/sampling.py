"""Responses of a run's trained policy to given questions, kept as they come.

OUT/rollouts.jsonl     every response, in the form of a run's own file
OUT/sampled_by.json    who was asked what, and how; a call that asks otherwise needs another folder
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from recipes.distilling.asking import SAMPLED_STAGE, Asking, trained_model
from recipes.distilling.judging import DistillError
from recipes.setup.preparation import PromptLengths
from recipes.setup.wanted_data import builds_quickstart_data, sample_check
from recipes.setup.workers import open_workers
from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.cluster.ray_cluster import open_cluster
from rsgrpo.config import Config
from rsgrpo.config.distill import SCORES
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.images.image_view import model_view
from rsgrpo.data.synthetic.quickstart import build_quickstart_data
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import read_json_object, write_json
from rsgrpo.model.folder import check_model_type, load_processor, stored_tensors
from rsgrpo.prompts.template import PromptBuilder, PromptWriter
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress
from rsgrpo.run.recorder import read_groups, record_sampled
from rsgrpo.system.quiet import hush_cuda_search
from rsgrpo.types import PromptedSample

_ASKED_BY = "sampled_by.json"


def sample_responses(config: Config, run_folder: Path, out: Path, asking: Asking, progress: Progress) -> Path:
    """Ask the trained policy what it was not asked yet.

    Args:
        config: the run's settings, see :func:`recipes.distilling.asking.sampling_settings`.
        run_folder: the folder of the run.
        out: gets the responses; those of an earlier call that was stopped are kept and not asked for again.
        asking: what to ask.
        progress: shows how far it is.

    Returns:
        The file with all responses.

    Raises:
        DistillError: there is no trained model, or the folder holds responses that were sampled otherwise.
        RsgrpoError: the questions cannot be read, or the engine cannot answer.
    """
    hush_cuda_search()
    model = trained_model(run_folder)
    check_model_type(model, f"models/{model.name}")
    stored_tensors(model, f"models/{model.name}")
    path = asking.questions or _own_questions(config, run_folder)
    file = out / "rollouts.jsonl"
    _begin(out, _asked_by(config, model, path, asking))
    prompts, scorer = _prepared(config, model, path, asking.reward)
    prompts = prompts[: asking.limit] if asking.limit else prompts
    answered = {group.sample_id for group in read_groups(file)}
    missing = [prompted for prompted in prompts if prompted.sample.sample_id not in answered]
    if answered:
        progress.line(f"{len(prompts) - len(missing)} of {len(prompts)} questions were answered before")
    if not missing:
        return file
    with ExitStack() as stack:
        cluster = stack.enter_context(open_cluster(config.cluster))
        workers = stack.enter_context(open_workers(config, model, cluster))
        for line in workers.fitted.lines:
            progress.line(line)
        assert workers.engine is not None  # nothing else was asked for
        phase = stack.enter_context(progress.phase(f"Sampling {asking.num_samples} responses each", len(missing)))
        groups = stack.enter_context(
            closing(
                workers.engine.stream(
                    missing,
                    num_samples=asking.num_samples,
                    sampling=config.rollout.sampling,
                    seed=config.seed,
                )
            )
        )
        for group in groups:
            record_sampled(file, SAMPLED_STAGE, scorer.score([group]))
            phase.advance()
    return file


def _own_questions(config: Config, run_folder: Path) -> str:
    if builds_quickstart_data(config):
        return build_quickstart_data(config.quickstart, RunFolder(root=run_folder).data, config.seed).rl_path
    if not config.data.rl_path:
        raise DistillError("the run has no questions of its own (data.rl_path is empty); add --questions FILE")
    return config.data.rl_path


def _asked_by(config: Config, model: Path, path: str, asking: Asking) -> dict[str, Any]:
    weights = sorted(model.glob("*.safetensors"))
    return {
        "model": str(model.absolute()),
        "weights": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weights],
        "questions": str(Path(path).absolute()) if Path(path).exists() else path,
        "num_samples": asking.num_samples,
        "data": dataclasses.asdict(config.data),
        "prompt": dataclasses.asdict(config.prompt),
        "sampling": dataclasses.asdict(config.rollout.sampling),
        "seed": config.seed,
    } | ({"reward": asking.reward} if asking.reward else {})


def _begin(out: Path, asked_by: dict[str, Any]) -> None:
    """Note what is asked; refuse a folder whose responses were sampled otherwise."""
    file = out / _ASKED_BY
    if file.exists():
        before = read_json_object(file)
        differing = [name for name, value in asked_by.items() if before.get(name) != value]
        if differing:
            raise DistillError(
                f"{shown(out)} holds responses that were sampled with another {' and another '.join(differing)}; "
                "choose another --out, or remove the folder"
            )
        return
    write_json(file, asked_by, indent=1)


def _prepared(config: Config, model: Path, path: str, reward_name: str) -> tuple[tuple[PromptedSample, ...], Scorer]:
    response_format = config.response.format
    processor = load_processor(model, f"models/{model.name}")
    writer = PromptWriter(config.prompt)
    check = sample_check(config, "test", writer.parts_ahead)
    loaded = load_samples(path, config.data, is_training=False, check=check, response_format=response_format)
    builder = PromptBuilder(config.prompt, processor, writer, response_format=response_format)
    prompts, _ = PromptLengths(config, processor).checked(
        "question", [builder.prompted(sample) for sample in loaded.samples]
    )
    view = model_view(config.data, processor.image_processor)
    wanted = {name: reward for name, reward in config.scored_rewards.items() if name == reward_name}
    if reward_name and not wanted:
        raise DistillError(
            f"distill.correctness={shown(reward_name, 80)}: the run has no such reward (it has "
            f"{shown(', '.join(config.rewards), 200) or 'none'}); choose one of {', '.join(SCORES)}, or one of those"
        )
    scorer = Scorer(load_rewards(wanted, Path.cwd(), response_format), view, response_format)
    scorer.check_samples([prompted.sample for prompted in prompts])
    return prompts, scorer
