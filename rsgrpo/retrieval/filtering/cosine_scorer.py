"""Score pages by the cosine of their vector and the question's, from vectors that an index keeps where it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rsgrpo.retrieval.embedders.embedder import Embedder
from rsgrpo.retrieval.filtering.page_filter import PagesOfQuestion, ScoredPages
from rsgrpo.retrieval.filtering.relevance import Calibration
from rsgrpo.retrieval.index.page_index import PageIndex
from rsgrpo.types import FloatArray, ImageRef

FindPageId = Callable[[ImageRef], str | None]
"""Gives the id under which an index holds a page; None where it does not hold it."""


class CosineScorer:
    """A :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer` over an embedder.

    Args:
        embedder: the embedder of questions and pages.
        calibration: the sigmoid that turns cosines into probabilities; None: ``(1 + cosine) / 2`` stands in for it,
            which has the right order and means nothing else.
        image_tokens: gives how many tokens the embedder reads of a page; None: tokens are not counted.
        known: vectors of pages that need not be embedded, by page.
        index: an index with vectors of pages that need not be embedded; None: there is none.
        find_page_id: gives the id of a page in that index; None: no page is looked for in it.

    Raises:
        EmbedderMismatchError: another embedder made the index.
    """

    def __init__(
        self,
        embedder: Embedder,
        calibration: Calibration | None = None,
        *,
        image_tokens: Callable[[ImageRef], int] | None = None,
        known: Mapping[ImageRef, FloatArray] | None = None,
        index: PageIndex | None = None,
        find_page_id: FindPageId | None = None,
    ) -> None:
        if index is not None:
            index.identity.check(embedder.identity, index.name)
        self._embedder = embedder
        self._calibration = calibration
        self._image_tokens = image_tokens
        self._vectors: dict[ImageRef, FloatArray] = dict(known or {})
        self._index = index
        self._find_page_id = find_page_id

    @property
    def is_calibrated(self) -> bool:
        """Whether the scores are probabilities; else only their order means something."""
        return self._calibration is not None

    def score(self, question: str, pages: Sequence[ImageRef]) -> NDArray[np.float64]:
        """See :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer`."""
        (found,) = self.score_all([PagesOfQuestion(question=question, pages=tuple(pages))])
        return np.asarray(found.probabilities, dtype=np.float64)

    def score_all(self, asked: Sequence[PagesOfQuestion]) -> list[ScoredPages]:
        """See :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer`; a page is embedded once."""
        if not asked:
            return []
        num_tokens = self._embed([page for item in asked for page in item.pages])
        questions = self._embedder.embed_queries([item.question for item in asked])  # [Q, D]
        found = []
        for item, question in zip(asked, questions, strict=True):
            vectors = np.stack([self._vectors[page] for page in item.pages])  # [N, D]
            cosines = np.clip(vectors.astype(np.float64) @ question.astype(np.float64), -1.0, 1.0)  # [N]
            found.append(
                ScoredPages(
                    probabilities=tuple(self._probability(float(cosine)) for cosine in cosines),
                    # Of the first question that shows a page; for further ones its vector is there.
                    image_tokens=sum(num_tokens.pop(page, 0) for page in item.pages),
                )
            )
        return found

    def cosines(self, question: str, pages: Sequence[ImageRef]) -> NDArray[np.float64]:
        """Compute plain cosines, [pages] float64, which a calibration is fitted on."""
        self._embed(pages)
        (vector,) = self._embedder.embed_queries([question])
        found: NDArray[np.float64] = np.stack([self._vectors[page] for page in pages]).astype(np.float64) @ vector
        return found

    def _probability(self, cosine: float) -> float:
        if self._calibration is None:
            return (1.0 + cosine) / 2.0
        return self._calibration.probability(cosine)

    def _embed(self, pages: Sequence[ImageRef]) -> dict[ImageRef, int]:
        """Get the vectors of all pages; returns the tokens of those that had to be embedded."""
        missing = [page for page in dict.fromkeys(pages) if page not in self._vectors]
        if missing and self._index is not None and self._find_page_id is not None:
            ids = {page: page_id for page in missing if (page_id := self._find_page_id(page)) is not None}
            if ids:
                self._vectors.update(zip(ids, self._index.vectors(list(ids.values())), strict=True))
            missing = [page for page in missing if page not in ids]
        if not missing:
            return {}
        self._vectors.update(zip(missing, self._embedder.embed_pages(missing), strict=True))
        return {page: self._image_tokens(page) if self._image_tokens else 0 for page in missing}


def page_finder(index: PageIndex, digest: Callable[[ImageRef], str]) -> FindPageId:
    """Look pages up in an index by the content of their image files.

    Args:
        index: the index.
        digest: gives the SHA-256 of a page's image file, 64 hexadecimal digits; empty where it has no file.

    Returns:
        A function that gives the id of a page, or None where no page of the index has its image.
    """
    by_sha256 = {page.sha256: page.page_id for page in index.pages() if page.sha256}

    def find(page: ImageRef) -> str | None:
        return by_sha256.get(digest(page))

    return find
