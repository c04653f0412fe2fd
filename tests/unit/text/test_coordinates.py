"""Boxes between shares, per mille and pixels of the resized image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as original

from rsgrpo.text.coordinates import box_tokens, from_pixels, smart_resize, to_per_mille, to_pixels
from rsgrpo.types import Box

SIDES = st.integers(1, 4000)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    # at least 0.01 apart, so that rounding to whole per mille or pixels leaves an area
    left, top = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
    right, bottom = draw(st.floats(left + 0.01, 1)), draw(st.floats(top + 0.01, 1))
    return Box(left=left, top=top, right=right, bottom=bottom, image_index=1)


@given(width=SIDES, height=SIDES, low=st.integers(1, 10**6), more=st.integers(0, 10**7))
def test_the_size_is_that_of_the_processor(width: int, height: int, low: int, more: int):
    bounds = {"min_pixels": low, "max_pixels": low + more}
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ValueError, match="has no size"):
            smart_resize(width, height, **bounds)
        return
    high, wide = original(height, width, factor=28, **bounds)
    assert smart_resize(width, height, **bounds) == (wide, high)
    found = smart_resize(width, height, **bounds)
    assert all(side >= 28 and side % 28 == 0 for side in found)


def test_sizes_by_hand():
    # 1000/28 = 35.7 -> 36 tokens = 1008; 700/28 = 25 exactly
    assert smart_resize(1000, 700, min_pixels=3136, max_pixels=12845056) == (1008, 700)
    # 20x20 rounds to 28x28 = 784 < 3136: factor sqrt(3136/400) = 2.8, 56 exactly
    assert smart_resize(20, 20, min_pixels=3136, max_pixels=12845056) == (56, 56)
    # 4000x3000 to at most 1568000: scale sqrt(12e6/1.568e6) = 2.766; 1445.9 -> 51 tokens, 1084.4 -> 38 tokens
    assert smart_resize(4000, 3000, min_pixels=3136, max_pixels=1568000) == (51 * 28, 38 * 28)


@given(box=boxes())
def test_per_mille_and_back_moves_no_edge_by_more_than_half_of_one(box: Box):
    back = from_pixels(to_per_mille(box), (1000, 1000), image_index=1)
    for edge in ("left", "top", "right", "bottom"):
        assert abs(getattr(back, edge) - getattr(box, edge)) <= 0.5 / 1000 + 1e-12


@given(box=boxes(), size=st.tuples(st.integers(4, 200), st.integers(4, 200)))
def test_pixels_and_back_moves_no_edge_by_more_than_half_a_pixel(box: Box, size: tuple[int, int]):
    width, height = 28 * size[0], 28 * size[1]
    back = from_pixels(to_pixels(box, (width, height)), (width, height), image_index=1)
    assert abs(back.left - box.left) <= 0.5 / width + 1e-12
    assert abs(back.bottom - box.bottom) <= 0.5 / height + 1e-12


def test_numbers_by_hand():
    box = Box(left=0.1, top=0.2, right=0.5, bottom=1.0)
    assert to_per_mille(box) == (100, 200, 500, 1000)
    assert box_tokens(box) == "<|box_start|>(100,200),(500,1000)<|box_end|>"
    assert to_pixels(box, (1008, 700)) == (101, 140, 504, 700)
    assert from_pixels((252, 0, 504, 700), (1008, 700)) == Box(left=0.25, top=0.0, right=0.5, bottom=1.0)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (5, 0, 4, 9), (0, 0, 1001, 9), (-1, 0, 4, 9), (0, 4, 9, 4)])
def test_what_is_no_box_is_refused(numbers: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"four numbers|is no box"):
        from_pixels(numbers, (1000, 1000))
