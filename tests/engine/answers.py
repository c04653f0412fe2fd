"""What an engine answers, against transformers, and weights for it by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import ray
import torch
from transformers import PreTrainedModel, ProcessorMixin

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.types import RolloutGroup
from rsgrpo.weights.buckets import WeightVersion, bucket_checksum, flatten_bucket, format_checksum
from rsgrpo.weights.update import WeightUpdate
from tests.plain_forward import plain_logprobs
from tests.tiny_model import checkpoint_name

MAX_GAP_NATS = 1e-4


def largest_gap(groups: list[RolloutGroup], model: PreTrainedModel, processor: ProcessorMixin) -> float:
    """Between the engine's log-probabilities and transformers' own forward pass on the same ids."""
    gaps = []
    for group in groups:
        images = [
            load_image(image, ImageRules(min_pixels=784, max_pixels=10**6)) for image in group.prompt.images
        ] or None
        encoded = processor(text=[group.prompt.text], images=images)
        assert encoded["input_ids"][0] == group.prompt_token_ids.tolist()
        for rollout in group.rollouts:
            with torch.no_grad():
                expected = plain_logprobs(model, processor, group.prompt, rollout.token_ids)
            gaps.append(float((expected - torch.from_numpy(rollout.logprobs.copy())).abs().max()))
    return max(gaps)


def largest_gap_by_version(
    groups: list[RolloutGroup],
    models: Mapping[int, PreTrainedModel],
    processor: ProcessorMixin,
) -> float:
    """As ``largest_gap``, each token against the model of the version that sampled it.

    All that came before the token is worked through by that model too: nothing is kept of the weights before.
    """
    gaps = []
    for group in groups:
        for rollout in group.rollouts:
            for version, model in models.items():
                is_sampled = torch.from_numpy(rollout.is_of_version(version))
                if is_sampled.any():
                    with torch.no_grad():
                        expected = plain_logprobs(model, processor, group.prompt, rollout.token_ids)
                    gap = (expected - torch.from_numpy(rollout.logprobs.copy())).abs()
                    gaps.append(float(gap[is_sampled].max()))
    return max(gaps)


def num_mixed(groups: list[RolloutGroup]) -> int:
    """Responses that went on under new weights."""
    return sum(rollout.token_versions is not None for group in groups for rollout in group.rollouts)


def weight_update(
    parameters: Iterable[tuple[str, torch.Tensor]], version: int, *, is_complete: bool = True
) -> WeightUpdate:
    bucket = flatten_bucket([(checkpoint_name(name), value) for name, value in parameters])
    stamp = WeightVersion(version=version, checksum=format_checksum(bucket_checksum(bucket)))
    update: WeightUpdate
    update = WeightUpdate(version=stamp, buckets=(ray.put(bucket),), is_complete=is_complete, whole=lambda: update)
    return update
