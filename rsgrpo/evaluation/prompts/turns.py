"""Chat turns with images between their words, and the two forms that engines and servers want them in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from rsgrpo.errors import RsgrpoError
from rsgrpo.prompts.chat_template import ChatTemplater
from rsgrpo.prompts.template import IMAGE_PLACEHOLDER, render_turns
from rsgrpo.text.control_tokens import control_token
from rsgrpo.types import ChatPrompt, ImageRef, PromptedSample, Sample

_DIGEST_BYTES = 8


class TaskPromptError(RsgrpoError, ValueError):
    """A question cannot be put; the message names it and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTurn:
    """One turn.

    Attributes:
        role: who speaks: ``system``, ``user`` or ``assistant``.
        parts: the texts and images of the turn, in the order in which they are read.
    """

    role: str
    parts: tuple[str | ImageRef, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPrompt:
    """One request to a model.

    Attributes:
        prompt_id: the id of the prompt, unique in its task.
        turns: the turns before the answer.
    """

    prompt_id: str
    turns: tuple[ChatTurn, ...]

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images of the turns, in order."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef))

    def digest(self) -> str:
        """A hash of all words and image paths, which tells whether a kept answer is still the answer to this.

        Returns:
            The hash as sixteen hexadecimal digits.
        """
        state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for turn in self.turns:
            state.update(f"\x00{turn.role}".encode())
            for part in turn.parts:
                state.update(f"\x01{part.path}".encode() if isinstance(part, ImageRef) else f"\x02{part}".encode())
        return state.hexdigest()


def user_prompt(prompt_id: str, parts: tuple[str | ImageRef, ...], *, system: str = "") -> TaskPrompt:
    """A single user turn behind a system turn.

    Args:
        prompt_id: the id of the prompt, unique in its task.
        parts: the text and images of the turn; empty text is left out.
        system: the text of the system turn; an empty one is written out too, because chat templates add their own
            otherwise.
    """
    kept = tuple(part for part in parts if isinstance(part, ImageRef) or part)
    return TaskPrompt(
        prompt_id=prompt_id, turns=(ChatTurn(role="system", parts=(system,)), ChatTurn(role="user", parts=kept))
    )


def chat_prompt(prompt: TaskPrompt, chat: ChatTemplater) -> PromptedSample:
    """Apply a chat template: what the rollout engine takes.

    Args:
        prompt: the prompt of the request.
        chat: the model's tokenizer or processor, with the template's arguments.

    Returns:
        The prompt with one ``<|image_pad|>`` for each image, beside a sample that carries its id.

    Raises:
        TaskPromptError: the text holds a control token (:mod:`rsgrpo.text.control_tokens`), or the template drops an
            image.
        PromptTemplateError: the template refuses the turns.

    Example:
        Two images and ``Q?`` in a user turn give ``user\\n`` + 2 × ``<|vision_start|><|image_pad|><|vision_end|>``
        + ``Q?<|im_end|>\\n<|im_start|>assistant\\n`` at the end.
    """
    conversation: list[dict[str, object]] = []
    for turn in prompt.turns:
        for part in turn.parts:
            if isinstance(part, str):
                _check_text(prompt.prompt_id, part)
        content: object
        if any(isinstance(part, ImageRef) for part in turn.parts):
            content = [
                {"type": "image"} if isinstance(part, ImageRef) else {"type": "text", "text": part}
                for part in turn.parts
            ]
        else:
            content = "".join(part for part in turn.parts if isinstance(part, str))
        conversation.append({"role": turn.role, "content": content})
    text = render_turns(chat, conversation, prompt.prompt_id)
    images = prompt.images
    if text.count(IMAGE_PLACEHOLDER) != len(images):
        raise TaskPromptError(
            f"question {prompt.prompt_id!r}: the chat template gives {text.count(IMAGE_PLACEHOLDER)} image "
            f"placeholders for {len(images)} images; use the chat template that the model came with"
        )
    return PromptedSample(
        sample=Sample(sample_id=prompt.prompt_id, images=images),
        prompt=ChatPrompt(sample_id=prompt.prompt_id, text=text, images=images),
    )


def _check_text(prompt_id: str, text: str) -> None:
    token = control_token(text)
    if token:
        raise TaskPromptError(f"question {prompt_id!r}: its text holds the control token {token!r}; take it out")


def openai_messages(prompt: TaskPrompt, image_url: Callable[[ImageRef], str]) -> list[dict[str, object]]:
    """The messages of an OpenAI-compatible chat request.

    Args:
        prompt: the prompt of the request.
        image_url: gives an image's address, such as a data URL.

    Returns:
        One message for each turn; an empty system turn is left out; turns of text alone carry plain text.

    Example:
        A user turn of an image and ``Q?`` gives ``{"role": "user", "content": [{"type": "image_url", "image_url":
        {"url": …}}, {"type": "text", "text": "Q?"}]}``.
    """
    messages: list[dict[str, object]] = []
    for turn in prompt.turns:
        texts = [part for part in turn.parts if isinstance(part, str)]
        if len(texts) == len(turn.parts):
            if turn.role != "system" or any(texts):
                messages.append({"role": turn.role, "content": "".join(texts)})
            continue
        content: list[dict[str, object]] = []
        for part in turn.parts:
            if isinstance(part, ImageRef):
                content.append({"type": "image_url", "image_url": {"url": image_url(part)}})
            else:
                content.append({"type": "text", "text": part})
        messages.append({"role": turn.role, "content": content})
    return messages
