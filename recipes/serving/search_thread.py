"""The one thread that searches for all visitors: questions that wait meanwhile are embedded together.

A model takes hardly longer for eight questions than for one, so the more come, the less time each takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from recipes.indexing.searching import Findings, SearchBy
from recipes.serving.library import Library
from rsgrpo.errors import RsgrpoError
from rsgrpo.retrieval.embedders.embedder import EmbeddingError

_LOG = logging.getLogger("rsgrpo.serve")
_MOST_TOGETHER = 32  # whoever comes next waits for so many


@dataclass(frozen=True, kw_only=True, slots=True)
class LibrarySearch:
    """A search of a library.

    Attributes:
        text: the text of the question.
        num_pages: the largest number of pages.
        documents: the documents that are searched; empty: all.
        by: what is searched; None: as the index is tuned.
        before: the question before, which helps to find what a follow-up is about; left out where the embedder does
            not take both. Empty: there is none.
    """

    text: str
    num_pages: int
    documents: Sequence[str]
    by: SearchBy | None
    before: str = ""

    @property
    def whole_text(self) -> str:
        """The question before and the question."""
        return f"{self.before} {self.text}" if self.before else self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    """A search that waits for the thread."""

    search: LibrarySearch
    found: Future[Findings] = field(default_factory=Future)


class SearchThread:
    """Searches a library in one thread, since embedders and indexes are not made for several.

    Args:
        library: the library.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._waiting: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, "search")

    async def search(self, search: LibrarySearch) -> Findings:
        """Search; whoever is cancelled meanwhile costs nobody time.

        Args:
            search: what is searched for.

        Returns:
            The pages, best first.

        Raises:
            RsgrpoError: the question cannot be searched for; the message says why.
        """
        waiting = _Waiting(search=search)
        self._waiting.append(waiting)
        self._thread.submit(self._work)
        return await asyncio.wrap_future(waiting.found)

    def close(self) -> None:
        """End the thread; searches that wait are broken off."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for waiting in list(self._waiting):
            waiting.found.cancel()

    def _work(self) -> None:
        """Search for all who wait; the call of one whose search was done by then finds nothing to do."""
        together: list[_Waiting] = []
        while self._waiting and len(together) < _MOST_TOGETHER:
            waiting = self._waiting.popleft()
            if waiting.found.set_running_or_notify_cancel():
                together.append(waiting)
        if len(together) > 1:
            self._embed_ahead([waiting.search.whole_text for waiting in together if waiting.search.by != "text"])
        for waiting in together:
            try:
                found = self._search(waiting.search)
            except BaseException as error:  # of whatever kind: whoever waits must be told
                waiting.found.set_exception(error)
            else:
                waiting.found.set_result(found)

    def _embed_ahead(self, texts: list[str]) -> None:
        """Embed questions together; whosever question fails is told when it is searched for alone."""
        try:
            self._library.embed_ahead(texts)
        except RsgrpoError:
            pass
        except BaseException:  # a mistake of ours, which must not leave those waiting who were taken out together
            _LOG.exception("%d questions could not be embedded together; each is now embedded alone", len(texts))

    def _search(self, search: LibrarySearch) -> Findings:
        try:
            return self._library.search(search.whole_text, search.num_pages, search.documents, search.by)
        except EmbeddingError:
            if not search.before:
                raise
        # The two may be too long together, and the visitor can only shorten the new one.
        return self._library.search(search.text, search.num_pages, search.documents, search.by)
