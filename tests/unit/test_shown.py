"""Values in messages: one line, of bounded length, without names and passwords."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.errors import shown
from tests.examples import examples


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("http://ada:hunter2@127.0.0.1:9/v1 does not answer", "http://127.0.0.1:9/v1 does not answer"),
        ("see https://token@host and ftp://a:b@c/d", "see https://host and ftp://c/d"),
        ("mail ada@host, http://host/a@b", "mail ada@host, http://host/a@b"),
    ],
    ids=["one", "two", "none"],
)
def test_names_and_passwords_of_addresses_are_not_shown(value: str, told: str) -> None:
    assert shown(value) == told


@examples(100)
@given(st.text(max_size=400), st.integers(3, 60))
def test_a_value_is_one_line_of_bounded_length(value: str, limit: int) -> None:
    line = shown(value, limit)
    assert len(line) <= limit and "\n" not in line and line.isprintable()
