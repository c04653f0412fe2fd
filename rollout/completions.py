"""What vLLM says of one response, as a record of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rollout.requests import RolloutRequest
from rsgrpo.text.token_offsets import TokenTable
from rsgrpo.types import Rollout


def rollout_of(request: RolloutRequest, completion: Any, table: TokenTable) -> Rollout:
    """Make a rollout of a response that vLLM has finished.

    Args:
        request: the request that the completion answers.
        completion: vLLM's ``CompletionOutput``, with flat log-probabilities.
        table: the token table, which gives the text of tokens and where each begins in it.
    """
    ids = np.asarray(completion.token_ids, dtype=np.int32)
    versions = token_versions(completion.weight_versions)
    text, starts = table.decode(ids)
    return Rollout(
        sample_id=request.sample_id,
        response_index=completion.index,
        token_ids=ids,
        logprobs=sampled_logprobs(completion.logprobs),
        text=text,
        token_char_starts=starts,
        finish_reason=completion.finish_reason,
        policy_version=int(versions[0]),
        temperature=request.sampling.temperature,
        token_versions=versions if versions[0] != versions[-1] else None,
        named_logprobs=_named(completion.logprobs, request.named_token_ids),
    )


def _named(flat: Any, token_ids: Sequence[int]) -> NDArray[np.float32] | None:
    """[C] float32, log-probabilities of the named tokens at the first position; None where none are named."""
    if not token_ids:
        return None
    first = slice(flat.start_indices[0], flat.end_indices[0])
    found = dict(zip(flat.token_ids[first], flat.logprobs[first], strict=True))
    return np.array([found[token] for token in token_ids], dtype=np.float32)


def sampled_logprobs(flat: Any) -> NDArray[np.float32]:
    """Log-probabilities of the sampled tokens, which lead their positions.

    Args:
        flat: vLLM's ``FlatLogprobs`` of one response.

    Returns:
        [R] float32, natural logarithms.
    """
    logprobs = np.asarray(flat.logprobs, dtype=np.float32)
    if len(logprobs) == len(flat.start_indices):  # nothing but the sampled token at each position
        return logprobs
    return logprobs[np.asarray(flat.start_indices, dtype=np.int64)]


def token_versions(spans: Sequence[Any]) -> NDArray[np.int32]:
    """Version of the weights that sampled each token.

    Args:
        spans: vLLM's ``WeightVersionSpan`` of one response, one after the other.

    Returns:
        [R] int32, the version stamp of each token.

    Example:
        Two tokens of version 3 and one of version 4 give [3, 3, 4].
    """
    return np.repeat(
        np.array([int(span.version) for span in spans], dtype=np.int32), [span.end - span.start for span in spans]
    )
