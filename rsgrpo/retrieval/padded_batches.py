"""How items of different lengths are cut into batches whose rows are padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence


def padded_batches(num_tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Cut items into batches of at most ``budget`` tokens, padding included.

    From the longest to the shortest, so that rows of a batch are of similar length and the largest batch comes first:
    what does not fit into memory shows at once. The same plan for the same lengths every time.

    Args:
        num_tokens: of each item.
        budget: most tokens of a batch, which has ``rows × longest row``; an item above it is a batch of its own.

    Returns:
        Item indexes of each batch; together they hold every item once.

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
