"""How much a gated delta net is said to compute of a packed sequence, against the rows that it makes of one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.model.attention.delta_net import delta_plan, padded_size
from rsgrpo.model.memory_bounds import DELTA_CHUNK
from rsgrpo.model.micro_batches import Segment, pack
from tests.examples import examples

lengths = st.integers(1, 300)


def test_an_example_by_hand() -> None:
    # 100 tokens are two chunks of 64; two responses of 30 a chunk each, no wider than they are.
    assert padded_size([100], [30, 30]) == (2 * 64 + 2 * 30, 4)


@given(st.lists(st.tuples(lengths, st.lists(lengths, min_size=1, max_size=4)), min_size=1, max_size=4))
@examples(60)
def test_sizes_are_those_of_the_rows(groups: list[tuple[int, list[int]]]) -> None:
    segments = [
        Segment(
            group=index,
            responses=tuple(range(len(responses))),
            num_prompt_tokens=prompt,
            response_lengths=tuple(responses),
        )
        for index, (prompt, responses) in enumerate(groups)
    ]
    plan = delta_plan(pack(segments), device=torch.device("cpu"), dtype=torch.float32)
    rows = [*plan.prompts, *plan.responses]
    chunks = [row.count * -(-row.width // min(DELTA_CHUNK, row.width)) for row in rows]
    tokens = sum(count * min(DELTA_CHUNK, row.width) for count, row in zip(chunks, rows, strict=True))
    found = padded_size([prompt for prompt, _ in groups], [length for _, group in groups for length in group])
    assert found == (tokens, sum(chunks))
    assert tokens >= sum(prompt + sum(responses) for prompt, responses in groups)
