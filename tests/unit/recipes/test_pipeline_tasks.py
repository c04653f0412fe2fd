"""Whole pipelines, asked of a server: search, filter, answer, and where questions were lost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recipes.evaluation.benchmark_tasks import run_benchmarks
from recipes.setup.first_checks import check_first
from rsgrpo.config import (
    Config,
    ConfigError,
    DataConfig,
    EmbedderConfig,
    EvalConfig,
    FilterStageConfig,
    QueryFilterConfig,
)
from rsgrpo.errors import RsgrpoError
from rsgrpo.evaluation.benchmarks import find_benchmarks
from rsgrpo.evaluation.benchmarks.base import BenchmarkError
from rsgrpo.run.recorder import read_groups
from rsgrpo.run.summary import PipelineSummary, read_summary
from tests.fake_server import FakeServer, Reply, ok
from tests.unit.evaluation.answer_data import judged, write_answer_set, write_trec
from tests.unit.evaluation.retrieval_data import COLOURS, ColourEmbedder
from tests.unit.recipes.benchmark_runs import _config
from tests.unit.recipes.test_visrag_gen_tasks import colours

QUERIES: list[dict[str, Any]] = [
    {"query-id": "q-red", "query": "red", "answer": "one"},
    {"query-id": "q-green", "query": "green", "answer": "two"},
    {"query-id": "q-none", "query": "blue", "answer": "insufficient to answer"},
]
RELEVANT = judged(("q-red", "red"), ("q-green", "green"), red="sign one", green="sign two")
RUN = {
    "q-red": [("red", 0.9), ("pink", 0.8), ("yellow", 0.1)],
    "q-green": [("yellow", 0.9), ("green", 0.8), ("blue", 0.1)],
    "q-none": [("blue", 0.9), ("pink", 0.5), ("red", 0.4)],
}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def config(tmp_path: Path, server: FakeServer) -> Config:
    """Three questions, two of them with an answer, asked at depths 1 and 2."""
    root = tmp_path / "data"
    write_answer_set(root / "mine", QUERIES, RELEVANT)
    run = write_trec(root / "found.trec", RUN)
    config = _config(root, "pipeline/mine", url=server.url, search_run=str(run), pipeline_depths=[2, 1])
    config.eval.endpoint.concurrency = 1
    return config


def evidence_response(evidence: str, answer: str) -> Reply:
    return ok(f"<observe>x</observe><evidence>{evidence}</evidence><think>x</think><answer>{answer}</answer>")


def outcomes(config: Config, make_embedder: Any = None) -> dict[str, PipelineSummary]:
    report = run_benchmarks(config, make_embedder)
    return read_summary(report.parent / "summary.json").pipelines


def lost(found: PipelineSummary) -> dict[str, int]:
    assert sum(found.outcomes.values()) == found.num_questions
    return {outcome: count for outcome, count in found.outcomes.items() if count}


def question_of(text: str) -> str:
    """The question at the end of the prompt."""
    return text.rpartition("Question: ")[2].strip()


def test_questions_are_lost_at_search_reading_reasoning_and_guessing(server: FakeServer, config: Config) -> None:
    def reply(text: str, _: int) -> Reply:
        asked, pages = question_of(text), colours(server.bodies[-1])
        if asked == "red":
            return evidence_response("[1]: sign one", "seven")  # it reads its page and concludes something else
        if asked == "green":
            if "green" not in pages:
                return evidence_response("[1]: no relevant information", "insufficient to answer")
            return evidence_response("[1]: no relevant information\n[2]: sign nine", "nine")
        return evidence_response("[1]: sign", "three")

    server.reply = reply
    found = outcomes(config)
    assert list(found) == ["pipeline/mine@top1", "pipeline/mine@top2", "pipeline/mine@oracle"]
    top1, top2, oracle = found.values()
    assert lost(top1) == {"page_not_found": 1, "reasoned_wrongly": 1, "should_have_abstained": 1}
    assert (top1.found_frac, top1.shown_frac, top1.right) == (0.5, 0.5, 0.0)
    assert lost(top2) == {"read_wrongly": 1, "reasoned_wrongly": 1, "should_have_abstained": 1}
    # From its gold page alone; the line [1] for it says nothing. The question without an answer has no gold page.
    assert lost(oracle) == {"read_wrongly": 1, "reasoned_wrongly": 1} and oracle.found_frac == 1.0
    run = Path(config.run_dir)
    cases = [json.loads(line) for line in (run / "pipeline/mine/cases.jsonl").read_text().splitlines()]
    (case,) = [one for one in cases if one["depth"] == "top2" and one["qid"] == "q-green"]
    assert case["shown_pages"] == ["yellow", "green"] and case["misread"] == ["green"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("pipeline/mine", 1),
        ("pipeline/mine", 2),
        ("pipeline/mine/oracle", 0),
    ]
    groups = {(group.stage, group.step): group for group in read_groups(run / "rollouts.jsonl")}
    group = groups["pipeline/mine: read wrongly", 2]
    assert len(group.images) == 2 and group.gold_response == "gold pages: green; shown: yellow, green\ngreen: sign two"
    report = (run / "report.html").read_text()
    assert "pipeline/mine@oracle" in report and "pipeline/mine: page not found" in report


def test_the_same_pages_are_asked_about_once_and_a_rerun_asks_nothing(server: FakeServer, config: Config) -> None:
    server.reply = lambda text, _: evidence_response("[1]: x", "one" if question_of(text) == "red" else "no")
    first = outcomes(config)
    # Depth 1 and 2 of three questions, and of the two gold pages only green is not what depth 1 shows already.
    assert len(server.bodies) == 3 + 3 + 1
    assert outcomes(dataclasses.replace(config, resume="auto")) == first
    assert len(server.bodies) == 7
    rows = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3
    assert first["pipeline/mine@top1"].right == pytest.approx(1 / 3)


def _judgement(says_yes: bool) -> Reply:
    likely, other = ("yes", "no") if says_yes else ("no", "yes")
    top = [{"token": likely, "logprob": -0.1}, {"token": other, "logprob": -3.0}]
    choice = {"message": {"content": likely}, "finish_reason": "stop", "logprobs": {"content": [{"top_logprobs": top}]}}
    return 200, json.dumps({"choices": [choice]}), {}


def test_a_filter_judges_each_page_once_and_what_it_leaves_out_is_counted(server: FakeServer, config: Config) -> None:
    def reply(text: str, _: int) -> Reply:
        if "Does this page help" in text:
            (page,) = colours(server.bodies[-1])
            return _judgement(page not in ("green", "blue"))  # it takes green for irrelevant
        return evidence_response("[1]: x", "insufficient to answer")

    server.reply = reply
    filtering = QueryFilterConfig(enabled=True, stages=[FilterStageConfig(scorer="yes_no", top_k=1)])
    found = outcomes(dataclasses.replace(config, filter=filtering))
    # Depth 1 keeps the one page there is; at depth 2 the green page is found and left out.
    assert lost(found["pipeline/mine@top1"]) == {"page_not_found": 1, "read_wrongly": 1, "right": 1}
    top2 = found["pipeline/mine@top2"]
    assert lost(top2) == {"filtered_out": 1, "read_wrongly": 1, "right": 1}
    assert (top2.found_frac, top2.shown_frac) == (1.0, 0.5)
    judged_pages = [body for body in server.bodies if "Does this page help" in json.dumps(body)]
    assert len(judged_pages) == 6  # two pages of three questions; those of depth 1 are among them
    # At depth 2 the blue page is left out, and pink is still page 2.
    asked = [json.dumps(body["messages"]) for body in server.bodies if body not in judged_pages]
    assert any("[2]:" in text for text in asked if "Question: blue" in text)
    num_asked = len(server.bodies)
    outcomes(dataclasses.replace(config, filter=filtering, resume="auto"))
    assert len(server.bodies) == num_asked


def test_a_search_of_our_own_embeds_each_page_once(server: FakeServer, config: Config) -> None:
    embedder = ColourEmbedder()
    own = dataclasses.replace(config, embedder=EmbedderConfig(model="colours"))
    own.eval.search_run = ""
    server.reply = lambda text, _: evidence_response("[1]: x", "one")
    found = outcomes(own, lambda _: embedder)
    assert embedder.num_pages == len(COLOURS)
    assert found["pipeline/mine@top1"].found_frac == 1.0  # red and green are their own colours
    outcomes(dataclasses.replace(own, resume="auto"), lambda _: embedder)
    assert embedder.num_pages == len(COLOURS)


def test_a_failed_request_is_an_outcome_and_asked_again(server: FakeServer, config: Config) -> None:
    server.reply = lambda text, _: (400, "no", {}) if question_of(text) == "blue" else ok("one")
    assert lost(outcomes(config)["pipeline/mine@top1"])["not_answered"] == 1
    server.reply = lambda *_: ok("<answer>insufficient to answer</answer>")
    again = outcomes(dataclasses.replace(config, resume="auto"))["pipeline/mine@top1"]
    assert "not_answered" not in lost(again) and again.outcomes["right"] == 2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"query-id": "q-red", "query": "red", "answer": None}, "query 'q-red' has no answer to compare with"),
        ({"query-id": "q-x", "query": "red", "answer": "one"}, "'q-x' has an answer and no relevant page in the qrels"),
        (
            {"query-id": "q-red", "query": "red", "answer": "insufficient to answer"},
            "'q-red' has a relevant page, and its answer refuses",
        ),
    ],
    ids=["no answer", "no gold page", "refusal with gold page"],
)
def test_a_question_that_cannot_be_judged_is_named_or_left_out(
    server: FakeServer, config: Config, query: dict[str, Any], message: str
) -> None:
    root = Path(config.eval.data_root)
    write_answer_set(
        root / "mine",
        [query, *QUERIES[0:2]] if query["query-id"] == "q-x" else [query, QUERIES[1]],
        RELEVANT,
    )
    with pytest.raises(RsgrpoError, match=message):
        run_benchmarks(config)
    data = DataConfig(min_pixels=784, max_images=8, on_bad_sample="skip", max_skipped_frac=0.6)
    found = outcomes(dataclasses.replace(config, data=data, resume="auto"))
    assert found["pipeline/mine@top1"].num_questions == (2 if query["query-id"] == "q-x" else 1)


def test_settings_are_refused_before_anything_is_read(config: Config) -> None:
    check_first(config)
    with pytest.raises(RsgrpoError, match="no data set 'visrag_ret/yours'"):
        check_first(_config(Path(config.eval.data_root), "pipeline/yours", search_run=config.eval.search_run))
    with pytest.raises(ConfigError, match="different whole numbers"):
        EvalConfig(pipeline_depths=[3, 3])
    with pytest.raises(BenchmarkError, match="searched, filtered and answered in one run"):
        find_benchmarks("pipeline/mine")
    deep = _config(Path(config.eval.data_root), "pipeline/mine", url="http://x/v1", pipeline_depths=[9])
    deep.eval.search_run = config.eval.search_run
    with pytest.raises(RsgrpoError, match="9 pages of each question are wanted, and the set has 5"):
        run_benchmarks(deep)
