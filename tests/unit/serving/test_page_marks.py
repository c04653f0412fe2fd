"""Words of a page that a line of evidence repeats: the runs of difflib, at a bounded cost."""

from __future__ import annotations

import difflib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recipes.serving import marks
from rsgrpo.documents.records import PlacedWord
from rsgrpo.types import Box
from tests.examples import examples


@examples(200)
@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from(("a", "b", "c", "")), max_size=12))
def test_runs_are_those_of_difflib(wanted: list[str], there: list[str]) -> None:
    blocks = difflib.SequenceMatcher(None, wanted, there, autojunk=False).get_matching_blocks()
    expected = {place for block in blocks for place in range(block.b, block.b + block.size)}
    found = marks.common_runs(wanted, there)
    assert {place for start, size in found for place in range(start, start + size)} == expected


def test_the_marks_of_repeated_words_take_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # difflib takes minutes for this: every word of the line is on the page ten thousands of times.
    num_rows = 0
    longest_run = marks._longest_run

    def counted(line: NDArray[np.int64], page: NDArray[np.int64]) -> tuple[int, int, int]:
        nonlocal num_rows
        num_rows += len(line)
        assert len(page) <= 4000
        return longest_run(line, page)

    monkeypatch.setattr(marks, "_longest_run", counted)
    page = [PlacedWord(text=text, box=Box(left=0.0, top=0.0, right=0.1, bottom=0.1)) for text in ("a", "b") * 40_000]
    marks.marked_words("a " * 1000, page)
    assert num_rows <= 200 * 201  # 200 words of the line, for each run that is found and each gap that is left
