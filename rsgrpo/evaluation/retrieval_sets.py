"""The data sets on which embedders are evaluated, by task name: mteb's VisRAG and ViDoRe sets, and sets in a folder.

``visrag_ret/chartqa`` names one set, ``visrag_ret`` and ``vidore/v3`` all of a group, and ``visrag_ret/FOLDER`` a
folder of ``eval.data_root`` in VisRAG's layout. Nothing here imports mteb, which takes seconds; a slip shows at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rsgrpo.config.eval import is_retrieval_task
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.retrieval.measuring.relevance_files import PARTS

_VISRAG = "visrag_ret"
_FOLDER_NAME = re.compile(r"\w[\w.+-]*")
_NUM_CHOICES = 5  # in a message, the most alike first

_OFFICIAL: Mapping[str, str] = {
    f"{_VISRAG}/arxivqa": "VisRAGRetArxivQA",
    f"{_VISRAG}/chartqa": "VisRAGRetChartQA",
    f"{_VISRAG}/infovqa": "VisRAGRetInfoVQA",
    f"{_VISRAG}/mp_docvqa": "VisRAGRetMPDocVQA",
    f"{_VISRAG}/plotqa": "VisRAGRetPlotQA",
    f"{_VISRAG}/slidevqa": "VisRAGRetSlideVQA",
    "vidore/v1_arxivqa": "VidoreArxivQARetrieval",
    "vidore/v1_docvqa": "VidoreDocVQARetrieval",
    "vidore/v1_infovqa": "VidoreInfoVQARetrieval",
    "vidore/v1_shiftproject": "VidoreShiftProjectRetrieval",
    "vidore/v1_synthetic_ai": "VidoreSyntheticDocQAAIRetrieval",
    "vidore/v1_synthetic_energy": "VidoreSyntheticDocQAEnergyRetrieval",
    "vidore/v1_synthetic_government": "VidoreSyntheticDocQAGovernmentReportsRetrieval",
    "vidore/v1_synthetic_healthcare": "VidoreSyntheticDocQAHealthcareIndustryRetrieval",
    "vidore/v1_tabfquad": "VidoreTabfquadRetrieval",
    "vidore/v1_tatdqa": "VidoreTatdqaRetrieval",
    "vidore/v2_biomedical_lectures": "Vidore2BioMedicalLecturesRetrieval",
    "vidore/v2_economics_reports": "Vidore2EconomicsReportsRetrieval",
    "vidore/v2_esg_reports": "Vidore2ESGReportsRetrieval",
    "vidore/v2_esg_reports_human": "Vidore2ESGReportsHLRetrieval",
    **{
        f"vidore/{version}_{name}": f"Vidore3{theirs}Retrieval{suffix}"
        for version, suffix in (("v3", ""), ("v3.1", ".v2"))
        for name, theirs in (
            ("computer_science", "ComputerScience"),
            ("energy", "Energy"),
            ("finance_en", "FinanceEn"),
            ("finance_fr", "FinanceFr"),
            ("hr", "Hr"),
            ("industrial", "Industrial"),
            ("pharmaceuticals", "Pharmaceuticals"),
            ("physics", "Physics"),
        )
    },
}
"""mteb's name of each set by ours; the private sets of ViDoRe v3 are measured by mteb's maintainers alone."""

_VISRAG_FOLDERS = {
    name: f"VisRAG-Ret-Test-{theirs}"
    for name, theirs in (
        ("arxivqa", "ArxivQA"),
        ("chartqa", "ChartQA"),
        ("infovqa", "InfoVQA"),
        ("mp_docvqa", "MP-DocVQA"),
        ("plotqa", "PlotQA"),
        ("slidevqa", "SlideVQA"),
    )
}
"""The names under which VisRAG's own sets are downloaded, by ours."""


class RetrievalSetError(RsgrpoError, ValueError):
    """A data set for retrieval is not known or not there; the message names it and the choices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalTask:
    """A data set to evaluate an embedder on.

    Attributes:
        name: the name of the task, such as ``visrag_ret/chartqa``.
        official_name: mteb's name of the task, run at the revision that mteb pins; empty for a set in a folder.
        folder: the folder that holds the set in VisRAG's layout; None for one of mteb's.
        data_root: the folder in which mteb's set may lie under its own name, for machines without a network; None: it
            is not looked for.
    """

    name: str
    official_name: str = ""
    folder: Path | None = None
    data_root: Path | None = None


def find_retrieval_tasks(name: str, data_root: str) -> tuple[RetrievalTask, ...]:
    """Find the data sets that the name of a task or a group stands for.

    A set of VisRAG's that lies in ``data_root`` counts more than mteb's copy of it on the hub.

    Args:
        name: the name, such as ``visrag_ret/chartqa``, ``vidore/v3`` or ``visrag_ret/FOLDER``.
        data_root: the folder that holds sets as they are downloaded or were made; empty: there is none.

    Returns:
        The sets, at least one.

    Raises:
        RetrievalSetError: there is no such set; the message lists the choices.

    Example:
        ``find_retrieval_tasks("visrag_ret/manuals", "DATA")`` gives the set in ``DATA/manuals``.
    """
    root = Path(data_root) if data_root else None
    group = tuple(official for official in _OFFICIAL if _is_in_group(official, name))
    found = tuple(_task(official, root) for official in (group or (name,)))
    return tuple(task if task is not None else _unknown(name, root) for task in found)


def _is_in_group(official: str, name: str) -> bool:
    return official.startswith(f"{name}/") or (
        re.fullmatch(r"vidore/v[\d.]+", name) is not None and official.startswith(f"{name}_")
    )


def _task(name: str, root: Path | None) -> RetrievalTask | None:
    family, _, short = name.partition("/")
    if family == _VISRAG and root is not None and _FOLDER_NAME.fullmatch(short):
        for folder in (root / short, root / _VISRAG_FOLDERS.get(short, short)):
            if _has_parts(folder):
                return RetrievalTask(name=name, folder=folder)
    if name in _OFFICIAL:
        return RetrievalTask(name=name, official_name=_OFFICIAL[name], data_root=root)
    return None


def _has_parts(folder: Path) -> bool:
    """Whether a folder looks like a data set in VisRAG's layout; what is wrong with it is said when it is read."""
    return any(any(folder.glob(f"{part}*")) for part in PARTS) if folder.is_dir() else False


def _unknown(name: str, root: Path | None) -> RetrievalTask:
    local = [f"{_VISRAG}/{folder}" for folder in _local_sets(root)]
    known = [*local, *_OFFICIAL]
    close = difflib.get_close_matches(name, known, n=_NUM_CHOICES)
    choices = list(dict.fromkeys([*close, *known]))
    where = (
        f"; a set of your own is a folder in eval.data_root={shown(root, 120)} with corpus, queries and qrels"
        if root is not None
        else "; a set of your own needs eval.data_root, the folder that its folder lies in"
    )
    raise RetrievalSetError(
        f"there is no data set '{shown(name, 120)}'; the choices are {', '.join(choices[:_NUM_CHOICES])}, "
        f"{len(choices) - _NUM_CHOICES} more, and the groups {_VISRAG}, vidore, vidore/v1, vidore/v2, vidore/v3, "
        f"vidore/v3.1{where}"
    )


def _local_sets(root: Path | None) -> Iterator[str]:
    if root is None or not root.is_dir():
        return
    for folder in sorted(root.iterdir()):
        if _FOLDER_NAME.fullmatch(folder.name) and _has_parts(folder):
            yield folder.name


def split_tasks(names: list[str]) -> tuple[list[str], list[str]]:
    """Tell tasks that a model answers from those that an embedder searches.

    Args:
        names: the names in ``eval.tasks``.

    Returns:
        The names of the benchmarks to answer, and those of the data sets to search.
    """
    searched = [name for name in names if is_retrieval_task(name)]
    return [name for name in names if name not in searched], searched
