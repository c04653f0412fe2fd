"""Values of a model's parameters, left in its folder until a rank has a place for them.

Ranks of a node start together: were each to load a whole model first, eight of a 7B model would take 130 GB of host
memory before any of them kept its eighth. So the model is built without values, and each tensor is mapped from its
file, copied straight to where it belongs, and let go again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rsgrpo.errors import shown
from rsgrpo.model.families.family import Family
from rsgrpo.model.folder import ModelError, StoredTensor, check_names, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def without_values() -> Iterator[None]:
    """Within the block, modules are made with parameters on the meta device; their buffers get real values.

    One parameter at a time is allocated, and never written to.
    """
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def hollow_parameters(model: nn.Module) -> None:
    """Replace parameters on the meta device by ones of the same shape that take no memory, ties kept.

    Values can be put into these in place, on any device, which torch refuses for the meta device. Until then each of
    them reads as NaN.

    Args:
        model: a model that was made :func:`without_values`; changed in place.
    """
    hollow: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in hollow:
                empty = torch.full((), torch.nan, dtype=parameter.dtype).expand(parameter.shape)
                hollow[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module.register_parameter(name, hollow[parameter])


class StoredWeights:
    """Where the values of a model's parameters lie.

    Args:
        folder: the folder of the model, with its weights as safetensors.
        model: the model without values (:func:`hollow_parameters`), its parameters named as its class names them. What
            is made of it later (adapters, another head) may rename them.
        family: the family of the model.

    Raises:
        ModelError: a file cannot be read, a tensor is missing, surplus or has another shape, or two that should be tied
            differ.
    """

    def __init__(self, folder: Path, model: PreTrainedModel, family: Family) -> None:
        self._folder = folder
        self._handles: dict[Path, Any] = {}
        tensors = stored_tensors(folder)
        check_names(model, family, tensors, folder)
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            stored = [
                stored_name
                for stored_name in dict.fromkeys((family.checkpoint_name(name), name))
                if stored_name in tensors
            ]
            names.setdefault(parameter, []).extend(stored[:1])
        self._places = {parameter: (tensors[stored[0]].file, stored[0]) for parameter, stored in names.items()}
        self._check(names, tensors)

    def _error(self, problem: str) -> ModelError:
        return ModelError(f"model.path={shown(self._folder)!r} {problem}")

    def _open(self, path: Path) -> Any:
        if path not in self._handles:
            self._handles[path] = safe_open(path, framework="pt")
        return self._handles[path]

    def _check(self, names: Mapping[nn.Parameter, Sequence[str]], tensors: Mapping[str, StoredTensor]) -> None:
        """Refuse shapes and ties that are not the model's."""
        for parameter, stored in names.items():
            for name in stored:
                shape = tensors[name].shape
                if shape != tuple(parameter.shape):
                    raise self._error(
                        f"holds {name} of shape {list(shape)} where its config.json says {list(parameter.shape)}; "
                        "fetch both again"
                    )
            first, *others = (self._open(tensors[name].file).get_tensor(name) for name in stored)
            if any(not torch.equal(first, other) for other in others):
                raise self._error(
                    f"holds different values for {' and '.join(stored)}, which its config.json ties; set "
                    "tie_word_embeddings to false there if the model was trained so"
                )

    def value(self, parameter: nn.Parameter) -> Tensor:
        """A parameter's whole value in its own precision; mapped from the file where that holds the same precision.

        Args:
            parameter: a parameter of the model.
        """
        return self._mapped(parameter).to(parameter.dtype)

    def _mapped(self, parameter: nn.Parameter) -> Tensor:
        path, name = self._places[parameter]
        value: Tensor = self._open(path).get_tensor(name)
        return value

    def filled(self, parameters: Iterable[nn.Parameter], device: torch.device) -> Iterator[nn.Parameter]:
        """Give parameters their values, each as its turn comes.

        Args:
            parameters: parameters of the model; those that are not stored (adapters) stay as they are.
            device: the device that the values shall lie on. On a GPU they go there without a copy in host memory.
        """
        for parameter in parameters:
            if parameter in self._places:
                # A copy even on a CPU: what is written to mapped memory stays in memory until the file is closed.
                parameter.data = self._mapped(parameter).to(device, parameter.dtype, copy=True)
            yield parameter

    def load(self, parameters: Iterable[nn.Parameter], device: torch.device) -> None:
        """Give all parameters their values at once, as :meth:`filled` does one by one.

        Args:
            parameters: the parameters of the model to load.
            device: the device that the values shall lie on.
        """
        for _ in self.filled(parameters, device):
            pass

    def close(self) -> None:
        """Let go of the files; the next value opens its file again."""
        self._handles = {}
