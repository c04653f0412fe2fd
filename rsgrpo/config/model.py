"""``model``: which model, its precision, adapters, and the features of a frozen tower."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rsgrpo.config.checks import ConfigError, Literal, at_least, at_most, check_choices, more_than
from rsgrpo.errors import shown

Dtype = Literal["float32", "bfloat16"]

Attention = Literal["auto", "sdpa", "flash", "flex"]

AUTO_TARGETS = "auto"
"""Adapters in the layers that the model's family names."""
ATTENDING_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a block that attends."""


MAX_ENGINE_RANK = 512
"""The highest rank of adapters that vLLM has."""


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters: only they train; engines and exports get the merged weights unless told otherwise."""

    rank: int = 0
    """Rank r of the adapters; 0: no adapters, every weight trains that is not frozen."""
    alpha: float = 32.0
    """Scale of the adapters: a layer's weight is ``W + alpha / r * B A``."""
    dropout: float = 0.0
    """Share of an adapter's inputs left out while training; above 0 the policy is not the one that sampled."""
    target_modules: Any = AUTO_TARGETS
    """The linear layers that get an adapter: ``auto`` (attention and MLPs; of gated delta nets all but the two narrow
    ones), or as peft takes them: ``all-linear``, a list of names or ends of names, or a regular expression for whole
    names."""
    include_vision: bool = False
    """Adapters in the linear layers of the vision tower's blocks as well (needs ``model.freeze_vision=false``)."""
    export: Literal["merged", "adapter"] = "merged"
    """What a stage leaves: the ``merged`` model, or with ``adapter`` its adapters as well, in ``models/STAGE_adapter``
    as peft and ``vllm serve --enable-lora`` load them. Later stages, evaluation and ``rsgrpo ask`` load the merged."""
    update: Literal["merged", "adapter"] = "merged"
    """What engines get after a step: the ``merged`` weights of all layers that have an adapter, or the ``adapter``
    alone, which vLLM adds to the base that it keeps; not with ``include_vision`` or ``stage=all``."""

    def __post_init__(self) -> None:
        at_least("model.lora.rank", self.rank, 0)
        more_than("model.lora.alpha", self.alpha, 0.0)
        at_most("model.lora.alpha", self.alpha, 1.0e6)
        check_choices(self, "model.lora.")
        if "adapter" in (self.export, self.update) and not self.rank:
            key, _ = next(pair for pair in (("export", self.export), ("update", self.update)) if pair[1] == "adapter")
            raise ConfigError(f"model.lora.{key}=adapter needs adapters; set model.lora.rank, or leave it out")
        if self.update == "adapter":
            self._check_update()
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.lora.dropout={self.dropout} must lie in [0, 1)")
        self._check_targets()

    def _check_update(self) -> None:
        """Refuse adapters that vLLM does not take."""
        at_most("model.lora.rank", self.rank, MAX_ENGINE_RANK)
        if self.include_vision:
            raise ConfigError(
                "model.lora.update=adapter leaves the vision tower of the engines as it is, and model.lora."
                "include_vision=true changes it; set model.lora.update=merged"
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """The entries of ``target_modules`` in a tuple, also where the setting is one text."""
        return (self.target_modules,) if isinstance(self.target_modules, str) else tuple(self.target_modules)

    def _check_targets(self) -> None:
        given = self.target_modules
        is_list = isinstance(given, list) and all(isinstance(name, str) for name in given)
        if not isinstance(given, str) and not is_list:
            raise ConfigError(
                f"model.lora.target_modules={shown(given, 80)} does not fit; it must be a list of names such as "
                "[q_proj, v_proj], all-linear, or a regular expression"
            )
        if any(not target.strip() for target in self.targets) or (self.rank and not self.targets):
            raise ConfigError("model.lora.target_modules is empty; name layers such as [q_proj, v_proj], or set rank=0")
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise ConfigError(
                    f"model.lora.target_modules={shown(target, 80)!r} is no regular expression: {error}"
                ) from error


@dataclass(kw_only=True, slots=True)
class VisionCacheConfig:
    """Features of a frozen vision tower, kept on disk: they are constants of the run."""

    folder: str = ""
    """Folder of the features; a relative path lies in ``run_dir``; empty: compute them anew each time. Runs and ranks
    may share it."""
    max_gib: float = 64.0
    """Most that the folder holds, in GiB; what was used longest ago is removed first (a page of a 7B model: 14 MB)."""

    def __post_init__(self) -> None:
        more_than("model.vision_cache.max_gib", self.max_gib, 0.0)


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The policy."""

    path: str = ""
    """Model folder or hub id, of a family that docs/families.md lists; empty: build the quickstart's small one into the
    run folder."""
    revision: str = ""
    """Hub revision; empty: the newest."""
    dtype: Dtype = "bfloat16"
    """Compute precision, ``float32`` or ``bfloat16`` (master weights are float32 either way)."""
    freeze_vision: bool = True
    """Keep the vision tower as it is (the projector, ``visual.merger``, goes with it)."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass."""
    attention: Attention = "auto"
    """What computes attention in the trainer: ``flash`` (GPU, bfloat16: flash-attn if installed, else torch's own),
    ``flex`` (GPU: torch's compiled flex_attention), ``sdpa`` (any device: in tiles), or ``auto``: the first of these
    that works."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    vision_cache: VisionCacheConfig = field(default_factory=VisionCacheConfig)

    def __post_init__(self) -> None:
        check_choices(self, "model.")
        if self.lora.rank and self.freeze_vision == self.lora.include_vision:
            raise ConfigError(
                f"model.lora.rank={self.lora.rank} trains adapters only, and model.lora.include_vision="
                f"{str(self.lora.include_vision).lower()} does not go with model.freeze_vision="
                f"{str(self.freeze_vision).lower()}; set model.freeze_vision={str(not self.freeze_vision).lower()}, "
                f"or model.lora.include_vision={str(not self.lora.include_vision).lower()}"
            )
        if self.vision_cache.folder and not self.freeze_vision:
            raise ConfigError(
                f"model.vision_cache.folder={shown(self.vision_cache.folder)!r} keeps features of a tower that "
                "training changes (model.freeze_vision=false); set model.freeze_vision=true, or leave the folder empty"
            )
