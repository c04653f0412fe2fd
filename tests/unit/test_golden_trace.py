"""How two traces are compared, and that the one written down says something."""

from __future__ import annotations

import json

import pytest

from tests.golden.compare import differences
from tests.golden.rewrite import TRACE


@pytest.mark.parametrize(
    ("expected", "found", "lines"),
    [
        ({"loss": 2.0}, {"loss": 2.0 * (1 + 9e-6)}, []),
        ({"loss": 2.0}, {"loss": 2.0 * (1 + 2e-5)}, ["loss: 2.0 is now 2.00004"]),
        ({"loss": 0.0}, {"loss": 5e-9}, []),
        # The loss of a step may differ by rounding, a reward's value and a token may not.
        (
            {"rewards": {"a": {"value": 0.5}}},
            {"rewards": {"a": {"value": 0.5000000001}}},
            ["rewards/a/value: 0.5 is now 0.5000000001"],
        ),
        ({"tokens": [1, 2]}, {"tokens": [1, 3, 4]}, ["tokens: 2 entries are now 3", "tokens/1: 2 is now 3"]),
        ({"a": 1, "b": 2}, {"b": 2, "c": 3}, ["a: is gone", "c: is new"]),
        ({"value": None}, {"value": 0.0}, ["value: None is now 0.0"]),
        ({"value": 1}, {"value": True}, ["value: 1 is now True"]),
    ],
)
def test_differences_are_named_by_their_place(expected: object, found: object, lines: list[str]) -> None:
    assert list(differences(expected, found)) == lines
    assert list(differences(expected, expected)) == []


def test_the_trace_holds_what_scoped_rewards_are_about() -> None:
    trace = json.loads(TRACE.read_text())
    responses = [response for step in trace["rl"] for sample in step["samples"].values() for response in sample]
    assert len(responses) >= 16
    spans = {
        name: [response["rewards"][name]["spans"] for response in responses] for name in ("accuracy/-1", "evidence/-1")
    }
    # Scopes that differ from response to response, in the right order: evidence ends where thinking begins.
    for evidence, thinking in zip(spans["evidence/-1"], spans["accuracy/-1"], strict=True):
        assert not (evidence and thinking) or evidence[-1][1] <= thinking[0][0]
    assert all(len({json.dumps(places) for places in found}) > 4 for found in spans.values())
    for name in spans:
        assert len({response["rewards"][name]["value"] for response in responses}) > 1
    # Credit that differs along a response: the mark of a scope.
    pairs = [set(zip(response["positive"], response["negative"], strict=True)) for response in responses]
    assert sum(len(pair) > 1 for pair in pairs) > len(pairs) / 2
    assert all(step["loss"] > 0 and step["grad_norm"] > 0 for step in trace["sft"])
    assert {"policy/update_1/grad_norm", "policy/update_2/grad_norm"} <= trace["rl"][0]["metrics"].keys()
