"""Open the text search of an index: the texts are those of the pages that lie beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recipes.indexing.places import PAGES_FOLDER
from rsgrpo.errors import RsgrpoError, shown

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from rsgrpo.retrieval.index.page_index import PageIndex
    from rsgrpo.retrieval.text.text_search import TextSearch


class NoTextsError(RsgrpoError):
    """An index has no texts to search; the message says why, and the way out."""


def open_texts(index: PageIndex, folder: Path, language: str) -> TextSearch:
    """Open the text search of an index.

    Args:
        index: the index.
        folder: the folder of the index, in which the folder of its pages lies; also of an index on a server.
        language: the language by which words are stemmed; empty: English.

    Returns:
        The search.

    Raises:
        NoTextsError: the pages' folder is not there, or no page has a word.
        LexicalError: the language is not known.
        StoreError: the store of pages is damaged.
    """
    from rsgrpo.documents.page_store import PageStore
    from rsgrpo.documents.stored_images import STORE_FILE
    from rsgrpo.retrieval.text.text_search import open_text_search

    pages = folder / PAGES_FOLDER
    if not (pages / STORE_FILE).exists():
        raise NoTextsError(
            f"the texts of {index.name} would lie in {shown(pages)}, and there is no store of pages; put that folder "
            "back, or search --by vector"
        )
    return open_text_search(index, PageStore.open(pages), folder, language)


def texts_told(text: TextSearch) -> str:
    """Say how many pages have no text; empty where all have some.

    Args:
        text: the text search.
    """
    if not text.num_wordless:
        return text.problem
    told = (
        f"{text.num_wordless:,} of {text.num_pages:,} pages have no text and cannot be found by it; rsgrpo index with "
        "documents.ocr=rapidocr reads them"
    )
    return f"{told}; {text.problem}" if text.problem else told
