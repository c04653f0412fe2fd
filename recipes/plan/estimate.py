"""One computation for the settings as they are and for every proposal: memory, time, cost, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from recipes.plan.gpus import Assumptions, GpuKind
from recipes.plan.memory import (
    GIB,
    EngineMemory,
    RankMemory,
    engine_memory,
    host_memory,
    num_gpus,
    rank_memory,
    samples_ahead,
)
from recipes.plan.timing import mean, sampling_seconds, scoring_seconds, update_seconds, weights_seconds
from recipes.plan.workload import Stage, StepWork, TokensOfImage, fullest_pack, step_work, steps_of
from rsgrpo.config import Config, ModelConfig
from rsgrpo.model.activation_memory import PackedSize
from rsgrpo.model.sizes import ModelSizes, model_sizes


@dataclass(kw_only=True, slots=True)
class Facts:
    """What was read, and stays the same whatever is proposed.

    Attributes:
        folder: the folder that holds the model's config.
        stages: the stages of the run; with ``stage=eval`` there is one that only samples.
        tokens_of_image: gives how many tokens a page takes.
        gpu: the kind of GPU that the run is planned for.
        assumed: the figures that no formula gives.
    """

    folder: Path
    stages: tuple[Stage, ...]
    tokens_of_image: TokensOfImage
    gpu: GpuKind
    assumed: Assumptions
    _models: dict[tuple[object, ...], ModelSizes] = field(default_factory=dict)

    def model(self, config: ModelConfig) -> ModelSizes:
        """Sizes of the model with these frozen parts and adapters."""
        lora = config.lora
        key = (config.freeze_vision, lora.rank, lora.include_vision, *(lora.targets if lora.rank else ()))
        if key not in self._models:
            self._models[key] = model_sizes(self.folder, config)
        return self._models[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """What the steps of a stage take: tokens, sequences and seconds.

    Attributes:
        name: the name of the stage.
        num_steps: how many steps the stage has.
        tokens: packed tokens of a step, as a mean over some simulated steps.
        sampled_tokens: tokens that the engines sample in a step, as a mean over the same steps.
        packs: packed sequences of the rank with most of them, as a mean over the same steps.
        longest_prompt: tokens of the longest prompt, its images included.
        seconds: seconds of a step by part, such as ``sample`` and ``update``.
        step_seconds: seconds of a whole step; parts that run at the same time count once.
    """

    name: str
    num_steps: int
    tokens: float
    sampled_tokens: float
    packs: float
    longest_prompt: int
    seconds: dict[str, float]
    step_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run takes.

    Attributes:
        rank: the GPU memory of the rank that needs most; None with ``stage=eval``.
        engine: the memory of an engine on one of its GPUs; None where nothing is sampled.
        host: bytes of host memory on the fullest node, by part.
        stages: the estimates of the stages, in the order in which they run.
        gpus: how many GPUs the run takes.
        hours: hours that the stages take, without evaluations.
        problems: what does not fit, in sentences without an end; empty where all fits.
        uses: the name of each budget and the share of it that is used, the tightest first.
    """

    rank: RankMemory | None
    engine: EngineMemory | None
    host: dict[str, int]
    stages: tuple[StageEstimate, ...]
    gpus: int
    hours: float
    problems: tuple[str, ...]
    uses: tuple[tuple[str, float], ...]


def estimate(config: Config, facts: Facts) -> Estimate:
    """Compute everything for these settings.

    Args:
        config: the run's settings, or those that are proposed instead.
        facts: what was read of model, data and machine.

    Raises:
        TokenBudgetError: a prompt with a response does not fit into a sequence.
    """
    model = facts.model(config.model)
    full = {stage.name: _works(stage, config, facts, model, frac=1.0) for stage in facts.stages}
    rank = None
    if config.stage != "eval":
        packs = [fullest_pack(works, config.trainer.micro_batch_tokens) for works in full.values()]
        rank = max(
            (rank_memory(config, model, packed, facts.gpu, facts.assumed) for packed in packs),
            key=lambda bytes_of_rank: bytes_of_rank.peak,
        )
    engine = None
    if any(stage.max_response_tokens for stage in facts.stages):
        beside = rank if num_gpus(config) == config.trainer.num_ranks and config.stage != "eval" else None
        engine = engine_memory(config, model, beside, facts.gpu, facts.assumed)
    stages = tuple(_stage(stage, config, facts, model, engine, full[stage.name]) for stage in facts.stages)
    host = host_memory(config, model, rank, _ranks_a_node(config))
    uses = _uses(config, rank, engine, host, stages, [packed for works in full.values() for packed in _packs(works)])
    return Estimate(
        rank=rank,
        engine=engine,
        host=host,
        stages=stages,
        gpus=num_gpus(config),
        hours=sum(stage.num_steps * stage.step_seconds for stage in stages) / 3600,
        problems=tuple(_problems(config, rank, engine, host, facts.gpu)),
        uses=tuple(sorted(uses.items(), key=lambda item: -item[1])),
    )


def _works(stage: Stage, config: Config, facts: Facts, model: ModelSizes, *, frac: float) -> list[StepWork]:
    return [
        step_work(items, stage, config, facts.tokens_of_image, patches_a_token=model.patches_a_token, frac=frac)
        for items in steps_of(stage)
    ]


def _packs(works: list[StepWork]) -> list[PackedSize]:
    return [packed for work in works for rank in work.packs for packed in rank]


def _ranks_a_node(config: Config) -> int:
    return -(-config.trainer.num_ranks // config.cluster.num_nodes)


def _stage(
    stage: Stage,
    config: Config,
    facts: Facts,
    model: ModelSizes,
    engine: EngineMemory | None,
    full: list[StepWork],
) -> StageEstimate:
    """The seconds of a step at the mean length of responses; memory was computed at their longest."""
    works = full
    if stage.max_response_tokens:
        works = _works(stage, config, facts, model, frac=config.plan_for.response_frac)
    gpu, assumed = facts.gpu, facts.assumed
    seconds: dict[str, float] = {}

    def add(name: str, of: Callable[[StepWork], float]) -> None:
        seconds[name] = mean([of(work) for work in works])

    if engine is not None and stage.max_response_tokens:
        add("sample", lambda work: sampling_seconds(config, model, work, stage, engine, gpu, assumed))
    if config.stage != "eval":
        if stage.passes:
            add("score", lambda work: stage.passes * scoring_seconds(config, model, work, gpu, assumed))
        add("update", lambda work: update_seconds(config, model, work, gpu, assumed))
        if stage.max_response_tokens:
            seconds["send weights"] = weights_seconds(config, model, gpu, assumed)
    total = sum(seconds.values())
    if samples_ahead(config) and "sample" in seconds:
        total = max(seconds["sample"], total - seconds["sample"])  # both at a time
    return StageEstimate(
        name=stage.name,
        num_steps=stage.num_steps,
        tokens=mean([work.num_tokens for work in works]),
        sampled_tokens=mean([work.num_sampled_tokens for work in works]),
        packs=mean([max(len(rank) for rank in work.packs) for work in works]),
        longest_prompt=max(max(work.prompt_tokens) for work in full),
        seconds=seconds,
        step_seconds=total,
    )


def _uses(
    config: Config,
    rank: RankMemory | None,
    engine: EngineMemory | None,
    host: dict[str, int],
    stages: tuple[StageEstimate, ...],
    packs: list[PackedSize],
) -> dict[str, float]:
    """How much of each budget is used."""
    uses: dict[str, float] = {}
    longest = max(stage.longest_prompt for stage in stages)
    if rank is not None:
        uses["GPU memory of a rank"] = rank.peak / rank.capacity
        uses["trainer.micro_batch_tokens"] = (
            max(packed.num_tokens for packed in packs) / config.trainer.micro_batch_tokens
        )
    if engine is not None:
        uses["KV cache for one longest sequence"] = engine.longest / max(1, engine.cache)
        need = longest + config.rollout.sampling.max_response_tokens
        uses["rollout.max_model_tokens"] = need / config.rollout.max_model_tokens
    uses["data.max_prompt_tokens"] = longest / config.data.max_prompt_tokens
    if config.plan_for.host_memory_gib:
        uses["host memory of a node"] = sum(host.values()) / (config.plan_for.host_memory_gib * GIB)
    return uses


def _problems(
    config: Config, rank: RankMemory | None, engine: EngineMemory | None, host: dict[str, int], gpu: GpuKind
) -> list[str]:
    """Sentences without an end about what does not fit."""
    found: list[str] = []
    if rank is not None and not rank.fits:
        found.append(f"a rank needs {rank.peak / GIB:.1f} of the {rank.capacity / GIB:.1f} GiB of an {gpu.name}")
    if engine is not None and engine.cache < engine.longest:
        rest = max(0.0, engine.cache / GIB)
        found.append(
            f"an engine's share of an {gpu.name} leaves {rest:.1f} GiB for keys and values, one sequence of "
            f"rollout.max_model_tokens={config.rollout.max_model_tokens} needs {engine.longest / GIB:.1f}"
        )
    elif engine is not None and not engine.fits:
        found.append(
            f"beside an engine's {engine.taken / GIB:.1f} GiB the resting trainer keeps {engine.beside / GIB:.1f}, "
            f"together more than the {engine.capacity / GIB:.1f} of an {gpu.name}"
        )
    given = config.plan_for.host_memory_gib
    if given and sum(host.values()) > given * GIB:
        found.append(f"a node needs {sum(host.values()) / GIB:.0f} of plan_for.host_memory_gib={given:g}")
    return found
