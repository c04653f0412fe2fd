"""Cutting a step into micro-batches and laying them out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.batching import (
    GroupSize,
    Piece,
    TokenBudgetError,
    balance,
    lay_out,
    plan_micro_batches,
    predictor_index,
    split_group,
)


def _size(prompt: int, *responses: int) -> GroupSize:
    return GroupSize(sample_id="q1", num_prompt_tokens=prompt, response_lengths=responses)


SIZES = st.lists(
    st.builds(
        lambda prompt, responses: _size(prompt, *responses),
        st.integers(1, 40),
        st.lists(st.integers(1, 30), min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=12,
)


@given(SIZES, st.integers(70, 400), st.booleans())
def test_plan_holds_every_response_once_and_keeps_the_budget(sizes, budget, share_prefix):
    plan = plan_micro_batches(sizes, budget=budget, share_prefix=share_prefix)
    seen = sorted((piece.group, r) for batch in plan for piece in batch for r in piece.responses)
    assert seen == [(g, r) for g, size in enumerate(sizes) for r in range(len(size.response_lengths))]
    assert all(sum(piece.num_tokens for piece in batch) <= budget for batch in plan)
    assert all(
        piece.response_lengths == tuple(sizes[piece.group].response_lengths[r] for r in piece.responses)
        for batch in plan
        for piece in batch
    )
    assert plan == plan_micro_batches(list(sizes), budget=budget, share_prefix=share_prefix)
    if not share_prefix:
        assert all(len(piece.responses) == 1 for batch in plan for piece in batch)


def test_split_repeats_the_prompt_where_the_budget_says_so():
    # 10 + 9 + 7 = 26 fills the budget; the response of 5 takes the prompt along: 15
    pieces = split_group(_size(10, 5, 9, 7), 3, budget=26, share_prefix=True)
    assert [(p.group, p.responses, p.num_tokens) for p in pieces] == [(3, (1, 2), 26), (3, (0,), 15)]


def test_small_groups_share_a_micro_batch():
    # 12 + 11 tokens fit into 25, the third (10) does not
    plan = plan_micro_batches([_size(5, 7), _size(4, 7), _size(5, 5)], budget=25, share_prefix=True)
    assert [[p.group for p in batch] for batch in plan] == [[0, 1], [2]]


def test_error_names_sample_and_needed_budget():
    with pytest.raises(TokenBudgetError, match=r"'q1'.*prompt of 10 tokens and response of 9 make 19.*at least 19"):
        plan_micro_batches([_size(10, 5, 9)], budget=18, share_prefix=True)


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 5))
def test_balance_gives_every_item_to_one_rank_within_one_item_of_even(costs, num_ranks):
    shares = balance(costs, num_ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(costs)))
    loads = [sum(costs[i] for i in share) for share in shares]
    # The fullest rank's last item went to what was then the least loaded rank.
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_balance_example():
    # 5 -> rank 0; 4 -> rank 1; 3 -> rank 1 (4 < 5); 2 -> rank 0 (5 < 7)
    assert balance([5, 4, 3, 2], 2) == ((0, 3), (1, 2))


def test_layout_and_predictors():
    row = lay_out(
        [
            Piece(group=0, responses=(0, 1), num_prompt_tokens=3, response_lengths=(2, 4)),
            Piece(group=1, responses=(0,), num_prompt_tokens=2, response_lengths=(3,)),
        ]
    )
    # prompt 0-2, response 3-4, response 5-8; prompt 9-10, response 11-13
    assert row.prompt_starts == (0, 9)
    assert row.response_starts == (3, 5, 11)
    assert row.num_tokens == 14
    # siblings' first tokens are predicted at their prompt's last position: 2, and 10 in the second piece
    assert predictor_index(row).tolist() == [2, 3, 2, 5, 6, 7, 10, 11, 12]
