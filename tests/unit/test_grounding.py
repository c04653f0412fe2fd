"""Boxes: found in text, bound to their tokens, compared with gold."""

from __future__ import annotations

from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rewards.base import RewardCall, RewardError
from rewards.boxes import find_boxes, rectangle
from rewards.grounding import best_matching, box_count, box_iou, iou
from rewards.plugins import load_rewards
from rewards.scopes import ScopeRequest, locate_scope, locate_scopes
from rewards.scorer import Scorer
from rsgrpo.config import ConfigError, RewardConfig, ScopeConfig
from rsgrpo.sections import parse_response
from rsgrpo.token_offsets import TokenTable
from rsgrpo.types import Box, ImageRef, Sample, TokenSpan

BOX_SCOPE = ScopeConfig(pattern="box")


def call(text: str, *boxes: Box, images: tuple[ImageRef, ...] = ()) -> RewardCall:
    return RewardCall(
        sample=Sample(sample_id="q", images=images, boxes=boxes),
        text=text,
        parsed=parse_response(text),
        token_ids=np.zeros(3, dtype=np.int32),
        finish_reason="stop",
        num_tokens=3,
        rollout_index=0,
    )


def gold(left: float, top: float, right: float, bottom: float, image_index: int = -1) -> Box:
    return Box(left=left, top=top, right=right, bottom=bottom, image_index=image_index)


# --- boxes in text ---


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("at (100,20),(300,400).", [((3, 21), (100, 20, 300, 400))]),
        ("(1 , 2) ,  (3,4)", [((0, 16), (1, 2, 3, 4))]),
        ("[[0.1, 0.2, 0.3, 0.45]]", [((1, 22), (0.1, 0.2, 0.3, 0.45))]),
        ('{"bbox_2d": [28, 56, 84, 112]}', [((12, 29), (28, 56, 84, 112))]),
        ("(1,2),(3,4),(5,6),(7,8)", [((0, 11), (1, 2, 3, 4)), ((12, 23), (5, 6, 7, 8))]),
        ("(-5,2),(3,4)", [((0, 12), (-5, 2, 3, 4))]),
        # no boxes: a corner alone, three numbers, a label, too many digits, a line break, Arabic digits
        ("(1,2)", []),
        ("[1,2,3]", []),
        ("[1]: x", []),
        ("(1234567,2),(3,4)", []),
        ("(1,2),\n(3,4)", []),
        ("(\u0661,2),(3,4)", []),
    ],
)
def test_boxes_are_found_with_their_brackets(text: str, found: list[object]) -> None:
    assert [((one.start, one.stop), one.numbers) for one in find_boxes(text)] == found


def test_malformed_rectangles_are_none() -> None:
    (written,) = find_boxes("(300,400),(100,20)")
    assert rectangle(written, 1000, 1000) is None
    (written,) = find_boxes("(100,20),(300,1001)")
    assert rectangle(written, 1000, 1000) is None
    (written,) = find_boxes("(0,0),(1000,1000)")
    assert rectangle(written, 1000, 1000) == gold(0, 0, 1, 1)


def test_hostile_text_costs_linear_time() -> None:
    assert len(find_boxes("(1,2)," * 200_000)) == 100_000
    assert find_boxes("[1, 2, 3, " * 100_000) == ()


# --- the scope {pattern: box} ---


def test_the_scope_is_the_tokens_that_start_inside_a_box() -> None:
    # Token 1 (` (`) starts with the blank in front of the bracket, so it stays outside; token 5 (`).\n`) starts
    # with the closing bracket, so it belongs. The special tokens have no text: the opening one carries the place
    # of the bracket behind it and belongs to the box, the closing one that of the character behind the box.
    pieces = [b"at", b" (", b"10,", b"20),(30", b",40", b").\n", b"", b"(1", b",2),", b"(3,4)", b"", b" end", b""]
    text, starts = TokenTable(pieces).decode(range(len(pieces)))
    assert text == "at (10,20),(30,40).\n(1,2),(3,4) end"
    located = locate_scope(BOX_SCOPE, parse_response(text), starts)
    assert located.spans == (TokenSpan(start=2, stop=6), TokenSpan(start=6, stop=10))
    assert located.found


def test_the_scope_may_be_held_to_a_section() -> None:
    text = "<think>(1,2),(3,4)</think><answer>(5,6),(7,8)</answer>"
    starts = np.arange(len(text) + 1, dtype=np.int32)
    located = locate_scope(ScopeConfig(pattern="box", section="answer"), parse_response(text), starts)
    first = text.index("(5")
    assert located.spans == (TokenSpan(start=first, stop=first + 11),)


def test_without_a_box_the_scope_is_absent() -> None:
    starts = np.arange(5, dtype=np.int32)
    parsed = parse_response("none")
    assert locate_scope(BOX_SCOPE, parsed, starts).spans == ()
    assert not locate_scope(BOX_SCOPE, parsed, starts).found
    assert locate_scope(BOX_SCOPE, parsed, starts, "whole").spans == (TokenSpan(start=0, stop=5),)


BOX_TEXT = st.builds(
    "({},{}),({},{})".format, *[st.integers(0, 1000)] * 4
) | st.builds("[{}, {}, {}, {}]".format, *[st.sampled_from(["0.1", "0.25", "28", "7"])] * 4)  # fmt: skip
OTHER_TEXT = st.sampled_from([" ", ".", "é", "<answer>", "</answer>", "It is in image 2. ", "(1,2)", "),(", "\n"])


@given(st.lists(BOX_TEXT | OTHER_TEXT, max_size=12).map("".join), st.data())
def test_each_token_is_in_scope_as_its_first_character_is_in_a_box(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    edges = [0, *data.draw(st.lists(st.integers(0, len(encoded)), max_size=25).map(sorted)), len(encoded)]
    pieces = [encoded[start:stop] for start, stop in pairwise(edges)]
    _, starts = TokenTable([*pieces, b""]).decode(range(len(pieces) + 1))
    parsed = parse_response(text)
    boxes = find_boxes(text)
    # beside other scopes, whose ranges must not shift the boxes'
    requests = [ScopeRequest(scope=scope) for scope in (ScopeConfig(section="answer"), BOX_SCOPE, BOX_SCOPE)]
    _, (located,), (again,) = locate_scopes(requests, parsed, starts, num_images=0)
    assert located == again
    taken = [index for span in located.spans for index in range(span.start, span.stop)]
    expected = [
        index for index, start in enumerate(starts.tolist()) if any(box.start <= start < box.stop for box in boxes)
    ]
    assert taken == expected
    assert located.found == bool(boxes)


def test_a_scope_of_an_unknown_pattern_or_of_two_forms_is_refused() -> None:
    with pytest.raises(ConfigError, match="box"):
        ScopeConfig(pattern="circle")
    with pytest.raises(ConfigError, match="exactly one"):
        ScopeConfig(pattern="box", start="begin", stop="end")
    with pytest.raises(ConfigError, match="exactly one"):
        ScopeConfig(pattern="box", evidence_line=True)


# --- IoU ---

UNIT = st.floats(0, 1)


@st.composite
def rectangles(draw: st.DrawFn) -> Box:
    left, right = sorted(draw(st.tuples(UNIT, UNIT).filter(lambda pair: abs(pair[0] - pair[1]) > 1e-6)))
    top, bottom = sorted(draw(st.tuples(UNIT, UNIT).filter(lambda pair: abs(pair[0] - pair[1]) > 1e-6)))
    return gold(left, top, right, bottom)


@given(rectangles(), rectangles())
def test_iou_is_symmetric_bounded_and_one_for_equal_boxes(left: Box, right: Box) -> None:
    value = box_iou(left, right)
    assert 0.0 <= value <= 1.0
    assert value == box_iou(right, left)
    assert box_iou(left, left) == pytest.approx(1.0)
    if left.right <= right.left or left.bottom <= right.top:
        assert value == 0.0


@given(rectangles(), st.floats(0.05, 0.95))
def test_iou_with_a_part_is_the_share_of_the_area(box: Box, share: float) -> None:
    part = gold(box.left, box.top, box.left + share * (box.right - box.left), box.bottom)
    assert box_iou(box, part) == pytest.approx(share, rel=1e-4)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_matching_is_the_best_of_all(num_rows: int, num_columns: int, data: st.DataObject) -> None:
    table = [[data.draw(UNIT) for _ in range(num_columns)] for _ in range(num_rows)]
    wide = table if num_rows <= num_columns else [list(column) for column in zip(*table, strict=True)]
    best = max(
        sum(row[column] for row, column in zip(wide, order, strict=True))
        for order in permutations(range(len(wide[0])), len(wide))
    )
    assert best_matching(table) == pytest.approx(best)


ONE = gold(0.1, 0.1, 0.3, 0.3)
TWO = gold(0.6, 0.6, 0.8, 0.8)


@pytest.mark.parametrize(
    ("text", "boxes", "expected"),
    [
        ("(100,100),(300,300)", (ONE,), 1.0),
        ("(100,100),(300,200)", (ONE,), 0.5),  # half of it
        ("(100,100),(300,300) (0,0),(1000,1000)", (ONE,), 0.5),  # one right, one too many: 1 / max(2, 1)
        ("(0,0),(1000,1000)", (ONE,), 0.04),  # the whole page: 0.2 * 0.2
        ("(300,300),(100,100)", (ONE,), 0.0),  # corners swapped
        ("(100,100),(300,300)", (ONE, TWO), 0.5),  # one of two
        ("(600,600),(800,800) (100,100),(300,300)", (ONE, TWO), 1.0),  # order does not matter
        ("(100,100),(300,300) (100,100),(300,300)", (ONE, TWO), 0.5),  # the same twice is right once
        ("nowhere", (ONE,), 0.0),
    ],
)
def test_iou_of_responses(text: str, boxes: tuple[Box, ...], expected: float) -> None:
    assert iou(call(text, *boxes)) == pytest.approx(expected)


def test_a_threshold_takes_the_whole_page_away() -> None:
    large = gold(0.0, 0.0, 0.8, 0.5)
    assert iou(call("(0,0),(1000,1000)", large)) == pytest.approx(0.4)
    assert iou(call("(0,0),(1000,1000)", large), threshold=0.5) == 0.0
    assert iou(call("(0,0),(800,500)", large), threshold=0.5) == 1.0


def test_pixels_are_those_of_the_resized_page(tmp_path: Path) -> None:
    Image.new("RGB", (100, 60)).save(tmp_path / "page.png")
    Image.new("RGB", (200, 60)).save(tmp_path / "other.png")
    pages = tuple(ImageRef(path=name, file=str(tmp_path / name)) for name in ("page.png", "other.png"))
    # 100x60 stays (3136 <= 6000 <= 10**6); sides round to multiples of 28: 112 and 56
    on_page = gold(0.0, 0.0, 0.5, 0.5, image_index=0)
    assert iou(call("(0,0),(56,28)", on_page, images=pages), "pixels", max_pixels=10**6) == 1.0
    with pytest.raises(RewardError, match="do not say on which of 2 images"):
        iou(call("(0,0),(56,28)", ONE, images=pages), "pixels")
    with pytest.raises(RewardError, match="convention='percent'"):
        iou(call("(0,0),(56,28)", ONE), "percent")


def test_fractions_and_degenerate_gold() -> None:
    assert iou(call("(0.1,0.1),(0.3,0.3)", ONE), "fraction") == pytest.approx(1.0)
    assert iou(call("(100,100),(300,300)", gold(0.5, 0.5, 0.1, 0.6))) is None


def test_box_count() -> None:
    assert box_count(call("(1,2),(3,4)", ONE)) == 1.0
    assert box_count(call("(1,2),(3,4)", ONE, TWO)) == 0.0
    assert box_count(call("(3,4),(1,2)", ONE)) == 0.0
    assert box_count(call("", ONE)) == 0.0


@pytest.mark.parametrize(
    ("function", "missing"),
    [
        ("rewards.grounding:iou", "no gold boxes"),
        ("rewards.multiple_choice:choice", "no options"),
        ("rewards.haystack:needle_found", "which images matter"),
    ],
)
def test_samples_without_the_gold_are_refused_before_the_start(function: str, missing: str) -> None:
    config = RewardConfig(function=function, scope=ScopeConfig(start="begin", stop="end"))
    scorer = Scorer(load_rewards({"reward": config}, Path.cwd()))
    with pytest.raises(RewardError, match=f"cannot judge 1 of 1 samples .'q7': it has .*{missing}"):
        scorer.check_samples([Sample(sample_id="q7", images=(ImageRef(path="0.png"),))])
