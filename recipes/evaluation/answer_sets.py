"""Data sets of questions with answers over a corpus of pages; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.setup.wanted_data import find_embedder
from rsgrpo.config import Config
from rsgrpo.data.file_bytes import naming
from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import BenchmarkError
from rsgrpo.evaluation.retrieval_sets import RetrievalTask, find_retrieval_tasks
from rsgrpo.retrieval.measuring.relevance_files import RetrievalPage, RetrievalSet, read_retrieval_set


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerSet:
    """A data set of questions with answers over a corpus.

    Attributes:
        name: the name of the set in tasks, such as ``chartqa``.
        official_name: the name that VisRAG gives the set, such as ``ChartQA``; else the same as ``name``.
        folder: the folder that holds it.
        data: queries, pages and judgements.
        pages: the pages by id.
    """

    name: str
    official_name: str
    folder: Path
    data: RetrievalSet
    pages: Mapping[str, RetrievalPage]


def find_answer_set(name: str, data_root: str) -> Path:
    """Find the folder of a set with answers.

    Args:
        name: the name of the set, such as ``chartqa``, or of a folder in ``data_root``.
        data_root: the folder that holds the sets.

    Raises:
        RsgrpoError: there is no such set, or it is not in ``data_root``.
    """
    found: Sequence[RetrievalTask] = find_retrieval_tasks(f"visrag_ret/{name}", data_root) if name else ()
    folder = found[0].folder if len(found) == 1 else None
    if folder is None:
        raise BenchmarkError(
            f"the set {shown(name, 80)!r} is not in eval.data_root={shown(data_root, 120)}; name a folder in it with "
            "corpus, queries (with their answers) and qrels, such as a downloaded openbmb/VisRAG-Ret-Test-ChartQA"
        )
    return folder


def read_answer_set(name: str, official_name: str, config: Config) -> AnswerSet:
    """Read a set with answers.

    Args:
        name: the name of the set in tasks.
        official_name: the name that VisRAG gives it; empty: the same.
        config: the settings of the run.

    Raises:
        RsgrpoError: there is no such set, a part of it is missing, or it cannot be read.
    """
    folder = find_answer_set(name, config.eval.data_root)
    with naming(name):
        data = read_retrieval_set(folder, media_folder=config.data.media_cache)
    return AnswerSet(
        name=name,
        official_name=official_name or name,
        folder=folder,
        data=data,
        pages={page.page_id: page for page in data.pages},
    )


def check_search(config: Config) -> None:
    """Refuse settings that do not say which pages are found, before anything is read.

    Args:
        config: the settings of the run.

    Raises:
        ConfigError: neither a run nor an index nor an embedder is named.
        BenchmarkError: what is named is not there.
    """
    settings = config.eval
    if settings.search_run:
        if not Path(settings.search_run).exists():
            raise BenchmarkError(f"eval.search_run={shown(settings.search_run)} does not exist; name a TREC run")
    elif settings.search_index:
        if not Path(settings.search_index).is_dir():
            raise BenchmarkError(f"eval.search_index={shown(settings.search_index)} is no folder; name an index")
    else:
        find_embedder(config)
