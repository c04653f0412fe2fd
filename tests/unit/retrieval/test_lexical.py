"""BM25 over page texts: scores by the formula, scripts, ties, queries without words, files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.io.atomic_files import FileError
from rsgrpo.retrieval.text.lexical import (
    LANGUAGES,
    NO_LANGUAGE,
    STOP_WORDS,
    LexicalError,
    LexicalIndex,
    build_index,
    load_index,
    tokenize,
)
from tests.unit.retrieval.rankings import ids

PAGES = {
    "cover": "",
    "revenue": "The quarterly revenue of 2024",
    "staff": "Staff and their revenues, by office",
    "tokyo": "東京都の人口は増えている。",
    "kyoto": "京都の寺",
    "copy": "The quarterly revenue of 2024",
}


@pytest.fixture(scope="module")
def index() -> LexicalIndex:
    return build_index(PAGES)


def test_scores_are_lucenes_bm25(index: LexicalIndex) -> None:
    # idf = ln(1 + (N - n + 0.5) / (n + 0.5)); tf / (tf + k1 (1 - b + b L / mean L)); k1 1.5, b 0.75
    lengths = {name: len(tokenize(text)) for name, text in PAGES.items()}
    found = {page.page_id: page.score for page in index.search("quarterly revenue", 10)}

    def part(num_pages: int, length: int) -> float:
        idf = math.log(1 + (len(PAGES) - num_pages + 0.5) / (num_pages + 0.5))
        return idf / (1 + 1.5 * (0.25 + 0.75 * length / (sum(lengths.values()) / len(lengths))))

    assert found == pytest.approx(
        {
            "revenue": part(2, lengths["revenue"]) + part(3, lengths["revenue"]),
            "copy": part(2, lengths["copy"]) + part(3, lengths["copy"]),
            "staff": part(3, lengths["staff"]),
        },
        rel=1e-5,
    )


def test_pages_of_equal_score_come_in_the_corpus_s_order(index: LexicalIndex) -> None:
    assert ids(index.search("quarterly", 10)) == ["revenue", "copy"]
    assert ids(index.search("quarterly", 1)) == ["revenue"]
    many = build_index({f"p{number}": "same words" for number in range(50)})
    assert ids(many.search("words", 7)) == [f"p{number}" for number in range(7)]


@given(st.lists(st.text("ab cd", max_size=8), min_size=1, max_size=8), st.text("abcd ", max_size=5), st.integers(1, 9))
def test_a_short_search_is_the_beginning_of_a_long_one(texts: list[str], query: str, k: int) -> None:
    try:
        index = build_index({str(number): text for number, text in enumerate(texts)}, language=NO_LANGUAGE)
    except LexicalError:
        assert not any(text.split() for text in texts)
        return
    everything = index.search(query, len(texts))
    assert index.search(query, k) == everything[:k]
    words = set(query.split())
    # exactly the pages that share a word with the query, by falling score and then by place
    assert {int(page_id) for page_id in ids(everything)} == {
        number for number, text in enumerate(texts) if words & set(text.split())
    }
    assert list(everything) == sorted(everything, key=lambda page: (-page.score, int(page.page_id)))


@pytest.mark.parametrize("query", ["", "of the", "…!?", "\u0301\u0301", "___", "   "])
def test_queries_without_words_find_nothing_and_are_counted(index: LexicalIndex, query: str) -> None:
    assert index.search(query, 5) == ()
    results = index.search_all({"empty": query, "unknown": "zebra", "q": "office"}, 5)
    assert results.tokenless_queries == ("empty",)
    assert {name: ids(ranking) for name, ranking in results.run.items()} == {"empty": [], "unknown": [], "q": ["staff"]}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("東京", ["tokyo", "kyoto"]),  # the pair 東京, and the single 京
        ("京都", ["kyoto", "tokyo"]),  # 東京都 holds the pair 京都 too, on a longer page
        ("人口", ["tokyo"]),
        ("寺", ["kyoto"]),  # a single character within a longer run
        ("猫", []),
    ],
)
def test_japanese_is_searched_by_characters_and_pairs(index: LexicalIndex, query: str, found: list[str]) -> None:
    assert ids(index.search(query, 5)) == found


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("本报告介绍了公司的财务状况", "财务状况"),
        ("서울특별시의 인구는", "인구"),
        ("รายได้ประจำไตรมาส", "รายได้"),
        ("हिन्दी में रिपोर्ट", "रिपोर्ट"),
        ("Отчёт о доходах", "доходах"),
        ("Ετήσια έκθεση", "έκθεση"),
        ("التقرير السنوي", "السنوي"),
        ("Bilan ﬁnancier", "financier"),
        ("ＲＥＶＥＮＵＥ　２０２４", "revenue 2024"),
        ("Straße", "STRASSE"),
        ("model GPT模型3", "模型"),
        ("file_name.pdf", "name"),
    ],
)
@pytest.mark.parametrize("language", [NO_LANGUAGE, "english"])
def test_a_page_of_any_script_is_found_by_a_part_of_it(text: str, part: str, language: str) -> None:
    index = build_index({"other": "something else", "page": text}, language=language)
    assert ids(index.search(part, 5)) == ["page"]


def test_words_are_stemmed_by_the_language_and_its_stop_words_left_out() -> None:
    assert tokenize("The Revenues of 2024") == ["revenu", "2024"]
    assert tokenize("The Revenues of 2024", NO_LANGUAGE) == ["the", "revenues", "of", "2024"]
    assert tokenize("Die Einnahmen der Firmen", "german") == ["einnahm", "firm"]
    assert tokenize("東京") == ["東", "京", "東京"]
    assert tokenize("हिन्दी", NO_LANGUAGE) == ["हिन्दी"]  # whole, with its vowel signs
    assert set(STOP_WORDS) <= set(LANGUAGES)


_STOP_WORD = {
    "danish": "og",
    "dutch": "het",
    "english": "the",
    "french": "les",
    "german": "und",
    "italian": "di",
    "norwegian": "og",
    "portuguese": "não",
    "russian": "и",
    "spanish": "los",
    "swedish": "och",
    "turkish": "ve",
}


def test_every_language_with_stop_words_leaves_them_out() -> None:
    assert _STOP_WORD.keys() == STOP_WORDS.keys()
    kept = {language: tokens for language, word in _STOP_WORD.items() if (tokens := tokenize(word, language))}
    assert kept == {}


def test_numbers_and_single_characters_are_words() -> None:
    index = build_index({"a": "chapter 3 section x", "b": "chapter 4 section y"})
    assert ids(index.search("3", 5)) == ["a"]
    assert ids(index.search("Y", 5)) == ["b"]


def test_what_cannot_be_indexed_or_searched_is_named(index: LexicalIndex) -> None:
    with pytest.raises(LexicalError, match="no page to index"):
        build_index({})
    with pytest.raises(LexicalError, match=r"none of the 2 pages has a word.*'scan1'.*OCR"):
        build_index({"scan1": "", "scan2": " … "})
    with pytest.raises(LexicalError, match="'klingon' is not known; choose one of none, "):
        build_index(PAGES, language="klingon")
    with pytest.raises(LexicalError, match="k1 is -1"):
        build_index(PAGES, k1=-1)
    with pytest.raises(LexicalError, match="b is 2"):
        build_index(PAGES, b=2)
    for search in (lambda: index.search("revenue", 0), lambda: index.search_all({"q": "revenue"}, 0)):
        with pytest.raises(LexicalError, match="k is 0"):
            search()


def test_an_index_is_read_as_it_was_written(index: LexicalIndex, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index.save(folder)
    read = load_index(folder)
    queries = {"q1": "quarterly revenues", "q2": "京都", "q3": "the"}
    assert read.search_all(queries, 5) == index.search_all(queries, 5)
    with pytest.raises(LexicalError, match="not empty; remove it"):
        index.save(folder)


def _damage(folder: Path, name: str) -> None:
    (file,) = (folder / "bm25").glob(f"{name}.index.*")
    if file.suffix == ".npy":
        np.save(file, np.load(file)[:-1])
    else:
        file.unlink()


@pytest.mark.parametrize("name", ["data.csc", "indices.csc", "indptr.csc", "vocab", "params"])
def test_a_damaged_index_is_named(index: LexicalIndex, tmp_path: Path, name: str) -> None:
    index.save(tmp_path / "index")
    _damage(tmp_path / "index", name)
    with pytest.raises(LexicalError, match="is damaged"):
        load_index(tmp_path / "index")


def test_an_index_of_another_corpus_or_version_is_named(index: LexicalIndex, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index.save(folder)
    meta = json.loads((folder / "lexical.json").read_text())
    for change, message in (
        ({"version": 2}, "its version is 2"),
        ({"kind": "other"}, "its kind is 'other'"),
        ({"language": "klingon"}, "no known language"),
        ({"page_ids": None}, "no list of page ids"),
        ({"page_ids": meta["page_ids"][1:]}, "do not fit together or to the 5 page ids"),
    ):
        (folder / "lexical.json").write_text(json.dumps(meta | change))
        with pytest.raises(LexicalError, match=message):
            load_index(folder)
    shutil.rmtree(folder)
    with pytest.raises(FileError, match="is missing"):
        load_index(folder)
