"""Search the pages of an index by their text; the table of words lies with the index, and is built when texts change.

    manuals.index/
      text-0f3a….bm25   words and scores of every page (rsgrpo.retrieval.text.lexical); its name is a digest of what
      made it

The digest is over the pages of the index, what the store says of their texts, and the language. So a table is never
used for other pages, and copying a folder costs nothing. A table that cannot be kept, as on a disk that is full or may
not be written, is built for each search.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import FileError, json_bytes, shown_error
from rsgrpo.retrieval.index.page_index import ALL_PAGES, FoundPage, PageFilter, PageIndex, check_k
from rsgrpo.retrieval.text.lexical import LexicalError, LexicalIndex, build_index, load_index
from rsgrpo.types import BoolArray

DEFAULT_LANGUAGE = "english"

_PREFIX, _SUFFIX = "text-", ".bm25"
_FORMAT = 1  # of what the digest is over
_DIGEST_CHARACTERS = 16  # 64 bits: two tables of one index do not meet by chance


class PageTexts(Protocol):
    """The texts of pages, wherever they lie; a store of pages (``rsgrpo.documents``) is one."""

    def text_digest(self) -> str:
        """Compute a digest that changes whenever a text may have changed, without reading the texts."""

    def texts(self) -> Iterator[tuple[str, str]]:
        """Iterate over the id and the text of every page; the text is empty where a page has none."""


class TextSearch:
    """The pages of an index, found by their words; :func:`open_text_search` makes one.

    Attributes:
        content: the digest of the pages, their texts and the language: equal digests give equal rankings.
        language: the language by which words are stemmed.
        num_pages: how many pages the index holds.
        num_wordless: how many of them have no word, so that no question finds them by text.
        problem: why the table of words could not be kept with the index; empty: it is kept.
    """

    def __init__(self, index: PageIndex, lexical: LexicalIndex, content: str, problem: str) -> None:
        self._index = index
        self._lexical = lexical
        self._allowed: tuple[PageFilter, BoolArray | None] = (ALL_PAGES, None)
        self._pages = {page.page_id: page for page in index.pages()}
        self.content = content
        self.language = lexical.language
        self.num_pages = len(lexical.page_ids)
        self.num_wordless = lexical.num_wordless
        self.problem = problem

    def has_words(self, question: str) -> bool:
        """Whether a question has a word to search for, which stop words and signs are not."""
        return self._lexical.has_words(question)

    def search(self, question: str, k: int, allowed: PageFilter = ALL_PAGES) -> list[FoundPage]:
        """Find the pages that have words of a question.

        Args:
            question: the text to search for.
            k: the largest number of pages, at least 1.
            allowed: the conditions that a page must meet to be found.

        Returns:
            The pages by falling BM25 score, equal ones in page order; empty where no page has a word of the question.

        Raises:
            PageIndexError: ``k`` is below 1.
        """
        check_k(k)
        found = self._lexical.search(question, k, self._may_be_found(allowed))
        return [
            FoundPage(page=self._pages[page.page_id], score=page.score, rank=rank)
            for rank, page in enumerate(found, start=1)
        ]

    def _may_be_found(self, allowed: PageFilter) -> BoolArray | None:
        if self._allowed[0] != allowed:  # many questions come with one filter
            ids = {page.page_id for page in self._index.pages(allowed)}
            self._allowed = (allowed, np.array([page_id in ids for page_id in self._lexical.page_ids], dtype=np.bool_))
        return self._allowed[1]


def open_text_search(index: PageIndex, source: PageTexts, folder: Path, language: str = "") -> TextSearch:
    """Load the table of words that lies with an index, or build it where there is none for these pages and texts.

    Args:
        index: the index whose pages are searched.
        source: the texts of the pages; pages that it lacks have no text, and pages that the index lacks are left out.
        folder: the folder of the index, where the table is kept; tables of other content are taken away.
        language: the language by which words are stemmed, one of :data:`rsgrpo.retrieval.text.lexical.LANGUAGES`;
            empty: English.

    Returns:
        The search, over all pages of the index.

    Raises:
        LexicalError: no page has a word, the index holds no page, or the language is not known.
    """
    language = language or DEFAULT_LANGUAGE
    page_ids = [page.page_id for page in index.pages()]  # in page order: so are pages of equal score
    content = _digest(page_ids, source, language)
    table = folder / f"{_PREFIX}{content[:_DIGEST_CHARACTERS]}{_SUFFIX}"
    if table.is_dir():
        with suppress(LexicalError, FileError):  # damaged, or of another release: built anew
            return TextSearch(index, load_index(table), content, "")
    texts = dict.fromkeys(page_ids, "")
    texts.update((page_id, text) for page_id, text in source.texts() if page_id in texts)
    lexical = build_index(texts, language=language)
    return TextSearch(index, lexical, content, _keep(lexical, table))


def _digest(page_ids: Sequence[str], source: PageTexts, language: str) -> str:
    return hashlib.sha256(json_bytes([_FORMAT, language, source.text_digest(), list(page_ids)])).hexdigest()


def _keep(lexical: LexicalIndex, table: Path) -> str:
    """Write a table of words and take others away; return why that is not possible, or an empty text."""
    partial = table.with_name(f"{table.name}.{uuid.uuid4().hex}")  # two searches may build it at once
    try:
        lexical.save(partial)
        shutil.rmtree(table, ignore_errors=True)  # a damaged one
        partial.rename(table)
    except OSError as error:
        if not table.is_dir():
            return f"the table of words cannot be kept in {shown(table.parent)} ({shown_error(error)})"
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for other in table.parent.glob(f"{_PREFIX}*{_SUFFIX}*"):
        if other != table:
            shutil.rmtree(other, ignore_errors=True)
    return ""
