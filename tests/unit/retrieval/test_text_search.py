"""Text search of an index: filters, ties in page order, and the table of words that is kept with the index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rsgrpo.retrieval.index.flat_index import FlatIndex, create_index, open_index
from rsgrpo.retrieval.index.page_index import PageIndexError
from rsgrpo.retrieval.text.lexical import LexicalError, LexicalIndex
from rsgrpo.retrieval.text.text_search import TextSearch, open_text_search
from tests.unit.retrieval.index_pages import FILTERS, IDENTITY, make_page, meets, sign_vectors, spread_page

NUM_PAGES = 40


class Texts:
    """Texts that a test writes down, and how often they were read."""

    def __init__(self, texts: dict[str, str], digest: str = "1") -> None:
        self._texts, self._digest = texts, digest
        self.num_reads = 0

    def text_digest(self) -> str:
        return self._digest

    def texts(self) -> Iterator[tuple[str, str]]:
        self.num_reads += 1
        yield from self._texts.items()


@pytest.fixture
def index(tmp_path: Path) -> FlatIndex:
    pages = [spread_page(number) for number in reversed(range(NUM_PAGES))]
    with create_index(tmp_path / "i", IDENTITY) as created:
        created.add(pages, sign_vectors([0] * NUM_PAGES))
        created.save()
    return open_index(tmp_path / "i")


def text_of(number: int) -> str:
    return ("plot " * (number % 3) + f"page {number}") if number % 8 else ""


TEXTS = {spread_page(number).page_id: text_of(number) for number in range(NUM_PAGES)}


def told(search: TextSearch, question: str, k: int = NUM_PAGES) -> list[str]:
    return [found.page.page_id for found in search.search(question, k)]


def test_a_filter_leaves_out_pages_and_changes_no_score(index: FlatIndex, tmp_path: Path) -> None:
    search = open_text_search(index, Texts(TEXTS), tmp_path / "i")
    everything = search.search("plot", NUM_PAGES)
    assert everything
    for wanted in FILTERS:
        found = search.search("plot", NUM_PAGES, wanted)
        expected = [(hit.page, hit.score) for hit in everything if meets(hit.page, wanted)]
        assert [(hit.page, hit.score) for hit in found] == expected
        assert [hit.rank for hit in found] == list(range(1, len(found) + 1))


def test_pages_of_equal_score_come_in_page_order(index: FlatIndex, tmp_path: Path) -> None:
    search = open_text_search(index, Texts(TEXTS), tmp_path / "i")
    # Of text "plot plot page N" all are equally long, so equally good; the index was filled from the last page on.
    twice = [page for page in index.pages() if TEXTS[page.page_id].count("plot") == 2]
    assert told(search, "plot", 5) == [page.page_id for page in twice[:5]]


def test_pages_without_text_are_counted_and_never_found(index: FlatIndex, tmp_path: Path) -> None:
    search = open_text_search(index, Texts(TEXTS | {"of another index#1": "page"}), tmp_path / "i")
    assert (search.num_pages, search.num_wordless) == (NUM_PAGES, NUM_PAGES // 8)
    assert set(told(search, "page")) == {page_id for page_id, text in TEXTS.items() if text}
    assert search.has_words("a page") and not search.has_words("of the … ?!")
    assert search.search("of the", 3) == []
    with pytest.raises(PageIndexError, match="k=0"):
        search.search("page", 0)


def test_a_table_is_built_once_for_the_same_pages_texts_and_language(index: FlatIndex, tmp_path: Path) -> None:
    folder = tmp_path / "i"
    texts = Texts(TEXTS)
    first = open_text_search(index, texts, folder)
    again = open_text_search(index, texts, folder)
    assert texts.num_reads == 1 and first.content == again.content
    assert told(first, "plot page 7") == told(again, "plot page 7") and again.num_wordless == first.num_wordless
    (table,) = folder.glob("text-*")

    german = open_text_search(index, texts, folder, "german")
    assert german.language == "german" and german.content != first.content
    changed = open_text_search(index, Texts(TEXTS, "2"), folder)
    assert changed.content not in (first.content, german.content)
    with open_index(folder, is_writable=True) as writable:
        writable.add([make_page(99)], sign_vectors([1]))
        writable.save()
    more = open_text_search(open_index(folder), Texts(TEXTS, "2"), folder)
    assert more.num_pages == NUM_PAGES + 1 and more.num_wordless == first.num_wordless + 1
    assert texts.num_reads == 2 and not table.exists()
    assert len(list(folder.glob("text-*"))) == 1  # those of other content are taken away


def test_a_damaged_table_is_built_anew(index: FlatIndex, tmp_path: Path) -> None:
    texts = Texts(TEXTS)
    found = told(open_text_search(index, texts, tmp_path / "i"), "plot")
    (table,) = (tmp_path / "i").glob("text-*")
    (table / "lexical.json").write_text("{")
    assert told(open_text_search(index, texts, tmp_path / "i"), "plot") == found
    assert told(open_text_search(index, texts, tmp_path / "i"), "plot") == found
    assert texts.num_reads == 2


def test_a_table_that_cannot_be_kept_is_built_for_each_search(
    index: FlatIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LexicalIndex, "save", full)
    texts = Texts(TEXTS)
    for _ in range(2):
        search = open_text_search(index, texts, tmp_path / "i")
        assert told(search, "plot") and "cannot be kept" in search.problem and "No space left" in search.problem
    assert texts.num_reads == 2 and not list((tmp_path / "i").glob("text-*"))


def test_an_index_without_a_word_and_an_unknown_language_are_refused(index: FlatIndex, tmp_path: Path) -> None:
    with pytest.raises(LexicalError, match="none of the 40 pages has a word to index"):
        open_text_search(index, Texts({}), tmp_path / "i")
    with pytest.raises(LexicalError, match="the language 'klingon' is not known; choose one of"):
        open_text_search(index, Texts(TEXTS), tmp_path / "i", "klingon")
