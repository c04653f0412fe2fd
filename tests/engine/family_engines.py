"""An engine of each family in one process, so that vLLM is imported once; prints the gaps to transformers in nats.

Run as ``python -m tests.engine.family_engines ROOT MODEL_TYPE...`` in an engine's environment.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from recipes.plan.engine_cache import cache_pages
from rollout.image_embeds import ImageEmbeds
from rollout.requests import requests_for
from rollout.vllm_engine import EngineSpec, VllmEngine
from rsgrpo.config import Config, DataConfig, LoraConfig, ModelConfig, RolloutConfig, SamplingConfig, VisionCacheConfig
from rsgrpo.model.families.table import as_published
from rsgrpo.model.folder import check_model_type, load_processor
from rsgrpo.model.lora import adapter_layers, adapter_parameters, exported_parameters, of_trained_layers
from rsgrpo.model.policy_model import load_model
from rsgrpo.model.sizes import model_sizes
from rsgrpo.types import PromptedSample, Sample
from rsgrpo.weights.buckets import WeightVersion, bucket_checksum, flatten_bucket, format_checksum
from tests.engine.answers import largest_gap
from tests.engine.gap_process import print_gaps
from tests.engine.vllm_pages import sequence_bytes
from tests.published_sizes import PUBLISHED, write_config
from tests.tiny_model import build_tiny_model, make_group, write_images

SAMPLING = SamplingConfig(max_response_tokens=8)
_PLANNED_TOKENS = 16_536


def _config(root: Path) -> Config:
    return Config(
        run_dir=str(root),
        stage="eval",
        model=ModelConfig(dtype="float32", vision_cache=VisionCacheConfig(folder="features")),
        data=DataConfig(min_pixels=784, max_pixels=10**6, max_images=3),
        rollout=RolloutConfig(
            sampling=SAMPLING,
            max_model_tokens=256,
            max_num_sequences=8,
            max_batched_tokens=512,
            enforce_eager=True,
            num_threads=1,
            image_embeds=True,
        ),
    )


class _Engine:
    """An engine of one family, and what is asked of it."""

    def __init__(self, root: Path, model_type: str) -> None:
        # vLLM's attention wants heads of at least 32: hidden 128 in 4 heads.
        self.folder = build_tiny_model(root / model_type, hidden=128, tie=True, family=model_type)
        images = write_images(root / f"{model_type}-pages", [(64, 64), (96, 64), (64, 96)])
        self._questions = [
            PromptedSample(
                sample=Sample(sample_id=f"q{count}", question="?", images=tuple(images[:count])),
                prompt=make_group(f"q{count}", images[:count], [1]).prompt,
            )
            for count in (0, 1, 3)
        ]
        self._config = _config(root / f"{model_type}-run")
        self._processor = load_processor(self.folder)
        self._engine = VllmEngine(EngineSpec(config=self._config, model_folder=self.folder, device="cpu"))
        self._version = 0

    def gap(self, model: PreTrainedModel) -> float:
        """To transformers, of responses sampled now."""
        requests = requests_for(self._questions, num_samples=2, sampling=SAMPLING, seed=self._version)
        return largest_gap(self._engine.generate(requests), model, self._processor)

    def feed_features(self, stored: Path | None) -> None:
        """Show stored features instead of pages, or pages again."""
        embeds = None if stored is None else ImageEmbeds(self._config, self.folder, stored, "cpu")
        self._engine._embeds = embeds

    def take(self, model: PreTrainedModel, named: list[tuple[str, torch.Tensor]], *, is_complete: bool) -> None:
        """Load weights as a rank sends them."""
        bucket = flatten_bucket(as_published(model, named))
        self._version += 1
        stamp = WeightVersion(version=self._version, checksum=format_checksum(bucket_checksum(bucket)))
        self._engine.update_weights([bucket], stamp, is_complete=is_complete)


def _gaps(root: Path, model_type: str) -> dict[str, float]:
    engine = _Engine(root, model_type)
    first = _plain_model(engine.folder)
    gaps = {"pages": engine.gap(first)}
    engine.feed_features(root / f"{model_type}-features")
    gaps["stored features"] = engine.gap(first)
    engine.feed_features(None)
    # Everything changes, the tower too.
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    engine.take(first, list(first.named_parameters()), is_complete=True)
    gaps["after an update of all"] = engine.gap(first)
    # Merged adapters in language model and tower: of layers that the engine keeps as one a part changes.
    first.save_pretrained(root / f"{model_type}-changed")
    lora = LoraConfig(rank=4, alpha=4.0, target_modules=["q_proj", "up_proj"], include_vision=True)
    adapted = load_model(root / f"{model_type}-changed", ModelConfig(dtype="float32", freeze_vision=False, lora=lora))
    with torch.no_grad():
        for layer in adapter_layers(adapted).values():
            for parameter in adapter_parameters(layer):
                parameter.normal_(0.0, 0.2)
    merged = [(weight.name, weight.tensor()) for weight in of_trained_layers(exported_parameters(adapted))]
    engine.take(adapted, merged, is_complete=False)
    gaps["adapters, against the model before"] = engine.gap(first)
    first.load_state_dict(dict(merged), strict=False)
    gaps["after an update of adapters"] = engine.gap(first)
    gaps["bytes of a sequence, planned against vLLM"] = _cache_gap(root, model_type)
    return gaps


def _cache_gap(root: Path, model_type: str) -> float:
    """How far the plan is from vLLM's own functions, in bytes that a sequence of a published model takes of a cache."""
    apart = [0]
    for name, published in PUBLISHED.items():
        if published.family != model_type:
            continue
        language = model_sizes(write_config(name, root), ModelConfig()).language
        for num_gpus in (1, 2):
            planned = cache_pages(language, weight_bytes=2, num_gpus=num_gpus).of_sequence(_PLANNED_TOKENS)
            apart.append(abs(planned - sequence_bytes(language, num_gpus=num_gpus, num_tokens=_PLANNED_TOKENS)))
    return float(max(apart))


def _plain_model(folder: Path) -> PreTrainedModel:
    """transformers' own model."""
    plain: PreTrainedModel = check_model_type(folder).model.from_pretrained(folder)
    return plain.eval()


if __name__ == "__main__":
    print_gaps(_gaps)
