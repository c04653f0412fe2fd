"""Embedders on the data sets of ``eval.tasks``: files, summary, report, resuming, and a run measured again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from recipes.evaluation.benchmark_tasks import run_benchmarks
from recipes.evaluation.measure_run_command import main as measure_run_command
from recipes.indexing.places import make_any_embedder
from recipes.setup.first_checks import check_first
from recipes.setup.wanted_data import find_embedder, has_engines
from rsgrpo.config import Config, ConfigError, DataConfig, EmbedderConfig, EvalConfig, LoggingConfig
from rsgrpo.data.files import DataError
from rsgrpo.errors import RsgrpoError
from rsgrpo.evaluation.benchmarks import find_benchmarks
from rsgrpo.evaluation.benchmarks.base import BenchmarkError
from rsgrpo.retrieval.embedders.embedder import EmbedderMismatchError, EmbeddingError
from rsgrpo.retrieval.measuring.trec_runs import read_run, write_run
from rsgrpo.run.summary import read_summary
from tests.fake_server import FakeServer, ok
from tests.tiny_model import build_tiny_model
from tests.unit.evaluation.retrieval_data import ColourEmbedder, write_vidore_v3_set, write_visrag_set
from tests.unit.recipes.benchmark_runs import _config

MRR = (3 + 1 / 4) / 4  # derived in test_mteb_tasks.py


def searching(data_root: Path, *tasks: str, **settings) -> Config:
    return dataclasses.replace(
        _config(data_root, *tasks, **settings),
        embedder=EmbedderConfig(model="colours", preset="last_token"),
        logging=LoggingConfig(wandb_mode="disabled", tensorboard=False),
    )


def test_quality_and_speed_stand_side_by_side(tmp_path: Path, capsys) -> None:
    data_root = tmp_path / "data"
    write_visrag_set(data_root / "mine")
    write_vidore_v3_set(data_root / "vidore_v3_hr_mteb_format")
    embedder = ColourEmbedder()
    config = searching(data_root, "visrag_ret/mine", "vidore/v3_hr")
    report = run_benchmarks(config, lambda _: embedder)
    summary = read_summary(report.parent / "summary.json")
    assert set(summary.searches) == {
        "visrag_ret/mine",
        *(f"vidore/v3_hr@{one}" for one in ("french", "spanish", "english", "german", "italian", "portuguese")),
    }
    mine = summary.searches["visrag_ret/mine"]
    assert mine.official == mine.strict
    assert mine.official["mrr@10"] == pytest.approx(MRR)
    assert mine.mteb == {"mrr_at_10": pytest.approx(MRR)}
    assert (mine.num_queries, mine.num_pages, mine.missing_queries) == (4, 5, 0)
    assert mine.pages_per_second is not None and mine.pages_per_second > 0
    assert mine.query_embedding_milliseconds > 0 and mine.search_milliseconds > 0
    # One subset's pages were embedded, the others share them.
    speeds = [found.pages_per_second for name, found in summary.searches.items() if "@" in name]
    assert sum(speed is not None for speed in speeds) == 1
    page = report.read_text()
    assert "search visrag_ret/mine" in page and "MRR@10, strict" in page
    printed = capsys.readouterr().out
    assert "ms/query" in printed and "pages/s" in printed
    assert "vidore/v3_hr: ndcg_at_10" in printed
    # What was written is what is measured again.
    root = report.parent / "retrieval" / "visrag_ret/mine"
    assert measure_run_command([str(root / "run.trec"), "--data", str(root)]) == 0
    assert f"{MRR:.4f}" in capsys.readouterr().out
    assert measure_run_command([str(root / "run.trec"), "--data", str(data_root / "mine"), "--mode", "strict"]) == 0
    assert f"{MRR:.4f}" in capsys.readouterr().out


def test_a_rerun_embeds_nothing_again_and_refuses_another_embedder(tmp_path: Path) -> None:
    write_visrag_set(tmp_path / "data" / "mine")
    first, again = ColourEmbedder(), ColourEmbedder()
    report = run_benchmarks(searching(tmp_path / "data", "visrag_ret/mine"), lambda _: first)
    before = read_summary(report.parent / "summary.json").searches["visrag_ret/mine"]
    saved = sorted((report.parent / "retrieval/visrag_ret/mine/index").iterdir())
    resumed = searching(tmp_path / "data", "visrag_ret/mine", resume="auto")
    report = run_benchmarks(resumed, lambda _: again)
    assert (first.num_pages, again.num_pages) == (5, 0)
    after = read_summary(report.parent / "summary.json").searches["visrag_ret/mine"]
    assert (after.official, after.pages_per_second) == (before.official, before.pages_per_second)
    assert sorted((report.parent / "retrieval/visrag_ret/mine/index").iterdir()) == saved  # nothing to write anew
    with pytest.raises(EmbedderMismatchError, match=r"was made by the embedder colours.*revision"):
        run_benchmarks(resumed, lambda _: ColourEmbedder(revision="sha256:11"))
    run_benchmarks(resumed, lambda _: again)  # the index was left open to others


def test_what_cannot_be_embedded_is_named(tmp_path: Path, capsys) -> None:
    folder = write_visrag_set(tmp_path / "data" / "mine")
    (folder / "queries" / "train-00000-of-00001.parquet").unlink()
    rows = [{"query-id": "q-red", "query": "red"}, {"query-id": "q-blue", "query": "ᚠᚢᚦ"}]
    (folder / "queries" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "train-00000-of-00001.parquet").unlink()
    judged = [{"query-id": name, "corpus-id": name[2:], "score": 1} for name in ("q-red", "q-blue")]
    (folder / "qrels" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    with pytest.raises(RsgrpoError, match="query 'q-blue' cannot be embedded"):
        run_benchmarks(searching(tmp_path / "data", "visrag_ret/mine"), lambda _: ColourEmbedder())
    data = DataConfig(on_bad_sample="skip")
    (tmp_path / "run" / "config.yaml").unlink()  # begun anew, with another setting
    config = searching(tmp_path / "data", "visrag_ret/mine", data=data)
    report = run_benchmarks(config, lambda _: ColourEmbedder())
    found = read_summary(report.parent / "summary.json").searches["visrag_ret/mine"]
    assert (found.official["mrr@10"], found.strict["mrr@10"], found.missing_queries) == (1.0, 0.5, 1)
    assert "left out 1 queries that cannot be embedded: 'q-blue'" in capsys.readouterr().out
    written = json.loads((report.parent / "retrieval" / "visrag_ret/mine" / "measures.json").read_text())
    assert list(written["refused"]["queries"]) == ["q-blue"]


def test_a_task_whose_set_is_broken_is_named(tmp_path: Path) -> None:
    # All sets call their parts alike: "qrels" alone would not say of which.
    for name in ("mine", "other"):
        folder = write_visrag_set(tmp_path / "data" / name)
    (folder / "qrels" / "train-00000-of-00001.parquet").unlink()
    judged = {"query-id": "q-red", "corpus-id": "nowhere", "score": 1}
    (folder / "qrels" / "train.jsonl").write_text(json.dumps(judged) + "\n")
    with pytest.raises(DataError, match=r"^visrag_ret/other: qrels: .*'nowhere'"):
        run_benchmarks(searching(tmp_path / "data", "visrag_ret/mine", "visrag_ret/other"), lambda _: ColourEmbedder())


def test_answered_and_searched_tasks_stand_in_one_run(data_root: Path) -> None:
    write_visrag_set(data_root / "mine")
    server = FakeServer()
    server.reply = lambda question, attempt: ok("<answer>Q3</answer>")
    try:
        config = searching(data_root, "evisrag/chartqa", "visrag_ret/mine", url=server.url)
        report = run_benchmarks(config, lambda _: ColourEmbedder())
    finally:
        server.close()
    summary = read_summary(report.parent / "summary.json")
    assert set(summary.benchmarks) == {"evisrag/chartqa"}
    assert set(summary.searches) == {"visrag_ret/mine"}


def test_a_real_embedder_is_evaluated_through_mteb(tmp_path: Path) -> None:
    write_visrag_set(tmp_path / "data" / "mine")
    model = build_tiny_model(tmp_path / "model")
    config = dataclasses.replace(
        _config(tmp_path / "data", "visrag_ret/mine"), embedder=EmbedderConfig(model=str(model), preset="visrag")
    )
    report = run_benchmarks(config)
    found = read_summary(report.parent / "summary.json").searches["visrag_ret/mine"]
    # mteb rounds to five digits.
    assert found.mteb["mrr_at_10"] == pytest.approx(found.strict["mrr@10"], abs=1e-5)
    scores = json.loads((report.parent / "retrieval" / "visrag_ret/mine" / "measures.json").read_text())["mteb_scores"]
    assert scores["ndcg_at_10"] == pytest.approx(found.official["ndcg@10"], abs=1e-5)
    assert scores["recall_at_10"] == pytest.approx(found.official["recall@10"], abs=1e-5)


def test_settings_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    write_visrag_set(tmp_path / "data" / "mine")
    with pytest.raises(ConfigError, match=r"embedder.model is empty; name a model .* has trained a retriever"):
        check_first(_config(tmp_path / "data", "visrag_ret/mine"))
    with pytest.raises(RsgrpoError, match="no data set 'visrag_ret/mime'"):
        check_first(searching(tmp_path / "data", "visrag_ret/mime"))
    with pytest.raises(BenchmarkError, match="searched by an embedder"):
        find_benchmarks("visrag_ret/chartqa")
    config = searching(tmp_path / "data", "visrag_ret/mine")
    check_first(config)
    assert not has_engines(config)
    assert EvalConfig(tasks=["visrag_ret", "vidore/v3"]).data_root == ""  # mteb fetches these itself
    with pytest.raises(ConfigError, match=r"eval\.data_root"):
        EvalConfig(tasks=["visrag_ret", "mig_bench"])
    with pytest.raises(EmbeddingError, match=r"embedder.model is empty"):
        make_any_embedder(EmbedderConfig())
    trained = tmp_path / "run" / "models" / "retriever"
    trained.mkdir(parents=True)
    assert find_embedder(_config(tmp_path / "data", "visrag_ret/mine")).model == str(trained)


def test_two_runs_are_compared_query_by_query(tmp_path: Path, capsys) -> None:
    data = write_visrag_set(tmp_path / "mine")
    report = run_benchmarks(searching(tmp_path, "visrag_ret/mine"), lambda _: ColourEmbedder())
    first = report.parent / "retrieval" / "visrag_ret/mine" / "run.trec"
    run = read_run(first)
    second = tmp_path / "second.trec"
    # Of the four queries the yellow one is now right (1 in place of 1/4), and the red one is gone.
    better = {name: pages for name, pages in run.items() if name != "q-red"}
    better["q-yellow"] = tuple(
        dataclasses.replace(page, score=2.0 if page.page_id == "green" else page.score) for page in run["q-yellow"]
    )
    write_run(second, better)
    assert measure_run_command([str(first), "--data", str(data), "--compare", str(second)]) == 0
    printed = capsys.readouterr().out
    # Over the three queries that both answer: 0.75 and 1.0, the yellow one better.
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("mrr@10")]
    assert row[1:4] == ["0.7500", "1.0000", "+0.2500"]
    assert "3 queries that both runs answer; 1 only the first" in printed
    assert "no page for 1 of 4 judged queries, left out of the means: q-red" in printed
    assert measure_run_command([str(first), "--data", str(tmp_path / "nothing")]) != 0
    assert measure_run_command([str(first), "--data", str(data), "-k", "0"]) != 0


def _write_qrels(folder: Path, scores: Mapping[str, int]) -> None:
    rows = ({"query-id": query, "corpus-id": "p", "score": score} for query, score in scores.items())
    (folder / "qrels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_queries_without_a_relevant_page_are_told_and_a_set_of_them_is_refused(tmp_path: Path, capsys) -> None:
    data = tmp_path / "judged"
    data.mkdir()
    run = tmp_path / "run.trec"
    run.write_text("a Q0 p 1 0.5 x\nb Q0 p 1 0.5 x\n")
    _write_qrels(data, {"a": 1, "b": 0})
    assert measure_run_command([str(run), "--data", str(data)]) == 0
    assert "1 judged queries have no relevant page and count as 0: b" in capsys.readouterr().out
    _write_qrels(data, {"a": 0, "b": 0})
    assert measure_run_command([str(run), "--data", str(data)]) == 1
    assert "no query of" in capsys.readouterr().err
