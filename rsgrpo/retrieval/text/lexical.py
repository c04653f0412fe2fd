"""Search the text of pages by BM25, which finds names, numbers and rare words without a model.

bm25s computes Lucene's BM25; only this module imports it. Texts are compatibility-normalised (ligatures of PDF files,
full width letters) and case-folded, then parted into words: letters and digits with their marks, of any script. Words
of the index's language are stemmed (Snowball) and its stop words left out. Scripts that put no blanks between words
(Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese) are indexed by single characters and pairs of neighbours,
whatever the language.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import Stemmer

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import new_folder, read_json_object, shown_error, shown_value, write_json
from rsgrpo.retrieval.measuring.trec_runs import ScoredPage
from rsgrpo.types import BoolArray

NO_LANGUAGE = "none"
"""No stemming and no stop words; for texts of many languages."""

STOP_WORDS = {
    "danish": "STOPWORDS_DANISH",
    "dutch": "STOPWORDS_DUTCH",
    "english": "STOPWORDS_EN",
    "french": "STOPWORDS_FRENCH",
    "german": "STOPWORDS_GERMAN",
    "italian": "STOPWORDS_ITALIAN",
    "norwegian": "STOPWORDS_NORWEGIAN",
    "portuguese": "STOPWORDS_PORTUGUESE",
    "russian": "STOPWORDS_RUSSIAN",
    "spanish": "STOPWORDS_SPANISH",
    "swedish": "STOPWORDS_SWEDISH",
    "turkish": "STOPWORDS_TURKISH",
}
"""Languages with stop words, and what bm25s calls their lists; other languages are stemmed only."""

LANGUAGES = (NO_LANGUAGE, *(name for name in Stemmer.algorithms() if name not in ("porter", "dutch_porter")))

_META_FILE = "lexical.json"
_TERMS_FOLDER = "bm25"
_KIND = "lexical_index"
_VERSION = 1  # of the tokens too: an index is searched by the rules that it was built by
_SPACELESS = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u1100-\u11ff\uac00-\ud7a3"  # Hangul: Korean has blanks, but puts particles behind nouns without one
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # kana and iteration marks
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "]+"
)


class LexicalError(RsgrpoError, ValueError):
    """A lexical index cannot be built, read or searched; the message names the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LexicalResults:
    """The pages that were found for several queries.

    Attributes:
        run: the ranking of each query by query id; it is empty where no page has a word of the query.
        tokenless_queries: the ids of queries without a word to search for, such as stop words or signs only.
    """

    run: Mapping[str, tuple[ScoredPage, ...]]
    tokenless_queries: tuple[str, ...]


class LexicalIndex:
    """BM25 scores of every word on every page, in memory.

    Args:
        page_ids: the ids of the pages, in the order of the scores; of pages of equal score the first comes first.
        language: the language of the texts, one of ``LANGUAGES``.
        terms: bm25s's own index of the texts.
    """

    def __init__(self, page_ids: tuple[str, ...], language: str, terms: Any) -> None:
        self.page_ids = page_ids
        self.language = language
        self._terms = terms
        self._tokens_of = _tokenizer(language)

    def search(self, query: str, k: int, allowed: BoolArray | None = None) -> tuple[ScoredPage, ...]:
        """Find the pages that have words of a query.

        Args:
            query: the text to search for.
            k: the largest number of pages to return, at least 1.
            allowed: whether each page may be found, [pages] bool in the order of ``page_ids``; None: all may. How much
                a word counts is by all pages, so that a page has the same score whatever is allowed.

        Returns:
            At most ``k`` pages by falling score, all above 0; of equal ones the first of the corpus first. Empty where
            no page has a word of the query, or the query has no word.

        Raises:
            LexicalError: ``k`` is below 1.
        """
        _check_k(k)
        return self._ranking(self._tokens_of(query), k, allowed)

    def has_words(self, query: str) -> bool:
        """Whether a query has a word to search for, which stop words and signs are not."""
        return bool(self._tokens_of(query))

    @property
    def num_wordless(self) -> int:
        """How many pages have no word, so that no query finds them."""
        has_word = np.zeros(len(self.page_ids), dtype=np.bool_)
        has_word[self._terms.scores["indices"]] = True
        return len(self.page_ids) - int(np.count_nonzero(has_word))

    def search_all(self, queries: Mapping[str, str], k: int) -> LexicalResults:
        """Search for several queries, and say which of them have nothing to search for.

        Args:
            queries: the texts to search for, by query id.
            k: the largest number of pages to return for each query, at least 1.

        Returns:
            The rankings, and the ids of the queries without a word.

        Raises:
            LexicalError: ``k`` is below 1.
        """
        _check_k(k)
        tokens = {query_id: self._tokens_of(text) for query_id, text in queries.items()}
        return LexicalResults(
            run={query_id: self._ranking(found, k) for query_id, found in tokens.items()},
            tokenless_queries=tuple(query_id for query_id, found in tokens.items() if not found),
        )

    def save(self, folder: Path) -> None:
        """Write the index, whole or not at all.

        Args:
            folder: the folder to write, which must not be there yet, or be empty.

        Raises:
            LexicalError: there is something in the folder.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise LexicalError(f"{shown(folder)} is there already and not empty; remove it, or name another folder")
        with new_folder(folder) as filled:
            self._terms.save(filled / _TERMS_FOLDER, show_progress=False)
            meta = {"kind": _KIND, "version": _VERSION, "language": self.language, "page_ids": list(self.page_ids)}
            write_json(filled / _META_FILE, meta)

    def _ranking(self, tokens: list[str], k: int, allowed: BoolArray | None = None) -> tuple[ScoredPage, ...]:
        # bm25s itself raises IndexError where there is no token.
        known = self._terms.get_tokens_ids(tokens)
        if not known:
            return ()
        scores = self._terms.get_scores_from_ids(known)  # [pages] float32
        found = np.flatnonzero(scores > 0 if allowed is None else (scores > 0) & allowed)
        if len(found) > k:  # sorting few pages takes a tenth of the time; all that are equal to the last stay for now
            found = found[scores[found] >= np.partition(scores[found], -k)[-k]]
        best = found[np.argsort(-scores[found], kind="stable")][:k]
        return tuple(ScoredPage(page_id=self.page_ids[index], score=float(scores[index])) for index in best)


def build_index(
    pages: Mapping[str, str], *, language: str = "english", k1: float = 1.5, b: float = 0.75
) -> LexicalIndex:
    """Index pages by their text.

    Args:
        pages: the text of each page by page id, in the corpus's order; pages without text are never found.
        language: the language by which words are stemmed and stop words left out, one of ``LANGUAGES``.
        k1: how much a word counts that a page has several times, from 0 on.
        b: how much long pages are marked down, from 0 to 1.

    Returns:
        The index, in memory; :meth:`LexicalIndex.save` writes it.

    Raises:
        LexicalError: there is no page, no page has a word, or a setting is out of range.

    Example:
        ``build_index({"p1": "Quarterly revenue", "p2": "Staff"}).search("revenues", 10)`` finds p1.
    """
    import bm25s  # here: it brings Numba, which takes a second to import

    if not (k1 >= 0 and 0 <= b <= 1):
        raise LexicalError(f"k1 is {k1} and b is {b}, expected k1 from 0 on and b from 0 to 1")
    if not pages:
        raise LexicalError("there is no page to index; name a corpus that has some")
    tokens_of = _tokenizer(language)
    numbers: dict[str, int] = defaultdict(lambda: len(numbers))
    token_ids = [[numbers[token] for token in tokens_of(text)] for text in pages.values()]
    if not numbers:
        raise LexicalError(
            f"none of the {len(pages)} pages has a word to index, such as {shown(next(iter(pages)), 80)!r}; pages "
            "that are pictures only need OCR first"
        )
    terms = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
    terms.index((token_ids, dict(numbers)), create_empty_token=False, show_progress=False)
    return LexicalIndex(tuple(pages), language, terms)


def load_index(folder: Path) -> LexicalIndex:
    """Load an index that :meth:`LexicalIndex.save` wrote.

    Raises:
        FileError: the folder has no ``lexical.json``, or it is damaged.
        LexicalError: the index is of another kind or version, or its files do not fit together.
    """
    import bm25s

    meta = read_json_object(folder / _META_FILE)
    for key, expected in (("kind", _KIND), ("version", _VERSION)):
        if meta.get(key) != expected:
            raise LexicalError(
                f"{shown(folder)} is no lexical index that this release reads: its {key} is "
                f"{shown_value(meta.get(key))}, expected {expected!r}; build it again"
            )
    page_ids, language = meta.get("page_ids"), meta.get("language")
    if (
        not (isinstance(page_ids, list) and all(isinstance(page_id, str) for page_id in page_ids))
        or not isinstance(language, str)
        or language not in LANGUAGES
    ):
        raise LexicalError(f"{shown(folder / _META_FILE)} has no list of page ids or no known language; build it again")
    try:
        terms = bm25s.BM25.load(folder / _TERMS_FOLDER, show_progress=False)
        _check_terms(terms, len(page_ids))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise LexicalError(f"{shown(folder)} is damaged: {shown_error(error)}; build the index again") from error
    return LexicalIndex(tuple(page_ids), language, terms)


def tokenize(text: str, language: str = "english") -> list[str]:
    """Split a text into the words that it is indexed and searched by.

    Args:
        text: the text, of any script.
        language: the language by which words are stemmed and stop words left out, one of ``LANGUAGES``.

    Returns:
        The words in the order of the text, repeated ones too.

    Raises:
        LexicalError: the language is not known.

    Example:
        ``tokenize("The Revenues of 2024") == ["revenu", "2024"]``; ``tokenize("東京") == ["東", "京", "東京"]``
    """
    return _tokenizer(language)(text)


def _tokenizer(language: str) -> Callable[[str], list[str]]:
    if language not in LANGUAGES:
        raise LexicalError(f"the language {shown(language, 60)!r} is not known; choose one of {', '.join(LANGUAGES)}")
    stop_words = _stop_words(language)
    stemmer = None if language == NO_LANGUAGE else Stemmer.Stemmer(language)
    word = _word()

    def tokens_of(text: str) -> list[str]:
        tokens: list[str] = []
        for run in word.findall(unicodedata.normalize("NFKC", text).casefold()):
            for part, is_spaceless in _by_script(run):
                if is_spaceless:
                    tokens += part
                    tokens += map("".join, itertools.pairwise(part))
                elif part not in stop_words:
                    tokens.append(part if stemmer is None else stemmer.stemWord(part))
        return tokens

    return tokens_of


def _by_script(run: str) -> Iterator[tuple[str, bool]]:
    """Part a run of letters by script; each part comes with whether its script puts no blanks between words."""
    end = 0
    for found in _SPACELESS.finditer(run):
        if found.start() > end:
            yield run[end : found.start()], False
        yield found[0], True
        end = found.end()
    if end < len(run):
        yield run[end:], False


@functools.cache
def _word() -> re.Pattern[str]:
    """Compile the pattern of a word: letters and digits with their marks, as vowel signs of Hindi are no letters."""
    marks = "".join(mark for mark in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(mark) in ("Mn", "Mc"))
    return re.compile(rf"[^\W_](?:[^\W_]|[{re.escape(marks)}])*")


@functools.cache
def _stop_words(language: str) -> frozenset[str]:
    from bm25s import stopwords

    words = getattr(stopwords, STOP_WORDS[language]) if language in STOP_WORDS else ()
    return frozenset(unicodedata.normalize("NFKC", word).casefold() for word in words)


def _check_k(k: int) -> None:
    if k < 1:
        raise LexicalError(f"k is {k}, expected a whole number of at least 1")


def _check_terms(terms: Any, num_pages: int) -> None:
    """Refuse arrays that are cut or of another corpus, which would give scores of the wrong pages."""
    data, indices, starts = (terms.scores[name] for name in ("data", "indices", "indptr"))
    fits = (
        terms.scores["num_docs"] == num_pages
        and len(starts) == len(terms.vocab_dict) + 1
        and len(data) == len(indices) == starts[-1]
        and (not len(indices) or 0 <= indices.min() <= indices.max() < num_pages)
    )
    if not fits:
        raise ValueError(f"its files do not fit together or to the {num_pages} page ids")
