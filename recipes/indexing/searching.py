"""Search an index by vectors, by text, or by both; an embedder is loaded only where vectors are searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recipes.indexing.texts import open_texts, texts_told
from rsgrpo.errors import shown
from rsgrpo.failures.command import UsageError

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from rsgrpo.retrieval.embedders.embedder import AnyEmbedder
    from rsgrpo.retrieval.index.page_index import FoundPage, PageFilter, PageIndex
    from rsgrpo.retrieval.text.hybrid import TunedSearch
    from rsgrpo.retrieval.text.text_search import TextSearch

SearchBy = Literal["vector", "text", "hybrid"]
"""What is searched: the vectors of pages, their text, or both."""

_WORDLESS = "the question has no word to search for, but stop words or signs alone"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question to an index.

    Attributes:
        text: the text of the question.
        k: the largest number of pages to find, at least 1.
        allowed: the conditions that a page must meet to be found.
    """

    text: str
    k: int
    allowed: PageFilter


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What a search found.

    Attributes:
        pages: the pages, best first.
        by: what was searched.
        remarks: what the user should know of the search, such as pages that it cannot find.
    """

    pages: list[FoundPage]
    by: SearchBy
    remarks: tuple[str, ...]


def search(
    index: PageIndex,
    folder: Path,
    question: Question,
    by: SearchBy | None,
    language: str,
    make_embedder: Callable[[], AnyEmbedder],
) -> Findings:
    """Find the pages that answer a question.

    Args:
        index: the index to search.
        folder: the folder of the index, in which its pages and its tuned weight lie.
        question: the question.
        by: what is searched; None: both where a weight was tuned for the index's embedder, else vectors.
        language: the language of the text search; empty: the one that the weight was tuned with, else English.
        make_embedder: the function that makes the embedder; it is not called where no vectors are searched.

    Returns:
        The pages, and what the user should know of them.

    Raises:
        UsageError: the question has no word to search for by text, or both shall be searched and no weight was tuned
            for this embedder.
        RsgrpoError: the index has no texts, its tuned weight cannot be read, or the question cannot be embedded.
    """
    way = _way(index, folder, by)
    text = _texts_of(way, index, folder, language)
    if way.by == "text" and text is not None and not text.has_words(question.text):
        raise UsageError(f"{_WORDLESS}; ask in other words, or --by vector")
    (pages,) = _found(way, index, text, [question.text], question.k, question.allowed, make_embedder)
    remarks = way.remarks if text is None else _remarks(way, index, text, question.text)
    return Findings(pages=pages, by=way.by, remarks=remarks)


def search_all(
    index: PageIndex,
    folder: Path,
    questions: Sequence[str],
    k: int,
    by: SearchBy | None,
    make_embedder: Callable[[], AnyEmbedder],
) -> list[list[FoundPage]]:
    """Find the pages that answer each of many questions; all of them are embedded in one call.

    Args:
        index: the index to search.
        folder: the folder of the index.
        questions: the texts of the questions.
        k: the largest number of pages to find for each, at least 1.
        by: as in :func:`search`.
        make_embedder: the function that makes the embedder; it is not called where no vectors are searched.

    Returns:
        The pages for each question, best first; none for a question without a word, where text alone is searched.

    Raises:
        UsageError: both shall be searched and no weight was tuned for this embedder.
        RsgrpoError: the index has no texts, its tuned weight cannot be read, or a question cannot be embedded.
    """
    from rsgrpo.retrieval.index.page_index import ALL_PAGES

    way = _way(index, folder, by)
    return _found(way, index, _texts_of(way, index, folder, ""), questions, k, ALL_PAGES, make_embedder)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """How an index is searched: by what, with which tuned weight, and what the user should know of it."""

    by: SearchBy
    tuned: TunedSearch | None
    remarks: tuple[str, ...] = ()


def _way(index: PageIndex, folder: Path, by: SearchBy | None) -> _Way:
    from rsgrpo.retrieval.text.hybrid import read_tuned

    tuned = None if by == "vector" else read_tuned(folder)
    is_of_another = tuned is not None and bool(tuned.embedder.differences(index.identity))
    if by == "hybrid" and (tuned is None or is_of_another):
        what = "a weight of another embedder" if is_of_another else "no weight for the text"
        raise UsageError(
            f"{index.name} has {what}; find one on judged questions: rsgrpo tune-search {shown(folder)} --queries SET"
        )
    if by is not None:
        return _Way(by=by, tuned=tuned)
    if tuned is not None and not is_of_another:
        return _Way(by="hybrid", tuned=tuned)
    remarks = ("the tuned weight is of another embedder, so vectors alone are searched",) if is_of_another else ()
    return _Way(by="vector", tuned=None, remarks=remarks)


def _texts_of(way: _Way, index: PageIndex, folder: Path, language: str) -> TextSearch | None:
    """The text of the pages, in the language given or tuned for; None where it is not searched."""
    if way.by == "vector":
        return None
    return open_texts(index, folder, language or (way.tuned.language if way.tuned else ""))


def _found(
    way: _Way,
    index: PageIndex,
    text: TextSearch | None,
    questions: Sequence[str],
    k: int,
    allowed: PageFilter,
    make_embedder: Callable[[], AnyEmbedder],
) -> list[list[FoundPage]]:
    """The pages for each question; all of them are embedded in one call, where any needs its vector."""
    from rsgrpo.retrieval.index.page_index import find_pages
    from rsgrpo.retrieval.text.hybrid import fuse_found

    if text is None:
        return find_pages(index, make_embedder(), questions, k, allowed)
    tuned = way.tuned if way.by == "hybrid" else None
    depth = k if tuned is None else max(tuned.depth, k)
    weight = 1.0 if tuned is None else tuned.weight
    weights = [weight if text.has_words(question) else 0.0 for question in questions]
    by_text = [
        text.search(question, depth, allowed) if weight else []
        for question, weight in zip(questions, weights, strict=True)
    ]
    if tuned is None:
        return by_text
    by_vectors: list[list[FoundPage]] = [[] for _ in questions]
    if any(weight < 1 for weight in weights):
        by_vectors = find_pages(index, make_embedder(), questions, depth, allowed)
    return [
        fuse_found(words, vectors if weight < 1 else [], weight, k, method=tuned.method)
        for words, vectors, weight in zip(by_text, by_vectors, weights, strict=True)
    ]


def _remarks(way: _Way, index: PageIndex, text: TextSearch, question: str) -> tuple[str, ...]:
    """What the user should know of a search in which text counts."""
    remarks: list[str] = []
    if way.by == "hybrid" and way.tuned is not None:
        remarks = [
            f"the weight of the text ({way.tuned.weight:g}) was tuned for another state of the index: {change}; tune "
            "it again with rsgrpo tune-search"
            for change in way.tuned.changes(text, index.identity)
        ]
        if not text.has_words(question):
            remarks.append(f"{_WORDLESS}, so vectors alone find pages")
    return tuple(filter(None, [*remarks, texts_told(text)]))
