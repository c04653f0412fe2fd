"""Benchmarks by name as a user starts them, on a real engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsgrpo.run.summary import read_summary
from tests.benchmark_data import write_evisrag, write_haystacks, write_mig_bench, write_milebench
from tests.engine.train_process import finish, start
from tests.tiny_model import build_tiny_model
from tests.unit.evaluation.answer_data import judged, write_answer_set, write_trec

pytestmark = pytest.mark.engine

SMALL = (
    "stage=eval",
    "eval.sampling.max_response_tokens=8",
    "rollout.max_num_sequences=32",
    "rollout.max_model_tokens=3072",
    "data.max_prompt_tokens=3000",
    "logging.wandb_mode=disabled",
    "logging.tensorboard=false",
)


def _run(folder: Path, *overrides: str) -> str:
    return finish(start(f"run_dir={folder}", *SMALL, *overrides))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"), hidden=128)


def _write_pages(folder: Path, run: Path) -> None:
    """Two questions over coloured pages, and a search that finds three pages for each."""
    queries = [
        {"query-id": "red-0", "query": "Which red?", "answer": "one"},
        {"query-id": "blue-1", "query": "Which blue?", "answer": "two"},
    ]
    write_answer_set(folder, queries, judged(("red-0", "red"), ("blue-1", "blue")))
    write_trec(
        run,
        {
            "red-0": [("red", 0.9), ("pink", 0.8), ("blue", 0.1)],
            "blue-1": [("green", 0.9), ("blue", 0.8), ("red", 0.1)],
        },
    )


def test_benchmarks_are_answered_scored_and_kept(checkpoint: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for write in (write_evisrag, write_milebench, write_haystacks, write_mig_bench):
        write(data)
    _write_pages(data / "chartqa", data / "found.trec")
    tasks = "[evisrag/chartqa,milebench/ActionSequence,vhs/single,vhs/positional,mig_bench,%s]"
    command = (
        f"eval.tasks={tasks % 'visrag_gen/chartqa/weighted_selection'}",
        f"eval.data_root={data}",
        f"eval.checkpoint={checkpoint}",
        f"eval.search_run={data}/found.trec",
        "eval.top_k=2",
    )
    output = _run(run, *command)
    assert "task " in output
    assert "official" in output
    benchmarks = read_summary(run / "summary.json").benchmarks
    assert {name: (benchmark.num_questions, benchmark.num_answered) for name, benchmark in benchmarks.items()} == {
        "evisrag/chartqa": (2, 2),
        "milebench/ActionSequence": (2, 2),
        "vhs/single@2": (2, 2),
        "vhs/single@3": (2, 2),
        "vhs/positional@2": (4, 4),
        "vhs/positional@3": (6, 6),
        "mig_bench": (2, 2),
        "visrag_gen/chartqa/weighted_selection": (2, 2),
    }
    kept = (run / "benchmarks/visrag_gen/chartqa/weighted_selection/answers.jsonl").read_text().splitlines()
    # Two pages of two questions, each answer with its log-probability.
    assert len(kept) == 4 and all(json.loads(line)["mean_logprob"] < 0 for line in kept)
    journal = run / "benchmarks" / "mig_bench" / "answers.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert all(row["finish_reason"] in ("stop", "length") and not row["failure"] for row in rows)

    # Killed with one answer unwritten: only that one is asked again, and it comes out the same.
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    output = _run(run, *command, "resume=auto")
    assert "mig_bench: 1/1 answered" in output.replace("Answering mig_bench …\n  ", "mig_bench: ")
    assert "vhs/single@2: all 2 answers are there" in output
    again = [json.loads(line) for line in journal.read_text().splitlines()]
    assert {row["id"]: row["text"] for row in again} == {row["id"]: row["text"] for row in rows}


def test_a_pipeline_is_filtered_and_answered_by_one_engine(checkpoint: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    _write_pages(data / "mine", data / "found.trec")
    _run(
        run,
        "eval.tasks=[pipeline/mine]",
        f"eval.data_root={data}",
        f"eval.search_run={data}/found.trec",
        "eval.pipeline_depths=[1,3]",
        f"eval.checkpoint={checkpoint}",
        "filter.enabled=true",
        "filter.yes=y",  # one token of the tiny model
        "filter.no=n",
        "filter.stages=[{scorer: yes_no, top_k: 2, threshold: 0}]",
        "data.max_images=3",
    )
    pipelines = read_summary(run / "summary.json").pipelines
    assert list(pipelines) == ["pipeline/mine@top1", "pipeline/mine@top3", "pipeline/mine@oracle"]
    assert all(found.outcomes["not_answered"] == 0 for found in pipelines.values())
    assert [found.found_frac for found in pipelines.values()] == [0.5, 1.0, 1.0]
    scores = (run / "pipeline/mine/page_scores.jsonl").read_text().splitlines()
    assert len(scores) == 6  # three pages of two questions, each judged once for both depths
    cases = [json.loads(line) for line in (run / "pipeline/mine/cases.jsonl").read_text().splitlines()]
    assert {len(case["shown_pages"]) for case in cases if case["depth"] == "top3"} == {2}
