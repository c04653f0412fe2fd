"""Low-rank adapters (LoRA, arXiv 2106.09685): which layers get one, and the merged weights that they stand for.

The layers are peft's. The base weights never change while adapters train: what is exported or sent to the
engines is computed from base and adapter each time, in float32, and rounded once.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from rsgrpo.config import ConfigError, LoraConfig
from rsgrpo.config.model import AUTO_TARGETS
from rsgrpo.errors import shown
from rsgrpo.model.families.table import family_of
from rsgrpo.model.folder import check_model_type
from rsgrpo.weights.buckets import engine_layer

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_ADAPTER = "default"
_LANGUAGE_LAYERS = "model.language_model.layers."
_VISION_LAYERS = "model.visual.blocks."
_OLD_LANGUAGE_LAYERS = "model.layers."  # as transformers named them up to 4.51, and as adapters on the hub still do
_ALL = "all-linear"
_IS_NAME = re.compile(r"[\w.]+")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExportedParameter:
    """A tensor of the model as ``from_pretrained`` knows it, and what it is made of.

    Attributes:
        name: the name of the tensor in a model without adapters.
        base: the parameter itself, or the frozen weight [outputs, inputs] under an adapter.
        down: A, the adapter's first matrix, [r, inputs]; None without an adapter.
        up: B, the adapter's second matrix, [outputs, r]; None without an adapter.
        scaling: the factor of the adapter, alpha / r; 0 without one.
    """

    name: str
    base: nn.Parameter
    down: nn.Parameter | None = None
    up: nn.Parameter | None = None
    scaling: float = 0.0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that have to be whole before :meth:`tensor` is called."""
        return [parameter for parameter in (self.base, self.down, self.up) if parameter is not None]

    @property
    def is_trained(self) -> bool:
        """Whether training changes the tensor."""
        return any(parameter.requires_grad for parameter in self.parameters)

    def tensor(self) -> Tensor:
        """The tensor, in the base's precision; a fresh one where an adapter is merged in."""
        if self.down is None or self.up is None:
            return self.base.detach()
        return merged_weight(self.base.detach(), self.down.detach(), self.up.detach(), self.scaling)


def merged_weight(base: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """``W + scaling * B A``, computed in float32 and rounded once to the base's precision.

    Args:
        base: W, the frozen weight, [outputs, inputs].
        down: A, the adapter's first matrix, [r, inputs].
        up: B, the adapter's second matrix, [outputs, r].
        scaling: the factor of the adapter, alpha / r.

    Example:
        W = [[1.0]], A = [[2.0]], B = [[3.0]] and scaling 0.5 give ``[[4.0]]``.
    """
    return torch.addmm(base.float(), up.float(), down.float(), alpha=scaling).to(base.dtype)


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Put an adapter on every target layer and freeze everything else.

    B starts at zero, so that the model computes what it did before.

    Args:
        model: the model; changed in place.
        config: rank, scale and targets; the rank is above 0.

    Raises:
        ConfigError: targets or rank do not fit the model, see :func:`target_layers`.
    """
    from peft import LoraConfig as PeftLoraConfig  # here, because a model without adapters does without peft
    from peft import inject_adapter_in_model

    model.requires_grad_(False)
    inject_adapter_in_model(
        PeftLoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=target_layers(model, config),
            bias="none",
        ),
        model,
        adapter_name=_ADAPTER,
    )


def check_adapters(folder: Path, config: LoraConfig) -> None:
    """Refuse targets and ranks that do not fit a model, without loading its weights.

    Args:
        folder: the folder that holds the model.
        config: rank and targets; nothing is checked where the rank is 0.

    Raises:
        ConfigError: targets or rank do not fit the model, see :func:`target_layers`.
    """
    if config.rank:
        with torch.device("meta"):
            model = check_model_type(folder).model(AutoConfig.from_pretrained(folder))
        target_layers(model, config)


def target_layers(model: nn.Module, config: LoraConfig) -> list[str]:
    """The linear layers that get an adapter, in the model's order.

    ``model.lora.target_modules`` is ``auto``, which is for the model's family to say, or read as peft reads it:
    ``all-linear``; in a list the end of a layer's name, or all of it; a text with other characters than a name's is a
    regular expression for the whole name. With ``include_vision`` all linear layers of the vision tower's blocks get
    one, unless the list names some of them.

    Args:
        model: the model; its weights may be absent.
        config: targets and rank.

    Raises:
        ConfigError: a target matches no layer, or only layers of the vision tower without ``include_vision``; or the
            rank is above a layer's width.

    Example:
        ``q_proj`` and ``self_attn.q_proj`` mean the same layers, one in each block of the language model.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    language = [name for name in linear if name.startswith(_LANGUAGE_LAYERS)]
    vision = [name for name in linear if name.startswith(_VISION_LAYERS)]
    chosen: set[str] = set()
    vision_only: set[str] = set()
    for target in _named_targets(model, config, language):
        found = [name for name in language if _is_meant(name, target)]
        tower = [] if found else [name for name in vision if _is_meant(name, target)]
        if not found and not tower:
            raise _unknown_target(target, linear, [*language, *vision] if config.include_vision else language)
        if tower and not config.include_vision:
            raise ConfigError(
                f"model.lora.target_modules names {shown(target)!r}, which lies in the vision tower; set "
                "model.lora.include_vision=true and model.freeze_vision=false, or leave it out"
            )
        chosen.update(found)
        vision_only.update(tower)
    if config.include_vision:
        chosen |= vision_only or set(vision)
    narrowest = min(chosen, key=lambda name: min(linear[name].weight.shape))
    width = min(linear[narrowest].weight.shape)
    if config.rank > width:
        raise ConfigError(
            f"model.lora.rank={config.rank} is more than the {width} rows or columns of {narrowest}, where a full "
            f"matrix would be smaller; set a rank of at most {width}, or name other layers in model.lora.target_modules"
        )
    return [name for name in linear if name in chosen]


def _named_targets(model: nn.Module, config: LoraConfig, language: Sequence[str]) -> Sequence[str]:
    """The targets that are set, or those of the model's family that it has."""
    if config.targets != (AUTO_TARGETS,):
        return config.targets
    return [target for target in family_of(model).lora_targets if any(_is_meant(name, target) for name in language)]


def _is_meant(name: str, target: str) -> bool:
    if target == _ALL:
        return True
    if not _IS_NAME.fullmatch(target):
        return re.fullmatch(target, name) is not None
    if target.startswith(_OLD_LANGUAGE_LAYERS):
        target = _LANGUAGE_LAYERS + target.removeprefix(_OLD_LANGUAGE_LAYERS)
    return name == target or name.endswith(f".{target}")


def _unknown_target(target: str, linear: Iterable[str], allowed: Sequence[str]) -> ConfigError:
    if any(_is_meant(name, target) for name in linear):
        return ConfigError(
            f"model.lora.target_modules names {shown(target)!r}, which lies outside the blocks; adapters only go into "
            "the linear layers of the language model's and the vision tower's blocks"
        )
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in allowed))
    alike = difflib.get_close_matches(target.rpartition(".")[2], ends, n=1)
    nearest = f"; the nearest is {alike[0]}" if alike else ""
    return ConfigError(
        f"model.lora.target_modules names {shown(target)!r}, which is no linear layer of the model{nearest}; choose "
        f"all-linear, or from {', '.join(ends)}"
    )


def adapter_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that carry an adapter, by name; none in a model without adapters."""
    if "peft" not in sys.modules:
        return {}  # nobody put one in
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapter_parameters(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    """The adapter's matrices A [r, inputs] and B [outputs, r] of a layer."""
    return layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight


def named_adapters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The matrices of all adapters, in the model's order.

    Args:
        model: a model with or without adapters.

    Returns:
        The matrices by the name of their layer and their own, such as ``….q_proj.lora_A.weight`` [r, inputs] and
        ``….q_proj.lora_B.weight`` [outputs, r].
    """
    return [
        (f"{name}.lora_{letter}.weight", parameter)
        for name, layer in adapter_layers(model).items()
        for letter, parameter in zip("AB", adapter_parameters(layer), strict=True)
    ]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let the model compute, for the length of the block, what it would without adapters.

    The adapters still run, times zero: the same modules in the same order, which ZeRO 3 wants, and no
    parameter changes between frozen and trained.

    Args:
        model: a model with adapters, in evaluation mode.
    """
    layers = list(adapter_layers(model).values())
    before = [layer.scaling[_ADAPTER] for layer in layers]
    try:
        for layer in layers:
            layer.scaling[_ADAPTER] = 0.0
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling[_ADAPTER] = scaling


def exported_parameters(model: nn.Module) -> list[ExportedParameter]:
    """Every tensor that a checkpoint of the model holds, adapters merged in; a tied head is left out.

    Args:
        model: a model with or without adapters.

    Returns:
        The tensors in the model's own order, named as in a model without adapters.

    Example:
        ``…q_proj.base_layer.weight``, ``…lora_A.default.weight`` and ``…lora_B.default.weight`` become one
        ``…q_proj.weight``.
    """
    layers = adapter_layers(model)
    found: list[ExportedParameter] = []
    for name, parameter in model.named_parameters():
        owner, _, rest = name.rpartition(".base_layer.")
        if owner in layers:
            layer = layers[owner]
            if rest == "weight":
                down, up = adapter_parameters(layer)
                scaling = float(layer.scaling[_ADAPTER])
                found.append(
                    ExportedParameter(name=f"{owner}.weight", base=parameter, down=down, up=up, scaling=scaling)
                )
            else:
                found.append(ExportedParameter(name=f"{owner}.{rest}", base=parameter))
        elif not any(part in name for part in (".lora_A.", ".lora_B.")):
            found.append(ExportedParameter(name=name, base=parameter))
    return found


def of_trained_layers(exported: Sequence[ExportedParameter]) -> list[ExportedParameter]:
    """Choose what an engine has to be sent after an update: all of each of its layers of which a part is trained.

    Args:
        exported: the parameters that :func:`exported_parameters` gave.
    """
    trained = {engine_layer(parameter.name) for parameter in exported if parameter.is_trained}
    return [parameter for parameter in exported if engine_layer(parameter.name) in trained]
