"""Where supervised training gets its conversations: tagged trajectories in memory, or a mixture read from files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from recipes.prompt_stream import PromptStream
from rsgrpo.config import Config
from rsgrpo.conversation_prompts import TURN_END, Conversation, ConversationBuilder, ResponsePart, TextEncoder
from rsgrpo.data_files import DataError
from rsgrpo.errors import RsgrpoError
from rsgrpo.images import ImageError, check_page
from rsgrpo.mixture import Mixture
from rsgrpo.prompts import PromptTemplateError
from rsgrpo.types import ImageRef, PromptedSample


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """Conversations for a step.

    Attributes:
        conversations: as many as were asked for, no id twice.
        position: where the next step goes on.
        num_skipped: conversations that were passed over because something is wrong with them.
    """

    conversations: list[Conversation]
    position: int
    num_skipped: int


class ConversationSource(Protocol):
    """Endless conversations, an epoch after the other; what comes is a function of the position alone."""

    def __len__(self) -> int:
        """Conversations of an epoch."""

    def take(self, position: int, count: int) -> Taken:
        """The next conversations."""

    def held_out(self) -> list[Conversation]:
        """Those that training does not see."""


class TrajectorySource:
    """Tagged trajectories that were read and checked before.

    Args:
        questions: with gold responses; the last ones are held out.
        seed: of the order.
        num_held_out: how many, but at most a tenth.
    """

    def __init__(self, questions: Sequence[PromptedSample], *, seed: int, num_held_out: int) -> None:
        num_trained = len(questions) - min(num_held_out, len(questions) // 10)
        self._trained, self._held_out = questions[:num_trained], questions[num_trained:]
        self._stream = PromptStream(self._trained, seed=seed, shuffle=True)

    def __len__(self) -> int:
        return len(self._trained)

    def take(self, position: int, count: int) -> Taken:
        """The next conversations, in a new random order every epoch."""
        self._stream.position = position
        taken = self._stream.take(count)
        return Taken(conversations=[_trajectory(one) for one in taken], position=self._stream.position, num_skipped=0)

    def held_out(self) -> list[Conversation]:
        """The last trajectories."""
        return [_trajectory(one) for one in self._held_out]


def _trajectory(question: PromptedSample) -> Conversation:
    gold = ResponsePart(text=question.sample.gold_response + TURN_END, is_target=True)
    return Conversation(sample_id=question.sample.sample_id, prompt=question.prompt, parts=(gold,))


class MixtureSource:
    """A mixture; what is wrong with a conversation beyond its record shows when it is taken.

    Args:
        mixture: the data.
        builder: writes conversations.
        config: limits, and what to do about defects.
        tokenizer: the policy's.
        image_tokens: how many positions an image takes.
    """

    def __init__(
        self,
        mixture: Mixture,
        builder: ConversationBuilder,
        config: Config,
        tokenizer: TextEncoder,
        image_tokens: Callable[[ImageRef], int],
    ) -> None:
        self._mixture = mixture
        self._builder = builder
        self._skips = config.data.on_bad_sample == "skip"
        self._max_prompt_tokens = config.data.max_prompt_tokens
        self._max_tokens = config.trainer.micro_batch_tokens
        self._tokenizer = tokenizer
        self._image_tokens = image_tokens
        self._epoch = -1
        self._order = mixture.held_out

    def __len__(self) -> int:
        return len(self._mixture)

    def take(self, position: int, count: int) -> Taken:
        """The next conversations that fit.

        Raises:
            RsgrpoError: something is wrong with one (``data.on_bad_sample=reject``), or with a whole epoch.
        """
        conversations: list[Conversation] = []
        ids: set[str] = set()
        num_skipped = num_passed = 0
        while len(conversations) < count:
            if num_passed > 2 * len(self):
                raise DataError(
                    f"a step needs {count} different conversations, of {len(self)} in the mixture {num_skipped} in a "
                    "row cannot be used; lower samples_per_step or add data"
                )
            conversation = self._checked(self._key(position), position)
            position += 1
            num_passed += 1
            if conversation is None:
                num_skipped += 1
            elif conversation.sample_id not in ids:
                ids.add(conversation.sample_id)
                conversations.append(conversation)
        return Taken(conversations=conversations, position=position, num_skipped=num_skipped)

    def held_out(self) -> list[Conversation]:
        """The mixture's held-out conversations that fit."""
        found = [self._checked(int(key), 0) for key in self._mixture.held_out]
        return [one for one in found if one is not None]

    def _key(self, position: int) -> int:
        epoch, index = divmod(position, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._mixture.order(epoch)
        return int(self._order[index])

    def _checked(self, key: int, draw: int) -> Conversation | None:
        """The conversation; None if it cannot be used and may be left out."""
        try:
            conversation = self._builder.build(self._mixture.sample(key, draw))
            for image in conversation.images:
                check_page(image)
            self._check_length(conversation)
        except (ImageError, PromptTemplateError, _TooLongError) as error:
            if self._skips:
                return None
            raise RsgrpoError(f"{error}\n(or set data.on_bad_sample=skip to pass over such conversations)") from error
        return conversation

    def _check_length(self, conversation: Conversation) -> None:
        # Every image's one placeholder in the text gives way to its image tokens.
        prompt = self._num_tokens(conversation.prompt.text, conversation.prompt.images)
        total = prompt + sum(self._num_tokens(part.text, part.images) for part in conversation.parts)
        if prompt > self._max_prompt_tokens or total > self._max_tokens:
            raise _TooLongError(
                f"sample {conversation.sample_id!r} has {total} tokens, {prompt} of them before its first answer; the "
                f"limits are trainer.micro_batch_tokens={self._max_tokens} and "
                f"data.max_prompt_tokens={self._max_prompt_tokens}: raise them, or lower data.max_pixels"
            )

    def _num_tokens(self, text: str, images: Sequence[ImageRef]) -> int:
        num_text = len(self._tokenizer.encode(text, add_special_tokens=False))
        return num_text + sum(self._image_tokens(image) - 1 for image in images)


class _TooLongError(Exception):
    pass
