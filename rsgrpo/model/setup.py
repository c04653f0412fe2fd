"""What a rank of the policy is built from: the model in the folder, its wrapper, and the frozen tower's features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel, ProcessorMixin

from rsgrpo.config import Config, LoraConfig, ModelConfig
from rsgrpo.data.images.loading import reading_fingerprint
from rsgrpo.model.attention.backend import BackendChoice, choose_backend
from rsgrpo.model.attention.delta_rule import choose_rule
from rsgrpo.model.families.table import family_of
from rsgrpo.model.lora import exported_parameters
from rsgrpo.model.policy_model import (
    OpenedModel,
    PolicyModel,
    open_model,
)
from rsgrpo.model.suppressed_tokens import suppressed_token_ids
from rsgrpo.model.vision_cache import FeatureStore, ImageFeatures
from rsgrpo.model.vision_tower import take_vision_tower, use_window_attention
from rsgrpo.system.quiet import hush_cuda_search
from rsgrpo.weights.buckets import tensors_checksum


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSpec:
    """What a rank needs to start.

    Attributes:
        config: the run's settings.
        model_folder: the folder that the model is loaded from.
        rank: the number of this rank, from 0.
        world_size: how many ranks there are.
        device: the kind of device, ``cpu`` or ``gpu``.
        num_threads: how many CPU threads this rank may use.
        features_folder: the folder in which features of pages are kept; None: they are not kept.
        num_threads_alone: how many CPU threads this rank may use while no engine works; 0: as many as ``num_threads``.
    """

    config: Config
    model_folder: Path
    rank: int
    world_size: int
    device: str
    num_threads: int
    features_folder: Path | None = None
    num_threads_alone: int = 0

    @property
    def torch_device(self) -> torch.device:
        """The device on which this rank computes: Ray shows each worker its own GPU only."""
        return torch.device("cuda", 0) if self.device == "gpu" else torch.device("cpu")


def begin_process(spec: WorkerSpec) -> None:
    """What a worker's process needs before it imports DeepSpeed.

    Args:
        spec: what the worker is built from.
    """
    torch.set_num_threads(spec.num_threads)
    hush_cuda_search()


def open_policy_model(folder: Path, spec: WorkerSpec, processor: ProcessorMixin) -> OpenedModel:
    """A model for training or for reference, adapters included, its values not read yet.

    Args:
        folder: the folder that holds the model.
        spec: what the worker is built from: precision, frozen parts, adapters, device.
        processor: the processor, which says which tokens no response may contain.

    Raises:
        ModelError: the folder holds no model of a supported family.
    """
    settings = spec.config.model
    vocabulary_size = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
    opened = open_model(folder, settings, suppressed_token_ids(processor.tokenizer, vocabulary_size))
    choice = choose_backend(settings.attention, device=spec.torch_device, dtype=opened.model.dtype)
    use_window_attention(opened.model.model.visual, choice.backend)
    return opened


def attention_used(model: PreTrainedModel, choice: BackendChoice, device: torch.device) -> BackendChoice:
    """What a model's layers are computed with, those that do not attend included.

    Args:
        model: the opened model.
        choice: the backend of the layers that attend.
        device: the device that the model is on.
    """
    if not family_of(model).delta_net:
        return choice
    return replace(choice, delta_nets=choose_rule(device=device, dtype=model.dtype))


def frozen_checksum(opened: OpenedModel, spec: WorkerSpec) -> str:
    """Checksum of a model without its adapters; empty on ranks other than the first, which read the same files.

    Args:
        opened: the opened model, whose values are read one after the other.
        spec: what the worker is built from; it says which rank this is.
    """
    if spec.rank:
        return ""
    return tensors_checksum(
        (exported_parameter.name, opened.weights.value(exported_parameter.base))
        for exported_parameter in exported_parameters(opened.model)
    )


def take_filled_tower(opened: OpenedModel, device: torch.device) -> PreTrainedModel:
    """Take the frozen tower out of a model whose pages' features are stored, with its values.

    Args:
        opened: the opened model, which loses its tower.
        device: the device that the tower shall run on.
    """
    tower = take_vision_tower(opened.model)
    opened.weights.load(tower.parameters(), device)
    return tower


def wrap_model(model: PreTrainedModel, spec: WorkerSpec) -> PolicyModel:
    """Wrap the model as DeepSpeed takes it.

    Args:
        model: the model of the policy or of the reference.
        spec: what the worker is built from: ZeRO stage, ranks, frozen parts.
    """
    is_split, has_company = spec.config.trainer.zero_stage == 3, spec.world_size > 1
    is_trained = not spec.config.model.freeze_vision
    # Ranks that gather parameters (ZeRO 3) or reduce the tower's gradients together must all run the tower. And under
    # ZeRO 3 a parameter without a gradient in a step would be moved by that of the step before, on one rank as well.
    always_run = (is_split and has_company) or (is_trained and (is_split or has_company))
    return PolicyModel(model, always_run_vision=always_run)


def features_folder(config: Config) -> Path | None:
    """Where features of pages are kept, as an absolute path; None: nowhere. To be asked in the driver.

    Args:
        config: the settings, of which ``run_dir`` and ``model.vision_cache.folder`` count.
    """
    folder = config.model.vision_cache.folder
    return Path(config.run_dir).absolute() / folder if folder else None


def open_image_features(
    tower: PreTrainedModel, config: Config, folder: Path, processor: ProcessorMixin, device: torch.device
) -> ImageFeatures:
    """A frozen tower with its store; trainer and engine share entries because they build it alike.

    Args:
        tower: the vision tower, outside the model.
        config: the settings: bound of the store, sizes of images.
        folder: the folder of the store.
        processor: the processor, which features depend on as well.
        device: the device that the tower shall run on.

    Raises:
        VisionCacheError: the folder cannot be written.
    """
    return ImageFeatures(
        tower,
        FeatureStore(folder, int(config.model.vision_cache.max_gib * 2**30)),
        processing=f"{reading_fingerprint(config.data.image_rules)}/{processor.image_processor.to_json_string()}",
        device=device,
    )


def load_vision_tower(folder: Path, config: ModelConfig, device: torch.device) -> PreTrainedModel:
    """The vision tower alone, as :func:`open_policy_model` would open it.

    Args:
        folder: the folder of the whole model.
        config: the settings: precision and attention.
        device: the device that it will run on.
    """
    alone = replace(config, lora=LoraConfig(), freeze_vision=True, gradient_checkpointing=False)
    opened = open_model(folder, alone)
    choice = choose_backend(config.attention, device=device, dtype=opened.model.dtype)
    tower = take_filled_tower(opened, device)
    opened.weights.close()
    use_window_attention(tower, choice.backend)
    return tower.requires_grad_(False)
