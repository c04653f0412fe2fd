"""The phases of supervised training with their data, read through once before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from recipes.setup.wanted_data import default_sources, uses_mixture
from recipes.sft import SftPhase
from recipes.sft_data import ConversationSource, MixtureSource, TrajectorySource
from rsgrpo.config import Config, DataConfig, SftPhaseConfig, SourceConfig
from rsgrpo.data.images.counts import update_report
from rsgrpo.data.mixture import Mixture
from rsgrpo.prompts.conversation import ConversationBuilder
from rsgrpo.run.progress import Progress
from rsgrpo.types import ImageRef, PromptedSample


def supervised_phases(
    config: Config,
    trajectories: Sequence[PromptedSample],
    builder: ConversationBuilder,
    tokenizer: PreTrainedTokenizerBase,
    image_tokens: Callable[[ImageRef], int],
    progress: Progress,
    run_folder: Path,
) -> tuple[SftPhase, ...]:
    """The phases that ``sft`` describes; one where it names none.

    Args:
        config: the settings, of which ``data`` and ``sft`` count.
        trajectories: tagged ones, where there is no mixture.
        builder: builds conversations of samples.
        tokenizer: the policy's tokenizer.
        image_tokens: how many positions an image takes.
        progress: shows what was read and left out.
        run_folder: ``data_report.json`` there gets the same as ``phases``.

    Raises:
        DataError: a data set is missing, is empty, or has bad records (``data.on_bad_sample=reject``).
    """
    sft = config.sft
    wanted = sft.phases or [
        SftPhaseConfig(
            name="sft",
            optimizer=sft.optimizer,
            warmup_frac=sft.warmup_frac,
            num_epochs=sft.num_epochs,
            max_steps=sft.max_steps,
            samples_per_step=sft.samples_per_step,
            max_tokens=sft.max_tokens,
        )
    ]
    if uses_mixture(config) and builder.parts_answers:
        progress.line(
            "sft: the chat template rewrites earlier answers (most drop their thoughts), so each answer of a "
            "conversation is trained in a row of its own, behind what the template makes of the turns before"
        )
    phases = []
    report: list[dict[str, object]] = []
    for settings in wanted:
        source: ConversationSource
        if not uses_mixture(config):
            source = TrajectorySource(trajectories, seed=config.seed, num_held_out=sft.validation_samples)
        else:
            sources = [_counted(mixed, config.data) for mixed in settings.mixture or default_sources(config)]
            mixture = Mixture(
                sources,
                seed=config.seed,
                num_held_out=sft.validation_samples,
                on_bad_record="skip" if config.data.on_bad_sample == "skip" else "error",
                check_media=config.data.check_media,
                max_skipped_frac=config.data.max_skipped_frac,
                media_cache=config.data.media_cache,
                video=config.data.video,
                columns=config.data,
            )
            for mixed, found in zip(sources, mixture.reports, strict=True):
                progress.line(f"{settings.name}: {mixed.format}, weight {mixed.weight:g}, from {mixed.path}")
                for line in found.text().splitlines():
                    progress.line(f"  {line}")
                report.append({"phase": settings.name, "path": mixed.path, **dataclasses.asdict(found)})
            source = MixtureSource(
                mixture,
                builder,
                config,
                max_tokens=settings.max_tokens,
                tokenizer=tokenizer,
                image_tokens=image_tokens,
            )
        if sft.validation_samples and not source.held_out():
            progress.line(
                f"{settings.name}: no validation loss: of {len(source)} samples none is held out that fits "
                f"(sft.validation_samples={sft.validation_samples}, at most a tenth is held out)"
            )
        phases.append(SftPhase(settings=settings, source=source))
    if report:
        update_report(run_folder, {"phases": report})
    return tuple(phases)


def _counted(source: SourceConfig, data: DataConfig) -> SourceConfig:
    """The source with ``box_coordinates`` written out, where its format leaves open what boxes count."""
    if source.box_coordinates or source.format != "evisrag":
        return source
    return dataclasses.replace(source, box_coordinates=data.box_coordinates)
