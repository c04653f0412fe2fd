"""GradCache of sentence-transformers with our loss over it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.util.distributed import all_gather, all_gather_with_grad, get_rank, get_world_size
from torch import Tensor

from rsgrpo.config import Config
from rsgrpo.retrieval.training.contrastive_loss import ContrastiveBatch, LossTerms, contrastive_loss, pages_left_out
from rsgrpo.retrieval.training.training_pairs import TrainingPair, chosen_negatives


class PairLoss(CachedMultipleNegativesRankingLoss):
    """The loss of a batch on one rank: vectors are made in micro-batches twice, and gathered from all ranks.

    Args:
        model: the model.
        config: the settings of the loss.
        pairs: all training pairs; the labels of a batch are their numbers.

    Attributes:
        accuracy: the share of this rank's questions whose right page scored highest in the last batch, a scalar.
    """

    def __init__(self, model: SentenceTransformer, config: Config, pairs: Sequence[TrainingPair]) -> None:
        settings = config.retriever
        super().__init__(
            model,
            scale=1.0 / settings.temperature,
            mini_batch_size=settings.micro_batch_size,
            gather_across_devices=True,
            directions=("query_to_doc",),
        )
        self._terms = LossTerms(
            temperature=settings.temperature,
            margin=settings.negatives.margin,
            dimensions=tuple(settings.matryoshka_dimensions),
            int8_weight=settings.int8_weight,
        )
        numbers: dict[str, int] = {}
        num_negatives = settings.negatives.num_pages
        self._page_ids = torch.tensor(
            [
                [numbers.setdefault(page.digest, len(numbers)) for page in pages]
                for pages in ((pair.page, *chosen_negatives(pair, num_negatives)) for pair in pairs)
            ]
        )
        self._weights = torch.tensor([pair.weight for pair in pairs])
        self.accuracy = torch.zeros(())

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Compute the loss of this rank's questions against the pages of all ranks.

        Args:
            reps: the vectors in micro-batches: of the questions, of their pages, of each column of negatives.
            labels: the numbers of the pairs, [B] int64.
            with_backward: whether gradients of the vectors are computed; the loss comes without a graph then.

        Returns:
            The loss, a scalar; the mean over the ranks is that of the whole batch.
        """
        assert labels is not None
        device = labels.device
        queries = torch.cat(reps[0])
        pages = [torch.cat(column) for column in reps[1:]]
        rows = labels
        if get_world_size() > 1:
            pages = [all_gather_with_grad(column) for column in pages]
            rows = all_gather(labels)
        page_ids = self._page_ids[rows.cpu()].T.reshape(-1).to(device)  # column by column, as the pages are
        weights = self._weights[rows.cpu()].to(device)
        first = get_rank() * len(queries)
        right = torch.arange(first, first + len(queries), device=device)
        loss, self.accuracy = contrastive_loss(
            ContrastiveBatch(
                queries=queries,
                pages=torch.cat(pages),
                right=right,
                left_out=pages_left_out(page_ids, right),
                weights=weights[right] / weights.mean(),
            ),
            self._terms,
        )
        if with_backward:
            loss.backward()
        return loss.detach() if with_backward else loss
