"""The record that describes a family of models: all that the rest of the package may not assume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rsgrpo.config import QuickstartConfig

if TYPE_CHECKING:  # seconds of imports for names
    from transformers import PreTrainedModel


Norm = Literal["rms", "centred_rms", "layer"]
"""What a block normalises with: ``rms`` in float32, its weight in the model's precision; ``centred_rms`` with a weight
around zero, in float32 as well; ``layer``: torch's LayerNorm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaNetShape:
    """The gated delta nets of a language model.

    Attributes:
        layers: how many layers are gated delta nets.
        key_heads: how many heads of queries and keys each has.
        value_heads: how many heads of values each has; every one of them has a state.
        key_width: K, the width of a head's query or key.
        value_width: V, the width of a head's value; a state is [K, V].
        kernel: how many tokens its convolution mixes.
        has_float32_states: whether engines keep states in float32 whatever the precision of the weights is.
    """

    layers: int
    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    kernel: int
    has_float32_states: bool

    @property
    def all_keys(self) -> int:
        """The width of all keys of a token together; its queries are as wide."""
        return self.key_heads * self.key_width

    @property
    def all_values(self) -> int:
        """The width of all values of a token together."""
        return self.value_heads * self.value_width

    @property
    def channels(self) -> int:
        """The width of what the convolution mixes: queries, keys and values."""
        return 2 * self.all_keys + self.all_values

    @property
    def state_elements(self) -> int:
        """Elements of the states of all heads of a layer."""
        return self.value_heads * self.key_width * self.value_width


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageShape:
    """The blocks of a language model, as far as memory and time depend on more than the sizes that all families name.

    Attributes:
        norm: what its blocks normalise with.
        normalises_heads: whether queries and keys are normalised, head by head.
        gates_attention: whether what a head attends to is gated, so that its projection is as wide again.
        delta_nets: the layers that are gated delta nets; None: all attend.
    """

    norm: Norm = "rms"
    normalises_heads: bool = False
    gates_attention: bool = False
    delta_nets: DeltaNetShape | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionShape:
    """The blocks of a vision tower, as far as memory and time depend on them.

    Attributes:
        hidden: the width of the residual stream.
        intermediate: the width of the MLP.
        mlp_matrices: how many matrices the MLP has: three with a gate, else two.
        mlp_keeps: how many tensors of the MLP's width are kept for the backward pass.
        norm: what the blocks normalise with.
        full_layers: how many blocks attend over a whole page; the others attend over a window.
        window_patches: the most patches of a window; 0 where there are no windows.
    """

    hidden: int
    intermediate: int
    mlp_matrices: int
    mlp_keeps: int
    norm: Norm
    full_layers: int
    window_patches: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A family of models: what it is called, what it is made of, and how it writes.

    Attributes:
        name: the family's name, as people write it.
        model_type: its name in ``config.json``.
        config_class: the class of its config in transformers.
        model_class: the class of its models in transformers; vLLM calls its own the same.
        processor_class: the class of its processor in transformers.
        image_processor_class: the class of the part of its processor for images.
        video_processor_class: the class of the part of its processor for videos, which is never used.
        transformers_version: the first version of transformers that has the family.
        vllm_version: the first version of vLLM that has it.
        patch_pixels: the side of a patch in pixels.
        merge: how many patches are merged into an image token, per side.
        pixel_statistics: mean and standard deviation that its processor normalises pixels with, three numbers each;
            None: those that the class has by itself.
        box_coordinates: what its models count when they write a box: ``pixels`` of the page at the size at which they
            see it, or ``permille`` of the page's sides.
        layer_kinds: the kinds of layers (``layer_types`` in its config) that packed sequences keep to exactly.
        delta_net: the name under which a layer that does not attend holds its gated delta net; empty: all attend.
        lora_targets: the linear layers of the language model that get an adapter where none are named.
        written_prefixes: how a parameter's name begins in the loaded model, and in published checkpoints, which the
            engine's loader reads as well. What is not named stays as it is.
        unread_prefixes: how the names of weights begin that published checkpoints hold beside those of the model.
        language_shape: gives the blocks of the language model, from its config.
        vision_shape: gives the blocks of the tower, from the tower's config.
        num_deepstack: gives how many levels of features the tower hands to the language model's first layers, beside
            those that stand for image tokens, from the tower's config. Features are stored as ``[main | level 1 | …]``,
            one behind the other in a row.
        small_text: gives settings of a small model's language model beyond those that all families have, from the small
            model's sizes.
        small_rope: the same for its rotary positions.
        small_vision: gives the settings of a small model's tower, from the small model's sizes.
    """

    name: str
    model_type: str
    config_class: str
    model_class: str
    processor_class: str
    image_processor_class: str
    video_processor_class: str
    transformers_version: str
    vllm_version: str
    patch_pixels: int
    merge: int
    pixel_statistics: tuple[tuple[float, float, float], tuple[float, float, float]] | None
    box_coordinates: Literal["pixels", "permille"]
    layer_kinds: tuple[str, ...]
    delta_net: str
    lora_targets: tuple[str, ...]
    written_prefixes: tuple[tuple[str, str], ...]
    unread_prefixes: tuple[str, ...]
    language_shape: Callable[[Any], LanguageShape]
    vision_shape: Callable[[Any], VisionShape]
    num_deepstack: Callable[[Any], int]
    small_text: Callable[[QuickstartConfig], dict[str, Any]]
    small_rope: Mapping[str, Any]
    small_vision: Callable[[QuickstartConfig], dict[str, Any]]

    @property
    def token_pixels(self) -> int:
        """The side of an image token in pixels."""
        return self.patch_pixels * self.merge

    def of_transformers(self, class_name: str) -> Any:
        """A class of transformers, which takes seconds to import.

        Args:
            class_name: one of the names above.
        """
        import transformers

        return getattr(transformers, class_name)

    @property
    def model(self) -> type[PreTrainedModel]:
        """The class of its models."""
        return self.of_transformers(self.model_class)  # type: ignore[no-any-return]  # transformers is not typed

    def checkpoint_name(self, name: str) -> str:
        """A parameter's name in a published checkpoint, from its name in the loaded model.

        Example:
            Qwen2.5-VL: ``model.language_model.norm.weight`` -> ``model.norm.weight``, ``model.visual.…`` ->
            ``visual.…``. Qwen3-VL writes both as they are.
        """
        for loaded, written in self.written_prefixes:
            if name.startswith(loaded):
                return written + name.removeprefix(loaded)
        return name

    def missing_library(self) -> str:
        """Which installed library lacks the family, and since when it has it; empty: both have it, or vLLM is absent.

        No library is imported for it.
        """
        places = (
            ("transformers", f"models/{self.model_type}", self.transformers_version),
            ("vllm", f"model_executor/models/{self.model_type}.py", self.vllm_version),
        )
        for library, place, version in places:
            spec = find_spec(library)
            roots = spec.submodule_search_locations if spec is not None else None
            if roots and not any((Path(root) / place).exists() for root in roots):
                return f"the installed {library} has no {self.name}; {library} {version} and later have it"
        return ""
