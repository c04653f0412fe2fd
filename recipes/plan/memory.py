"""GPU memory of a rank and of an engine, part by part, and the host's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from recipes.plan.engine_cache import CachePages, cache_pages
from recipes.plan.gpus import Assumptions, GpuKind
from recipes.setup.wanted_data import has_engines
from rsgrpo.cluster.topology import engine_memory_frac
from rsgrpo.config import Config, Topology
from rsgrpo.model.activation_memory import ActivationMemory, PackedSize, activation_memory
from rsgrpo.model.memory_bounds import IMAGE_BYTES
from rsgrpo.model.sizes import ModelSizes
from rsgrpo.trainer.state_memory import StateMemory, state_memory

GIB = 1 << 30
_MIB = 1 << 20


def weight_bytes(config: Config) -> int:
    """Bytes that one element of the weights takes: 2 in bfloat16, 4 in float32."""
    return 2 if config.model.dtype == "bfloat16" else 4


def shares_gpus(config: Config) -> bool:
    """Whether ranks and engines take turns on the same GPUs; ``auto`` does so only where there are too few for both."""
    if config.stage in ("sft", "eval"):
        return config.stage == "sft" and config.cluster.topology == "colocated"
    if config.cluster.topology != "auto":
        return config.cluster.topology == "colocated"
    engines = config.rollout.num_workers * config.rollout.tensor_parallel_size
    known = config.cluster.num_nodes * config.cluster.gpus_per_node
    return (
        0 < known < config.trainer.num_ranks + engines
        and engines == config.trainer.num_ranks
        and config.rl.max_staleness_steps < 1
    )


def samples_ahead(config: Config) -> bool:
    """Whether the next batch is sampled during an update."""
    staleness = config.rl.max_staleness_steps
    return not shares_gpus(config) if staleness < 0 else staleness > 0


def num_gpus(config: Config) -> int:
    """How many GPUs the run takes."""
    engines = config.rollout.num_workers * config.rollout.tensor_parallel_size
    if config.stage == "eval":
        return engines
    if not has_engines(config):
        return config.trainer.num_ranks
    return config.trainer.num_ranks + (0 if shares_gpus(config) else engines)


def engine_frac(config: Config) -> float:
    """Share of a GPU's memory that an engine takes, 0 to 1."""
    topology: Topology = "colocated" if shares_gpus(config) else "disaggregated"
    return engine_memory_frac(replace(config, cluster=replace(config.cluster, topology=topology)))


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """The memory of a rank's GPU at its largest moment, in bytes.

    Attributes:
        parts: bytes by name, in the order in which they are shown; they add up to ``peak``.
        states: the memory of weights, gradients, optimizer states and buffers, which lasts from sequence to sequence.
        activations: the memory of the activations of the largest sequence.
        packed: the sizes of the largest sequence.
        peak: the most bytes that are in use at a time.
        capacity: bytes of memory that the GPU has.
    """

    parts: dict[str, int]
    states: StateMemory
    activations: ActivationMemory
    packed: PackedSize
    peak: int
    capacity: int

    @property
    def fits(self) -> bool:
        """Whether the peak fits into the GPU's memory."""
        return self.peak <= self.capacity


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineMemory:
    """The memory of an engine on one of its GPUs, in bytes.

    Attributes:
        parts: bytes by name; the KV cache is what the other parts leave of ``taken``, at least 0.
        taken: bytes of the GPU that the engine takes.
        cache: bytes left for keys and values; below 0: the other parts alone are more than ``taken``.
        pages: how the cache is divided.
        longest: bytes of cache that one sequence of ``rollout.max_model_tokens`` needs.
        beside: bytes of the trainer that stay on the GPU while the engine works; 0 where the engine has its GPUs to
            itself.
        capacity: bytes of memory that the GPU has.
    """

    parts: dict[str, int]
    taken: int
    cache: int
    pages: CachePages
    longest: int
    beside: int
    capacity: int

    @property
    def fits(self) -> bool:
        """Whether the cache holds at least one sequence, and the GPU holds the engine and what lies beside it."""
        return self.cache >= self.longest and self.taken + self.beside <= self.capacity


def rank_memory(
    config: Config, model: ModelSizes, packed: PackedSize, gpu: GpuKind, assumed: Assumptions
) -> RankMemory:
    """A rank at its largest moment: the backward pass of its largest sequence, or the optimizer's step.

    Args:
        config: the settings: ZeRO stage, ranks, precision, offloading.
        model: the sizes of the model.
        packed: the sizes of the rank's largest sequence.
        gpu: the kind of GPU that the rank runs on.
        assumed: the assumed factor and reserves.
    """
    b = weight_bytes(config)
    trained_model = model.parameters
    cached_tower = 0
    if config.model.vision_cache.folder:
        # The frozen tower stands outside DeepSpeed, whole.
        cached_tower = b * model.num_vision
        trained_model = tuple(parameter for parameter in model.parameters if not parameter.is_vision)
    states = state_memory(
        trained_model,
        num_ranks=config.trainer.num_ranks,
        zero_stage=config.trainer.zero_stage,
        weight_bytes=b,
        offload_optimizer=config.trainer.offload_optimizer,
        offload_parameters=config.trainer.offload_parameters,
    )
    activations = activation_memory(
        model, packed, weight_bytes=b, recomputes=config.model.gradient_checkpointing, device="gpu"
    )
    reference = 0
    if config.stage in ("rl", "all") and config.rl.loss.kl.coefficient and not config.model.lora.rank:
        reference = states.weights  # split as the policy's are
    reserve = int(assumed.context_gib * GIB)
    if shares_gpus(config):
        reserve += int(assumed.sleeping_engine_gib * GIB)
    factor = assumed.allocator_factor
    working = int(factor * activations.peak) + states.gathered
    parts = {
        "weights": states.weights + cached_tower,
        "gradients": states.gradients,
        "master weights": states.masters,
        "moments": states.moments,
        "buckets": states.buckets,
    }
    if reference:
        parts["reference model"] = reference
    if states.step > working:
        parts["optimizer step"] = states.step
    else:
        parts |= _working_parts(states, activations, factor)
    parts["reserve (assumed)"] = reserve
    return RankMemory(
        parts=parts,
        states=states,
        activations=activations,
        packed=packed,
        peak=sum(parts.values()),
        capacity=int(gpu.memory_gib * GIB),
    )


def _working_parts(states: StateMemory, activations: ActivationMemory, factor: float) -> dict[str, int]:
    """Bytes by part of what is needed at the largest moment of a sequence, beside the states that last."""
    parts: dict[str, int] = {}
    if states.gathered:
        parts["gathered weights"] = states.gathered
    trained = max(activations.vision, activations.kept + max(activations.layer, activations.head))
    found = {"pages' pixels or features": activations.pixels, "vision tower": activations.vision_kept}
    if trained == activations.vision:
        found["vision tower"] += activations.vision
    else:
        found["activations"] = activations.kept
        largest = "head chunk" if activations.head > activations.layer else "one layer's backward"
        found[largest] = max(activations.head, activations.layer)
    for name, size in found.items():
        if size:
            parts[name] = int(factor * size)
    return parts


def engine_memory(
    config: Config, model: ModelSizes, rank: RankMemory | None, gpu: GpuKind, assumed: Assumptions
) -> EngineMemory:
    """An engine's part on one of its GPUs; the cache is what its share leaves.

    Args:
        config: the settings, of which ``rollout`` counts.
        model: the sizes of the model.
        rank: the trainer's rank that takes turns with the engine; None: the engine has its GPUs to itself.
        gpu: the kind of GPU that the engine runs on.
        assumed: the assumed reserves.
    """
    rollout, b = config.rollout, weight_bytes(config)
    size, language = rollout.tensor_parallel_size, model.language
    capacity = int(gpu.memory_gib * GIB)
    taken = int(engine_frac(config) * capacity)
    tokens = rollout.max_batched_tokens
    pass_bytes = b * tokens * (2 * language.hidden + 3 * language.intermediate // size)
    # The features of as many image tokens as a pass has, and a place for those of each deeper level.
    features = b * tokens * (model.feature_width + model.num_levels * language.hidden)
    # Pages are read in batches of as many tokens as a pass has; queries and keys turn in float32.
    vision_bytes = (
        b * tokens * model.patches_a_token * model.vision.hidden * 11 // size if not rollout.image_embeds else 0
    )
    is_beside = config.model.lora.update == "adapter"
    logits = 3 * 4 * rollout.max_num_sequences * model.vocabulary
    parts = {
        # Adapters are merged into the weights, or stand beside them.
        "weights": b * (model.num_elements - (0 if is_beside else model.num_adapters)) // size,
        "activations (estimated)": max(pass_bytes, vision_bytes) + features + logits,
        "CUDA graphs (assumed)": 0 if rollout.enforce_eager else int(assumed.graphs_gib * GIB),
        "context (assumed)": int(assumed.context_gib * GIB),
    }
    pages = cache_pages(language, weight_bytes=b, num_gpus=size)
    cache = taken - sum(parts.values())
    parts["KV cache"] = max(0, cache)
    beside = 0
    if rank is not None:
        # While engines sample, weights and states wait on the host; gradients and DeepSpeed's buckets are let go.
        bucket = rollout.weight_bucket_mib * _MIB
        beside = int(assumed.context_gib * GIB) + 2 * bucket
    return EngineMemory(
        parts=parts,
        taken=taken,
        cache=cache,
        pages=pages,
        longest=pages.of_sequence(rollout.max_model_tokens),
        beside=beside,
        capacity=capacity,
    )


def host_memory(config: Config, model: ModelSizes, rank: RankMemory | None, num_ranks_a_node: int) -> dict[str, int]:
    """Bytes of the host's memory on the fullest node, by part.

    Args:
        config: the settings of the run.
        model: the sizes of the model.
        rank: the memory of a rank; None: nothing is trained.
        num_ranks_a_node: how many ranks share a node.
    """
    b = weight_bytes(config)
    whole = b * model.num_elements
    parts: dict[str, int] = {}
    if rank is not None:
        parts["loading (a tensor a rank)"] = (
            num_ranks_a_node * b * max(parameter.num_elements for parameter in model.parameters)
        )
        if rank.states.host:
            parts["offloaded states"] = num_ranks_a_node * rank.states.host
        if shares_gpus(config):
            waits = rank.states.weights + rank.states.masters + rank.states.moments
            parts["the trainer while engines sample"] = num_ranks_a_node * waits
        parts["processed pages"] = num_ranks_a_node * (IMAGE_BYTES + rank.activations.pixels)
    if config.stage != "sft":
        parts["weights on their way"] = 2 * config.rollout.weight_bucket_mib * _MIB
        if shares_gpus(config):
            parts["sleeping engines' weights"] = num_ranks_a_node * whole // config.rollout.tensor_parallel_size
    return parts
