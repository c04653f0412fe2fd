"""A model's chat template: which variables it reads, and the arguments that settings hand to it.

What a template does not read it ignores without a word: a misspelt ``enable_thinking`` would leave thinking on, in
training, in rollouts and in every number of an evaluation. So an argument that no template reads is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Protocol

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rsgrpo.config import ConfigError
from rsgrpo.config.prompt import OWN_TEMPLATE_VARIABLES
from rsgrpo.errors import shown


class ChatTemplater(Protocol):
    """A tokenizer or a processor: what knows the model's chat template."""

    def apply_chat_template(
        self, conversation: list[dict[str, object]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Render turns as text."""


class _Generation(Extension):
    """``{% generation %}``, with which templates of transformers mark answers: what stands in it, as it stands."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Read up to the end of the mark."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers and vLLM render chat templates with it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _raise_exception(message: str) -> None:
    """What templates call to refuse a conversation."""
    raise TemplateError(message)


def template_variables(source: str) -> frozenset[str]:
    """The variables that a chat template reads.

    Args:
        source: the text of the template.

    Returns:
        The names, those of the conversation itself (``messages``, …) among them.

    Raises:
        jinja2.TemplateError: the text is no template.

    Example:
        ``"{% if enable_thinking %}{{ messages[0].content }}{% endif %}"`` reads ``enable_thinking`` and ``messages``.
    """
    return frozenset(meta.find_undeclared_variables(template_environment().parse(source)))


def check_arguments(source: str, arguments: Mapping[str, Any], setting: str = "prompt.template_arguments") -> None:
    """Refuse arguments that a chat template does not read.

    Args:
        source: the text of the template.
        arguments: the arguments.
        setting: the key of the arguments, for messages.

    Raises:
        ConfigError: the template ignores one of them, or cannot be read.
    """
    if not arguments:
        return
    try:
        variables = template_variables(source)
    except TemplateError as error:
        raise ConfigError(
            f"{setting} cannot be handed to the model's chat template, which is no Jinja template: "
            f"{shown(error, 120)}; mend its chat_template.jinja"
        ) from error
    read = sorted(variables - OWN_TEMPLATE_VARIABLES)
    for name in arguments:
        if name not in variables:
            alike = difflib.get_close_matches(name, read, n=1)
            nearest = f"; the nearest is {alike[0]}" if alike else ""
            takes = f"it reads {shown(', '.join(read), 200)}" if read else "it reads none"
            raise ConfigError(
                f"{setting}.{shown(name, 60)} is nothing that the model's chat template reads, so it would change "
                f"nothing ({takes}{nearest}); correct the name, or leave it out"
            )


class _Argued:
    """A chat template with arguments."""

    def __init__(self, chat: Any, arguments: Mapping[str, Any]) -> None:
        self._chat = chat
        self._arguments = dict(arguments)

    def apply_chat_template(
        self, conversation: list[dict[str, object]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Render turns as text."""
        text: str = self._chat.apply_chat_template(
            conversation, tokenize=tokenize, add_generation_prompt=add_generation_prompt, **self._arguments
        )
        return text


def with_arguments(
    chat: ChatTemplater, arguments: Mapping[str, Any], setting: str = "prompt.template_arguments"
) -> ChatTemplater:
    """A tokenizer or a processor that hands arguments to its chat template.

    Args:
        chat: the model's tokenizer or processor.
        arguments: what the template gets beside the conversation; empty: nothing.
        setting: the key of the arguments, for messages.

    Raises:
        ConfigError: the template does not read one of the arguments.

    Example:
        With ``{"enable_thinking": False}`` a prompt of Qwen3.5 ends in ``<think>\\n\\n</think>\\n\\n``.
    """
    if not arguments:
        return chat
    template: object = getattr(chat, "chat_template", None)
    if isinstance(template, Mapping):  # several by name: transformers takes this one
        template = template.get("default")
    check_arguments(template if isinstance(template, str) else "", arguments, setting)
    return _Argued(chat, arguments)


def template_request(arguments: Mapping[str, Any]) -> dict[str, object]:
    """What a request to an OpenAI-compatible server carries for its chat template; nothing without arguments.

    vLLM and SGLang read the field; what their template does not read they drop, and a client cannot see it.

    Args:
        arguments: the arguments of the chat template.

    Example:
        ``{"enable_thinking": False}`` gives ``{"chat_template_kwargs": {"enable_thinking": False}}``.
    """
    return {"chat_template_kwargs": dict(arguments)} if arguments else {}
