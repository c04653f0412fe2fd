"""Run data sets through mteb, and hand over what was found; the one module that imports mteb.

mteb knows the official sets and their revisions, loads them, and computes its scores; our embedder, index and search
stand in it as a model of its ``SearchProtocol``. Sets in a folder are read by
:mod:`rsgrpo.retrieval.measuring.relevance_files` and handed to mteb as a task of their own, so that both kinds are
scored by the same code.
"""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import mteb
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta

from rsgrpo.data.hub import hub_problem
from rsgrpo.data.tables import open_table
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.evaluation.retrieval_sets import RetrievalTask
from rsgrpo.retrieval.embedders.embedder import AnyEmbedder
from rsgrpo.retrieval.index.page_index import PageIndex
from rsgrpo.retrieval.measuring.measured_search import (
    EmbeddedCorpus,
    OnBadItem,
    SearchedQueries,
    corpus_page,
    embed_corpus,
    search_queries,
)
from rsgrpo.retrieval.measuring.relevance_files import ID_KEYS, RetrievalPage, RetrievalQuery, RetrievalSet
from rsgrpo.types import ImageRef

_LOCAL_SPLIT = "train"  # VisRAG's only one
_DEFAULT_SUBSET = "default"
_MODEL_NAME = "rsgrpo/embedder"  # mteb wants an organisation and a name
_LOCAL_REVISION = "local"
_NO_IMAGE = "(text)"


class MtebError(RsgrpoError):
    """A data set cannot be loaded or run through mteb; the message names it and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedTask:
    """A data set that is ready to be searched.

    Attributes:
        name: the name of the task, such as ``vidore/v3_hr``.
        revision: the revision of the data set on the hub; ``local``: it was read from a folder.
        main_score: mteb's name of the measure that stands for the task, such as ``ndcg_at_10``.
        num_queries: how many queries are searched for, in all subsets together.
        num_pages: how many pages they are searched among, in all subsets together.
    """

    name: str
    revision: str
    main_score: str
    num_queries: int
    num_pages: int
    _task: AbsTaskRetrieval
    _data: RetrievalSet | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetResult:
    """What searching one subset of a task gave.

    Attributes:
        subset: the name of the subset, such as a language; empty where the task has but one.
        relevant: the relevance of each judged page, by query id and page id.
        num_pages: how many pages were searched.
        corpus: what embedding the pages gave.
        searched: what searching gave.
        mteb_scores: mteb's scores by its names, such as ``mrr_at_10``.
    """

    subset: str
    relevant: Mapping[str, Mapping[str, int]]
    num_pages: int
    corpus: EmbeddedCorpus
    searched: SearchedQueries
    mteb_scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """What running a task through mteb gave.

    Attributes:
        subsets: the results of the subsets, in mteb's order.
        main_score: mteb's main score of the task: the mean over its subsets, from 0 to 1.
        document: mteb's own record of the result, as JSON values.
    """

    subsets: tuple[SubsetResult, ...]
    main_score: float
    document: Mapping[str, Any]


def load_task(task: RetrievalTask, data: RetrievalSet | None, *, max_queries: int = 0) -> LoadedTask:
    """Load the data of a task.

    Args:
        task: the task.
        data: the set of a task in a folder; None for one of mteb's.
        max_queries: how many judged queries are kept of each subset, the first ones; 0: all.

    Returns:
        The task with its data.

    Raises:
        MtebError: the data set cannot be fetched or read.
    """
    loaded = _official_task(task) if data is None else _local_task(task, data)
    num_queries = num_pages = 0
    for splits in loaded.dataset.values():
        for part in splits.values():
            if max_queries:
                _keep_first(part, max_queries)
            num_queries += len(_judged(part))
            num_pages += len(part["corpus"])
    if not num_queries or not num_pages:
        raise MtebError(f"{task.name}: the data set has no page or no judged query; download it again")
    return LoadedTask(
        name=task.name,
        revision=str(loaded.metadata.dataset["revision"]),
        main_score=loaded.metadata.main_score,
        num_queries=num_queries,
        num_pages=num_pages,
        _task=loaded,
        _data=data,
    )


def run_task(
    task: LoadedTask,
    embedder: AnyEmbedder,
    index: PageIndex,
    *,
    scratch: Path,
    on_bad_item: OnBadItem = "reject",
    on_progress: Callable[[int, int], None] = lambda num_done, num_pages: None,
    clock: Callable[[], float] = time.perf_counter,
) -> TaskResult:
    """Embed the pages of a task, search for its queries, and have mteb score what was found.

    Args:
        task: the task with its data.
        embedder: the embedder to evaluate.
        index: the index that keeps the pages' vectors, open for writing; pages that it has are not embedded again.
        scratch: the folder that images are copied to where they lie in no file of their own.
        on_bad_item: what happens to a page or a query that cannot be embedded.
        on_progress: the function that is called with the number of pages done and of all pages of a subset.
        clock: the function that gives the time in seconds.

    Returns:
        The runs, the times and mteb's scores.

    Raises:
        EmbeddingError: a page or a query cannot be embedded.
        EmbedderMismatchError: another embedder made the index.
    """
    search = _EmbedderSearch(
        embedder=embedder,
        index=index,
        pages=() if task._data is None else task._data.pages,
        copy=scratch / "corpus.parquet",
        on_bad_item=on_bad_item,
        on_progress=on_progress,
        clock=clock,
    )
    # That a newer version of a set exists: the user chose this one.
    logging.getLogger("mteb.abstasks").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is superseded by ")
        result = mteb.evaluate(
            search,
            [task._task],
            cache=None,
            co2_tracker=False,
            overwrite_strategy="always",
            show_progress_bar=False,
        )
    (record,) = result.task_results
    subsets = []
    for split, scores in record.scores.items():
        for of_subset in scores:
            subset = of_subset["hf_subset"]
            part = task._task.dataset[subset][split]
            corpus, searched = search.found[split, subset]
            subsets.append(
                SubsetResult(
                    subset="" if subset == _DEFAULT_SUBSET else subset,
                    relevant=_judged(part),
                    num_pages=len(part["corpus"]) - len(corpus.refused),
                    corpus=corpus,
                    searched=searched,
                    mteb_scores={
                        name: float(value)
                        for name, value in of_subset.items()
                        if isinstance(value, int | float) and math.isfinite(value)
                    },
                )
            )
    return TaskResult(
        subsets=tuple(subsets), main_score=float(record.get_score()), document=json.loads(record.model_dump_json())
    )


class _EmbedderSearch:
    """An embedder and its index as mteb's ``SearchProtocol``; ``found`` has what was found, by split and subset."""

    def __init__(
        self,
        *,
        embedder: AnyEmbedder,
        index: PageIndex,
        pages: Sequence[RetrievalPage],
        copy: Path,
        on_bad_item: OnBadItem,
        on_progress: Callable[[int, int], None],
        clock: Callable[[], float],
    ) -> None:
        self._embedder = embedder
        self._index = index
        self._pages = pages
        self._copy = copy
        self._on_bad_item = on_bad_item
        self._on_progress = on_progress
        self._clock = clock
        self._corpus = EmbeddedCorpus(num_embedded=0, seconds=0.0, refused={})
        self.found: dict[tuple[str, str], tuple[EmbeddedCorpus, SearchedQueries]] = {}

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb knows of the embedder; without the modalities it would refuse pictures."""
        return ModelMeta.create_empty(
            {
                "name": _MODEL_NAME,
                "revision": self._embedder.identity.revision,
                "modalities": ["text", "image"],
                "embed_dim": self._embedder.identity.dimension,
            }
        )

    def index(self, corpus: datasets.Dataset, **_: Any) -> None:
        """Bring the index up to date with the pages of a subset."""
        self._corpus = embed_corpus(
            self._index,
            self._embedder,
            [corpus_page(page) for page in self._pages or _pages_of(corpus, self._copy)],
            on_bad_item=self._on_bad_item,
            on_progress=self._on_progress,
            clock=self._clock,
        )

    def search(
        self, queries: datasets.Dataset, *, hf_split: str, hf_subset: str, top_k: int, **_: Any
    ) -> dict[str, dict[str, float]]:
        """Find the pages of every query."""
        searched = search_queries(
            self._index,
            self._embedder,
            [
                RetrievalQuery(query_id=query_id, text=text)
                for query_id, text in zip(queries["id"], queries["text"], strict=True)
            ],
            depth=top_k,
            on_bad_item=self._on_bad_item,
            clock=self._clock,
        )
        self.found[hf_split, hf_subset] = self._corpus, searched
        return {query_id: {page.page_id: page.score for page in pages} for query_id, pages in searched.run.items()}


def _official_task(task: RetrievalTask) -> AbsTaskRetrieval:
    """Make mteb's task and load its data: from a folder of the repository's name, else from the hub.

    Raises:
        MtebError: the data cannot be loaded.
    """
    official = mteb.get_task(task.official_name)
    assert isinstance(official, AbsTaskRetrieval)
    repository = str(official.metadata.dataset["path"])
    folder = None if task.data_root is None else task.data_root / repository.rpartition("/")[2]
    if folder is not None and folder.is_dir():
        dataset = {**official.metadata.dataset, "path": str(folder), "revision": _LOCAL_REVISION}
        official.metadata = official.metadata.model_copy(update={"dataset": dataset})
    try:
        official.load_data()
        official.convert_v1_dataset_format_to_v2(None)
    except Exception as error:  # whatever the hub, its cache and readers of parquet raise
        if folder is not None and folder.is_dir():
            raise MtebError(
                f"{task.name}: {shown(folder)} cannot be read as mteb's {task.official_name} "
                f"({type(error).__name__}: {shown(error, 160)}); download it again, with its README.md"
            ) from error
        place = f"DATA/{repository.rpartition('/')[2]} and set eval.data_root=DATA"
        raise MtebError(
            f"{task.name}: {repository}: {hub_problem(error, 'data set')}; or put a copy into {place}"
        ) from error
    return official


def _local_task(task: RetrievalTask, data: RetrievalSet) -> AbsTaskRetrieval:
    """Make a task for mteb from a set that was read already; the images stay where they are."""
    metadata = TaskMetadata(
        name="".join(part.title() for part in task.name.replace("/", "_").split("_")),
        description=f"The pages of {task.folder}.",
        dataset={"path": str(task.folder), "revision": _LOCAL_REVISION},
        type="Retrieval",
        category="t2i",
        modalities=["text", "image"],
        eval_splits=[_LOCAL_SPLIT],
        eval_langs=["eng-Latn"],
        main_score="mrr_at_10",
    )
    kind = type("LocalTask", (AbsTaskRetrieval,), {"metadata": metadata})
    local: AbsTaskRetrieval = kind()
    judged = [query for query in data.queries if query.query_id in data.relevant]
    local.dataset = {
        _DEFAULT_SUBSET: {
            _LOCAL_SPLIT: {
                "corpus": datasets.Dataset.from_dict({"id": [page.page_id for page in data.pages]}),
                "queries": datasets.Dataset.from_dict(
                    {"id": [query.query_id for query in judged], "text": [query.text for query in judged]}
                ),
                "relevant_docs": {query_id: dict(pages) for query_id, pages in data.relevant.items()},
                "top_ranked": None,
            }
        }
    }
    local.data_loaded = True
    return local


def _keep_first(part: Any, max_queries: int) -> None:
    """Keep the first judged queries of a subset, and their judgements."""
    judged = list(_judged(part).items())[:max_queries]
    part["relevant_docs"] = dict(judged)
    rows = [row for row, query_id in enumerate(part["queries"]["id"]) if query_id in part["relevant_docs"]]
    part["queries"] = part["queries"].select(rows)


def _judged(part: Any) -> dict[str, dict[str, int]]:
    """Take the judgements of the queries that are there; ViDoRe v2 gives each language those of all languages."""
    relevant = part["relevant_docs"]
    return {query_id: relevant[query_id] for query_id in part["queries"]["id"] if relevant.get(query_id)}


def _pages_of(corpus: datasets.Dataset, copy: Path) -> list[RetrievalPage]:
    """Make references to the images of mteb's corpus, which lie in Arrow files of the hub's cache.

    Args:
        corpus: the corpus as mteb loaded it.
        copy: the file that its rows are copied to where the files do not hold them in the same order.
    """
    page_ids = [str(page_id) for page_id in corpus["id"]]
    if "image" not in corpus.column_names:
        return [RetrievalPage(page_id=page_id, text=_NO_IMAGE) for page_id in page_ids]
    files = [str(Path(cached["filename"]).absolute()) for cached in corpus.cache_files]
    if [page_id for file in files for page_id in _ids_in(file)] != page_ids:
        copy.parent.mkdir(parents=True, exist_ok=True)
        corpus.select_columns(["id", "image"]).to_parquet(str(copy))
        files = [str(copy.absolute())]
    places = [(file, row) for file in files for row in range(open_table(file).num_rows)]
    return [
        RetrievalPage(page_id=page_id, image=ImageRef(path=f"page {page_id}", parquet_file=file, parquet_row=row))
        for page_id, (file, row) in zip(page_ids, places, strict=True)
    ]


def _ids_in(file: str) -> list[str]:
    table = open_table(file)
    key = next((key for key in ID_KEYS if key in table.column_names), None)
    return [] if key is None or "image" not in table.column_names else [str(cell) for cell in table.column(key)]
