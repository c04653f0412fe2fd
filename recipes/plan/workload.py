"""What a step has to do: lengths of prompts and answers and sizes of pages, cut into sequences as the ranks do it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rsgrpo.config import Config
from rsgrpo.model.activation_memory import PackedSize
from rsgrpo.model.attention.delta_net import padded_size
from rsgrpo.model.micro_batches import GroupSize, Segment, balance, plan_micro_batches, step_cost
from rsgrpo.types import ImageRef

_SIMULATED_STEPS = 8
TokensOfImage = Callable[[ImageRef, int], int]
"""A function that gives the image tokens of a page under a bound on its pixels (``data.max_pixels``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A question or a conversation; of a conversation that is trained as several rows the first one.

    Attributes:
        sample_id: the id of the question or conversation.
        prompt_text_tokens: how many tokens its prompt takes without images.
        images: the images in its prompt.
        answer_text_tokens: how many tokens of text stand behind the prompt in the data; 0 where the answer is sampled.
        answer_images: the images that stand behind the prompt in the data; none where the answer is sampled.
        more_rows: the further rows of a conversation whose earlier answers the chat template writes otherwise.
    """

    sample_id: str
    prompt_text_tokens: int
    images: tuple[ImageRef, ...] = ()
    answer_text_tokens: int = 0
    answer_images: tuple[ImageRef, ...] = ()
    more_rows: tuple[Item, ...] = ()

    @property
    def rows(self) -> tuple[Item, ...]:
        """All rows that the item is trained as."""
        return (self, *self.more_rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """A data set, looked at in full or in part.

    Attributes:
        name: the data set's name, such as ``rl``.
        items: the items that were looked at, evenly spread over the set.
        num_items: how many items the whole set has, as far as it is known.
        is_counted: whether the whole set was counted; if not, it was not read to its end and is larger than
            ``num_items``.
    """

    name: str
    items: tuple[Item, ...]
    num_items: int
    is_counted: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stage, or a phase of the supervised one.

    Attributes:
        name: the name of the stage or phase, such as ``rl``.
        data: the data set that it trains on.
        per_step: how many prompts or conversations a step takes.
        num_samples: how many responses are sampled to each prompt; 1 where nothing is sampled.
        max_response_tokens: the most tokens of a sampled response; 0: nothing is sampled.
        num_steps: how many steps the stage has.
        passes: how many forward passes without gradients each sequence takes beside the update.
    """

    name: str
    data: DataSet
    per_step: int
    num_samples: int
    max_response_tokens: int
    num_steps: int
    passes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepWork:
    """A step's sequences, by rank.

    Attributes:
        packs: the sizes of the packed sequences of each rank.
        prompt_tokens: how many tokens the prompt of each item, or of each of its rows, has, images included.
        num_sampled_tokens: how many tokens the engines sample in the step.
    """

    packs: tuple[tuple[PackedSize, ...], ...]
    prompt_tokens: tuple[int, ...]
    num_sampled_tokens: int

    @property
    def num_tokens(self) -> int:
        """Packed tokens of all sequences of all ranks."""
        return sum(packed.num_tokens for rank in self.packs for packed in rank)


def steps_of(stage: Stage) -> list[list[Item]]:
    """Some of a stage's steps, as its data would fill them; items that were looked at stand for the others.

    Example:
        Three items and ``per_step=2``: two steps, the second of the third item and the first.
    """
    items, size = stage.data.items, stage.per_step
    if stage.max_response_tokens:
        size = min(size, stage.data.num_items)  # a step never has a question twice
    count = min(_SIMULATED_STEPS, -(-len(items) // size))
    return [[items[(step * size + index) % len(items)] for index in range(size)] for step in range(count)]


def step_work(
    items: Sequence[Item],
    stage: Stage,
    config: Config,
    tokens_of_image: TokensOfImage,
    *,
    patches_a_token: int,
    frac: float,
) -> StepWork:
    """Cut the items of a step into the packed sequences of each rank.

    Args:
        items: the items of the step, as :class:`recipes.plan.reading.Reader` read them.
        stage: the stage, which says how many responses each item gets.
        config: the settings: budget of a sequence, ranks, bound of an image.
        tokens_of_image: gives how many tokens an image takes.
        patches_a_token: how many patches are merged into a token.
        frac: the length of sampled responses as a share of their bound, 0 to 1.

    Raises:
        TokenBudgetError: a prompt with a response does not fit into a sequence.
    """
    trainer, max_pixels = config.trainer, config.data.max_pixels
    response = max(1, round(frac * stage.max_response_tokens))
    sizes, image_patches = [], []
    for row in [row for item in items for row in item.rows]:
        tokens = [tokens_of_image(image, max_pixels) for image in row.images]
        answer_tokens = [tokens_of_image(image, max_pixels) for image in row.answer_images]
        lengths = (response,) * stage.num_samples
        if not stage.max_response_tokens:
            lengths = (max(1, row.answer_text_tokens + sum(answer_tokens)),)
        prompt = row.prompt_text_tokens + sum(tokens)
        sizes.append(GroupSize(sample_id=row.sample_id, num_prompt_tokens=prompt, response_lengths=lengths))
        # A page that stands twice in a row is encoded once.
        shown = dict(zip((*row.images, *row.answer_images), (*tokens, *answer_tokens), strict=True))
        image_patches.append([count * patches_a_token for count in shown.values()])
    costs = [step_cost(size.num_prompt_tokens, size.response_lengths) for size in sizes]
    ranks = []
    for share in balance(costs, trainer.num_ranks):
        plan = plan_micro_batches(
            [sizes[i] for i in share],
            budget=trainer.micro_batch_tokens,
            share_prefix=trainer.share_prefix,
            max_pairs=trainer.micro_batch_pairs,
        )
        packs = []
        for segments in plan:
            patches = [
                count for group in {segment.group for segment in segments} for count in image_patches[share[group]]
            ]
            packed = _packed_size(segments)
            is_stored = bool(config.model.vision_cache.folder)
            packs.append(
                dataclasses.replace(
                    packed,
                    num_patches=0 if is_stored else sum(patches),
                    num_stored=sum(patches) // patches_a_token if is_stored else 0,
                    num_image_pairs=sum(count * count for count in patches),
                )
            )
        ranks.append(tuple(packs))
    sampled = sum(sum(size.response_lengths) for size in sizes) if stage.max_response_tokens else 0
    return StepWork(
        packs=tuple(ranks),
        prompt_tokens=tuple(size.num_prompt_tokens for size in sizes),
        num_sampled_tokens=sampled,
    )


def _packed_size(segments: Sequence[Segment]) -> PackedSize:
    """The size of a sequence of these segments, its pages left out."""
    padded, chunks = padded_size(
        [segment.num_prompt_tokens for segment in segments],
        [length for segment in segments for length in segment.response_lengths],
    )
    return PackedSize(
        num_tokens=sum(segment.num_tokens for segment in segments),
        num_response_tokens=sum(sum(segment.response_lengths) for segment in segments),
        num_pairs=sum(segment.num_pairs for segment in segments),
        num_keys=sum(
            segment.num_tokens + segment.num_prompt_tokens * len(segment.response_lengths) for segment in segments
        ),
        num_padded=padded,
        num_chunks=chunks,
    )


def fullest_pack(work: Sequence[StepWork], budget: int) -> PackedSize:
    """The largest sequence that steps like these may have.

    Of the simulated sequences the one with most tokens counts, and that with most pages; a rank whose share is larger
    than the budget is taken to fill a sequence up to it some day.

    Args:
        work: the work of simulated steps, with all responses at their bound.
        budget: the most packed tokens of a sequence (``trainer.micro_batch_tokens``).
    """
    packs = [packed for step in work for rank in step.packs for packed in rank]
    shares = [sum(packed.num_tokens for packed in rank) for step in work for rank in step.packs]
    largest = max(packs, key=lambda packed: packed.num_tokens)
    tokens = max(largest.num_tokens, min(budget, max(shares)))
    growth = tokens / largest.num_tokens
    return dataclasses.replace(
        largest,
        num_tokens=tokens,
        num_response_tokens=min(tokens, max(packed.num_response_tokens for packed in packs)),
        num_patches=max(packed.num_patches for packed in packs),
        num_stored=max(packed.num_stored for packed in packs),
        num_keys=math.ceil(growth * largest.num_keys),
        num_padded=math.ceil(growth * largest.num_padded),
        num_chunks=math.ceil(growth * largest.num_chunks),
    )
