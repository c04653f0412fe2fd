"""From a conversation to what the trainer reads: a prompt, and a response of which only the answers are targets.

prompt:    system turn, first question with its images, assistant header
response:  answer 1 <|im_end|>  | \\n, question 2 with its images, assistant header | answer 2 <|im_end|>  ...
target:    every token of it    | none                                             | every token of it

A chat template may write earlier answers otherwise than they were given: many drop their thoughts. Then a conversation
is several rows, each of which goes on from what the template makes of the turns before, as the model will read them:

row 1:  system turn, question 1, header, <think>                        | thoughts 1 </think> answer 1 <|im_end|>
row 2:  system turn, question 1, answer 1, question 2, header, <think>  | thoughts 2 </think> answer 2 <|im_end|>
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rsgrpo.config import EVISRAG, PromptConfig, ResponseFormat
from rsgrpo.data.evisrag_files import split_markers
from rsgrpo.prompts.chat_template import ChatTemplater, with_arguments
from rsgrpo.prompts.template import (
    IMAGE_PLACEHOLDER,
    PromptBuilder,
    PromptTemplateError,
    render_turns,
    response_behind,
)
from rsgrpo.text.control_tokens import control_token
from rsgrpo.text.coordinates import box_tokens
from rsgrpo.text.sections import opened_section
from rsgrpo.types import ChatPrompt, ImageRef, IntArray, Sample, Turn

TURN_END = "<|im_end|>"
"""The text that Qwen's chat template puts behind every turn; an answer's own is a target, so that the model learns to
stop."""


class TextEncoder(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponsePart:
    """A stretch of a conversation behind its first assistant header.

    Attributes:
        text: the text as the chat template writes it, with one placeholder per image.
        is_target: whether the model is to learn the text: an answer and the end of its turn.
        images: the images of the text's placeholders, in order; answers have none.
    """

    text: str
    is_target: bool
    images: tuple[ImageRef, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A conversation or a row of it, chat template applied.

    Attributes:
        sample_id: the id of the sample that the conversation comes from; where it is several rows, with their number.
        prompt: the prompt: everything up to and with the header of the row's first answer.
        parts: what follows the prompt: targets and what stands between them, in turns.
    """

    sample_id: str
    prompt: ChatPrompt
    parts: tuple[ResponsePart, ...]

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images of the conversation, in order."""
        return (*self.prompt.images, *(image for part in self.parts for image in part.images))

    def renamed(self, sample_id: str) -> Conversation:
        """The same conversation under another id."""
        return replace(self, sample_id=sample_id, prompt=replace(self.prompt, sample_id=sample_id))


class ConversationBuilder:
    """Builds conversations.

    A sample with ``turns`` is its conversation, images where the markers stand, its own system turn or that of
    ``prompt.system``. Any other is one question, written as :class:`PromptBuilder` does, with its gold as the
    answer: ``gold_response``, else the first of ``answers``, else the first of ``boxes`` in Qwen's box tokens.

    Args:
        prompt: system turn, and for single questions the template and the image order.
        chat: the model's tokenizer or processor.
        response_format: the declared sections; the tag of one that the chat template opens is no target.
    """

    def __init__(self, prompt: PromptConfig, chat: ChatTemplater, response_format: ResponseFormat = EVISRAG) -> None:
        self._system = prompt.system
        self._chat = with_arguments(chat, prompt.template_arguments)
        self._format = response_format
        self._single = PromptBuilder(prompt, chat, response_format=response_format)

    @property
    def parts_answers(self) -> bool:
        """Whether the chat template rewrites earlier answers with thoughts, so that answers are rows of their own."""
        question, ids = Turn(role="user", text="?"), "probe"
        opened = opened_section(render_turns(self._chat, [self._message(question)], ids), self._format)
        answer = Turn(role="assistant", text=f"<{opened or 'think'}>\n.</{opened or 'think'}>.")
        return len(self.build(Sample(sample_id=ids, turns=(question, answer, question, answer)))) > 1

    def build(self, sample: Sample) -> tuple[Conversation, ...]:
        """Build one conversation.

        Args:
            sample: a sample with turns, or a question with gold.

        Returns:
            One row; or several, where the chat template writes earlier answers otherwise than they stand. Every answer
            is a target in one of them.

        Raises:
            PromptTemplateError: there is no gold, a text holds a control token such as ``<|im_end|>``, the chat
                template drops turns or images, or opens a section with which an answer does not begin.
        """
        if not sample.turns:
            gold = self._gold(sample)
            self._check(sample, gold)
            prompt = self._single.build(sample)
            answer = ResponsePart(text=response_behind(prompt, gold) + TURN_END, is_target=True)
            return (Conversation(sample_id=sample.sample_id, prompt=prompt, parts=(answer,)),)
        for turn in sample.turns:
            self._check(sample, turn.text)
        rows = self._rows(sample)
        ids = [sample.sample_id] if len(rows) == 1 else [f"{sample.sample_id}#{n + 1}" for n in range(len(rows))]
        return tuple(self._row(name, row, sample.images) for name, row in zip(ids, rows, strict=True))

    def _row(self, sample_id: str, answers: Sequence[tuple[str, str]], images: tuple[ImageRef, ...]) -> Conversation:
        """A row of heads and the answers behind them."""
        first = answers[0][0]
        num_shown = first.count(IMAGE_PLACEHOLDER)
        prompt = ChatPrompt(
            sample_id=sample_id,
            text=first,
            images=images[:num_shown],
            opened_section=opened_section(first, self._format),
        )
        parts = [ResponsePart(text=answers[0][1] + TURN_END, is_target=True)]
        for head, answer in answers[1:]:
            count = head.count(IMAGE_PLACEHOLDER)
            parts.append(ResponsePart(text=head, is_target=False, images=images[num_shown : num_shown + count]))
            parts.append(ResponsePart(text=answer + TURN_END, is_target=True))
            num_shown += count
        return Conversation(sample_id=sample_id, prompt=prompt, parts=tuple(parts))

    def _rows(self, sample: Sample) -> list[list[tuple[str, str]]]:
        """Rows of what stands in front of each answer since the one before, and what is left of it to write."""
        turns = list(sample.turns)
        if turns[0].role != "system":
            turns.insert(0, Turn(role="system", text=self._system))
        messages = [self._message(turn) for turn in turns]
        rows: list[list[tuple[str, str]]] = []
        so_far = ""
        num_shown = 0
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            text = render_turns(self._chat, messages[:index], sample.sample_id)
            num_shown = text.count(IMAGE_PLACEHOLDER)
            if not rows or not text.startswith(so_far):
                if rows and text.count(TURN_END) != index:
                    raise PromptTemplateError(
                        f"sample {sample.sample_id!r}: the chat template ends {text.count(TURN_END)} of {index} turns "
                        f"with {TURN_END}; use the chat template that the model came with"
                    )
                rows.append([])
                so_far = ""
            head = ChatPrompt(sample_id=sample.sample_id, text=text, opened_section=opened_section(text, self._format))
            answer = response_behind(head, turn.text)
            rows[-1].append((text[len(so_far) :], answer))
            so_far = text + answer + TURN_END
        if num_shown != len(sample.images):
            raise PromptTemplateError(
                f"sample {sample.sample_id!r}: the chat template gives {num_shown} image placeholders for "
                f"{len(sample.images)} images; use the chat template that the model came with"
            )
        return rows

    @staticmethod
    def _message(turn: Turn) -> dict[str, object]:
        if turn.role != "user":
            return {"role": turn.role, "content": turn.text}
        content = [
            {"type": "image"} if part is None else {"type": "text", "text": part} for part in split_markers(turn.text)
        ]
        return {"role": turn.role, "content": content}

    @staticmethod
    def _gold(sample: Sample) -> str:
        if sample.gold_response:
            return sample.gold_response
        if sample.answers:
            return sample.answers[0]
        if sample.boxes:
            return box_tokens(sample.boxes[0])
        raise PromptTemplateError(
            f"sample {sample.sample_id!r} has neither turns, nor a gold response, nor answers, nor boxes; supervised "
            "training has nothing to learn from it"
        )

    @staticmethod
    def _check(sample: Sample, text: str) -> None:
        token = control_token(text)
        if token:
            raise PromptTemplateError(
                f"sample {sample.sample_id!r}: its text holds the control token {token!r}; take it out"
            )


def count_tokens(
    text: str, images: Sequence[ImageRef], tokenizer: TextEncoder, image_tokens: Callable[[ImageRef], int]
) -> int:
    """How many positions a text takes, its images included.

    Args:
        text: the text, with one placeholder per image.
        images: the images of its placeholders.
        tokenizer: the policy's tokenizer.
        image_tokens: how many positions an image takes; its placeholder gives way to them.
    """
    num_text = len(tokenizer.encode(text, add_special_tokens=False))
    return num_text + sum(image_tokens(image) - 1 for image in images)


def response_tokens(
    conversation: Conversation, tokenizer: TextEncoder, image_tokens: Callable[[ImageRef], int]
) -> tuple[IntArray, NDArray[np.bool_]]:
    """The ids of everything behind the first assistant header, and which of them are targets.

    Part by part, as the engine would meet them: it samples an answer behind a header whose ids are fixed.

    Args:
        conversation: the conversation, chat template applied.
        tokenizer: the policy's tokenizer.
        image_tokens: how many positions an image takes; its placeholder is repeated so often.

    Returns:
        [R] int32 and [R] bool; targets are the tokens of the answers and of the end of each.

    Example:
        Answers of 3 and 2 tokens with a question of 9 between them: 4 targets, 9 others, 3 targets.
    """
    ids: list[int] = []
    is_target: list[bool] = []
    for part in conversation.parts:
        pieces = part.text.split(IMAGE_PLACEHOLDER)
        text = pieces[0]
        for image, piece in zip(part.images, pieces[1:], strict=True):
            text += IMAGE_PLACEHOLDER * image_tokens(image) + piece
        found = tokenizer.encode(text, add_special_tokens=False)
        ids += found
        is_target += [part.is_target] * len(found)
    return np.asarray(ids, dtype=np.int32), np.asarray(is_target, dtype=np.bool_)
