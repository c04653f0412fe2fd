"""What several tests of the recipes start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmark_data import write_evisrag, write_haystacks, write_mig_bench, write_milebench


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Small data sets of all benchmarks, where ``eval.data_root`` would find them."""
    root = tmp_path / "data"
    write_evisrag(root)
    write_milebench(root)
    write_haystacks(root)
    write_mig_bench(root)
    return root
