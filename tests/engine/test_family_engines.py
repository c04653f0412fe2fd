"""vLLM against transformers for every family, pages, stored features, weight updates; and the plan of its cache."""

from __future__ import annotations

import pytest

from rsgrpo.model.families.table import FAMILIES
from tests.engine.answers import MAX_GAP_NATS
from tests.engine.gap_process import gaps_of

pytestmark = pytest.mark.engine

# test_rollout_pool.py has it, through Ray and with two engines.
OTHERS = [family for family in FAMILIES if family != "qwen2_5_vl"]


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return gaps_of("tests.engine.family_engines", tmp_path_factory.mktemp("root"), OTHERS)


@pytest.mark.parametrize("family", OTHERS)
def test_an_engine_agrees_with_transformers_before_and_after_updates(
    gaps: dict[str, dict[str, float]], family: str
) -> None:
    found = dict(gaps[family])
    # The update of adapters has changed the model: the one before it is far off.
    assert found.pop("adapters, against the model before") > 10 * MAX_GAP_NATS
    assert found.pop("bytes of a sequence, planned against vLLM") == 0
    assert max(found.values()) < MAX_GAP_NATS
