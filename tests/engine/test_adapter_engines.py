"""Engines that keep the base and get adapters alone, against transformers with the merged weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsgrpo.model.families.table import FAMILIES
from tests.engine.answers import MAX_GAP_NATS
from tests.engine.gap_process import gaps_of

pytestmark = pytest.mark.engine


def test_an_engine_with_adapters_computes_the_merged_model(tmp_path: Path) -> None:
    found = gaps_of("tests.engine.adapter_engines", tmp_path, list(FAMILIES))
    assert list(found) == list(FAMILIES)
    for family, gaps in found.items():
        # each update takes the place of the one before, also in what the engine had cached
        changed = [gaps.pop(f"update {version}, against the model before") for version in (1, 2)]
        assert min(changed) > 10 * MAX_GAP_NATS, family
        assert max(gaps.values()) < MAX_GAP_NATS, family
