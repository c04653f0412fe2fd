"""How much of the labelled push other rewards find, on responses whose numbers can be counted by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.config import EVISRAG, RewardConfig, ScopeConfig
from rsgrpo.errors import RsgrpoError
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.recorder import record_sampled
from rsgrpo.text.normalise import IRRELEVANT
from rsgrpo.types import ImageRef, Sample
from tests.unit.reward_calls import character_group

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def credit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("evidence_credit")


def response(line: str, answer: str) -> str:
    return f"<observe>o</observe>\n<evidence>[1]: {line}</evidence>\n<think>t</think>\n<answer>{answer}</answer>"


def recorded(folder: Path, *groups: tuple[str, str]) -> Path:
    """A run that recorded groups about one page each, whose gold line is ``red seven`` and answer ``7``."""
    format_alone = {
        "format": RewardConfig(function="rewards.functions.format:format", scope=ScopeConfig(start="begin", stop="end"))
    }
    sampled = [
        character_group(
            Sample(
                sample_id=f"q{number}",
                question="?",
                images=(ImageRef(path="1.png"),),
                gold_response=response("red seven", "7"),
            ),
            *texts,
        )
        for number, texts in enumerate(groups)
    ]
    scored = Scorer(load_rewards(format_alone, Path.cwd())).score(sampled)
    record_sampled(RunFolder(root=folder).rollouts_file, "rl", scored)
    return folder


def test_a_right_sibling_shows_what_a_label_shows_and_wrong_ones_nothing(credit: ModuleType, tmp_path: Path) -> None:
    run = recorded(
        tmp_path,
        (response("red seven", "7"), response(IRRELEVANT, "4")),
        (response("red seven", "9"), response(IRRELEVANT, "4")),
    )
    found, kinds = credit.pushes(run, EVISRAG, 2)
    # two siblings of which one is right: +-1 / sqrt(2); in the second group nobody knows which
    half = 2**-0.5
    assert found["labelled"] == pytest.approx([half, -half, half, -half], abs=1e-5)
    assert found["consensus"] == pytest.approx([half, -half, 0.0, 0.0], abs=1e-5)
    assert not found["exchanges alone"].any()  # this run asked nothing
    silent, right = "irrelevant, about pages that matter", "speaking, read rightly, about pages that matter"
    assert kinds == [right, silent, right, silent]
    (consensus,) = [line for line in credit.alike_table(found).splitlines() if line.startswith("| consensus")]
    assert consensus == "| consensus | 0.71 | 50 % | 50 % |"  # cosine 1 / sqrt(2)
    assert f"| {right} | 2 | +1 | +1 | +1 | +0 | +0 |" in credit.kind_table(found, kinds)


def test_groups_that_are_too_small_are_refused(credit: ModuleType, tmp_path: Path) -> None:
    run = recorded(tmp_path, (response("red seven", "7"), response(IRRELEVANT, "4")))
    with pytest.raises(RsgrpoError, match="holds no group of 4 responses"):
        credit.pushes(run, EVISRAG, 4)
