"""Read pages, queries and relevance judgements of a retrieval data set, as VisRAG, mteb and BEIR lay them out.

A folder holds three parts, each a folder of that name or files that begin with it, parquet or JSON lines:

    corpus    ``corpus-id``, ``image`` (bytes in parquet, a path in JSON lines), ``text``
    queries   ``query-id``, ``query``, ``answer``, ``options``
    qrels     ``query-id``, ``corpus-id``, ``score``

Pages are references: no image is decoded before somebody loads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsgrpo.data.files import DataError, data_files
from rsgrpo.data.media_store import MediaStore
from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.data.readers.media import MediaFinder
from rsgrpo.data.readers.records import place_of, raw_records
from rsgrpo.errors import shown
from rsgrpo.io.ids import near_misses, plain_id
from rsgrpo.io.natural_order import visible_files
from rsgrpo.types import ImageRef

Answer = str | int | float | tuple[str | int | float, ...] | None
"""An answer of the type that the data set gives it: VisRAG judges a number otherwise than the same digits as text."""

ID_KEYS = ("_id", "id", "text_id", "sample_id", "filename", "corpus-id", "query-id")
"""Where a page's or query's id may stand; the first that is not null counts, as in VisRAG."""

PARTS = ("corpus", "queries", "qrels")

_PART_FILE = r"(-\d+-of-\d+)?\.(parquet|arrow|jsonl|ndjson|json)"
_MARKER = re.compile(r"<([^<>]*)>")
_JOINED_IDS = "tcy6"  # SlideVQA's query ids: the ids of all gold pages, this between them, then the question's number
_BEFORE_NUMBER = "query_number"
_EXAMPLES = 3  # of many unknown ids


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalQuery:
    """A question to a corpus.

    Attributes:
        query_id: the id of the query, unique in its set.
        text: the text of the question.
        answer: the gold answer, of the type that the data set gives it; None where there is none.
        options: the answers that a question of multiple choice offers; empty for other questions.
    """

    query_id: str
    text: str
    answer: Answer = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalPage:
    """A page of a corpus.

    Attributes:
        page_id: the id of the page, unique in its set.
        image: the reference to its image; None: the page has text only.
        text: the text of the page; empty where the data set has none.
    """

    page_id: str
    image: ImageRef | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalSet:
    """Queries, the pages that are searched, and which of them are relevant.

    Attributes:
        queries: the queries, in file order.
        pages: the pages, in file order.
        relevant: the relevance of each judged page, by query id and page id, as
            :func:`rsgrpo.retrieval.measuring.measures.measure_run` takes it.

    Raises:
        DataError: an id is there twice, or a judgement names a query or page that is not there.
    """

    queries: tuple[RetrievalQuery, ...]
    pages: tuple[RetrievalPage, ...]
    relevant: Mapping[str, Mapping[str, int]]

    def __post_init__(self) -> None:
        query_ids = _distinct((query.query_id for query in self.queries), "query")
        page_ids = _distinct((page.page_id for page in self.pages), "page")
        _refuse_unknown((query_id for query_id in self.relevant), query_ids, "query", "the queries")
        _refuse_unknown(
            (page_id for pages in self.relevant.values() for page_id in pages), page_ids, "page", "the corpus"
        )

    @property
    def unjudged_query_ids(self) -> tuple[str, ...]:
        """The ids of queries without a judgement, which measures cannot count."""
        return tuple(query.query_id for query in self.queries if query.query_id not in self.relevant)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedQueries:
    """Queries and their relevant pages, of a corpus that is elsewhere, such as an index.

    Attributes:
        queries: the queries that are judged, in file order.
        relevant: the relevance of each judged page, by query id and page id; exactly of these queries.

    Raises:
        DataError: a judgement names a query that is not there, or a query is empty.
    """

    queries: tuple[RetrievalQuery, ...]
    relevant: Mapping[str, Mapping[str, int]]

    def __post_init__(self) -> None:
        _refuse_unknown(
            self.relevant, _distinct((query.query_id for query in self.queries), "query"), "query", "queries"
        )
        empty = next((query.query_id for query in self.queries if not query.text.strip()), None)
        if empty is not None:
            raise DataError(f"the query {shown(empty, 80)!r} is empty; write its text, or leave it out with its qrels")

    def check_pages(self, page_ids: Iterable[str], corpus: str) -> None:
        """Refuse judgements of pages that a corpus does not have.

        Args:
            page_ids: the ids of all pages of the corpus.
            corpus: what messages call the corpus, such as ``the index manuals.index``.

        Raises:
            DataError: a judged page is not there; the message names some, with ids that look alike.
        """
        judged = (page_id for pages in self.relevant.values() for page_id in pages)
        _refuse_unknown(judged, frozenset(page_ids), "page", corpus)


def read_judged_queries(folder: Path, *, split: str = "train", query_template: str = "<query>") -> JudgedQueries:
    """Read the queries and judgements of a data set in VisRAG's layout, which need not have a corpus.

    Args:
        folder: the folder that holds ``queries`` and ``qrels``.
        split: the split whose files are read where a part has several.
        query_template: the text of a query, with names of columns in angle brackets.

    Returns:
        The queries that are judged; others are left out.

    Raises:
        DataError: a part is missing or broken, a row lacks a column or an id, a query is empty, or a judgement names a
            query that is not there; the message names file and row.
    """
    relevant = _judgements(folder, split)
    queries = [
        _query(query_id, row, query_template, place)
        for _, place, query_id, row in _identified_rows(folder, "queries", split)
    ]
    return JudgedQueries(queries=tuple(query for query in queries if query.query_id in relevant), relevant=relevant)


def read_queries(folder: Path, *, split: str = "train") -> tuple[RetrievalQuery, ...]:
    """Read all queries of a data set in VisRAG's layout, which need be neither judged nor have a corpus.

    Args:
        folder: the folder that holds ``queries``.
        split: the split whose files are read where there are several.

    Returns:
        The queries, in file order.

    Raises:
        DataError: the queries are missing or broken; the message names file and row.
    """
    rows = _identified_rows(folder, "queries", split)
    return tuple(_query(query_id, row, "<query>", place) for _, place, query_id, row in rows)


def read_retrieval_set(
    folder: Path, *, split: str = "train", query_template: str = "<query>", media_folder: str = ""
) -> RetrievalSet:
    """Read a data set in VisRAG's layout.

    Args:
        folder: the folder that holds the three parts; paths of images in JSON lines are relative to it or to the
            part's folder.
        split: the split whose files are read where a part has several; VisRAG's only one is called ``train``.
        query_template: the text of a query, with names of columns in angle brackets.
        media_folder: the folder in which images are kept that JSON lines hold as base64; empty: the media cache.

    Returns:
        The set. Every image is known to be there, but none was decoded.

    Raises:
        DataError: a part is missing or broken, a row lacks a column or an id, a page stands in two files or twice in
            one, an image is not there, or a judgement names what is not there; the message names file and row.
    """
    queries: dict[str, RetrievalQuery] = {}
    for _, place, query_id, row in _identified_rows(folder, "queries", split):
        queries[query_id] = _query(query_id, row, query_template, place)
    pages: dict[str, RetrievalPage] = {}
    finders: dict[Path, MediaFinder] = {}
    for file, place, page_id, row in _identified_rows(folder, "corpus", split):
        if file.parent not in finders:
            finders[file.parent] = MediaFinder((file.parent, folder), must_exist=True, store=MediaStore(media_folder))
        pages[page_id] = _page(page_id, row, finders[file.parent], place)
    return RetrievalSet(
        queries=tuple(queries.values()), pages=tuple(pages.values()), relevant=_judgements(folder, split)
    )


def read_judgements(folder: Path, *, split: str = "train") -> Mapping[str, Mapping[str, int]]:
    """Read which pages are relevant to which queries, to measure a run with.

    Args:
        folder: the folder of a data set, or one that holds its qrels alone.
        split: the split whose files are read where a part has several.

    Returns:
        The relevance of each judged page, by query id and page id.

    Raises:
        DataError: the qrels are missing or broken, or, where queries and corpus lie beside them, a judgement names what
            is not there.
    """
    others = (part for part in PARTS if part != "qrels")
    if folder.is_dir() and all(any(folder.glob(f"{part}*")) for part in others):
        return read_retrieval_set(folder, split=split).relevant
    return _judgements(folder, split)


def oracle_page_ids(query_id: str, *, dataset: str) -> tuple[str, ...]:
    """Read the gold pages off a query id of VisRAG's test sets; its oracle setting answers from these pages.

    Args:
        query_id: the id of the query: ``PAGE-NUMBER``, of SlideVQA ``PAGEtcy6PAGEquery_numberNUMBER``.
        dataset: the name that VisRAG gives the set: ``ArxivQA``, ``ChartQA``, ``InfoVQA``, ``MP-DocVQA``, ``PlotQA``,
            ``SlideVQA``.

    Returns:
        The ids of the gold pages; more than one only for SlideVQA.

    Raises:
        DataError: the id is of another form.

    Example:
        ``oracle_page_ids("1803.02.jpg-1", dataset="ArxivQA") == ("1803.02.jpg",)``
    """
    if dataset == "SlideVQA":
        head, mark, _ = query_id.partition(_BEFORE_NUMBER)
        found = tuple(head.split(_JOINED_IDS)) if mark else ()
    else:
        found = (query_id.rpartition("-")[0],)
    if not found or not all(found):
        form = "PAGEtcy6PAGEquery_numberN" if dataset == "SlideVQA" else "PAGE-N"
        raise DataError(
            f"the query id {shown(query_id, 120)!r} names no page: expected {form}; take the gold pages from the qrels"
        )
    return found


def fill_template(template: str, row: Mapping[str, object]) -> str:
    """Replace names of columns in angle brackets by what the columns hold; one that is null or missing leaves nothing.

    The content of a column is taken as it is, angle brackets too.

    Args:
        template: the text to fill, such as ``Represent this query for retrieving relevant documents: <query>``.
        row: the content of each column by its name.

    Returns:
        The filled text.

    Example:
        ``fill_template("<title> <text>", {"title": "A", "text": "b <c>"}) == "A b <c>"``
    """
    return _MARKER.sub(lambda marker: "" if row.get(marker[1]) is None else str(row[marker[1]]), template)


def part_rows(folder: Path, part: str, split: str) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Read every row of a part of a data set.

    Args:
        folder: the folder of the data set.
        part: one of ``PARTS``.
        split: the split whose files are read where there are several.

    Yields:
        The file of each row, its place for messages, and its columns.

    Raises:
        DataError: the part is missing, or a row is none.
    """
    for file in _files(folder, part, split):
        for index, record in enumerate(raw_records(file, prefix="item")):
            place = place_of(file, record, index)
            if isinstance(record.value, BadRecordError):
                raise DataError(f"{part}: {place}: {record.value.detail}; write or download the file again")
            if not isinstance(record.value, dict):
                raise DataError(f"{part}: {place}: {record.value!r:.60}, expected an object with named columns")
            yield file, place, record.value


def _files(folder: Path, part: str, split: str) -> list[Path]:
    if (folder / part).is_dir():
        return data_files(f"{folder / part}@{split}")
    named = [file for file in visible_files(folder, f"{part}*") if re.fullmatch(part + _PART_FILE, file.name)]
    if not named:
        raise DataError(
            f"{shown(folder)} has no {part}; expected the folders or files (parquet, jsonl) {', '.join(PARTS)}"
            + ("" if folder.is_dir() else ": there is no such folder")
        )
    return [file for part_file in named for file in data_files(str(part_file))]


def _identified_rows(folder: Path, part: str, split: str) -> Iterator[tuple[Path, str, str, dict[str, Any]]]:
    """Read every row of a part: its file, its place for messages, its id and its columns; no id comes twice."""
    places: dict[str, str] = {}
    for file, place, row in part_rows(folder, part, split):
        key = next((key for key in ID_KEYS if row.get(key) is not None), None)
        found = None if key is None else plain_id(row[key])
        if found is None:
            raise DataError(
                f"{part}: {place}: no id in {', '.join(ID_KEYS)}; got the columns {shown(', '.join(row), 120)}"
                if key is None
                else f"{part}: {place}: {key} is {row[key]!r:.60}, expected a text or a whole number"
            )
        if found in places:
            raise DataError(
                f"{part}: the id {shown(found, 80)!r} stands twice, in {places[found]} and in {place}; leave one out "
                "(two splits of one corpus? keep them in folders of their own)"
            )
        places[found] = place
        yield file, place, found, row


def _query(query_id: str, row: Mapping[str, Any], template: str, place: str) -> RetrievalQuery:
    lacking = [name for name in _MARKER.findall(template) if row.get(name) is None]
    if lacking:
        raise DataError(
            f"queries: {place}: no {shown(', '.join(lacking), 60)}; got the columns {shown(', '.join(row), 120)}: "
            "name the column with the question in query_template"
        )
    options = row.get("options")
    if options is not None and not (isinstance(options, list) and all(isinstance(option, str) for option in options)):
        raise DataError(f"queries: {place}: options is {options!r:.60}, expected a list of texts")
    return RetrievalQuery(
        query_id=query_id,
        text=fill_template(template, row),
        answer=_answer(row.get("answer"), place),
        options=tuple(options or ()),
    )


def _answer(value: object, place: str) -> Answer:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # how pandas writes what is not there
        return None
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, list) and all(isinstance(entry, str | int | float) for entry in value):
        return tuple(value)
    raise DataError(f"queries: {place}: answer is {value!r:.60}, expected a text, a number, or a list of these")


def _page(page_id: str, row: Mapping[str, Any], finder: MediaFinder, place: str) -> RetrievalPage:
    if "image" not in row and "text" not in row:
        raise DataError(
            f"corpus: {place}: neither image nor text; got the columns {shown(', '.join(row), 120)}: rename the "
            "column with the page to image"
        )
    text = row.get("text")
    if text is not None and not isinstance(text, str):
        raise DataError(f"corpus: {place}: text is {text!r:.60}, expected a text")
    try:
        image = None if row.get("image") is None else finder.find(row["image"], f"page {shown(page_id, 60)}")
    except BadRecordError as error:
        raise DataError(f"corpus: {place}: {error.detail}") from error
    return RetrievalPage(page_id=page_id, image=image, text=text or "")


def _judgements(folder: Path, split: str) -> dict[str, dict[str, int]]:
    relevant: dict[str, dict[str, int]] = {}
    places: dict[tuple[str, str], str] = {}
    for _, place, row in part_rows(folder, "qrels", split):
        query_id, page_id = (plain_id(row.get(key)) for key in ("query-id", "corpus-id"))
        score = row.get("score")
        if query_id is None or page_id is None or score is None:
            raise DataError(
                f"qrels: {place}: got {row!r:.120}, expected query-id, corpus-id and score (1 for a relevant page)"
            )
        if isinstance(score, bool) or not isinstance(score, int | float) or not float(score).is_integer() or score < 0:
            raise DataError(f"qrels: {place}: the score is {score!r:.60}, expected a whole number from 0")
        first = places.setdefault((query_id, page_id), place)
        if first != place:
            raise DataError(
                f"qrels: {place}: query {shown(query_id, 60)!r} and page {shown(page_id, 60)!r} are judged in {first} "
                "already; leave one of them out"
            )
        relevant.setdefault(query_id, {})[page_id] = int(score)
    if not relevant:
        raise DataError(f"the qrels of {shown(folder)} hold no judgement; write or download them again")
    return relevant


def _distinct(ids: Iterable[str], kind: str) -> frozenset[str]:
    seen: set[str] = set()
    for new_id in ids:
        if new_id in seen:
            raise DataError(f"the {kind} {shown(new_id, 80)!r} is in the set twice; leave one of them out")
        seen.add(new_id)
    return frozenset(seen)


def _refuse_unknown(named: Iterable[str], known: frozenset[str], kind: str, part: str) -> None:
    unknown = [named_id for named_id in dict.fromkeys(named) if named_id not in known]
    if not unknown:
        return
    alike = dict(near_misses(unknown, known))
    examples = [
        f"{shown(named_id, 60)!r}" + (f" (looks like {shown(alike[named_id], 60)!r})" if named_id in alike else "")
        for named_id in unknown[:_EXAMPLES]
    ]
    more = len(unknown) - len(examples)
    raise DataError(
        f"qrels: {len(unknown)} {kind} ids are not in {part}: {', '.join(examples)}"
        + (f" and {more} more" if more else "")
        + "; read the qrels of this corpus, in one revision of the data set"
    )


def _some(texts: list[str]) -> str:
    more = len(texts) - _EXAMPLES
    return ", ".join(texts[:_EXAMPLES]) + (f" and {more} more" if more > 0 else "")
