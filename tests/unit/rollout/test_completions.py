"""What vLLM says of a response, as a record of ours; the objects stand in for vLLM's, whose import takes seconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from rollout.completions import rollout_of, sampled_logprobs, token_versions
from rollout.requests import requests_for
from rsgrpo.config import SamplingConfig
from rsgrpo.text.token_offsets import TokenTable
from rsgrpo.types import ChatPrompt, PromptedSample, Sample

TABLE = TokenTable([b"a", b"b", b"c"])


def _spans(*parts: tuple[str, int, int]) -> list[Any]:
    return [SimpleNamespace(version=version, start=start, end=end) for version, start, end in parts]


def _completion(spans: list[Any], num_tokens: int) -> Any:
    flat = SimpleNamespace(logprobs=[-1.0] * num_tokens, start_indices=list(range(num_tokens)))
    return SimpleNamespace(
        index=1, token_ids=[0, 1, 2][:num_tokens], logprobs=flat, finish_reason="stop", weight_versions=spans
    )


def _request() -> Any:
    prompted = PromptedSample(sample=Sample(sample_id="q"), prompt=ChatPrompt(sample_id="q", text=""))
    (request,) = requests_for([prompted], num_samples=2, sampling=SamplingConfig(temperature=0.7), seed=0)
    return request


def test_every_token_gets_the_version_of_its_span() -> None:
    assert token_versions(_spans(("3", 0, 2), ("4", 2, 3))).tolist() == [3, 3, 4]
    assert token_versions([]).tolist() == []


def test_a_response_of_one_version_needs_no_list_of_them() -> None:
    rollout = rollout_of(_request(), _completion(_spans(("3", 0, 2)), 2), TABLE)
    assert (rollout.sample_id, rollout.response_index, rollout.text, rollout.temperature) == ("q", 1, "ab", 0.7)
    assert (rollout.policy_version, rollout.newest_version, rollout.token_versions) == (3, 3, None)
    assert rollout.is_of_version(3).tolist() == [True, True]
    assert rollout.is_of_version(4).tolist() == [False, False]


def test_a_response_that_went_on_under_new_weights_says_which_tokens_are_whose() -> None:
    rollout = rollout_of(_request(), _completion(_spans(("3", 0, 1), ("5", 1, 3)), 3), TABLE)
    assert (rollout.policy_version, rollout.newest_version) == (3, 5)
    assert rollout.token_versions is not None
    assert rollout.token_versions.dtype == np.int32
    assert rollout.token_versions.tolist() == [3, 5, 5]
    assert rollout.is_of_version(5).tolist() == [False, True, True]


def test_the_sampled_token_leads_the_likeliest_ones() -> None:
    # Two positions; at the second, two of the likeliest tokens stand behind the sampled one.
    flat = SimpleNamespace(logprobs=[-0.5, -2.0, -0.1, -0.3], start_indices=[0, 1])
    assert sampled_logprobs(flat).tolist() == [-0.5, -2.0]
