"""Ask a model whether one page helps to answer a question: the prompt, and the tokens of its two answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from rsgrpo.config import PromptConfig
from rsgrpo.errors import shown
from rsgrpo.prompts.chat_template import ChatTemplater, with_arguments
from rsgrpo.prompts.template import PromptBuilder, PromptTemplateError
from rsgrpo.types import ImageRef, PromptedSample, Sample

_OPENED = re.compile(r"(<\w[\w.-]*>)\s*\Z")


class AnswerTokenizer(Protocol):
    """What is needed of a tokenizer to find the token of an answer."""

    unk_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""


class RelevancePrompts:
    """Builds prompts that ask about one page.

    The page comes first, so that an engine's prefix cache serves further questions about it.

    Args:
        path: the path of the Jinja template, with the variable ``question``.
        chat: the model's tokenizer or processor.
        arguments: the arguments of its chat template (``filter.template_arguments``); None: none.

    Raises:
        PromptTemplateError: the template is missing, is no Jinja, or does not use ``question``.
        ConfigError: the chat template does not read one of the arguments.
    """

    def __init__(self, path: str, chat: ChatTemplater, arguments: Mapping[str, Any] | None = None) -> None:
        argued = with_arguments(chat, arguments or {}, "filter.template_arguments")
        self._builder = PromptBuilder(PromptConfig(path=path, image_order="images_first"), argued)

    def build(self, prompt_id: str, question: str, page: ImageRef) -> PromptedSample:
        """Build one prompt.

        Args:
            prompt_id: an id for it.
            question: the question.
            page: the page.

        Raises:
            PromptTemplateError: the question holds a control token such as ``<|im_end|>``, or the chat template opens
                a section, whose first word would be read as the answer.
        """
        prompted = self._builder.prompted(Sample(sample_id=prompt_id, question=question, images=(page,)))
        opened = _OPENED.search(prompted.prompt.text)
        if opened:
            raise PromptTemplateError(
                f"the model's chat template ends a prompt with {shown(opened.group(1), 40)}, so that its first word is "
                "no yes or no; many templates take filter.template_arguments={enable_thinking: false}"
            )
        return prompted


def answer_tokens(tokenizer: AnswerTokenizer, yes: str, no: str) -> tuple[int, int]:
    """Find the tokens of the two answers.

    Args:
        tokenizer: the tokenizer of the model that is asked.
        yes: the answer that means relevant.
        no: the answer that means irrelevant.

    Returns:
        The ids of the two tokens.

    Raises:
        PromptTemplateError: an answer is several tokens or none, is not known to the tokenizer, or both are the same:
            a probability that is read off such tokens would mean nothing.

    Example:
        With Qwen2.5's tokenizer ``yes`` and ``no`` are ``(9693, 2152)``.
    """
    found = []
    for key, text in (("filter.yes", yes), ("filter.no", no)):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise PromptTemplateError(
                f"{key}={text!r} is {len(ids)} tokens of the model, and one is needed whose probability can be read; "
                "set it to a word that is a single token, and ask for it in filter.prompt"
            )
        if ids[0] == tokenizer.unk_token_id:
            raise PromptTemplateError(
                f"{key}={text!r} is not known to the model's tokenizer; set it to a word that is, and ask for it in "
                "filter.prompt"
            )
        found.append(ids[0])
    if found[0] == found[1]:
        raise PromptTemplateError(f"filter.yes={yes!r} and filter.no={no!r} are the same token; set two that differ")
    return found[0], found[1]
