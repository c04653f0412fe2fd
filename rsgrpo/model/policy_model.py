"""The model under training: loading, packed micro-batches, and the forward pass to response log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from rsgrpo.config import ModelConfig
from rsgrpo.model.attention.backend import (
    ATTENTION_NAME,
    AttentionPlan,
    choose_backend,
    make_plan,
    register_packed_attention,
)
from rsgrpo.model.attention.delta_net import delta_plan, use_packed_delta_nets
from rsgrpo.model.families.table import family_of
from rsgrpo.model.folder import check_layers, check_model_type
from rsgrpo.model.logprobs import LogprobHead
from rsgrpo.model.lora import add_adapters
from rsgrpo.model.micro_batches import GroupSize, PackedSequence, Segment, pack, predictor_index
from rsgrpo.model.stored_weights import StoredWeights, hollow_parameters, without_values
from rsgrpo.model.vision_tower import deeper_levels, tower_features
from rsgrpo.model.vlm import EncodedPrompt, ProcessedImage, rope_positions, shown_in
from rsgrpo.types import ChatPrompt, ImageRef, TrainingGroup, TrainingResponse


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenedModel:
    """A model whose values are still in its folder.

    Attributes:
        model: the model as it will be trained; its stored parameters hold no values and take no memory.
        weights: the values of these parameters, which still lie in the folder.
    """

    model: PreTrainedModel
    weights: StoredWeights


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatch:
    """One packed sequence on the device; R counts its response tokens, response by response.

    Attributes:
        packed: the layout of the sequence: where segments, prompts and responses stand.
        token_ids: [T] int64, the ids of all tokens.
        positions: [3, 1, T] int64, rotary positions.
        plan: who attends to whom, as the attention backend takes it.
        image_positions: [I] int64, the packed positions of image tokens.
        image_features: [I] int64, the feature row that each of them shows.
        pixel_values: [patches, 1176] float32, the pixels of every page once; None without images.
        image_grid_thw: [pages, 3] int64, frames, rows and columns of patches of each page; None without images.
        predictors: [R] int64, the position that predicts each response token.
        targets: [R] int64, the response tokens.
        positive_weights: [R] float32, P, or the token's weight in supervised training.
        negative_weights: [R] float32, Q; zero in supervised training.
        rollout_logprobs: [R] float32, the engine's; None if it gave none.
        old_logprobs: [R] float32, pi_old; None if it is the forward pass itself.
        temperatures: [R] float32, the temperatures at which the response tokens were sampled; None where all are 1.
        cached_features: [features, (1 + levels) · H], what the frozen vision tower makes of the pages; None: run it on
            the pixels.
        reference_logprobs: [R] float32, log-probabilities of the model that the KL term holds on to; None without one.
        kl_weights: [R] float32, what each token weighs in the KL term; None without one.
    """

    packed: PackedSequence
    token_ids: Tensor
    positions: Tensor
    plan: AttentionPlan
    image_positions: Tensor
    image_features: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    predictors: Tensor
    targets: Tensor
    positive_weights: Tensor
    negative_weights: Tensor
    rollout_logprobs: Tensor | None
    old_logprobs: Tensor | None
    temperatures: Tensor | None = None
    cached_features: Tensor | None = None
    reference_logprobs: Tensor | None = None
    kl_weights: Tensor | None = None


def load_model(folder: Path, config: ModelConfig, suppressed_ids: Sequence[int] = ()) -> PreTrainedModel:
    """Load a model for training, whole and on the CPU; ranks open it instead (:func:`open_model`).

    Args:
        folder: the folder with config, weights, tokenizer and processor.
        config: the settings: precision, frozen parts, recomputation.
        suppressed_ids: tokens outside the distribution; see :mod:`rsgrpo.model.suppressed_tokens`.

    Raises:
        ModelError: the folder cannot be used, as in :func:`open_model`.
    """
    opened = open_model(folder, config, suppressed_ids)
    opened.weights.load(opened.model.parameters(), torch.device("cpu"))
    opened.weights.close()
    return opened.model


def open_model(folder: Path, config: ModelConfig, suppressed_ids: Sequence[int] = ()) -> OpenedModel:
    """A model for training, with packed attention and the log-probability head, its values not read yet.

    Adapters have their values, on the CPU.

    Args:
        folder: the folder with config, weights, tokenizer and processor.
        config: the settings: precision, frozen parts, recomputation.
        suppressed_ids: tokens outside the distribution; see :mod:`rsgrpo.model.suppressed_tokens`.

    Raises:
        ModelError: the folder holds no model of a supported family, or one with sliding windows; or its weights are
            not those that its config describes.
    """
    family = check_model_type(folder)
    found = AutoConfig.from_pretrained(folder)
    check_layers(found, family, folder)
    register_packed_attention()
    # Buffers (rotary frequencies, in float32) are computed for good; only parameters are left out.
    with without_values():
        model = family.model._from_config(found, dtype=weights_dtype(config), attn_implementation="sdpa")
    model.tie_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    hollow_parameters(model)
    weights = StoredWeights(folder, model, family)
    model.model.language_model.config._attn_implementation = ATTENTION_NAME
    if family.delta_net:
        use_packed_delta_nets(model.model.language_model, family.delta_net)
    if config.lora.rank:
        add_adapters(model, config.lora)
    elif config.freeze_vision:
        model.model.visual.requires_grad_(False)
    model.lm_head = LogprobHead(model.lm_head, suppressed_ids)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return OpenedModel(model=model, weights=weights)


def weights_dtype(config: ModelConfig) -> torch.dtype:
    """The torch type that ``model.dtype`` names."""
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


class PolicyModel(nn.Module):
    """Wraps the model so that one call is one packed sequence: log-probabilities and entropy of response tokens.

    Args:
        model: the model as :func:`open_model` returns it.
        always_run_vision: whether to run the vision tower on a blank patch where a sequence has no image, because ranks
            that gather or reduce its parameters together must all run it.
    """

    def __init__(self, model: PreTrainedModel, *, always_run_vision: bool) -> None:
        super().__init__()
        self.model = model
        self._always_run_vision = always_run_vision
        self._has_delta_nets = bool(family_of(model).delta_net)
        visual = model.model.visual
        self._is_vision_frozen = visual is None or not any(parameter.requires_grad for parameter in visual.parameters())

    def forward(self, batch: MicroBatch, *, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the sequence's response tokens, and the entropy of their distributions.

        Args:
            batch: the sequence with everything that the model needs.
            with_entropy: whether the entropy is computed.

        Returns:
            Log-probabilities and entropy, [R] float32 each, in nats; the entropy carries no gradient, and is None
            where it is not asked for.
        """
        language = self.model.model.language_model
        embeddings = language.embed_tokens(batch.token_ids)
        features = self._image_features(batch) if batch.cached_features is None else batch.cached_features
        further: dict[str, object] = {}
        if features is not None:
            features = features.to(embeddings.dtype)
            if len(batch.image_positions):
                main, *deeper = features.split(embeddings.shape[1], dim=1)
                embeddings = embeddings.index_put((batch.image_positions,), main[batch.image_features])
                further = deeper_levels(batch.image_positions, batch.image_features, deeper, len(batch.token_ids))
            else:
                embeddings = embeddings + 0.0 * features.sum()
        if self._has_delta_nets:
            further["delta_plan"] = delta_plan(batch.packed, device=embeddings.device, dtype=embeddings.dtype)
        hidden = language(
            inputs_embeds=embeddings[None],
            position_ids=batch.positions,
            # transformers builds no [T, T] mask for an attention that it has no mask for; the plan stands in for it.
            attention_mask=None,
            use_cache=False,
            attention_plan=batch.plan,
            **further,
        ).last_hidden_state[0]
        states = hidden.index_select(0, batch.predictors)
        logprobs, entropy = self.model.lm_head(states, batch.targets, batch.temperatures, with_entropy=with_entropy)
        return logprobs, entropy

    def _image_features(self, batch: MicroBatch) -> Tensor | None:
        visual = self.model.model.visual
        if visual is None:
            assert batch.image_grid_thw is None, "a row with pages came without their features"
            return None
        pixels, grid = batch.pixel_values, batch.image_grid_thw
        if pixels is None or grid is None:
            if not self._always_run_vision:
                return None
            merge = visual.spatial_merge_size
            grid = torch.tensor([[1, merge, merge]], device=batch.token_ids.device)
            patch = visual.patch_embed
            width = patch.in_channels * patch.temporal_patch_size * patch.patch_size**2
            pixels = torch.zeros(merge * merge, width, device=batch.token_ids.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._is_vision_frozen):
            return tower_features(visual, pixels, grid)


def group_sizes(groups: Sequence[TrainingGroup], prompts: Sequence[EncodedPrompt]) -> list[GroupSize]:
    """The sizes of groups, as ``plan_micro_batches`` takes them.

    Args:
        groups: the groups to be packed.
        prompts: the encoded prompt of each group.
    """
    return [
        GroupSize(
            sample_id=group.sample_id,
            num_prompt_tokens=len(prompt.token_ids),
            response_lengths=tuple(len(response.token_ids) for response in group.responses),
        )
        for group, prompt in zip(groups, prompts, strict=True)
    ]


class MicroBatchBuilder:
    """Makes micro-batches out of planned segments.

    Args:
        image_token_id: the id of the placeholder.
        config: the settings, of which ``model.attention`` counts.
        device: the device that the model is on.
        dtype: compute precision, which decides between attention backends.
        image_pixels: gives an image's pixels [patches, 1176], on the device or on the host.
        cached_features: gives an image's features on the device; None: sequences carry pixels.
    """

    def __init__(
        self,
        *,
        image_token_id: int,
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
        image_pixels: Callable[[ProcessedImage], Tensor],
        cached_features: Callable[[ProcessedImage], Tensor] | None = None,
    ) -> None:
        self._image_token_id = image_token_id
        self._device = device
        self._image_pixels = image_pixels
        self._cached_features = cached_features
        self.choice = choose_backend(config.attention, device=device, dtype=dtype)

    def build(
        self, segments: Sequence[Segment], groups: Sequence[TrainingGroup], prompts: Sequence[EncodedPrompt]
    ) -> MicroBatch:
        """Pack segments into one sequence.

        Args:
            segments: the segments of one micro-batch.
            groups: the rank's groups, by segment.group.
            prompts: the encoded prompts of the groups.
        """
        packed = pack(segments)
        responses = [groups[segment.group].responses[i] for segment in segments for i in segment.responses]
        token_ids: list[NDArray[np.int64]] = []
        positions: list[NDArray[np.int64]] = []
        for segment in segments:
            prompt = prompts[segment.group]
            token_ids.append(prompt.token_ids)
            positions.append(prompt.positions)
            start = int(prompt.positions.max()) + 1
            for index in segment.responses:
                ids = groups[segment.group].responses[index].token_ids.astype(np.int64)
                token_ids.append(ids)
                positions.append(start + self._response_positions(ids, shown_in(prompt, index)))
        images, where, which = self._images(packed, [prompts[segment.group] for segment in segments], responses)
        pixels, features = self._shown(images)
        return MicroBatch(
            packed=packed,
            token_ids=self._tensor(np.concatenate(token_ids)),
            positions=self._tensor(np.concatenate(positions, axis=1)[:, None]),
            plan=make_plan(self.choice.backend, packed, device=self._device),
            image_positions=self._tensor(where),
            image_features=self._tensor(which),
            pixel_values=pixels,
            image_grid_thw=torch.tensor([image.grid for image in images], device=self._device) if images else None,
            predictors=self._tensor(predictor_index(packed)),
            targets=self._tensor(np.concatenate([response.token_ids for response in responses]).astype(np.int64)),
            positive_weights=self._tensor(
                np.concatenate([response.positive_weights for response in responses]).astype(np.float32)
            ),
            negative_weights=self._tensor(
                np.concatenate([response.negative_weights for response in responses]).astype(np.float32)
            ),
            rollout_logprobs=self._joined(
                responses, [response.rollout_logprobs for response in responses], "rollout_logprobs"
            ),
            old_logprobs=self._joined(responses, [response.old_logprobs for response in responses], "old_logprobs"),
            temperatures=self._tensor(
                np.concatenate(
                    [np.full(len(response.token_ids), response.temperature, dtype=np.float32) for response in responses]
                )
            )
            if any(response.temperature != 1.0 for response in responses)
            else None,
            kl_weights=self._tensor(
                np.concatenate(
                    [np.full(len(response.token_ids), response.kl_weight, dtype=np.float32) for response in responses]
                )
            )
            if any(response.kl_weight for response in responses)
            else None,
            cached_features=features,
        )

    def _response_positions(self, ids: NDArray[np.int64], images: Sequence[ProcessedImage]) -> NDArray[np.int64]:
        """Rotary positions of a response from 0 on, images of later questions included."""
        if not images:
            return np.broadcast_to(np.arange(len(ids)), (3, len(ids)))
        first = images[0]
        return rope_positions(
            ids,
            [image.grid for image in images],
            image_token_id=self._image_token_id,
            merge_size=math.isqrt(math.prod(first.grid) // first.num_tokens),
        )

    def _shown(self, images: Sequence[ProcessedImage]) -> tuple[Tensor | None, Tensor | None]:
        """Pixels of all pages, or their features where those are stored."""
        if not images:
            return None, None
        if self._cached_features is not None:
            return None, torch.cat([self._cached_features(image) for image in images])
        pixels = [self._image_pixels(image) for image in images]
        lengths = [len(pixel_rows) for pixel_rows in pixels]
        joined = torch.empty(sum(lengths), pixels[0].shape[1], device=self._device)
        for part, pixel_rows in zip(joined.split(lengths), pixels, strict=True):
            part.copy_(pixel_rows)
        return joined, None

    def blank(self) -> MicroBatch:
        """A sequence of one prompt token and one response token without credit, for a rank that has no more."""
        zero = np.zeros(1, dtype=np.float32)
        response = TrainingResponse(
            response_index=0, token_ids=np.zeros(1, dtype=np.int32), positive_weights=zero, negative_weights=zero
        )
        prompt = EncodedPrompt(
            sample_id="", token_ids=np.zeros(1, dtype=np.int64), positions=np.zeros((3, 1), dtype=np.int64), images=()
        )
        group = TrainingGroup(
            sample_id="", prompt=ChatPrompt(sample_id="", text=""), prompt_token_ids=None, responses=(response,)
        )
        return self.build(
            [Segment(group=0, responses=(0,), num_prompt_tokens=1, response_lengths=(1,))], [group], [prompt]
        )

    def _tensor(self, array: NDArray[np.int64] | NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _joined(
        self, responses: Sequence[TrainingResponse], values: Sequence[NDArray[np.float32] | None], name: str
    ) -> Tensor | None:
        given = [value for value in values if value is not None]
        if not given:
            return None
        if len(given) != len(values):
            missing = next(response.response_index for response, s in zip(responses, values, strict=True) if s is None)
            raise ValueError(f"response {missing} has no {name} but others of its micro-batch have; give all or none")
        return self._tensor(np.concatenate(given).astype(np.float32))

    def _images(
        self, packed: PackedSequence, prompts: Sequence[EncodedPrompt], responses: Sequence[TrainingResponse]
    ) -> tuple[list[ProcessedImage], NDArray[np.int64], NDArray[np.int64]]:
        """Every page once, the packed positions of image tokens, and the feature row that each shows."""
        unique: list[ProcessedImage] = []
        first_feature: dict[ImageRef, int] = {}
        num_features = 0
        where: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        which: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        # What is shown where: the prompts' pages, then those of responses with questions of their own.
        shown = [
            (start, prompt.token_ids, prompt.images)
            for start, prompt in zip(packed.prompt_starts, prompts, strict=True)
        ]
        numbers = [index for segment in packed.segments for index in segment.responses]
        for start, segment, index, response in zip(
            packed.response_starts, packed.response_segments, numbers, responses, strict=True
        ):
            images = shown_in(prompts[segment], index)
            if images:
                shown.append((start, response.token_ids.astype(np.int64), images))
        for start, token_ids, images in shown:
            where.append(start + np.flatnonzero(token_ids == self._image_token_id))
            for image in images:
                if image.ref not in first_feature:
                    first_feature[image.ref] = num_features
                    num_features += image.num_tokens
                    unique.append(image)
                which.append(np.arange(first_feature[image.ref], first_feature[image.ref] + image.num_tokens))
        return unique, np.concatenate(where), np.concatenate(which)
