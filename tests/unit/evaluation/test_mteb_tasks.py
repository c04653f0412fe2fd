"""Data sets through mteb: every format that it loads, its scores against ours, and what cannot be run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import mteb
import pytest

from rsgrpo.data.files import DataError
from rsgrpo.evaluation.mteb_tasks import MtebError, load_task, run_task
from rsgrpo.evaluation.retrieval_sets import (
    RetrievalSetError,
    RetrievalTask,
    find_retrieval_tasks,
    split_tasks,
)
from rsgrpo.retrieval.embedders.embedder import EmbedderMismatchError
from rsgrpo.retrieval.index.flat_index import FlatIndex, create_index, open_index
from rsgrpo.retrieval.measuring.measured_search import measure_embedder, measures_at
from rsgrpo.retrieval.measuring.measures import measure_run
from rsgrpo.retrieval.measuring.relevance_files import read_retrieval_set
from tests.unit.evaluation.retrieval_data import (
    COLOURS,
    ColourEmbedder,
    write_mteb_set,
    write_vidore_v1_set,
    write_vidore_v3_set,
    write_visrag_set,
)

# Three queries find their page first. The yellow one wants the green page, which comes fourth, after yellow (cosine 1),
# pink (0.81) and red (0.76): green has 220 / |(255, 220, 0)| = 0.65.
MRR = (3 + 1 / 4) / 4
NDCG = (3 + 1 / math.log2(5)) / 4

Write = Callable[[Path], Path]


@pytest.fixture
def index(tmp_path: Path) -> FlatIndex:
    return create_index(tmp_path / "index", ColourEmbedder().identity)


def found_task(name: str, data_root: Path) -> RetrievalTask:
    (task,) = find_retrieval_tasks(name, str(data_root))
    return task


FORMATS = [
    ("visrag_ret/chartqa", "VisRAG-Ret-Test-ChartQA", write_visrag_set, 1),
    ("visrag_ret/mine", "mine", write_visrag_set, 1),
    ("visrag_ret/chartqa", "VisRAGRetChartQA", write_mteb_set, 1),
    ("vidore/v1_tatdqa", "tatdqa_test_beir", write_vidore_v1_set, 1),
    ("vidore/v3_hr", "vidore_v3_hr_mteb_format", write_vidore_v3_set, 6),
]


@pytest.mark.parametrize("name,folder,write,num_subsets", FORMATS, ids=[folder for _, folder, _, _ in FORMATS])
def test_mteb_and_our_measures_agree(
    name: str, folder: str, write: Write, num_subsets: int, tmp_path: Path, index: FlatIndex
) -> None:
    write(tmp_path / folder)
    task = found_task(name, tmp_path)
    data = None if task.folder is None else read_retrieval_set(task.folder)
    loaded = load_task(task, data)
    assert (loaded.revision, loaded.num_queries, loaded.num_pages) == ("local", 4 * num_subsets, 5 * num_subsets)
    embedder = ColourEmbedder()
    result = run_task(loaded, embedder, index, scratch=tmp_path / "scratch")
    assert len(result.subsets) == num_subsets
    for found in result.subsets:
        ours = measure_run(found.searched.run, found.relevant, mode="strict", measures=measures_at(10)).values
        assert ours == pytest.approx({"mrr@10": MRR, "recall@10": 1.0, "ndcg@10": NDCG})
        theirs = {"mrr@10": "mrr_at_10", "recall@10": "recall_at_10", "ndcg@10": "ndcg_at_10"}
        assert {key: found.mteb_scores[name] for key, name in theirs.items()} == pytest.approx(ours, abs=1e-5)
    assert embedder.num_pages == 5  # languages share their pages
    assert not (tmp_path / "scratch").exists()  # images were read where they lie
    assert result.main_score == pytest.approx(found.mteb_scores[loaded.main_score])


def test_a_set_in_a_folder_is_measured_as_by_measure_embedder(tmp_path: Path, index: FlatIndex) -> None:
    data = read_retrieval_set(write_visrag_set(tmp_path / "mine"))
    (found,) = run_task(
        load_task(found_task("visrag_ret/mine", tmp_path), data), ColourEmbedder(), index, scratch=tmp_path
    ).subsets
    measured = measure_embedder(ColourEmbedder(), data)
    assert found.searched.run == measured.run
    assert measured.values["mrr@10"] == pytest.approx(MRR)


def test_only_the_first_queries_are_searched(tmp_path: Path, index: FlatIndex) -> None:
    data = read_retrieval_set(write_visrag_set(tmp_path / "mine"))
    loaded = load_task(found_task("visrag_ret/mine", tmp_path), data, max_queries=2)
    (found,) = run_task(loaded, ColourEmbedder(), index, scratch=tmp_path).subsets
    assert loaded.num_queries == 2
    assert list(found.searched.run) == list(found.relevant) == ["q-red", "q-blue"]


def test_pages_are_embedded_once_and_by_one_embedder(tmp_path: Path, index: FlatIndex) -> None:
    task = found_task("visrag_ret/chartqa", write_mteb_set(tmp_path / "VisRAGRetChartQA").parent)
    first = run_task(load_task(task, None), ColourEmbedder(), index, scratch=tmp_path)
    index.close()
    embedder = ColourEmbedder()
    with open_index(tmp_path / "index", is_writable=True) as again:
        second = run_task(load_task(task, None), embedder, again, scratch=tmp_path)
        with pytest.raises(EmbedderMismatchError, match="revision"):
            run_task(load_task(task, None), ColourEmbedder(revision="sha256:11"), again, scratch=tmp_path)
    assert embedder.num_pages == 0
    assert second.subsets[0].searched.run == first.subsets[0].searched.run
    assert second.subsets[0].corpus.pages_per_second is None


def test_a_query_without_tokens_is_left_out_by_name(tmp_path: Path, index: FlatIndex, monkeypatch) -> None:
    data = read_retrieval_set(write_visrag_set(tmp_path / "mine"))
    monkeypatch.delitem(COLOURS, "blue")
    loaded = load_task(found_task("visrag_ret/mine", tmp_path), data)
    (found,) = run_task(loaded, ColourEmbedder(), index, scratch=tmp_path, on_bad_item="skip").subsets
    assert list(found.searched.refused) == ["q-blue"]
    # mteb leaves the query out, as official counting does: (1 + 1/4 + 1) / 3.
    assert found.mteb_scores["mrr_at_10"] == pytest.approx((2 + 1 / 4) / 3, abs=1e-5)
    official = measure_run(found.searched.run, found.relevant, mode="official", measures=["mrr@10"])
    assert official.values["mrr@10"] == pytest.approx((2 + 1 / 4) / 3)
    assert official.missing_queries == ("q-blue",)


def test_every_official_name_is_one_of_mteb() -> None:
    names = [task for group in ("visrag_ret", "vidore") for task in find_retrieval_tasks(group, "")]
    assert len(names) == 6 + 10 + 4 + 8 + 8
    for task in names:
        metadata = mteb.get_task(task.official_name).metadata
        assert len(metadata.dataset["revision"]) == 40  # a commit
        assert metadata.is_public
        assert set(metadata.modalities) == {"text", "image"}
    assert [task.name for task in find_retrieval_tasks("vidore/v2", "")] == [
        "vidore/v2_biomedical_lectures",
        "vidore/v2_economics_reports",
        "vidore/v2_esg_reports",
        "vidore/v2_esg_reports_human",
    ]


def test_unknown_names_are_refused_with_the_choices(tmp_path: Path) -> None:
    write_visrag_set(tmp_path / "manuals")
    with pytest.raises(RetrievalSetError, match=r"no data set 'visrag_ret/manual'; the choices are visrag_ret/manuals"):
        find_retrieval_tasks("visrag_ret/manual", str(tmp_path))
    for name in ("visrag_ret/../manuals", "vidore/nothing", "vidore/", "visrag_ret/"):
        with pytest.raises(RetrievalSetError, match="no data set"):
            find_retrieval_tasks(name, str(tmp_path))
    assert split_tasks(["mig_bench", "vidore/v3", "visrag_ret"]) == (["mig_bench"], ["vidore/v3", "visrag_ret"])


def test_what_cannot_be_loaded_is_refused_by_name(tmp_path: Path, monkeypatch) -> None:
    folder = write_mteb_set(tmp_path / "VisRAGRetChartQA")
    (folder / "README.md").write_text("---\nconfigs: []\n---\n")
    with pytest.raises(MtebError, match=r"VisRAGRetChartQA cannot be read as mteb's VisRAGRetChartQA .*README.md"):
        load_task(found_task("visrag_ret/chartqa", tmp_path), None)
    for flag in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(flag, True)
    with pytest.raises(MtebError, match=r"mteb/VisRAGRetPlotQA: .*put a copy into DATA/VisRAGRetPlotQA"):
        load_task(found_task("visrag_ret/plotqa", tmp_path), None)
    write_visrag_set(tmp_path / "bad")
    (tmp_path / "bad" / "qrels" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="qrels"):
        read_retrieval_set(tmp_path / "bad")
