"""Hold pairs out of the training data, to measure on them while a retriever trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rsgrpo.retrieval.measuring.relevance_files import RetrievalPage, RetrievalQuery, RetrievalSet
from rsgrpo.retrieval.training.training_pairs import TrainingPair


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Training pairs, and what is held out of them.

    Attributes:
        trained: the pairs that are left to train on, in their order.
        data: the questions that are held out, each to be found among the pages that are; None: none is held out.
    """

    trained: tuple[TrainingPair, ...]
    data: RetrievalSet | None


def hold_out(pairs: Sequence[TrainingPair], num_pairs: int, seed: int) -> HeldOut:
    """Hold pages out, with all their pairs: no page of theirs is trained on, also under another question.

    At most half of the pages are held out. Pages that are texts are trained on.

    Args:
        pairs: the pairs.
        num_pairs: how many pairs are held out at least, as far as there are so many; 0: none.
        seed: the seed of the choice.

    Returns:
        The pairs that are left, and those that are held out as a data set to search in.

    Example:
        Of four pairs on three pages, the first two on one page, ``num_pairs=1`` holds out one page, and so one pair or
        the first two.
    """
    pages = {pair.page.digest: pair.page for pair in pairs if pair.page.image is not None}
    counts: dict[str, int] = dict.fromkeys(pages, 0)
    for pair in pairs:
        if pair.page.digest in counts:
            counts[pair.page.digest] += 1
    held: set[str] = set()
    num_held = 0
    digests = list(pages)
    for index in np.random.default_rng((seed, 1)).permutation(len(digests)).tolist():
        if num_held >= num_pairs or 2 * (len(held) + 1) > len(digests):
            break
        held.add(digests[index])
        num_held += counts[digests[index]]
    if not held:
        return HeldOut(trained=tuple(pairs), data=None)
    asked = [pair for pair in pairs if pair.page.digest in held]
    return HeldOut(
        trained=tuple(pair for pair in pairs if pair.page.digest not in held),
        data=RetrievalSet(
            queries=tuple(RetrievalQuery(query_id=str(n), text=pair.query) for n, pair in enumerate(asked)),
            pages=tuple(
                RetrievalPage(page_id=digest, image=pages[digest].image) for digest in digests if digest in held
            ),
            relevant={str(n): {pair.page.digest: 1} for n, pair in enumerate(asked)},
        ),
    )
