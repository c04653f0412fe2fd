"""How large a model is, from its config alone: its own class is built without memory, and counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from rsgrpo.config import ModelConfig
from rsgrpo.model.families.family import DeltaNetShape, Norm
from rsgrpo.model.folder import check_model_type
from rsgrpo.model.lora import add_adapters

_VISION = "model.visual."


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterSize:
    """A parameter of the model.

    Attributes:
        name: the parameter's name in the model, adapters included.
        num_elements: how many elements it has.
        is_trained: whether the optimizer changes it.
        is_vision: whether it belongs to the vision tower (the projector included).
    """

    name: str
    num_elements: int
    is_trained: bool
    is_vision: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class StackSizes:
    """A stack of transformer blocks, some of which may be gated delta nets in the place of attention.

    Attributes:
        hidden: the width of the residual stream.
        intermediate: the width of the MLP.
        layers: how many blocks there are.
        heads: how many heads of queries each block has.
        key_heads: how many heads of keys and values each block has.
        head_size: the width of a head.
        mlp_matrices: how many matrices the MLP of a block has: three with a gate, else two.
        mlp_keeps: how many tensors of the MLP's width are kept for the backward pass: with a SiLU gate its input and
            its result, the other branch, and their product.
        norm: what the blocks normalise with.
        normalises_heads: whether queries and keys are normalised, head by head.
        gates_attention: whether what a head attends to is gated, so that the projection of queries is as wide again.
        delta_nets: the layers that are gated delta nets; None: all attend.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    mlp_matrices: int = 3
    mlp_keeps: int = 4
    norm: Norm = "rms"
    normalises_heads: bool = False
    gates_attention: bool = False
    delta_nets: DeltaNetShape | None = None

    @property
    def attending_layers(self) -> int:
        """How many blocks attend."""
        return self.layers - (self.delta_nets.layers if self.delta_nets else 0)

    @property
    def query_width(self) -> int:
        """The width of all queries of a token together."""
        return self.heads * self.head_size

    @property
    def key_width(self) -> int:
        """The width of all keys of a token together; its values are as wide."""
        return self.key_heads * self.head_size

    @property
    def matrix_elements(self) -> int:
        """Elements of the matrices that a token passes in all blocks, the kernels of convolutions among them.

        Example:
            A gated delta net of width 2,048 with 16 key heads and 16 value heads of 128 each: queries, keys, values and
            a gate of them, 2,048 · (3 + 1) · 2,048; rates and decays, 2,048 · 2 · 16; the output, 2,048 · 2,048; and
            the kernel, 4 · 3 · 2,048. Its MLP is that of any block.
        """
        projections = 2 + self.gates_attention
        attention = self.hidden * (projections * self.query_width + 2 * self.key_width)
        found = self.attending_layers * attention + self.layers * self.mlp_matrices * self.hidden * self.intermediate
        if self.delta_nets is not None:
            net = self.delta_nets
            inputs = self.hidden * (net.channels + net.all_values + 2 * net.value_heads)
            found += net.layers * (inputs + net.all_values * self.hidden + net.kernel * net.channels)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """What memory and time of training depend on.

    Attributes:
        parameters: the sizes of all parameters, each once; a tied head is the embedding.
        language: the sizes of the language model's blocks.
        vision: the sizes of the vision tower's blocks.
        vocabulary: how many rows the head has.
        is_tied: whether head and embedding are one parameter.
        patch_values: how many numbers a patch has (3 channels × 2 frames × the pixels of a patch).
        patches_a_token: how many patches are merged into an image token.
        num_levels: how many further features an image token has, for the language model's first layers (DeepStack).
        full_vision_layers: how many blocks of the tower attend over a whole page; the others attend over a window.
        window_patches: the most patches of a window.
        adapter_rank: r of LoRA; 0: there are no adapters.
    """

    parameters: tuple[ParameterSize, ...]
    language: StackSizes
    vision: StackSizes
    vocabulary: int
    is_tied: bool
    patch_values: int
    patches_a_token: int
    num_levels: int
    full_vision_layers: int
    window_patches: int
    adapter_rank: int

    @property
    def num_elements(self) -> int:
        """How many elements all parameters have."""
        return sum(parameter.num_elements for parameter in self.parameters)

    @property
    def num_trained(self) -> int:
        """How many elements the optimizer changes."""
        return sum(parameter.num_elements for parameter in self.parameters if parameter.is_trained)

    @property
    def num_vision(self) -> int:
        """How many elements the vision tower has, adapters in it included."""
        return sum(parameter.num_elements for parameter in self.parameters if parameter.is_vision)

    @property
    def feature_width(self) -> int:
        """How many numbers stand for an image token: ``[main | level 1 | …]``."""
        return (1 + self.num_levels) * self.language.hidden

    @property
    def projector_elements(self) -> int:
        """Elements of the matrices that make an image token's features of its patches, those of all levels."""
        merged = self.patches_a_token * self.vision.hidden
        return (1 + self.num_levels) * merged * (merged + self.language.hidden)

    @property
    def num_adapters(self) -> int:
        """How many elements the adapters have, which engines get merged into the weights."""
        return self.num_trained if self.adapter_rank else 0

    @property
    def is_vision_trained(self) -> bool:
        """Whether a gradient passes through the vision tower."""
        return any(parameter.is_trained and parameter.is_vision for parameter in self.parameters)

    @property
    def is_head_trained(self) -> bool:
        """Whether the head has a gradient."""
        names = ("lm_head.weight", "model.language_model.embed_tokens.weight" if self.is_tied else "lm_head.weight")
        return any(parameter.is_trained and parameter.name in names for parameter in self.parameters)


def model_sizes(folder: Path, config: ModelConfig) -> ModelSizes:
    """Build the model on torch's meta device, freeze and adapt it as a rank does, and count.

    Args:
        folder: the folder with ``config.json``; no weights are read, they need not be there.
        config: the settings: frozen parts and adapters.

    Raises:
        ConfigError: the adapters do not fit the model.

    Example:
        Qwen2.5-VL-3B has 3,754,622,976 elements, 3,085,938,688 of them in the language model with its tied head.
    """
    family = check_model_type(folder)
    found = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = family.model(found)
        if config.lora.rank:
            add_adapters(model, config.lora)
        elif config.freeze_vision:
            model.model.visual.requires_grad_(False)
    text, vision = found.get_text_config(), found.vision_config
    shape, language = family.vision_shape(vision), family.language_shape(text)
    return ModelSizes(
        parameters=tuple(
            ParameterSize(
                name=name,
                num_elements=parameter.numel(),
                is_trained=parameter.requires_grad,
                is_vision=name.startswith(_VISION),
            )
            for name, parameter in model.named_parameters()
        ),
        language=StackSizes(
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            key_heads=text.num_key_value_heads,
            head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            norm=language.norm,
            normalises_heads=language.normalises_heads,
            gates_attention=language.gates_attention,
            delta_nets=language.delta_nets,
        ),
        vision=StackSizes(
            hidden=shape.hidden,
            intermediate=shape.intermediate,
            layers=vision.depth,
            heads=vision.num_heads,
            key_heads=vision.num_heads,
            head_size=shape.hidden // vision.num_heads,
            mlp_matrices=shape.mlp_matrices,
            mlp_keeps=shape.mlp_keeps,
            norm=shape.norm,
        ),
        vocabulary=text.vocab_size,
        is_tied=model.lm_head.weight is model.model.language_model.embed_tokens.weight,
        patch_values=math.prod((vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)),
        patches_a_token=vision.spatial_merge_size**2,
        num_levels=family.num_deepstack(vision),
        full_vision_layers=shape.full_layers,
        window_patches=shape.window_patches,
        adapter_rank=config.lora.rank,
    )
