"""The families that can be trained. What is not listed here is refused, never tried."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rsgrpo.model.families import qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl
from rsgrpo.model.families.family import Family

if TYPE_CHECKING:  # seconds of imports for a name
    from torch import Tensor

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (qwen2_vl.FAMILY, qwen2_5_vl.FAMILY, qwen3_vl.FAMILY, qwen3_5.FAMILY)
}
"""The families by their ``model_type``."""


def family_of(model: Any) -> Family:
    """The family of a model that was opened.

    Args:
        model: a model of transformers, from a folder that was checked.
    """
    return FAMILIES[model.config.model_type]


def as_published(model: Any, named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Tensors under the names of published checkpoints, which the engine's loader reads.

    Args:
        model: the model that they belong to.
        named: tensors by their names in the loaded model.
    """
    family = family_of(model)
    return [(family.checkpoint_name(name), tensor) for name, tensor in named]


def supported_families() -> str:
    """The families in one sentence's part, for messages.

    Example:
        ``Qwen2-VL ('qwen2_vl') and Qwen2.5-VL ('qwen2_5_vl')``
    """
    names = [f"{family.name} ({model_type!r})" for model_type, family in FAMILIES.items()]
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
