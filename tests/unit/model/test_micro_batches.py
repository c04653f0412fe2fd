"""Cutting a step into micro-batches and laying them out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.model.micro_batches import (
    GroupSize,
    Segment,
    TokenBudgetError,
    attention_pairs,
    balance,
    pack,
    plan_micro_batches,
    predictor_index,
    split_group,
    step_cost,
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
    seen = sorted((segment.group, r) for batch in plan for segment in batch for r in segment.responses)
    assert seen == [(g, r) for g, size in enumerate(sizes) for r in range(len(size.response_lengths))]
    fill = [sum(segment.num_tokens for segment in batch) for batch in plan]
    assert max(fill) <= budget and fill == sorted(fill, reverse=True)
    assert all(
        segment.response_lengths == tuple(sizes[segment.group].response_lengths[r] for r in segment.responses)
        for batch in plan
        for segment in batch
    )
    assert plan == plan_micro_batches(list(sizes), budget=budget, share_prefix=share_prefix)
    if not share_prefix:
        assert all(len(segment.responses) == 1 for batch in plan for segment in batch)


def test_split_repeats_the_prompt_where_the_budget_says_so():
    # 10 + 9 + 7 = 26 fills the budget; the response of 5 takes the prompt along: 15
    segments = split_group(_size(10, 5, 9, 7), 3, budget=26, share_prefix=True)
    assert [(p.group, p.responses, p.num_tokens) for p in segments] == [(3, (1, 2), 26), (3, (0,), 15)]


def test_small_groups_share_a_micro_batch():
    # 12 + 11 tokens fit into 25, the third (10) does not
    plan = plan_micro_batches([_size(5, 7), _size(4, 7), _size(5, 5)], budget=25, share_prefix=True)
    assert [[p.group for p in batch] for batch in plan] == [[0, 1], [2]]


def test_error_names_sample_and_needed_budget():
    with pytest.raises(TokenBudgetError, match=r"'q1'.*prompt of 10 tokens and response of 9 make 19.*at least 19"):
        plan_micro_batches([_size(10, 5, 9)], budget=18, share_prefix=True)


def test_pairs_of_a_shared_prompt():
    # prompt 3: 1 + 2 + 3 = 6; response 2: 4 + 5 = 9; response 4: 4 + 5 + 6 + 7 = 22
    assert attention_pairs(3, (2, 4)) == 37
    # 14,000 tokens; 10,000 · 10,001 / 2 + 8 (500 · 10,000 + 500 · 501 / 2) = 91,007,000 pairs, 20,000 a token
    assert step_cost(10_000, (500,) * 8) == 14_000 + 4_550


@given(SIZES, st.integers(70, 400), st.integers(1600, 9000), st.booleans())
def test_plan_keeps_the_cap_of_attention_work_as_well(sizes, budget, max_pairs, share_prefix):
    # the largest single segment: prompt 40, response 30: 820 + 1,200 + 465 pairs
    max_pairs = max(max_pairs, 2485)
    plan = plan_micro_batches(sizes, budget=budget, share_prefix=share_prefix, max_pairs=max_pairs)
    seen = sorted((segment.group, r) for batch in plan for segment in batch for r in segment.responses)
    assert seen == [(g, r) for g, size in enumerate(sizes) for r in range(len(size.response_lengths))]
    assert all(sum(segment.num_tokens for segment in batch) <= budget for batch in plan)
    assert all(sum(segment.num_pairs for segment in batch) <= max_pairs for batch in plan)


def test_long_prompts_are_split_by_attention_and_short_ones_by_tokens():
    # prompt 100: 5,050 pairs, and 1,055 for every response of 10; prompt 10: 55, and 155: all 8 fit into 5,500
    plan = plan_micro_batches(
        [_size(100, 10, 10), _size(10, *[10] * 8)], budget=1000, share_prefix=True, max_pairs=6200
    )
    assert [[(p.group, len(p.responses)) for p in batch] for batch in plan] == [[(0, 1)], [(0, 1)], [(1, 8)]]


def test_error_names_sample_and_needed_cap_of_attention_work():
    # 10 · 11 / 2 + 9 · 10 + 9 · 10 / 2 = 190
    with pytest.raises(TokenBudgetError, match=r"'q1'.*make 190 pairs.*micro_batch_pairs=189.*at least 190.*0 for no"):
        plan_micro_batches([_size(10, 5, 9)], budget=100, share_prefix=True, max_pairs=189)
    assert len(plan_micro_batches([_size(10, 9)], budget=100, share_prefix=True, max_pairs=190)) == 1


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
    row = pack(
        [
            Segment(group=0, responses=(0, 1), num_prompt_tokens=3, response_lengths=(2, 4)),
            Segment(group=1, responses=(0,), num_prompt_tokens=2, response_lengths=(3,)),
        ]
    )
    # prompt 0-2, response 3-4, response 5-8; prompt 9-10, response 11-13
    assert row.prompt_starts == (0, 9)
    assert row.response_starts == (3, 5, 11)
    assert row.num_tokens == 14
    # siblings' first tokens are predicted at their prompt's last position: 2, and 10 in the second segment
    assert predictor_index(row).tolist() == [2, 3, 2, 5, 6, 7, 10, 11, 12]
