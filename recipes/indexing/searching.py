"""Search an index by vectors, by text, or by both; an embedder is loaded only where vectors are searched."""

from __future__ import annotations

from collections.abc import Callable
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
    from rsgrpo.retrieval.text.hybrid import read_tuned

    tuned = None if by == "vector" else read_tuned(folder)
    is_of_another = tuned is not None and bool(tuned.embedder.differences(index.identity))
    if by == "hybrid" and (tuned is None or is_of_another):
        what = "a weight of another embedder" if is_of_another else "no weight for the text"
        raise UsageError(
            f"{index.name} has {what}; find one on judged questions: rsgrpo tune-search {shown(folder)} --queries SET"
        )
    if by is None:
        by = "hybrid" if tuned is not None and not is_of_another else "vector"
    if by == "vector":
        remarks = ("the tuned weight is of another embedder, so vectors alone are searched",) if is_of_another else ()
        return Findings(pages=_by_vectors(index, question, question.k, make_embedder), by=by, remarks=remarks)
    text = open_texts(index, folder, language or (tuned.language if tuned else ""))
    if by == "text":
        return _by_text(text, question)
    assert tuned is not None
    return _by_both(index, text, tuned, question, make_embedder)


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
