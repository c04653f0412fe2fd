"""What a stage leaves: a model folder, and adapters in a folder of their own as peft writes it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from rsgrpo.config import LoraConfig

_PREFIX = "base_model.model."  # the model inside of peft's wrapper
_MATRIX = (".lora_A.weight", ".lora_B.weight")
_FILE = "adapter_model.safetensors"


def write_model(
    folder: Path, model: PreTrainedModel, processor: ProcessorMixin, state: Mapping[str, Tensor], source: Path
) -> None:
    """Write a model folder that ``from_pretrained`` and vLLM load.

    Args:
        folder: the folder to write into.
        model: the model, for its settings; its own weights are not read.
        processor: its tokenizer and image processor.
        state: all weights by their names in the model, without a tied head.
        source: the folder that the model was loaded from, for a chat template that the processor did not keep.
    """
    state = dict(state)
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    model.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)
    for name in ("chat_template.json", "chat_template.jinja"):
        if (source / name).exists() and not (folder / name).exists():
            shutil.copy(source / name, folder / name)


def write_adapter(folder: Path, named: Iterable[tuple[str, Tensor]], config: LoraConfig, base: Path) -> None:
    """Write adapters as ``PeftModel.from_pretrained`` and ``vllm serve --enable-lora`` load them.

    Args:
        folder: the folder to write into; it exists.
        named: the matrices, by names as :func:`rsgrpo.model.lora.named_adapters` gives them.
        config: rank and scale. The layers are listed by their whole names: peft would find some of the ends of names
            that ``target_modules`` has in the vision tower as well.
        base: the folder of the model that the adapters rest on.

    Example:
        ``model.language_model.layers.0.self_attn.q_proj.lora_A.weight`` is written as
        ``base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight``.
    """
    from peft import LoraConfig as PeftLoraConfig  # here, because a model without adapters does without peft

    tensors = {f"{_PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in named}
    layers = {name.removeprefix(_PREFIX).removesuffix(end) for name in tensors for end in _MATRIX if name.endswith(end)}
    PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(layers),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
        inference_mode=True,
    ).save_pretrained(str(folder))
    save_file(tensors, folder / _FILE, metadata={"format": "pt"})
