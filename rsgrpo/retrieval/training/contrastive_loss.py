"""The loss that a page retriever is trained with: each question against all pages of the batch (InfoNCE).

With vectors of length 1, temperature T, the right page ``d(i)`` of question ``i`` and the set ``C(i)`` of pages that
count for it (the right one, and all that are no right ones as well):

    l_i = -log( exp(q_i · d(i) / T) / sum_{c in C(i)} exp(q_i · c / T) ),        L = sum_i w_i l_i / sum_i w_i

(VisRAG, arXiv:2410.10594, §3.2, there with equal weights.) Two further terms may be added: the same loss on the first
numbers of each vector (Matryoshka, arXiv:2205.13147), and on vectors that are rounded to 8 bits a number, where the
gradient passes the rounding as if it were not there (straight-through, arXiv:1308.3432).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

_LEVELS = 127  # of a signed byte, on either side of 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """What the loss is made of.

    Attributes:
        temperature: the number that cosines are divided by.
        margin: a page whose cosine is above the right page's by more than this does not count; None: all count.
        dimensions: the lengths of shortened vectors that the loss is computed on as well.
        int8_weight: the weight of the loss on rounded vectors.
    """

    temperature: float
    margin: float | None = None
    dimensions: tuple[int, ...] = ()
    int8_weight: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ContrastiveBatch:
    """What one rank computes its share of the loss from.

    Attributes:
        queries: the vectors of its own questions, [B, D].
        pages: the vectors of the pages of all ranks, [N, D].
        right: the index of the right page of each question among ``pages``, [B] int64.
        left_out: whether a page does not count for a question, [B, N] bool: it is a right one as well, or stands there
            twice. Of the right page itself nothing is left out.
        weights: the weight of each question, [B]; the mean over the questions of all ranks is 1.
    """

    queries: Tensor
    pages: Tensor
    right: Tensor
    left_out: Tensor
    weights: Tensor


def contrastive_loss(batch: ContrastiveBatch, terms: LossTerms) -> tuple[Tensor, Tensor]:
    """Compute the loss of a rank's questions.

    Args:
        batch: the vectors, and which pages count for which question.
        terms: what the loss is made of.

    Returns:
        The loss (a scalar): the mean over the lengths of vectors, plus the weighted loss on rounded vectors; and the
        share of questions whose right page scores highest of those that count (a scalar without gradient).

    Example:
        One question [1, 0], pages [1, 0] (right) and [0, 1], temperature 1: log(1 + exp(-1)) = 0.3133, accuracy 1.
    """
    queries, pages = batch.queries.float(), batch.pages.float()
    whole = queries.shape[-1]
    losses = []
    accuracy = queries.new_zeros(())
    for dimension in (whole, *(length for length in terms.dimensions if length != whole)):
        short = normalize(queries[:, :dimension], dim=-1), normalize(pages[:, :dimension], dim=-1)
        loss, found = _one_loss(*short, batch, terms)
        losses.append(loss)
        accuracy = found if dimension == whole else accuracy
    total = torch.stack(losses).mean()
    if terms.int8_weight:
        rounded = rounded_to_int8(normalize(queries, dim=-1)), rounded_to_int8(normalize(pages, dim=-1))
        total = total + terms.int8_weight * _one_loss(*rounded, batch, terms)[0]
    return total, accuracy


def rounded_to_int8(vectors: Tensor) -> Tensor:
    """Round every number of a vector to one of 255 levels, evenly spread up to its largest number on either side.

    Args:
        vectors: the vectors, [..., D].

    Returns:
        The rounded vectors, [..., D]; their gradient is that of ``vectors``.

    Example:
        ``rounded_to_int8(tensor([1.0, 0.5]))`` is ``[1.0, 64 / 127]``: 0.5 · 127 = 63.5 rounds to the even 64.
    """
    step = vectors.detach().abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / _LEVELS
    rounded = torch.round(vectors.detach() / step) * step
    return vectors + (rounded - vectors.detach())


def pages_left_out(page_ids: Tensor, right: Tensor) -> Tensor:
    """Find the pages that do not count for a question, as they are its right page once more or stand there twice.

    Args:
        page_ids: the number of each page, [N] int64; pages of one content have one number.
        right: the index of the right page of each question among the pages, [B] int64.

    Returns:
        Whether a page does not count for a question, [B, N] bool; never True at the right page itself.

    Example:
        Pages 7, 8, 7, 8 and a question whose right page is the first: the third (7 again) and the fourth (8 again) are
        left out; the second counts.
    """
    same = page_ids[:, None] == page_ids[None, :]
    stands_before = torch.tril(same, diagonal=-1).any(dim=1)
    found = same[right] | stands_before[None, :]
    return found.scatter(1, right[:, None], False)


def _one_loss(queries: Tensor, pages: Tensor, batch: ContrastiveBatch, terms: LossTerms) -> tuple[Tensor, Tensor]:
    cosines = queries @ pages.T
    own = cosines.gather(1, batch.right[:, None])
    left_out = batch.left_out
    if terms.margin is not None:
        left_out = left_out | (cosines.detach() > own.detach() + terms.margin)
    left_out = left_out.scatter(1, batch.right[:, None], False)
    logits = (cosines / terms.temperature).masked_fill(left_out, -torch.inf)
    losses = torch.logsumexp(logits, dim=1) - own[:, 0] / terms.temperature
    accuracy = (logits.detach().argmax(dim=1) == batch.right).float().mean()
    return (losses * batch.weights).mean(), accuracy
