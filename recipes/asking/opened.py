"""Which section a model's chat template opens at the end of a prompt, read off the template without the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rsgrpo.config import ResponseFormat
from rsgrpo.text.sections import opened_section

_TEMPLATE, _TOKENIZER = "chat_template.jinja", "tokenizer_config.json"


def section_opened_by(folder: Path, response_format: ResponseFormat) -> str:
    """The section that the chat template of a model folder opens, such as ``think``.

    Args:
        folder: the folder of the model.
        response_format: the declared sections.

    Returns:
        The name of the section; empty: none, or the template cannot be rendered here.
    """
    try:
        source = _source(folder)
        # As transformers renders it.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        text = environment.from_string(source).render(
            messages=[{"role": "user", "content": "?"}], add_generation_prompt=True, bos_token="", eos_token=""
        )
    except (OSError, ValueError, LookupError, TypeError, TemplateError):
        return ""  # the engine refuses such a folder itself
    return opened_section(text, response_format)


def _source(folder: Path) -> str:
    if (folder / _TEMPLATE).is_file():
        return (folder / _TEMPLATE).read_text(encoding="utf-8")
    found: Any = json.loads((folder / _TOKENIZER).read_text(encoding="utf-8"))["chat_template"]
    return str(found)
