"""Boxes: found in text, bound to their tokens, compared with gold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from rewards.base import RewardCall, RewardError
from rewards.boxes import CONVENTIONS, find_boxes, rectangle
from rewards.functions.grounding import best_matching, box_count, box_iou, iou
from rewards.plugins import load_rewards
from rewards.scopes import ScopeRequest, locate_scopes
from rewards.scorer import Scorer
from rsgrpo.config import ConfigError, RewardConfig, ScopeConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.image_view import ImageView
from rsgrpo.data.images.loading import load_image
from rsgrpo.text.sections import parse_response
from rsgrpo.text.token_offsets import TokenTable
from rsgrpo.types import Box, ImageRef, Sample, TokenSpan
from tests.located import locate_scope
from tests.unit.report_run import sampled_group
from tests.unit.reward_calls import make_call

BOX_SCOPE = ScopeConfig(pattern="box")


def call(
    text: str, *boxes: Box, images: tuple[ImageRef, ...] = (), sizes: Sequence[tuple[int, int]] = ()
) -> RewardCall:
    sample = Sample(sample_id="q", images=images, boxes=boxes)
    return make_call(sample, text, image_sizes=sizes.__getitem__ if sizes else None)


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
        ("(1, 2, 3, 4)", [((0, 12), (1, 2, 3, 4))]),
        ("(1,2)(3,4)", [((0, 10), (1, 2, 3, 4))]),
        ("( 1, 2 ), ( 3, 4 )", [((0, 18), (1, 2, 3, 4))]),
        ("[ 1, 2, 3, 4 ]", [((0, 14), (1, 2, 3, 4))]),
        ("[[1, 2], [3, 4]]", [((0, 16), (1, 2, 3, 4))]),
        ("<box>1 2 3 4</box>", [((0, 18), (1, 2, 3, 4))]),
        ("[.5, 1., 0.33333333333333, 2]", [((0, 29), (0.5, 1.0, 0.33333333333333, 2.0))]),
        (
            '```json\n[\n  {"bbox_2d": [\n    28,\n    56,\n    84,\n    112\n  ]}\n]\n```',
            [((24, 61), (28, 56, 84, 112))],
        ),
        # no boxes: a corner alone, three numbers, a label, too many digits, a line break, Arabic digits
        ("(1,2)", []),
        ("[1, 2, 3, 4, 5, 6, 7, 8]", []),  # a polygon
        ("[1,2,3]", []),
        ("[1]: x", []),
        ("(1234567,2),(3,4)", []),
        ("(1,2),\n(3,4)", []),
        ("(\u0661,2),(3,4)", []),
    ],
)
def test_boxes_are_found_with_their_brackets(text: str, found: list[object]) -> None:
    assert [((box.start, box.stop), box.numbers) for box in find_boxes(text)] == found


def test_malformed_rectangles_are_none() -> None:
    (written,) = find_boxes("(300,400),(100,20)")
    assert rectangle(written, 1000, 1000) is None
    (written,) = find_boxes("(100,20),(300,1001)")
    assert rectangle(written, 1000, 1000) is None
    (written,) = find_boxes("(0,0),(1000,1000)")
    assert rectangle(written, 1000, 1000) == gold(0, 0, 1, 1)


def test_hostile_text_costs_linear_time() -> None:
    assert len(find_boxes("(1,2)," * 200_000)) == 100_000
    for text in ("[1, 2, 3, ", "[ " * 20, "[1,\n\n\n2,", "(1,2, 3,", "[[1,2],[", "<box>1 2 3 ", "[" + " " * 39):
        assert find_boxes(text * (1_000_000 // len(text))) == ()


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


def test_pixels_are_those_of_the_page_that_the_model_saw() -> None:
    images = tuple(ImageRef(path=name) for name in ("page.png", "other.png"))
    sizes = [(112, 56), (196, 56)]
    on_image = gold(0.0, 0.0, 0.5, 0.5, image_index=0)
    assert iou(call("(0,0),(56,28)", on_image, images=images, sizes=sizes), "pixels") == 1.0
    with pytest.raises(RewardError, match="do not say on which of 2 images"):
        iou(call("(0,0),(56,28)", ONE, images=images, sizes=sizes), "pixels")
    with pytest.raises(RewardError, match="lies on image 2, but the sample has 2 images"):
        iou(call("(0,0),(56,28)", gold(0, 0, 1, 1, image_index=2), images=images, sizes=sizes), "pixels")
    with pytest.raises(RewardError, match="not known here at which size the model saw"):
        iou(call("(0,0),(56,28)", on_image, images=images), "pixels")
    with pytest.raises(RewardError, match="convention='percent'"):
        iou(call("(0,0),(56,28)", ONE), "percent")


def test_gold_boxes_of_one_response_may_lie_on_several_pages() -> None:
    images = tuple(ImageRef(path=name) for name in ("page.png", "other.png"))
    boxes = (gold(0.0, 0.0, 0.5, 0.5, image_index=0), gold(0.5, 0.0, 1.0, 1.0, image_index=1))
    # (56, 28) is half of 112 × 56; (98, 0) to (196, 56) the right half of 196 × 56, and beyond the first page.
    text = '[{"bbox_2d": [98, 0, 196, 56]}, {"bbox_2d": [0, 0, 56, 28]}]'
    assert iou(call(text, *boxes, images=images, sizes=[(112, 56), (196, 56)]), "pixels") == 1.0


def test_pages_of_one_size_need_not_be_named() -> None:
    images = tuple(ImageRef(path=name) for name in ("page.png", "other.png"))
    assert iou(call("(10,10),(30,30)", ONE, images=images, sizes=[(100, 100)] * 2), "pixels") == pytest.approx(1.0)


OURS = ((3136, 1003520), (784, 50176), (3136, 20_000_000))
LARGEST = gold(0.1, 0.2, 0.9, 0.95, image_index=0)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("size", [(1, 1), (30, 30), (2000, 1500), (640, 480), (40, 1000), (3000, 4000)])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_an_exact_answer_earns_one_for_any_size(
    tmp_path: Path, size: tuple[int, int], ours: tuple[int, int], convention: str
) -> None:
    Image.new("L", size).save(tmp_path / "page.png")
    image = ImageRef(path="page.png", file=str(tmp_path / "page.png"))
    sent = load_image(image, ImageRules(min_pixels=ours[0], max_pixels=ours[1]))
    high, wide = smart_resize(sent.height, sent.width, factor=28, min_pixels=3136, max_pixels=12845056)
    sides = {"permille": (1000, 1000), "shares": (1, 1), "pixels": (wide, high)}[convention]
    numbers = [edge * side for edge, side in zip((0.1, 0.2, 0.9, 0.95), sides * 2, strict=True)]
    if convention != "shares":
        numbers = [round(number) for number in numbers]
    config = RewardConfig(
        function="rewards.functions.grounding:iou", scope=ScopeConfig(pattern="box"), kwargs={"convention": convention}
    )
    view = ImageView(min_pixels=ours[0], max_pixels=ours[1])
    scorer = Scorer(load_rewards({"iou": config}, Path.cwd()), view)
    sample = Sample(sample_id="q", images=(image,), boxes=(LARGEST,))
    scorer.check_samples([sample])
    (scored,) = scorer.limited_to([sample]).score([sampled_group(sample, [str(numbers)])])
    # Whole numbers are held against gold in whole numbers, so that the best box that can be written earns 1.
    assert [reward.value for reward in scored.rollouts[0].rewards] == [pytest.approx(1.0)]


@given(rectangles(), st.sampled_from([28, 56, 1000]))
def test_the_best_whole_numbers_earn_one_and_the_whole_page_only_if_it_is_gold(box: Box, side: int) -> None:
    numbers = [round(side * edge) for edge in (box.left, box.top, box.right, box.bottom)]
    images = (ImageRef(path="page.png"),)
    if numbers[0] < numbers[2] and numbers[1] < numbers[3]:
        assert iou(call(str(numbers), box, images=images, sizes=[(side, side)]), "pixels") == pytest.approx(1.0)
    else:
        # Thinner than a pixel: the pixel that it lies in.
        left, top = (min(number, side - 1) for number in numbers[:2])
        best = [left, top, max(left + 1, numbers[2]), max(top + 1, numbers[3])]
        assert iou(call(str(best), box, images=images, sizes=[(side, side)]), "pixels") == pytest.approx(1.0)
    whole = call(str([0, 0, side, side]), box, images=images, sizes=[(side, side)])
    assert (iou(whole, "pixels") == 1.0) == (numbers == [0, 0, side, side])


def test_shares_of_the_page_are_not_rounded_to_whole_numbers() -> None:
    # Rounded to whole shares every gold box of more than half of the page would be all of it.
    assert iou(call("(0,0),(1,1)", gold(0.2, 0.2, 0.8, 0.8)), "shares") == pytest.approx(0.36)


def test_bounds_beside_the_convention_are_refused() -> None:
    kwargs = {"convention": "pixels", "min_pixels": 3136, "max_pixels": 1003520}
    config = RewardConfig(function="rewards.functions.grounding:iou", scope=BOX_SCOPE, kwargs=kwargs)
    with pytest.raises(
        RewardError, match=r"rewards\.iou\.kwargs: max_pixels and min_pixels must go.*one place, data\."
    ):
        load_rewards({"iou": config}, Path.cwd())
    with pytest.raises(RewardError, match="have one place"):
        iou(call("(0,0),(56,28)", ONE), **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"convention": "permile"}, "convention='permile' is not known; choose one of permille, shares, pixels"),
        (
            {"section": "answers"},
            "section='answers' is not declared; response.sections has observe, evidence, think, answer",
        ),
        ({"threshold": 50}, r"threshold=50 must lie in \[0, 1\]"),
        ({"treshold": 0.5}, "do not fit"),
    ],
)
def test_arguments_are_checked_when_rewards_are_loaded(kwargs: dict[str, object], message: str) -> None:
    config = RewardConfig(function="rewards.functions.grounding:iou", scope=BOX_SCOPE, kwargs=kwargs)
    with pytest.raises(RewardError, match=message):
        load_rewards({"iou": config}, Path.cwd())


@pytest.mark.parametrize(
    ("kwargs", "box", "problem"),
    [
        ({}, gold(-0.2, 0.1, 0.5, 0.5), r"its gold itself, written as rewards\.iou\.kwargs say .*earns 0\.000"),
        ({"convention": "pixels"}, ONE, "do not say on which of 2 images"),
        ({"convention": "pixels"}, gold(0.1, 0.1, 0.2, 0.2, 5), "lies on image 5"),
    ],
)
def test_gold_that_cannot_earn_one_is_refused_before_the_start(
    tmp_path: Path, kwargs: dict[str, object], box: Box, problem: str
) -> None:
    images = []
    for name, size in (("a.png", (200, 100)), ("b.png", (100, 200))):
        Image.new("L", size).save(tmp_path / name)
        images.append(ImageRef(path=name, file=str(tmp_path / name)))
    config = RewardConfig(function="rewards.functions.grounding:iou", scope=BOX_SCOPE, kwargs=kwargs)
    scorer = Scorer(load_rewards({"iou": config}, Path.cwd()), ImageView(min_pixels=3136, max_pixels=10**6))
    fine = Sample(sample_id="fine", images=tuple(images), boxes=(gold(0.1, 0.1, 0.5, 0.5, 1),))
    bad = Sample(sample_id="bad", images=tuple(images), boxes=(box,))
    with pytest.raises(RewardError, match=rf"reward 'iou' cannot judge 1 of 2 samples \('bad': .*{problem}"):
        scorer.check_samples([fine, bad])
    assert scorer.limited_to([fine]).rewards and not scorer.limited_to([fine, bad]).rewards


def test_more_gold_boxes_than_are_matched_by_default_can_all_be_found() -> None:
    boxes = tuple(gold(n / 100, 0.0, (n + 1) / 100, 0.5) for n in range(100))
    text = " ".join(f"[{10 * n}, 0, {10 * n + 10}, 500]" for n in range(100))
    assert iou(call(text, *boxes)) == pytest.approx(1.0)


def test_fractions_and_degenerate_gold() -> None:
    for name in ("shares", "fraction"):
        assert iou(call("(0.1,0.1),(0.3,0.3)", ONE), name) == pytest.approx(1.0)
    assert iou(call("(100,100),(300,300)", gold(0.5, 0.5, 0.1, 0.6))) is None


def test_box_count() -> None:
    assert box_count(call("(1,2),(3,4)", ONE)) == 1.0
    assert box_count(call("(1,2),(3,4)", ONE, TWO)) == 0.0
    assert box_count(call("(3,4),(1,2)", ONE)) == 0.0
    assert box_count(call("", ONE)) == 0.0


@pytest.mark.parametrize(
    ("function", "missing"),
    [
        ("rewards.functions.grounding:iou", "no gold boxes"),
        ("rewards.functions.multiple_choice:choice", "no options"),
        ("rewards.functions.haystack:needle_found", "which images matter"),
    ],
)
def test_samples_without_the_gold_are_refused_before_the_start(function: str, missing: str) -> None:
    config = RewardConfig(function=function, scope=ScopeConfig(start="begin", stop="end"))
    scorer = Scorer(load_rewards({"reward": config}, Path.cwd()))
    with pytest.raises(RewardError, match=f"cannot judge 1 of 1 samples .'q7': it has .*{missing}"):
        scorer.check_samples([Sample(sample_id="q7", images=(ImageRef(path="0.png"),))])
