"""Pages and vectors for tests of indexes; inner products of the vectors have no rounding, so that ties are exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.index import IndexConfig
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity, EmbeddingError, PageImage
from rsgrpo.retrieval.index.flat_index import create_index
from rsgrpo.retrieval.index.page_index import FoundPage, IndexedPage, PageFilter
from rsgrpo.types import FloatArray, ImageRef

DIMENSION = 4

IDENTITY = EmbedderIdentity(
    model="models/embedder",
    revision="sha256:00",
    pooling="lasttoken",
    query_instruction="",
    instruction_place="text",
    min_pixels=0,
    max_pixels=1000,
    dpi=None,
    dimension=DIMENSION,
)

MULTI_IDENTITY = dataclasses.replace(IDENTITY, pooling="image_tokens", is_multi_vector=True)


def sign_vector(number: int) -> FloatArray:
    """Make one of the 16 vectors of ±0.5: of length 1, inner products in {-1, -0.5, 0, 0.5, 1} without rounding."""
    return np.array([0.5 if number >> bit & 1 else -0.5 for bit in range(DIMENSION)], np.float32)


def sign_vectors(numbers: list[int]) -> FloatArray:
    return np.stack([sign_vector(number) for number in numbers]) if numbers else np.zeros((0, DIMENSION), np.float32)


class SignEmbedder:
    """An embedder of numbers: a question or a page called ``… 5`` has the sign vector 5."""

    def __init__(self, identity: EmbedderIdentity = IDENTITY) -> None:
        self.identity = identity
        self.settings = EmbedderConfig(model="m", preset="visrag")

    def embed_queries(self, queries: Sequence[str]) -> FloatArray:
        if not all(query.strip() for query in queries):
            raise EmbeddingError("a question is empty")
        return sign_vectors([int(query.split()[-1]) for query in queries])

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        return sign_vectors([int(page.path.split()[-1]) for page in pages if isinstance(page, ImageRef)])


class SignSetEmbedder:
    """A multi-vector embedder: a question or a page called ``… 5.3.3`` has the sign vectors 5, 3 and 3."""

    def __init__(self, identity: EmbedderIdentity = MULTI_IDENTITY) -> None:
        self.identity = identity
        self.settings = EmbedderConfig(model="m", preset="multi_vector")

    def embed_queries(self, queries: Sequence[str]) -> list[FloatArray]:
        return [sign_vectors([int(number) for number in query.split()[-1].split(".")]) for query in queries]

    def embed_pages(self, pages: Sequence[PageImage]) -> list[FloatArray]:
        return self.embed_queries([page.path for page in pages if isinstance(page, ImageRef)])


def make_page(number: int, *, folder: str = "", date: str = "", document: str = "") -> IndexedPage:
    """Make page ``number`` of ten documents."""
    document = document or f"doc{number % 10}.pdf"
    return IndexedPage(
        page_id=f"{document}#{number}", document=document, page_number=number + 1, folder=folder, date=date, title="é"
    )


FILTERS = (
    PageFilter(),
    PageFilter(documents=("doc1.pdf", "doc3.pdf")),
    PageFilter(folders=("a",)),
    PageFilter(folders=("a/b", "c"), last_date="2026-06-30"),
    PageFilter(first_date="2026-02-01", last_date="2026-02-28"),
    PageFilter(documents=("nothing.pdf",)),
)
"""Conditions of every kind, for pages of :func:`spread_page`."""
FOLDERS = ("", "a", "a/b", "ab", "c")
DATES = ("", "2026-01-31", "2026-02-01", "2026-07-01")


def spread_page(number: int) -> IndexedPage:
    """Make page ``number``, in a folder and of a day that the filters tell from others."""
    return make_page(number, folder=FOLDERS[number % len(FOLDERS)], date=DATES[number % len(DATES)])


def unit_vectors(num: int, dimension: int, *, seed: int = 0) -> FloatArray:
    drawn = np.random.default_rng(seed).standard_normal((num, dimension))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def meets(page: IndexedPage, wanted: PageFilter) -> bool:
    """Whether a page meets a filter, by the filter's definition."""
    folders = [page.folder == folder or page.folder.startswith(f"{folder}/") for folder in wanted.folders]
    return (
        (not wanted.documents or page.document in wanted.documents)
        and (not wanted.folders or any(folders))
        and (not wanted.first_date or (bool(page.date) and page.date >= wanted.first_date))
        and (not wanted.last_date or (bool(page.date) and page.date <= wanted.last_date))
    )


def inner_product(vector: FloatArray, query: FloatArray) -> float:
    return float((vector.astype(np.float64) * query.astype(np.float64)).sum())


def brute_maxsim(page: FloatArray, query: FloatArray) -> float:
    """Compute the sum over the question's vectors of the best inner product with a vector of the page."""
    wide = page.astype(np.float64)
    return float(np.sum([(wide * of_query.astype(np.float64)).sum(axis=1).max() for of_query in query]))


def brute_force(
    pages: list[IndexedPage],
    vectors: Sequence[FloatArray] | FloatArray,
    query: FloatArray,
    k: int,
    wanted: PageFilter,
    score: Callable[[FloatArray, FloatArray], float] = inner_product,
) -> list[tuple[str, float]]:
    """Find ids and scores of the best pages by a look at every page."""
    scores = [score(of_page, query) for of_page in vectors]
    allowed = [(page, score) for page, score in zip(pages, scores, strict=True) if meets(page, wanted)]
    best = sorted(allowed, key=lambda scored: (-scored[1], scored[0].order))[:k]
    return [(page.page_id, score) for page, score in best]


def told(found: list[FoundPage]) -> list[tuple[str, float]]:
    assert [hit.rank for hit in found] == list(range(1, len(found) + 1))
    return [(hit.page.page_id, hit.score) for hit in found]


def save_pages(folder: Path, num: int, config: IndexConfig | None = None, dimension: int = 24) -> np.ndarray:
    vectors = unit_vectors(num, dimension)
    with create_index(folder, dataclasses.replace(IDENTITY, dimension=dimension), config) as index:
        index.add([spread_page(number) for number in range(num)], vectors)
        index.save()
    return vectors
