"""How a step's responses are cut into micro-batches and laid out in packed sequences.

A group's prompt stands once in a sequence, followed by those of its responses that the micro-batch holds:

    packed:   [prompt of a | response a0 | response a1 | prompt of b | response b0 | ...]

A response attends to its prompt and to itself (:mod:`rsgrpo.model.attention.backend`), and its positions go on where
the prompt's stopped. With ``share_prefix=False`` every response brings its own copy of the prompt, through
the same code. Everything here is deterministic and free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsgrpo.errors import RsgrpoError

IndexArray = NDArray[np.int64]

# Attention work that costs as much as a token's way through the matrices of a layer: parameters of a layer over
# 2 · hidden size, which is 18,800 for Qwen2.5-VL-3B and 32,500 for 7B. It only balances ranks.
_PAIRS_A_TOKEN = 20_000


class TokenBudgetError(RsgrpoError, ValueError):
    """A prompt with one response does not fit into a micro-batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSize:
    """What planning needs to know of a group.

    Attributes:
        sample_id: the id of the group's sample, for messages.
        num_prompt_tokens: how many tokens the prompt has, with every image placeholder expanded.
        response_lengths: how many tokens each response has.
    """

    sample_id: str
    num_prompt_tokens: int
    response_lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A prompt with some of its responses, side by side in one sequence.

    Attributes:
        group: the index of the group among those that were planned.
        responses: the indexes of the responses within the group.
        num_prompt_tokens: how many tokens the prompt has.
        response_lengths: how many tokens each of these responses has.
    """

    group: int
    responses: tuple[int, ...]
    num_prompt_tokens: int
    response_lengths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """How many packed tokens the segment takes."""
        return self.num_prompt_tokens + sum(self.response_lengths)

    @property
    def num_pairs(self) -> int:
        """How many pairs of a query and a key that it sees the segment has: its attention work."""
        return attention_pairs(self.num_prompt_tokens, self.response_lengths)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedSequence:
    """Where everything stands in one packed sequence.

    Attributes:
        segments: the segments, in the order in which they stand.
        prompt_starts: the position of the first token of each segment's prompt.
        response_starts: the position of the first token of every response, segment by segment.
        response_segments: the index of the segment that each response belongs to.
        response_lengths: how many tokens every response has.
        num_tokens: how many tokens the sequence has.
    """

    segments: tuple[Segment, ...]
    prompt_starts: tuple[int, ...]
    response_starts: tuple[int, ...]
    response_segments: tuple[int, ...]
    response_lengths: tuple[int, ...]
    num_tokens: int


def attention_pairs(num_prompt_tokens: int, response_lengths: Sequence[int]) -> int:
    """Pairs of a query and a key that it sees, of a prompt that stands once before its responses.

    The prompt is causal over itself, a response sees the prompt and is causal over itself:
    ``P (P + 1) / 2 + sum (R P + R (R + 1) / 2)``.

    Example:
        Prompt 3, responses (2, 4): 6 + (6 + 3) + (12 + 10) = 37.
    """
    prompt = num_prompt_tokens
    return prompt * (prompt + 1) // 2 + sum(r * prompt + r * (r + 1) // 2 for r in response_lengths)


def _check_fits(size: GroupSize, *, budget: int, max_pairs: int) -> None:
    """Refuse a group whose prompt does not fit with its longest response."""
    longest = max(size.response_lengths)
    what = f"sample {size.sample_id!r}: prompt of {size.num_prompt_tokens} tokens and response of {longest} make"
    lower = "lower data.max_pixels, data.max_prompt_tokens or rollout.sampling.max_response_tokens"
    need = size.num_prompt_tokens + longest
    if need > budget:
        raise TokenBudgetError(
            f"{what} {need}, above trainer.micro_batch_tokens={budget}; set trainer.micro_batch_tokens to at least "
            f"{need}, or {lower}"
        )
    pairs = attention_pairs(size.num_prompt_tokens, [longest])
    if max_pairs and pairs > max_pairs:
        raise TokenBudgetError(
            f"{what} {pairs} pairs of query and key, above trainer.micro_batch_pairs={max_pairs}; set "
            f"trainer.micro_batch_pairs to at least {pairs}, or to 0 for no cap, or {lower}"
        )


def split_group(size: GroupSize, index: int, *, budget: int, share_prefix: bool, max_pairs: int = 0) -> list[Segment]:
    """Cut a group into segments of at most ``budget`` tokens.

    Args:
        size: the group's lengths.
        index: the group's index, which its segments carry.
        budget: most packed tokens of a segment (``trainer.micro_batch_tokens``).
        share_prefix: whether one prompt serves several responses; else every response is a segment of its own.
        max_pairs: most :func:`attention_pairs` of a segment (``trainer.micro_batch_pairs``); 0: no cap.

    Returns:
        The segments, which hold every response once. The longest responses come first, so that those of one segment are
        of similar length.

    Raises:
        TokenBudgetError: the prompt and its longest response alone are above the budget or the cap.

    Example:
        Prompt 10, responses (5, 9, 7), budget 26: segments with responses (1, 2) = 26 tokens and (0,) = 15.
    """
    _check_fits(size, budget=budget, max_pairs=max_pairs)
    order = sorted(range(len(size.response_lengths)), key=lambda i: (-size.response_lengths[i], i))
    shares: list[list[int]] = []
    lengths: list[int] = []
    for response in order:
        lengths.append(size.response_lengths[response])
        fits = size.num_prompt_tokens + sum(lengths) <= budget and (
            not max_pairs or attention_pairs(size.num_prompt_tokens, lengths) <= max_pairs
        )
        if not shares or not share_prefix or not fits:
            shares.append([])
            lengths = lengths[-1:]
        shares[-1].append(response)
    return [
        Segment(
            group=index,
            responses=tuple(chosen),
            num_prompt_tokens=size.num_prompt_tokens,
            response_lengths=tuple(size.response_lengths[i] for i in chosen),
        )
        for chosen in shares
    ]


def plan_micro_batches(
    sizes: Sequence[GroupSize], *, budget: int, share_prefix: bool, max_pairs: int = 0
) -> tuple[tuple[Segment, ...], ...]:
    """Cut one rank's groups into micro-batches of at most ``budget`` packed tokens.

    First fit over segments from the longest to the shortest: few micro-batches, none above the budget,
    the same plan for the same sizes every time. The fullest come first, on every rank: ranks that wait for each
    other at every layer (ZeRO 3) then wait little.

    Args:
        sizes: the rank's groups.
        budget: most packed tokens of a micro-batch.
        share_prefix: whether a prompt stands once for several responses.
        max_pairs: most pairs of a query and a key that it sees in a micro-batch; 0: no cap.

    Returns:
        The segments of each micro-batch; together they hold every response of every group once.

    Raises:
        TokenBudgetError: a prompt and one response do not fit, see :func:`split_group`.
    """
    segments = [
        segment
        for index, size in enumerate(sizes)
        for segment in split_group(size, index, budget=budget, share_prefix=share_prefix, max_pairs=max_pairs)
    ]
    segments.sort(key=lambda segment: (-segment.num_tokens, segment.group, segment.responses))
    batches: list[list[Segment]] = []
    free: list[tuple[int, int]] = []  # tokens and pairs
    for segment in segments:
        pairs = segment.num_pairs if max_pairs else 0
        slot = next((i for i, room in enumerate(free) if room[0] >= segment.num_tokens and room[1] >= pairs), -1)
        if slot < 0:
            batches.append([])
            free.append((budget, max_pairs))
        batches[slot].append(segment)
        free[slot] = (free[slot][0] - segment.num_tokens, free[slot][1] - pairs)
    batches.sort(key=lambda batch: -sum(segment.num_tokens for segment in batch))
    return tuple(tuple(batch) for batch in batches)


def step_cost(num_prompt_tokens: int, response_lengths: Sequence[int]) -> int:
    """What a group costs, in tokens: those it has, and its attention in their measure.

    Example:
        A prompt of 10,000 with 8 responses of 500: 14,000 tokens and 91 million pairs: 18,550.
    """
    tokens = num_prompt_tokens + sum(response_lengths)
    return tokens + attention_pairs(num_prompt_tokens, response_lengths) // _PAIRS_A_TOKEN


def balance(costs: Sequence[int], num_ranks: int) -> tuple[tuple[int, ...], ...]:
    """Share items out so that ranks get about the same cost: longest first, to the least loaded rank.

    Args:
        costs: the cost of each item, such as its packed tokens.
        num_ranks: how many shares are made.

    Returns:
        The item indexes of each rank, in ascending order; a rank may get none.

    Example:
        ``balance([5, 4, 3, 2], 2)`` is ``((0, 3), (1, 2))``.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        shares[rank].append(item)
        loads[rank] += costs[item]
    return tuple(tuple(sorted(share)) for share in shares)


def pack(segments: Sequence[Segment]) -> PackedSequence:
    """Put segments one after the other into a sequence.

    Example:
        One segment, prompt 3 and responses (2, 4): prompt at 0, responses at 3 and 5, 9 tokens.
    """
    prompt_starts: list[int] = []
    response_starts: list[int] = []
    response_segments: list[int] = []
    position = 0
    for index, segment in enumerate(segments):
        prompt_starts.append(position)
        position += segment.num_prompt_tokens
        for length in segment.response_lengths:
            response_starts.append(position)
            response_segments.append(index)
            position += length
    return PackedSequence(
        segments=tuple(segments),
        prompt_starts=tuple(prompt_starts),
        response_starts=tuple(response_starts),
        response_segments=tuple(response_segments),
        response_lengths=tuple(length for segment in segments for length in segment.response_lengths),
        num_tokens=position,
    )


def predictor_index(packed: PackedSequence) -> IndexArray:
    """Which position of the sequence predicts each response token.

    Token 0 of a response is predicted at the last position of its prompt (all siblings share it),
    token t at the response's own position t - 1.

    Returns:
        [sum of response lengths] int64, the positions response by response.

    Example:
        Prompt 3, responses (2, 4): ``[2, 3,  2, 5, 6, 7]``.
    """
    parts: list[IndexArray] = []
    for start, segment, length in zip(
        packed.response_starts, packed.response_segments, packed.response_lengths, strict=True
    ):
        index = np.arange(start - 1, start - 1 + length, dtype=np.int64)
        index[0] = packed.prompt_starts[segment] + packed.segments[segment].num_prompt_tokens - 1
        parts.append(index)
    return np.concatenate(parts)
