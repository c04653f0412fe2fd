"""Cut items of different lengths into batches whose rows are padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence


def padded_batches(num_tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Cut items into batches of at most ``budget`` tokens, padding included.

    Items are taken from the longest to the shortest, so that rows of a batch are of similar length and the largest
    batch comes first: a batch that does not fit into memory fails at once. Equal lengths always give equal batches.

    Args:
        num_tokens: the number of tokens of each item.
        budget: the most tokens that a batch may have, counted as ``rows × longest row``; an item above it makes a batch
            of its own.

    Returns:
        The indexes of the items of each batch, from 0; together they hold every item once.

    Example:
        ``padded_batches([3, 10, 4, 3], 10)`` is ``[[1], [2, 0], [3]]``: 10, 2 × 4 and 1 × 3 tokens.
    """
    batches: list[list[int]] = []
    longest = 0
    for item in sorted(range(len(num_tokens)), key=lambda i: (-num_tokens[i], i)):
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = num_tokens[item]
        batches[-1].append(item)
    return batches
