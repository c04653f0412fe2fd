"""Where supervised training gets its conversations: tagged trajectories in memory, or a mixture read from files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from recipes.prompt_stream import PromptStream
from rsgrpo.config import Config
from rsgrpo.data.files import DataError
from rsgrpo.data.images.counts import ImageCounts
from rsgrpo.data.images.image_manifest import ImageManifest
from rsgrpo.data.images.loading import check_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.data.mixture import Mixture
from rsgrpo.errors import RsgrpoError
from rsgrpo.prompts.conversation import (
    TURN_END,
    Conversation,
    ConversationBuilder,
    ResponsePart,
    TextEncoder,
    count_tokens,
)
from rsgrpo.prompts.template import PromptTemplateError, response_behind
from rsgrpo.types import ImageRef, PromptedSample


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """Conversations for a step.

    Attributes:
        conversations: the rows of as many conversations as were asked for, no id twice.
        position: the position in the source at which the next step goes on.
        skipped: the kind and the detail of what is wrong with each conversation that was passed over.
    """

    conversations: list[Conversation]
    position: int
    skipped: tuple[tuple[str, str], ...]


class ConversationSource(Protocol):
    """Endless conversations, an epoch after the other; what comes is a function of the position alone.

    Attributes:
        images: counts of the images that were looked at while conversations were taken; each counts once.
    """

    images: ImageCounts

    def __len__(self) -> int:
        """How many conversations an epoch has."""

    def take(self, position: int, count: int) -> Taken:
        """Take the next conversations."""

    def held_out(self) -> list[Conversation]:
        """The conversations that training does not see."""

    def close(self) -> None:
        """End the source: nothing more will be taken from it."""


class TrajectorySource:
    """Tagged trajectories that were read and checked before.

    Args:
        prompts: samples with gold responses and their prompts; the last ones are held out.
        seed: the seed of the order.
        num_held_out: how many are held out, but at most a tenth.
    """

    def __init__(self, prompts: Sequence[PromptedSample], *, seed: int, num_held_out: int) -> None:
        num_trained = len(prompts) - min(num_held_out, len(prompts) // 10)
        self._trained, self._held_out = prompts[:num_trained], prompts[num_trained:]
        self.images = ImageCounts()  # they were looked at when the trajectories were read
        self._stream = PromptStream(self._trained, seed=seed, shuffle=True)

    def __len__(self) -> int:
        return len(self._trained)

    def take(self, position: int, count: int) -> Taken:
        """Take the next conversations, in a new random order every epoch."""
        self._stream.position = position
        taken = self._stream.take(count)
        return Taken(
            conversations=[_trajectory(prompted) for prompted in taken], position=self._stream.position, skipped=()
        )

    def held_out(self) -> list[Conversation]:
        """The last trajectories."""
        return [_trajectory(prompted) for prompted in self._held_out]

    def close(self) -> None:
        """Do nothing: trajectories are held in memory."""


def _trajectory(prompted: PromptedSample) -> Conversation:
    gold = response_behind(prompted.prompt, prompted.sample.gold_response)
    answer = ResponsePart(text=gold + TURN_END, is_target=True)
    return Conversation(sample_id=prompted.sample.sample_id, prompt=prompted.prompt, parts=(answer,))


class MixtureSource:
    """A mixture; what is wrong with a conversation beyond its record shows when it is taken.

    Args:
        mixture: the data sets that are mixed.
        builder: builds conversations of samples.
        config: limits, and what to do about defects.
        max_tokens: the most tokens of a conversation; 0: what fits into a forward pass.
        tokenizer: the policy's tokenizer.
        image_tokens: how many positions an image takes.

    Attributes:
        images: counts of the images of the conversations that were taken so far; each counts once.
    """

    def __init__(
        self,
        mixture: Mixture,
        builder: ConversationBuilder,
        config: Config,
        *,
        max_tokens: int,
        tokenizer: TextEncoder,
        image_tokens: Callable[[ImageRef], int],
    ) -> None:
        self._mixture = mixture
        self._builder = builder
        self._skips = config.data.on_bad_sample == "skip"
        self._max_prompt_tokens = config.data.max_prompt_tokens
        self._max_tokens = min(max_tokens or config.trainer.micro_batch_tokens, config.trainer.micro_batch_tokens)
        self._tokenizer = tokenizer
        self._image_tokens = image_tokens
        self._rules = config.data.image_rules
        self.images = ImageCounts()
        self._counted: set[ImageRef] = set()
        self._manifest = ImageManifest(config.data.media_cache, mixture.paths)
        self._epoch = -1
        self._order = mixture.held_out

    def __len__(self) -> int:
        return len(self._mixture)

    def take(self, position: int, count: int) -> Taken:
        """Take the next conversations that fit.

        Raises:
            RsgrpoError: something is wrong with a conversation (``data.on_bad_sample=reject``), or with those of a
                whole epoch.
        """
        conversations: list[Conversation] = []
        ids: set[str] = set()
        skipped: list[tuple[str, str]] = []
        num_taken = 0
        while num_taken < count:
            try:
                rows = self._checked(self._key(position), position)
            except _UnusableError as error:
                skipped.append((error.reason, error.detail))
                if len(skipped) >= len(self):
                    raise DataError(
                        f"none of {len(skipped)} conversations in a row can be used, the last one because: "
                        f"{error.detail}"
                    ) from error
            else:
                if any(row.sample_id in ids for row in rows):  # a source of weight 2 may show a record twice in a step
                    rows = tuple(row.renamed(f"{row.sample_id}@{position}") for row in rows)
                ids.update(row.sample_id for row in rows)
                conversations.extend(rows)
                num_taken += 1
            position += 1
        self._manifest.keep_sometimes(self._counted)
        return Taken(conversations=conversations, position=position, skipped=tuple(skipped))

    def held_out(self) -> list[Conversation]:
        """The mixture's held-out conversations that fit."""
        found: list[Conversation] = []
        for key in self._mixture.held_out:
            # One that cannot be used is no part of the validation loss, in any step.
            with suppress(_UnusableError):
                found.extend(self._checked(int(key), 0))
        self._manifest.keep_sometimes(self._counted)
        return found

    def close(self) -> None:
        """Keep what was found out about images for the next run."""
        self._manifest.keep(self._counted)

    def _key(self, position: int) -> int:
        epoch, index = divmod(position, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._mixture.order(epoch)
        return int(self._order[index])

    def _checked(self, key: int, draw: int) -> tuple[Conversation, ...]:
        """Build the rows of one conversation, and check their images and lengths."""
        try:
            rows = self._builder.build(self._mixture.sample(key, draw))
            for image in dict.fromkeys(image for row in rows for image in row.images):
                self._look_at(image)
            for row in rows:
                self._check_length(row)
        except ImageError as error:
            raise self._unusable("image", error) from error
        except PromptTemplateError as error:
            raise self._unusable("text", error) from error
        except _TooLongError as error:
            raise self._unusable("too long", error) from error
        return rows

    def _look_at(self, image: ImageRef) -> None:
        facts = check_image(image, self._rules)
        if image not in self._counted:
            self._counted.add(image)
            self.images.add(facts)

    def _unusable(self, reason: str, error: Exception) -> Exception:
        if self._skips:
            return _UnusableError(reason, f"{error}")
        return RsgrpoError(f"{error}\n(or set data.on_bad_sample=skip to pass over such conversations)")

    def _check_length(self, conversation: Conversation) -> None:
        prompt = self._num_tokens(conversation.prompt.text, conversation.prompt.images)
        total = prompt + sum(self._num_tokens(part.text, part.images) for part in conversation.parts)
        if prompt > self._max_prompt_tokens or total > self._max_tokens:
            raise _TooLongError(
                f"sample {conversation.sample_id!r} has {total} tokens, {prompt} of them before its first answer; the "
                f"limits are {self._max_tokens} (sft.max_tokens, trainer.micro_batch_tokens) and "
                f"data.max_prompt_tokens={self._max_prompt_tokens}: raise them, or lower data.max_pixels"
            )

    def _num_tokens(self, text: str, images: Sequence[ImageRef]) -> int:
        return count_tokens(text, images, self._tokenizer, self._image_tokens)


class _TooLongError(Exception):
    pass


class _UnusableError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
