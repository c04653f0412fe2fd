"""What a model's chat template writes at the end of a prompt, read off the template without the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rsgrpo.config import ResponseFormat
from rsgrpo.prompts.chat_template import check_arguments, template_environment
from rsgrpo.text.sections import opened_section

_TEMPLATE, _TOKENIZER = "chat_template.jinja", "tokenizer_config.json"


def section_opened_by(folder: Path, response_format: ResponseFormat, arguments: Mapping[str, Any] | None = None) -> str:
    """The section that the chat template of a model folder opens, such as ``think``.

    Args:
        folder: the folder of the model.
        response_format: the declared sections.
        arguments: what the template gets beside the conversation (``prompt.template_arguments``); None: nothing.

    Returns:
        The name of the section; empty: none, or the template cannot be rendered here.

    Raises:
        ConfigError: the template does not read one of the arguments.
    """
    try:
        source = _source(folder)
    except (OSError, ValueError, LookupError, TypeError):
        return ""  # the engine refuses such a folder itself
    check_arguments(source, arguments or {})
    turns = {"messages": [{"role": "user", "content": "?"}], "add_generation_prompt": True}
    try:
        text = (
            template_environment()
            .from_string(source)
            .render(**{"bos_token": "", "eos_token": ""} | dict(arguments or {}) | turns)
        )
    except (ValueError, LookupError, TypeError, TemplateError):
        return ""
    return opened_section(text, response_format)


def _source(folder: Path) -> str:
    if (folder / _TEMPLATE).is_file():
        return (folder / _TEMPLATE).read_text(encoding="utf-8")
    found: Any = json.loads((folder / _TOKENIZER).read_text(encoding="utf-8"))["chat_template"]
    return str(found)
