"""MIRAGE's retriever rule, whose outcome prediction files may hold."""

from __future__ import annotations

from collections.abc import Sequence

_RELEVANT = 0.5


def retained_images(scores: Sequence[float], top_k: int) -> tuple[int, ...]:
    """MIRAGE's retriever rule: which images the model gets to see.

    The ``top_k`` best, even those below one half, if any score reaches one half; else the best one.

    Args:
        scores: an image each, 0 to 1.
        top_k: 1 for one needle, 3 for several.

    Returns:
        0/1 an image: what ``Reply.retrieved`` holds.

    Raises:
        ValueError: there is no image.

    Example:
        ``retained_images([0.9, 0.2, 0.6], 3) == (1, 1, 1)``, ``retained_images([0.4, 0.45, 0.1], 3) == (0, 1, 0)``.
    """
    if not scores:
        raise ValueError("there is no image to retain; give one score per image")
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    kept = order[: top_k if max(scores) >= _RELEVANT else 1]
    return tuple(int(index in kept) for index in range(len(scores)))
