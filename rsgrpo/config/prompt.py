"""``prompt``: the text around a question."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rsgrpo.config.checks import ConfigError, Literal, check_choices, not_empty
from rsgrpo.errors import shown

ImageOrder = Literal["text_first", "images_first", "markers"]

OWN_TEMPLATE_VARIABLES = frozenset(
    {"messages", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token", "pad_token", "unk_token"}
)
"""What a chat template gets for every conversation."""


def check_template_arguments(key: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a chat template that are none.

    Args:
        key: the key of the arguments, such as ``prompt.template_arguments``.
        arguments: the arguments.

    Raises:
        ConfigError: a name that no template could read, one of the conversation's own, or a value that is not JSON.
    """
    for name, value in arguments.items():
        if not name.isidentifier():
            raise ConfigError(f"{key} has the name {shown(name, 60)!r}, which no template can read; write a word")
        if name in OWN_TEMPLATE_VARIABLES:
            raise ConfigError(f"{key}.{name} is what every conversation sets itself; leave it out")
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{key}.{name}={shown(value, 60)!r} cannot be sent to a server ({shown(error, 80)}); give a text, a "
                "number, true or false, or lists of them"
            ) from error


def template_arguments_text(arguments: Mapping[str, Any]) -> str:
    """Arguments of a chat template in one line, sorted; empty where there are none.

    Example:
        ``{"enable_thinking": False, "effort": "low"}`` gives ``effort="low", enable_thinking=false``.
    """
    return ", ".join(f"{name}={json.dumps(arguments[name], sort_keys=True)}" for name in sorted(arguments))


@dataclass(kw_only=True, slots=True)
class PromptConfig:
    """How a question becomes a prompt."""

    path: str = "configs/prompt/evidence.jinja"
    """Jinja template with the variables ``question``, ``num_images``, ``choices`` and ``page_numbers`` (empty unless a
    filter left pages out)."""
    image_order: ImageOrder = "text_first"
    """``text_first``, ``images_first``, or ``markers`` (where the data set's ready prompt says)."""
    system: str = "You are a helpful assistant."
    """System turn; the default is the Qwen chat template's own."""
    template_arguments: dict[str, Any] = field(default_factory=dict)
    """What the model's chat template gets beside the conversation, such as ``{enable_thinking: false}``; an argument
    that the template does not read is refused. A server gets them as ``chat_template_kwargs``."""

    def __post_init__(self) -> None:
        not_empty("prompt.path", self.path)
        check_choices(self, "prompt.")
        check_template_arguments("prompt.template_arguments", self.template_arguments)
