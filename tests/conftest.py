"""Fixtures that several test files share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from rsgrpo.system.processes import keep_bytecode
from tests.examples import EXAMPLES

# As train.py does, before anything imports Ray: workers run in this environment, not in one that uv builds.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

# Tiny tensors gain nothing from a second thread, and on busy cores threads wait for each other. Ranks and engines are
# told their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests start a hundred processes that import vLLM, DeepSpeed or transformers.
keep_bytecode()

# The default run draws the same examples every time: a test that passes today passes tomorrow. The deep one looks for
# new ones, ten times as many (`HYPOTHESIS_PROFILE=deep`); what it finds becomes a plain test of its own.
hypothesis.settings.register_profile("default", derandomize=True, deadline=None, max_examples=EXAMPLES)
hypothesis.settings.register_profile(
    "deep",
    derandomize=False,
    deadline=None,
    max_examples=10 * EXAMPLES,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

SLOW_FILES = Path(__file__).parent / "slow_files.txt"
"""Test files that take more than about a second; `make check` leaves them out, `uv run pytest` runs all."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow files."""
    root = Path(__file__).parent.parent
    slow = {root / line for line in SLOW_FILES.read_text().split()}
    for item in items:
        if item.path in slow:
            item.add_marker(pytest.mark.slow)


WITHOUT_RAY = frozenset(
    {
        "tests/engine/test_adapters.py",
        "tests/engine/test_plan_measured.py",
        "tests/engine/test_rank_memory.py",
        "tests/engine/test_refused_step.py",
        "tests/engine/test_retriever_ranks.py",
        "tests/engine/test_zero_invariance.py",
    }
)
"""Test files of ranks alone: they start neither Ray nor vLLM, and most fork from one process that is started once."""


class EnginesTogether(LoadScopeScheduling):
    """What runs in one process where several run (``pytest -n 2``).

    All tests that start Ray or vLLM: two such at a time would want more cores and memory than a small machine has.
    Those of ranks without them. Else a file's tests.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file in WITHOUT_RAY:
            return "ranks"
        return "engine" if file.startswith("tests/engine/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> EnginesTogether:
    """Give tests to processes in the order of their files, so that the long ones with engines begin first."""
    return EnginesTogether(config, log)


PARITY_FOLDER = Path(__file__).parent / "data" / "parity"


@pytest.fixture(scope="session")
def parity() -> Callable[[str], list[dict[str, Any]]]:
    """Vectors computed by the original scorers: ``parity("evisrag_rewards")`` is the list in that file."""

    def load(name: str) -> list[dict[str, Any]]:
        vectors: list[dict[str, Any]] = json.loads((PARITY_FOLDER / f"{name}.json").read_text())
        assert vectors, f"{name}.json holds no vectors"
        return vectors

    return load
