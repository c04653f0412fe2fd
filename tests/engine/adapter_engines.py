"""Engines that keep the base and get adapters alone; prints the gaps to transformers in nats, and what was sent.

Run as ``python -m tests.engine.adapter_engines ROOT MODEL_TYPE...`` in an engine's environment.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from rollout.requests import requests_for
from rollout.vllm_engine import EngineSpec, VllmEngine
from rsgrpo.config import Config, DataConfig, LoraConfig, ModelConfig, RolloutConfig, SamplingConfig
from rsgrpo.model.families.table import as_published
from rsgrpo.model.folder import check_model_type, load_processor
from rsgrpo.model.lora import exported_parameters, named_adapters
from rsgrpo.model.policy_model import load_model
from rsgrpo.types import PromptedSample, Sample
from rsgrpo.weights.buckets import WeightVersion, bucket_checksum, flatten_bucket, format_checksum
from tests.engine.answers import largest_gap
from tests.engine.gap_process import print_gaps
from tests.tiny_model import build_tiny_model, make_group, write_images

SAMPLING = SamplingConfig(max_response_tokens=8)


def _gaps(root: Path, model_type: str) -> dict[str, float]:
    # vLLM's attention wants heads of at least 32: hidden 128 in 4 heads.
    folder = build_tiny_model(root / model_type, hidden=128, tie=True, family=model_type)
    images = write_images(root / f"{model_type}-pages", [(64, 64), (96, 64), (64, 96)])
    questions = [
        PromptedSample(
            sample=Sample(sample_id=f"q{count}", question="?", images=tuple(images[:count])),
            prompt=make_group(f"q{count}", images[:count], [1]).prompt,
        )
        for count in (0, 1, 3)
    ]
    lora = LoraConfig(rank=4, alpha=6.0, update="adapter")
    config = Config(
        run_dir=str(root / f"{model_type}-run"),
        stage="sft",
        model=ModelConfig(dtype="float32", lora=lora),
        data=DataConfig(min_pixels=784, max_pixels=10**6, max_images=3),
        rollout=RolloutConfig(
            sampling=SAMPLING,
            max_model_tokens=256,
            max_num_sequences=8,
            max_batched_tokens=512,
            enforce_eager=True,
            num_threads=1,
            kv_cache_gib=0.25,
        ),
    )
    processor = load_processor(folder)
    engine = VllmEngine(EngineSpec(config=config, model_folder=folder, device="cpu"))
    plain = check_model_type(folder).model.from_pretrained(folder).eval()
    adapted = load_model(folder, dataclasses.replace(config.model, freeze_vision=True))

    def gap(seed: int) -> float:
        return largest_gap(
            engine.generate(requests_for(questions, num_samples=2, sampling=SAMPLING, seed=seed)), plain, processor
        )

    gaps = {"base": gap(0)}
    for version in (1, 2):
        with torch.no_grad():
            for _, parameter in named_adapters(adapted):
                parameter.normal_(0.0, 0.1)
        bucket = flatten_bucket(as_published(adapted, named_adapters(adapted)))
        stamp = WeightVersion(version=version, checksum=format_checksum(bucket_checksum(bucket)))
        engine.update_weights([bucket], stamp, is_complete=False)
        gaps[f"update {version}, against the model before"] = gap(version)
        plain.load_state_dict({weight.name: weight.tensor() for weight in exported_parameters(adapted)}, strict=False)
        gaps[f"update {version}"] = gap(version)
    return gaps


if __name__ == "__main__":
    print_gaps(_gaps)
