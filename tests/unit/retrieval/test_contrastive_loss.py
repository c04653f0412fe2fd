"""The loss of page retrievers: VisRAG's vectors, the library's loss, and what its further terms do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from rsgrpo.retrieval.training.contrastive_loss import (
    ContrastiveBatch,
    LossTerms,
    contrastive_loss,
    pages_left_out,
    rounded_to_int8,
)


def batch(queries: Tensor, pages: Tensor, *, right: list[int] | None = None, **given: Tensor) -> ContrastiveBatch:
    chosen = torch.arange(len(queries)) if right is None else torch.tensor(right)
    settings = {
        "left_out": torch.zeros(len(queries), len(pages), dtype=torch.bool),
        "weights": torch.ones(len(queries)),
    }
    return ContrastiveBatch(queries=queries, pages=pages, right=chosen, **(settings | given))


def tangent(gradient: Tensor, vectors: Tensor) -> Tensor:
    """The part of a gradient that is left behind the scaling to length 1: the vectors have that length already."""
    return gradient - (gradient * vectors).sum(-1, keepdim=True) * vectors


def test_loss_accuracy_and_gradients_are_visrags(parity: Callable[[str], Any]) -> None:
    vectors = parity("visrag_numeric")["contrastive_loss"]
    for vector in vectors:
        queries, pages = (torch.tensor(vector[name], requires_grad=True) for name in ("q", "p"))
        each = vector["n_passages"]
        right = [each * index for index in range(len(queries))]
        loss, accuracy = contrastive_loss(
            batch(queries, pages, right=right), LossTerms(temperature=vector["temperature"])
        )
        loss.backward()
        assert loss.item() == pytest.approx(vector["loss"], rel=2e-5)
        assert float(accuracy) == vector["accuracy"]
        for given, name in ((queries, "grad_q"), (pages, "grad_p")):
            expected = tangent(torch.tensor(vector[name]), given.detach())
            torch.testing.assert_close(given.grad, expected, atol=3e-4, rtol=3e-4)


def test_a_worked_example() -> None:
    # Cosines 1 (right) and 0 at temperature 1: -log(e / (e + 1)) = log(1 + 1/e).
    found = batch(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    loss, accuracy = contrastive_loss(found, LossTerms(temperature=1.0))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(accuracy) == 1.0


def test_the_right_page_once_more_and_a_page_twice_do_not_count() -> None:
    # Pages 7, 8, 7, 8: of question 0 (page 0) the third is its own page again, the fourth the second again.
    left_out = pages_left_out(torch.tensor([7, 8, 7, 8]), torch.tensor([0, 1]))
    assert left_out.tolist() == [[False, False, True, True], [False, False, True, True]]
    vectors = normalize(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    doubled = batch(vectors, torch.cat([vectors, vectors]), left_out=left_out)
    plain = batch(vectors, vectors)
    terms = LossTerms(temperature=0.1)
    assert float(contrastive_loss(doubled, terms)[0]) == pytest.approx(float(contrastive_loss(plain, terms)[0]))


def test_a_later_copy_that_is_the_right_page_counts_for_its_question() -> None:
    left_out = pages_left_out(torch.tensor([7, 7]), torch.tensor([1]))
    assert left_out.tolist() == [[True, False]]


def test_a_page_far_above_the_right_one_is_taken_for_another_right_one() -> None:
    # Cosines 0.6 (right), 1.0 and 0: with a margin of 0.3 the second page is out, and log(1 + exp(-0.6)) is left.
    query = torch.tensor([[1.0, 0.0]])
    pages = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    loss, accuracy = contrastive_loss(batch(query, pages), LossTerms(temperature=1.0, margin=0.3))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-0.6)), rel=1e-6)
    assert float(accuracy) == 1.0
    assert float(contrastive_loss(batch(query, pages), LossTerms(temperature=1.0, margin=0.5))[1]) == 0.0


def test_weights_weigh_questions() -> None:
    queries = normalize(torch.randn(2, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    terms = LossTerms(temperature=0.5)

    def alone(index: int) -> float:
        one = batch(queries[index : index + 1], queries, right=[index])
        return float(contrastive_loss(one, terms)[0])

    # Weights 3 and 1 have the mean 2: (1.5 · l0 + 0.5 · l1) / 2 = (3 l0 + l1) / 4.
    weighted = batch(queries, queries, weights=torch.tensor([1.5, 0.5]))
    assert float(contrastive_loss(weighted, terms)[0]) == pytest.approx((3 * alone(0) + alone(1)) / 4)


def test_shortened_vectors_enter_with_equal_weight() -> None:
    generator = torch.Generator().manual_seed(2)
    queries, pages = torch.randn(3, 8, generator=generator), torch.randn(3, 8, generator=generator)
    terms = LossTerms(temperature=0.3)
    parts = [float(contrastive_loss(batch(queries[:, :n], pages[:, :n]), terms)[0]) for n in (8, 4, 2)]
    whole, _ = contrastive_loss(batch(queries, pages), LossTerms(temperature=0.3, dimensions=(4, 8, 2)))
    assert float(whole) == pytest.approx(sum(parts) / 3, rel=1e-6)


def test_vectors_are_rounded_to_255_levels_and_the_gradient_passes() -> None:
    vectors = torch.tensor([[1.0, 0.5, -0.25, 0.0]], requires_grad=True)
    rounded = rounded_to_int8(vectors)
    # 127 · (1, 0.5, -0.25, 0) = 127, 63.5, -31.75, 0; halves go to the even number: 64.
    torch.testing.assert_close(rounded * 127, torch.tensor([[127.0, 64.0, -32.0, 0.0]]))
    rounded.sum().backward()
    assert vectors.grad is not None and vectors.grad.tolist() == [[1.0] * 4]


def test_the_loss_on_rounded_vectors_is_added_with_its_weight() -> None:
    generator = torch.Generator().manual_seed(3)
    queries, pages = (normalize(torch.randn(3, 8, generator=generator), dim=-1) for _ in range(2))
    plain = float(contrastive_loss(batch(queries, pages), LossTerms(temperature=0.3))[0])
    # Cosines of the rounded vectors as they are, not scaled to length 1 again: so an index of bytes computes them.
    logits = rounded_to_int8(queries) @ rounded_to_int8(pages).T / 0.3
    coarse = float(torch.nn.functional.cross_entropy(logits, torch.arange(3)))
    both = float(contrastive_loss(batch(queries, pages), LossTerms(temperature=0.3, int8_weight=0.5))[0])
    assert both == pytest.approx(plain + 0.5 * coarse, rel=1e-6)
