"""What is left to sentence-transformers computes VisRAG's numbers: pooling, and the contrastive loss with its
gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.util import cos_sim, dot_score
from torch import Tensor

Parity = Callable[[str], Any]


def _pooled(hidden: Tensor, mask: Tensor) -> dict[str, Any]:
    """Compute position-weighted means, [B, D]."""
    features: dict[str, Any] = {"token_embeddings": hidden, "attention_mask": mask}
    return Pooling(hidden.shape[-1], pooling_mode="weightedmean")(features)


def test_pooling_and_normalisation_equal_visrags_whatever_the_padding(parity: Parity) -> None:
    for vector in parity("visrag_numeric")["pooling"]:
        features = _pooled(torch.tensor(vector["hidden"]), torch.tensor(vector["attention_mask"]))
        torch.testing.assert_close(features["sentence_embedding"], torch.tensor(vector["pooled"]), atol=5e-7, rtol=0)
        normalised = Normalize()(features)["sentence_embedding"]
        torch.testing.assert_close(normalised, torch.tensor(vector["normalized"]), atol=5e-7, rtol=0)


def test_position_weights_are_exact_beyond_what_bfloat16_holds(parity: Parity) -> None:
    # Of 1 to 1024 bfloat16 misses whole numbers by up to 2. A token at an odd position shows which weight it got: alone
    # with value 1 its mean is weight / sum, 1023 / 524800 here; the result itself is rounded to bfloat16, 8 bits.
    expected = parity("visrag_numeric")["bf16_position_weight_error"]
    assert expected["exact_sum_1_to_1024"] == sum(range(1, 1025))
    hidden = torch.zeros(1, 1024, 1024, dtype=torch.bfloat16)
    hidden[0] = torch.eye(1024, dtype=torch.bfloat16)
    mean = _pooled(hidden, torch.ones(1, 1024, dtype=torch.int64))["sentence_embedding"][0]
    exact = torch.arange(1, 1025, dtype=torch.float64) / expected["exact_sum_1_to_1024"]
    assert torch.equal(mean, exact.float().to(torch.bfloat16))
    # VisRAG's own embeddings are float32 whatever the model is: cast token embeddings first to have the same.
    assert mean.dtype == torch.bfloat16
    wide = _pooled(hidden.float(), torch.ones(1, 1024, dtype=torch.int64))["sentence_embedding"][0]
    torch.testing.assert_close(wide, exact.float(), rtol=1e-6, atol=0)


class _Given(torch.nn.Module):
    """Takes the place of a model: gives the embeddings that an item's number stands for, and computes nothing."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(embeddings)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features | {"sentence_embedding": self.table[features["input_ids"][:, 0]]}


def _loss_and_gradient(
    queries: Tensor, passages: Tensor, temperature: float, similarity: Callable[[Tensor, Tensor], Tensor]
) -> tuple[float, Tensor]:
    """Compute loss and gradient by all embeddings, [2 B, D], through gradient caching in micro-batches of 2."""
    given = _Given(torch.cat([queries, passages]))
    loss = CachedMultipleNegativesRankingLoss(
        SentenceTransformer(modules=[given], device="cpu"),
        scale=1 / temperature,
        similarity_fct=similarity,
        mini_batch_size=2,
        directions=("query_to_doc",),
    )
    numbers = torch.arange(2 * len(queries))[:, None].split(len(queries))
    features = [{"input_ids": column, "attention_mask": torch.ones_like(column)} for column in numbers]
    value = loss(features, torch.empty(0))
    value.backward()
    assert given.table.grad is not None
    return value.item(), given.table.grad


def test_the_contrastive_loss_and_its_gradient_equal_visrags(parity: Parity) -> None:
    for vector in parity("visrag_numeric")["contrastive_loss"]:
        assert vector["n_passages"] == 1
        queries, passages = (torch.tensor(vector[key]) for key in ("q", "p"))
        value, gradient = _loss_and_gradient(queries, passages, vector["temperature"], dot_score)
        assert value == pytest.approx(vector["loss"], rel=1e-5)
        # the vectors have eight decimals, and 1 / temperature multiplies what they lack
        expected = torch.tensor(vector["grad_q"] + vector["grad_p"])
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
        accuracy = (queries @ passages.T).argmax(dim=1) == torch.arange(len(queries))
        assert accuracy.float().mean().item() == pytest.approx(vector["accuracy"])


def test_cosine_has_the_same_loss_and_the_gradient_without_its_radial_part(parity: Parity) -> None:
    # Cosine, the default similarity, is the dot product for embeddings of length 1; their length has no gradient.
    for vector in parity("visrag_numeric")["contrastive_loss"]:
        queries, passages = (torch.tensor(vector[key]) for key in ("q", "p"))
        value, gradient = _loss_and_gradient(queries, passages, vector["temperature"], cos_sim)
        assert value == pytest.approx(vector["loss"], rel=1e-5)
        embeddings = torch.cat([queries, passages])
        plain = torch.tensor(vector["grad_q"] + vector["grad_p"])
        tangent = plain - (plain * embeddings).sum(dim=1, keepdim=True) * embeddings
        torch.testing.assert_close(gradient, tangent, atol=1e-4, rtol=1e-4)
