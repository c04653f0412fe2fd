"""The whole algorithm on the real engines, to the token: a change that only moves code leaves the trace as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.compare import differences
from tests.golden.job import run_job
from tests.golden.rewrite import TRACE

pytestmark = pytest.mark.engine


def test_the_golden_job_leaves_the_trace_that_is_written_down(tmp_path: Path) -> None:
    expected = json.loads(TRACE.read_text())
    found = json.loads(json.dumps(run_job(tmp_path)))
    # What is meant to change: `uv run python -m tests.golden.rewrite`, and say why in the commit.
    assert list(differences(expected, found)) == []
