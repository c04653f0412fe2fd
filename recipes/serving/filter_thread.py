"""The filter between search and engine: one thread, since its passes are not made for several."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from recipes.asking.chat_server import ChatServer, ServerAddress
from recipes.asking.page_filter import filtered_pages
from rsgrpo.answering.records import LookedAtPage
from rsgrpo.errors import RsgrpoError

if TYPE_CHECKING:
    from rsgrpo.retrieval.filtering.page_filter import FilterStage


class FilterThread:
    """Filters the pages of all visitors' questions.

    Args:
        make_stages: makes the passes; made again where the engine has another address, since one of them may ask it.
        server: the engine's server.
        most_pages: the most pages that the model takes.
    """

    def __init__(self, make_stages: Callable[[], Sequence[FilterStage]], server: ChatServer, most_pages: int) -> None:
        self._make_stages = make_stages
        self._server = server
        self._most_pages = most_pages
        self._stages: Sequence[FilterStage] = ()
        self._made_for: ServerAddress | None = None
        self._thread = ThreadPoolExecutor(1, "filter")

    async def filtered(self, question: str, pages: tuple[LookedAtPage, ...]) -> tuple[LookedAtPage, ...]:
        """Look at the pages of a question; where that fails, once more when the engine answers again.

        Args:
            question: the text of the question.
            pages: the pages that were found.

        Returns:
            The same pages, each with its relevance, and whether the model shall see it.

        Raises:
            RsgrpoError: they cannot be filtered; the message says why.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._work, question, pages)
        except RsgrpoError as error:
            await self._server.recover(0, str(error))
        return await loop.run_in_executor(self._thread, self._work, question, pages)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _work(self, question: str, pages: tuple[LookedAtPage, ...]) -> tuple[LookedAtPage, ...]:
        address = self._server.address
        if address != self._made_for:
            self._stages, self._made_for = self._make_stages(), address
        return filtered_pages(question, pages, self._stages, self._most_pages)
