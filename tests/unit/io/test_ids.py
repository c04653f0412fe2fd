from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.io.ids import near_misses, plain_id, well_formed
from tests.examples import examples


@pytest.mark.parametrize("value", ["4", " 4", "4\r\n", "\ufeff4", "4\u200b", "4" + " \ufeff" * 5000, 4, 4.0])
def test_one_id_in_all_ways_of_writing_it(value: object) -> None:
    assert plain_id(value) == "4"


@pytest.mark.parametrize(
    ("value", "expected"), [("007", "007"), ("4.0", "4.0"), ("Q4", "Q4"), (-1, "-1"), (1e3, "1000")]
)
def test_zeros_capitals_and_points_count(value: object, expected: str) -> None:
    assert plain_id(value) == expected


@pytest.mark.parametrize(
    "value", [None, "", " \ufeff", True, False, 4.5, float("nan"), float("inf"), 2.0**60, [4], {"id": 4}, b"4"]
)
def test_values_that_are_no_ids_are_refused(value: object) -> None:
    # 2^60 as a float stands for 256 whole numbers.
    assert plain_id(value) is None


def test_near_misses_are_named_beside_what_they_look_like() -> None:
    wanted = ["0", "4", "12", "Q7", "page 3"]
    seen = ["000", "4.0", "chartqa_12", "q7", "page3", "012.json", "99", "other"]
    assert near_misses(seen, wanted) == [
        ("000", "0"),
        ("4.0", "4"),
        ("chartqa_12", "12"),
        ("q7", "Q7"),
        ("page3", "page 3"),
        ("012.json", "12"),
    ]


@given(st.text())
@examples(100)
def test_a_plain_id_is_its_own_and_can_be_written(text: str) -> None:
    found = plain_id(text)
    assert found is None or (plain_id(found) == found and found.encode())


def test_lone_surrogates_are_replaced_and_counted_and_pairs_joined() -> None:
    assert well_formed("a\ud83d b\ude00") == ("a\ufffd b\ufffd", 2)
    assert well_formed("\ud83d\ude00") == ("\U0001f600", 0)
    assert well_formed("\ufffd\ud83d") == ("\ufffd\ufffd", 1)
