"""Files are listed in the order in which people number them."""

from __future__ import annotations

import string
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.data.files import data_files
from rsgrpo.io.natural_order import natural_key, visible_files
from tests.examples import examples

NAMES = st.text(alphabet="aB1209._- /٣é", max_size=10)


@pytest.mark.parametrize(
    "names",
    [
        [f"{number}.jpg" for number in range(1, 13)],
        ["frame_2.png", "frame_10.png"],
        ["Frame2.png", "frame3.png", "FRAME10.png"],
        ["part-1-of-10.parquet", "part-2-of-10.parquet", "part-10-of-10.parquet"],
        ["part-1-of-2", "part-1-of-10", "part-2-of-2"],
        ["a/9/1.jpg", "a/10/1.jpg"],
        ["page.png", "page1.png", "page01b.png", "page2.png"],
        ["1.jpg", "02.jpg", "3.jpg"],
        ["٢.jpg", "3.jpg", "١٠.jpg"],
        ["clip-00.5.jpg", "clip-1.0.jpg", "clip-1.10.jpg"],
        ["x" + "9" * 20, "x1" + "0" * 20],
    ],
)
def test_numbers_in_names_count_as_numbers(names: list[str]):
    for shuffled in list(permutations(names))[:50] if len(names) < 5 else [names[::-1]]:
        assert sorted(shuffled, key=natural_key) == names


@examples(100)
@given(st.lists(st.integers(0, 10**25), min_size=1, max_size=20), st.text(string.ascii_letters, max_size=5))
def test_numbered_names_come_in_the_order_of_their_numbers(numbers: list[int], prefix: str):
    names = sorted((f"{prefix}{number}.png" for number in numbers), key=natural_key)
    assert [int(name[len(prefix) : -4]) for name in names] == sorted(numbers)


@examples(100)
@given(NAMES, NAMES, NAMES)
def test_the_order_is_total(first: str, second: str, third: str):
    keys = [natural_key(name) for name in (first, second, third)]
    assert (keys[0] == keys[1]) == (first == second)
    assert (keys[0] < keys[1]) + (keys[1] < keys[0]) == (first != second)
    if keys[0] <= keys[1] <= keys[2]:
        assert keys[0] <= keys[2]


def test_the_shards_of_a_data_set_are_read_in_natural_order(tmp_path: Path):
    for number in (1, 2, 9, 10, 11):
        (tmp_path / f"train-{number}-of-11.jsonl").write_text("{}\n")
    assert [file.name for file in data_files(str(tmp_path))] == [f"train-{n}-of-11.jsonl" for n in (1, 2, 9, 10, 11)]


def test_hidden_files_of_a_mac_are_not_listed(tmp_path):
    for name in ("10.json", "9.json", "._9.json", "._10.json", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert [file.name for file in visible_files(tmp_path, "*.json")] == ["9.json", "10.json"]
    assert visible_files(tmp_path / "nowhere", "*.json") == []
