"""Log-probabilities in both of vLLM's forms; a module of its own, so that an engine's worker can import it."""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.logprobs import append_logprobs_for_next_position, create_sample_logprobs

from rollout.completions import sampled_logprobs


def both_forms(_worker: Any, num_ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """The sampled tokens' log-probabilities out of an object a token, and out of lists.

    Args:
        num_ranks: how many of the likeliest tokens stand beside the sampled one.
    """
    draw = np.random.default_rng(num_ranks)
    objects, flat = create_sample_logprobs(False), create_sample_logprobs(True)
    sampled = []
    for _ in range(200):
        ids = draw.choice(1000, size=1 + num_ranks, replace=False).tolist()
        values = np.log(draw.random(1 + num_ranks)).astype(np.float32).tolist()
        sampled.append(ids[0])
        for form in (objects, flat):
            append_logprobs_for_next_position(form, ids, values, (None,) * len(ids), 1, num_ranks)
    expected = [entries[token].logprob for token, entries in zip(sampled, objects, strict=True)]
    return np.array(expected, dtype=np.float32), sampled_logprobs(flat)
