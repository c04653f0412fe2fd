"""How long a step takes: arithmetic and bytes over the GPU's figures, times the shares of them that are assumed.

Multiply-adds count twice. A token costs 2 operations an element of the matrices it passes, attention 4 a pair and
width; the backward pass costs twice the forward one (once where weights are frozen under adapters), recomputation once
more. Communication is taken to run beside the arithmetic of its sequence: the longer of both counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from recipes.plan.engine_cache import delta_state_bytes
from recipes.plan.gpus import Assumptions, GpuKind
from recipes.plan.memory import EngineMemory, weight_bytes
from recipes.plan.workload import Stage, StepWork
from rsgrpo.config import Config
from rsgrpo.model.activation_memory import PackedSize
from rsgrpo.model.families.family import DeltaNetShape
from rsgrpo.model.memory_bounds import DELTA_CHUNK
from rsgrpo.model.sizes import ModelSizes

_STEP_BYTES = 30  # an element of the optimizer: gradient, weight and moments read, three of them and the copy written


def forward_operations(model: ModelSizes, packed: PackedSize) -> tuple[float, float, float]:
    """Count the operations of language model, head and vision tower in one pass over a sequence.

    Example:
        A text of 1,000 tokens through 10⁹ elements of matrices: 2·10¹² and its attention.
    """
    language, tower = model.language, model.vision
    blocks = 2.0 * language.matrix_elements * packed.num_tokens
    blocks += 4.0 * packed.num_pairs * language.query_width * language.attending_layers
    if language.delta_nets is not None:
        blocks += _rule_operations(language.delta_nets) * packed.delta_sizes[1]
    head = 2.0 * model.vocabulary * language.hidden * packed.num_response_tokens
    if not packed.num_patches:
        return blocks, head, 0.0
    windows = (tower.layers - model.full_vision_layers) * packed.num_patches * model.window_patches
    vision = 2.0 * packed.num_patches * (tower.matrix_elements + tower.hidden * model.patch_values)
    vision += 2.0 * packed.num_patches / model.patches_a_token * model.projector_elements
    vision += 4.0 * tower.query_width * (windows + model.full_vision_layers * packed.num_image_pairs)
    return blocks, head, vision


def _rule_operations(net: DeltaNetShape) -> float:
    """Operations of the gated delta rule a token in all layers: of a chunk's tokens with one another, and with states.

    A token of a chunk of C meets C keys twice (as key and as query, for each head of keys), C right sides of the
    triangular system (K + V wide) and C new values; its query and its key meet a state [K, V], which it changes.
    """
    with_chunk = net.key_heads * 4 * net.key_width + net.value_heads * (net.key_width + 3 * net.value_width)
    return float(net.layers * (DELTA_CHUNK * with_chunk + 6 * net.state_elements))


def update_operations(model: ModelSizes, packed: PackedSize, *, recomputes: bool) -> float:
    """Count the operations of the forward and backward pass over a sequence."""
    blocks, head, vision = forward_operations(model, packed)
    backward = 1 if model.adapter_rank else 2
    tower = 1 + (2 + recomputes) * model.is_vision_trained
    # The head computes a chunk's logits again in its backward pass, in any case.
    return blocks * (1 + backward + recomputes) + head * (3 + model.is_head_trained) + vision * tower


def rule_seconds(
    config: Config, model: ModelSizes, packed: PackedSize, gpu: GpuKind, assumed: Assumptions, *, passes: int
) -> float:
    """Seconds that the trainer's gated delta rule takes beyond what its operations would at the weights' precision.

    Plain products compute it in float32, whatever the precision of the weights is.

    Args:
        config: the settings, of which the precision counts.
        model: the sizes of the model.
        packed: the sizes of the sequence.
        gpu: the kind of GPU.
        assumed: the assumed share of its peak.
        passes: how often the rule is computed; a backward pass counts twice.

    Example:
        At 67 instead of 989 teraflops it takes 15 times as long: 14 times beyond.
    """
    net = model.language.delta_nets
    if net is None:
        return 0.0
    slower = 1e-12 / gpu.float32_teraflops - 1.0 / _peak(config, gpu)
    return passes * _rule_operations(net) * packed.delta_sizes[1] * slower / assumed.matrix_share


def update_seconds(config: Config, model: ModelSizes, work: StepWork, gpu: GpuKind, assumed: Assumptions) -> float:
    """Seconds of a step's forward and backward passes and of its optimizer step, on the slowest rank."""
    trainer, b = config.trainer, weight_bytes(config)
    others = (trainer.num_ranks - 1) / trainer.num_ranks
    link = assumed.link_share * gpu.link_gb_a_second * 1e9
    rate = assumed.matrix_share * _peak(config, gpu)
    a_row = 0.0
    if trainer.zero_stage >= 2:
        a_row += 4.0 * model.num_trained * others / link
    if trainer.zero_stage == 3:
        a_row += 2.0 * b * model.num_elements * others / link
    num_packs = max(len(rank) for rank in work.packs)
    recomputes = config.model.gradient_checkpointing
    slowest = 0.0
    for rank in work.packs:
        seconds = [
            update_operations(model, packed, recomputes=recomputes) / rate
            + rule_seconds(config, model, packed, gpu, assumed, passes=3 + recomputes)
            for packed in rank
        ]
        seconds += [0.0] * (num_packs - len(seconds))  # blank sequences, in step with the others
        slowest = max(slowest, sum(max(second, a_row) for second in seconds))
    share = model.num_trained / trainer.num_ranks
    memory = assumed.bandwidth_share * gpu.memory_gb_a_second * 1e9
    optimizer = _STEP_BYTES * share / (assumed.host_gb_a_second * 1e9 if trainer.offload_optimizer else memory)
    if trainer.zero_stage < 3:
        optimizer += b * model.num_trained * others / link
    if trainer.zero_stage == 1:
        optimizer += 2 * 4.0 * model.num_trained * others / link
    return slowest + optimizer


def scoring_seconds(config: Config, model: ModelSizes, work: StepWork, gpu: GpuKind, assumed: Assumptions) -> float:
    """Seconds of one pass without gradients over a step's sequences, on the slowest rank."""
    rate = assumed.matrix_share * _peak(config, gpu)

    def seconds(packed: PackedSize) -> float:
        return sum(forward_operations(model, packed)) / rate + rule_seconds(
            config, model, packed, gpu, assumed, passes=1
        )

    return max(sum(seconds(packed) for packed in rank) for rank in work.packs)


def sampling_seconds(
    config: Config,
    model: ModelSizes,
    work: StepWork,
    stage: Stage,
    engine: EngineMemory,
    gpu: GpuKind,
    assumed: Assumptions,
) -> float:
    """Seconds in which the fullest engine reads a step's prompts and writes the responses token by token."""
    rollout, b, language = config.rollout, weight_bytes(config), model.language
    size = rollout.tensor_parallel_size
    prompts = sorted(work.prompt_tokens, reverse=True)[:: rollout.num_workers]
    sequences = len(prompts) * stage.num_samples
    response = work.num_sampled_tokens / (len(work.prompt_tokens) * stage.num_samples)
    prompt = sum(prompts) / len(prompts)
    held = max(1.0, prompt / stage.num_samples + response)  # a group's prompt lies in the cache once
    room = max(0, engine.cache) // engine.pages.of_sequence(held)
    at_a_time = max(1, min(sequences, rollout.max_num_sequences, room))
    # Whoever trains on stored features may sample from pixels all the same.
    packs = [packed for rank in work.packs for packed in rank]
    patches = sum(packed.num_patches + model.patches_a_token * packed.num_stored for packed in packs)
    read = PackedSize(
        num_tokens=sum(prompts),
        num_response_tokens=len(prompts),
        num_patches=0 if rollout.image_embeds else patches // rollout.num_workers,
        num_pairs=sum(length * length // 2 for length in prompts),
        num_image_pairs=sum(packed.num_image_pairs for packed in packs) // rollout.num_workers,
    )
    reading = sum(forward_operations(model, read)) / (size * assumed.prefill_share * _peak(config, gpu))
    memory = size * assumed.bandwidth_share * gpu.memory_gb_a_second * 1e9
    elements = language.matrix_elements + model.vocabulary * language.hidden
    token = 2 * language.attending_layers * language.key_width * b
    states = 2 * delta_state_bytes(language, b)  # read and written
    loading = (b * elements + at_a_time * ((prompt + response / 2) * token + states)) / memory
    computing = 2.0 * elements * at_a_time / (size * assumed.prefill_share * _peak(config, gpu))
    passes = math.ceil(sequences / at_a_time) * response
    return reading + passes * (max(loading, computing) + assumed.decode_overhead_seconds)


def weights_seconds(config: Config, model: ModelSizes, gpu: GpuKind, assumed: Assumptions) -> float:
    """Seconds that it takes to send changed weights to the engines."""
    changed = model.num_elements if model.is_vision_trained else model.num_elements - model.num_vision
    if config.model.lora.update == "adapter":
        changed = model.num_adapters
    return weight_bytes(config) * changed / (assumed.link_share * gpu.link_gb_a_second * 1e9)


def _peak(config: Config, gpu: GpuKind) -> float:
    """The GPU's peak rate at the weights' precision, in operations a second."""
    return 1e12 * (gpu.bfloat16_teraflops if weight_bytes(config) == 2 else gpu.float32_teraflops)


def mean(values: Sequence[float]) -> float:
    """The mean of a few numbers; 0 of none."""
    return sum(values) / len(values) if values else 0.0
