"""What would fit instead: settings are changed one at a time, then together, and computed anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from recipes.plan.estimate import Estimate, Facts, estimate
from rsgrpo.config import Config, ConfigError
from rsgrpo.model.folder import check_limits
from rsgrpo.model.micro_batches import TokenBudgetError

_MAX_PROPOSALS = 4
_LEAST_BUDGET = 1024
_LEAST_PIXELS = 200_704  # 256 image tokens a page
_LORA_RANK = 32

Change = Callable[[Config], Config]


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """Settings that fit.

    Attributes:
        overrides: the overrides to add to the command line.
        estimate: the estimate of the run with these overrides.
    """

    overrides: tuple[str, ...]
    estimate: Estimate


def proposals(config: Config, facts: Facts) -> tuple[Proposal, ...]:
    """Changes that make a run fit, each computed as the run itself; the cheapest in speed first.

    Args:
        config: the settings that do not fit.
        facts: what was read of model, data and machine.

    Returns:
        The single changes that suffice; where none does, the shortest sequence of changes that do together; else
        nothing.
    """
    found: dict[str, Proposal] = {}
    for override, change in _changes(config):
        key = override.partition("=")[0]
        if key not in found and (proposal := _tried((override,), change, config, facts)):
            found[key] = proposal
    return tuple(found.values())[:_MAX_PROPOSALS] or _together(config, facts)


def _together(config: Config, facts: Facts) -> tuple[Proposal, ...]:
    """Apply one change after the other, each on top of those before, until all fits."""
    changed, overrides = config, dict[str, str]()
    for override, change in _changes(config):
        try:
            next_one = change(changed)
            check_limits(facts.folder, next_one)
            found = estimate(next_one, facts)
        except (ConfigError, TokenBudgetError):
            continue
        changed = next_one
        key, _, value = override.partition("=")
        overrides[key] = value
        if not found.problems:
            together = tuple(f"{key}={value}" for key, value in overrides.items())
            return (Proposal(overrides=together, estimate=found),)
    return ()


def _tried(overrides: tuple[str, ...], change: Change, config: Config, facts: Facts) -> Proposal | None:
    """The proposal of some overrides; None where the settings do not go together or do not fit."""
    try:
        changed = change(config)
        check_limits(facts.folder, changed)
        found = estimate(changed, facts)
    except (ConfigError, TokenBudgetError):
        return None
    return None if found.problems else Proposal(overrides=overrides, estimate=found)


def _changes(config: Config) -> Iterator[tuple[str, Change]]:
    """Overrides to try one at a time, those that cost least speed first."""
    trainer, rollout, model = config.trainer, config.rollout, config.model
    if config.stage != "eval":
        for stage in range(trainer.zero_stage + 1, 4):
            yield f"trainer.zero_stage={stage}", lambda c, s=stage: replace(c, trainer=replace(c.trainer, zero_stage=s))  # type: ignore[misc]
        if not model.gradient_checkpointing:
            yield (
                "model.gradient_checkpointing=true",
                lambda c: replace(c, model=replace(c.model, gradient_checkpointing=True)),
            )
        budget = trainer.micro_batch_tokens // 2
        while budget >= _LEAST_BUDGET:
            yield (
                f"trainer.micro_batch_tokens={budget}",
                lambda c, b=budget: replace(c, trainer=replace(c.trainer, micro_batch_tokens=b)),  # type: ignore[misc]
            )
            budget //= 2
        if not trainer.offload_optimizer:
            yield (
                "trainer.offload_optimizer=true",
                lambda c: replace(c, trainer=replace(c.trainer, offload_optimizer=True)),
            )
        if not model.lora.rank:
            yield f"model.lora.rank={_LORA_RANK}", _with_adapters
    if rollout.gpu_memory_frac and rollout.gpu_memory_frac < 0.9:
        yield (
            "rollout.gpu_memory_frac=0.9",
            lambda c: replace(c, rollout=replace(c.rollout, gpu_memory_frac=0.9)),
        )
    yield (
        f"rollout.tensor_parallel_size={2 * rollout.tensor_parallel_size}",
        lambda c: replace(c, rollout=replace(c.rollout, tensor_parallel_size=2 * rollout.tensor_parallel_size)),
    )
    pixels = config.data.max_pixels // 2
    while pixels >= max(_LEAST_PIXELS, config.data.min_pixels):
        yield f"data.max_pixels={pixels}", lambda c, p=pixels: replace(c, data=replace(c.data, max_pixels=p))  # type: ignore[misc]
        pixels //= 2
    if config.stage != "eval" and not trainer.offload_parameters:  # with ZeRO 3 only; else the settings refuse it
        yield (
            "trainer.offload_parameters=true",
            lambda c: replace(c, trainer=replace(c.trainer, offload_parameters=True)),
        )


def _with_adapters(config: Config) -> Config:
    lora = replace(config.model.lora, rank=_LORA_RANK)
    return replace(config, model=replace(config.model, lora=lora))
