"""Several pages as one image, side by side or one below the other, as VisRAG's `page_concatenation` shows them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image


def join_pages(pages: Sequence[Image.Image], *, is_vertical: bool = False) -> Image.Image:
    """Join pages without gaps, each scaled to the height of the highest (or the width of the widest) page.

    The result may be large: nothing bounds it, as in VisRAG (arXiv:2410.10594, §3.3). Scale it down afterwards where a
    model has a budget of pixels.

    Args:
        pages: the pages, from left to right (or from top to bottom).
        is_vertical: whether pages stand one below the other.

    Returns:
        The RGB image.

    Raises:
        ValueError: there is no page, or a page becomes thinner than a pixel.

    Example:
        Pages of 100×50 and 30×90 pixels become one of 210×90: the first is scaled to 180×90.
    """
    if not pages:
        raise ValueError("there is no page to join; give at least one")
    across, along = (0, 1) if is_vertical else (1, 0)  # of (width, height): what all share, and what adds up
    shared = max(page.size[across] for page in pages)
    tiles = []
    for page in pages:
        # In this order of operations: another would round differently.
        length = int(page.size[along] * (shared / page.size[across]))
        if length < 1:
            raise ValueError(
                f"a page of {page.width}×{page.height} pixels becomes thinner than a pixel beside the others"
            )
        size = (shared, length) if is_vertical else (length, shared)
        tiles.append(page.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    total = sum(tile.size[along] for tile in tiles)
    joined = Image.new("RGB", (shared, total) if is_vertical else (total, shared))
    place = 0
    for tile in tiles:
        joined.paste(tile, (0, place) if is_vertical else (place, 0))
        place += tile.size[along]
    return joined
