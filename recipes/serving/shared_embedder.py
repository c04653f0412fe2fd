"""An embedder that a question need not wait long for while documents are embedded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.retrieval.embedders.embedder import AnyEmbedder, EmbedderIdentity, EmbeddingError, PageImage

_PAGES_AT_ONCE = 2  # a question waits for so many pages at most


class SharedEmbedder:
    """Lets several threads use one embedder, one at a time; questions go before pages.

    Args:
        embedder: the embedder.
    """

    def __init__(self, embedder: AnyEmbedder) -> None:
        self._embedder = embedder
        self._lock = threading.Lock()
        self._no_question = threading.Condition()
        self._num_questions = 0
        self._is_stopped = False
        self._ahead: dict[str, Any] = {}

    def stop(self) -> None:
        """Break off what is being embedded; whoever waits for it gets an error."""
        self._is_stopped = True

    @property
    def identity(self) -> EmbedderIdentity:
        """The identity of the embedder."""
        return self._embedder.identity

    @property
    def settings(self) -> EmbedderConfig | None:
        """The settings of the embedder."""
        return self._embedder.settings

    def embed_queries(self, queries: Sequence[str]) -> Any:
        """Embed questions, before all pages that are still to be embedded.

        Args:
            queries: the questions.

        Returns:
            Their vectors, as the embedder gives them.
        """
        ahead = self._ahead.get(queries[0]) if len(queries) == 1 else None
        if ahead is not None:
            return ahead
        with self._no_question:
            self._num_questions += 1
        try:
            with self._lock:
                return self._embedder.embed_queries(queries)
        finally:
            with self._no_question:
                self._num_questions -= 1
                self._no_question.notify_all()

    def embed_ahead(self, queries: Sequence[str]) -> None:
        """Embed questions together that will be asked for one by one; they are kept until the next time.

        Args:
            queries: the questions.

        Raises:
            EmbeddingError: one of them cannot be embedded; none is kept then.
        """
        self._ahead = {}
        texts = list(dict.fromkeys(queries))
        if len(texts) > 1:
            vectors = self.embed_queries(texts)
            self._ahead = {text: vectors[place : place + 1] for place, text in enumerate(texts)}

    def embed_pages(self, pages: Sequence[PageImage]) -> Any:
        """Embed pages, a few at a time, and let questions go first between.

        Args:
            pages: the pages.

        Returns:
            Their vectors, as the embedder gives them.

        Raises:
            EmbeddingError: it was stopped.
        """
        parts = []
        for first in range(0, len(pages), _PAGES_AT_ONCE):
            with self._no_question:
                self._no_question.wait_for(lambda: self._num_questions == 0)
            if self._is_stopped:
                raise EmbeddingError("the server ended meanwhile; bring the document again")
            with self._lock:
                parts.append(self._embedder.embed_pages(pages[first : first + _PAGES_AT_ONCE]))
        if self.identity.is_multi_vector:
            return [vectors for part in parts for vectors in part]
        return np.concatenate(parts) if parts else np.zeros((0, self.identity.dimension), np.float32)
