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
    if way.by == "vector":
        pages = _by_vectors(index, question, question.k, make_embedder)
        return Findings(pages=pages, by=way.by, remarks=way.remarks)
    text = open_texts(index, folder, language or (way.tuned.language if way.tuned else ""))
    if way.by == "text":
        return _by_text(text, question)
    assert way.tuned is not None
    return _by_both(index, text, way.tuned, question, make_embedder)


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
    from rsgrpo.retrieval.index.page_index import ALL_PAGES, find_pages
    from rsgrpo.retrieval.text.hybrid import fuse_found

    way = _way(index, folder, by)
    if way.by == "vector":
        return find_pages(index, make_embedder(), questions, k)
    text = open_texts(index, folder, way.tuned.language if way.tuned else "")
    depth = k if way.tuned is None or way.by == "text" else max(way.tuned.depth, k)
    has_words = [text.has_words(question) for question in questions]
    by_text = [
        text.search(question, depth, ALL_PAGES) if is_searched else []
        for question, is_searched in zip(questions, has_words, strict=True)
    ]
    if way.tuned is None or way.by == "text":
        return by_text
    weights = [way.tuned.weight if is_searched else 0.0 for is_searched in has_words]
    by_vectors: list[list[FoundPage]] = [[] for _ in questions]
    if any(weight < 1 for weight in weights):
        by_vectors = find_pages(index, make_embedder(), questions, depth)
    return [
        fuse_found(words, vectors if weight < 1 else [], weight, k, method=way.tuned.method)
        for words, vectors, weight in zip(by_text, by_vectors, weights, strict=True)
    ]


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


def _by_vectors(
    index: PageIndex, question: Question, k: int, make_embedder: Callable[[], AnyEmbedder]
) -> list[FoundPage]:
    from rsgrpo.retrieval.index.page_index import find_pages

    (found,) = find_pages(index, make_embedder(), [question.text], k, question.allowed)
    return found


def _by_text(text: TextSearch, question: Question) -> Findings:
    if not text.has_words(question.text):
        raise UsageError(f"{_WORDLESS}; ask in other words, or --by vector")
    pages = text.search(question.text, question.k, question.allowed)
    return Findings(pages=pages, by="text", remarks=tuple(filter(None, [texts_told(text)])))


def _by_both(
    index: PageIndex, text: TextSearch, tuned: TunedSearch, question: Question, make_embedder: Callable[[], AnyEmbedder]
) -> Findings:
    from rsgrpo.retrieval.text.hybrid import fuse_found

    depth = max(tuned.depth, question.k)
    remarks = [
        f"the weight of the text ({tuned.weight:g}) was tuned for another state of the index: {change}; tune it again "
        "with rsgrpo tune-search"
        for change in tuned.changes(text, index.identity)
    ]
    weight = tuned.weight
    if not text.has_words(question.text):
        weight = 0.0
        remarks.append(f"{_WORDLESS}, so vectors alone find pages")
    remarks += filter(None, [texts_told(text)])
    by_text = text.search(question.text, depth, question.allowed) if weight else []
    by_vectors = _by_vectors(index, question, depth, make_embedder) if weight < 1 else []
    pages = fuse_found(by_text, by_vectors, weight, question.k, method=tuned.method)
    return Findings(pages=pages, by="hybrid", remarks=tuple(remarks))
