"""Questions that wait for the one search thread are embedded together, and answered as if each were alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from recipes.indexing.searching import Findings, SearchBy
from recipes.serving.library import Library
from recipes.serving.search_thread import LibrarySearch, SearchThread
from recipes.serving.shared_embedder import SharedEmbedder
from rsgrpo.errors import RsgrpoError
from rsgrpo.types import FloatArray
from tests.unit.retrieval.index_pages import SignEmbedder, sign_vectors


class CountingEmbedder(SignEmbedder):
    """Tells questions apart by their length; refuses what is long."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str]] = []

    def embed_queries(self, queries: Sequence[str]) -> FloatArray:
        self.calls.append(list(queries))
        if any(len(query) > 10 for query in queries):
            raise RsgrpoError("too long")
        return sign_vectors([len(query) for query in queries])


class HeldLibrary(Library):
    """A library whose first search goes on when the test says so; what it finds is the question's vector."""

    def __init__(self) -> None:  # it has no index
        self.counting = CountingEmbedder()
        self.embedder = SharedEmbedder(self.counting)
        self.is_searching, self.go_on = threading.Event(), threading.Event()

    def embed_ahead(self, texts: Sequence[str]) -> None:
        self.embedder.embed_ahead(texts)

    def search(self, text: str, k: int, documents: Sequence[str], by: SearchBy | None) -> Findings:
        self.is_searching.set()
        assert self.go_on.wait(20)
        assert np.array_equal(self.embedder.embed_queries([text]), sign_vectors([len(text)]))
        return Findings(pages=[], by="vector", remarks=(text,))


def searched(
    first: str, *others: str, given_up: Sequence[str] = ()
) -> tuple[list[Findings | BaseException], list[list[str]]]:
    """Search for one text, and for the others while it is searched for; returns what is found, and what is embedded."""
    library = HeldLibrary()
    thread = SearchThread(library)

    def begin(text: str) -> asyncio.Task[Findings]:
        return asyncio.ensure_future(thread.search(LibrarySearch(text=text, num_pages=1, documents=(), by=None)))

    async def work() -> list[Findings | BaseException]:
        tasks = [begin(first)]
        await asyncio.to_thread(library.is_searching.wait, 20)
        tasks += [begin(text) for text in others]
        await asyncio.sleep(0)  # they are handed in
        for task, text in zip(tasks, (first, *others), strict=True):
            if text in given_up:
                task.cancel()
        await asyncio.sleep(0)
        library.go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    try:
        return asyncio.run(work()), library.counting.calls
    finally:
        thread.close()


def test_those_that_wait_are_embedded_in_one_call_and_each_gets_its_own():
    found, calls = searched("a", "bb", "ccc", "bb")
    assert [result.remarks for result in found if isinstance(result, Findings)] == [("a",), ("bb",), ("ccc",), ("bb",)]
    assert calls == [["a"], ["bb", "ccc"]]


def test_a_question_that_cannot_be_embedded_fails_alone():
    found, _ = searched("a", "bb", "much too long", "ccc")
    assert [type(result) for result in found] == [Findings, Findings, RsgrpoError, Findings]


@pytest.mark.parametrize("others", [[], ["bb"]], ids=["alone", "one-waits"])
def test_one_that_is_alone_is_embedded_alone(others: list[str]):
    assert searched("a", *others)[1] == [[text] for text in ["a", *others]]


def test_whoever_gave_up_is_not_searched_for():
    assert searched("a", "bb", "ccc", given_up=["bb"])[1] == [["a"], ["ccc"]]


def test_whoever_waits_when_the_thread_ends_is_told() -> None:
    library = HeldLibrary()
    thread = SearchThread(library)

    async def work() -> list[Findings | BaseException]:
        tasks = []
        for text in ("a", "bb"):
            tasks.append(
                asyncio.ensure_future(thread.search(LibrarySearch(text=text, num_pages=1, documents=(), by=None)))
            )
            await asyncio.to_thread(library.is_searching.wait, 20)
        await asyncio.sleep(0)  # the second is handed in while the first is searched for
        thread.close()
        library.go_on.set()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    found = asyncio.run(work())
    assert [type(result) for result in found] == [Findings, asyncio.CancelledError]
