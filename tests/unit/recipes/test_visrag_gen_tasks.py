"""VisRAG-Gen's tasks, asked of a server: pages from a run or a search, five settings, its files, its scores."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recipes.evaluation.benchmark_tasks import run_benchmarks
from recipes.setup.first_checks import check_first
from rsgrpo.config import ConfigError, DataConfig, EmbedderConfig
from rsgrpo.data.files import DataError
from rsgrpo.errors import RsgrpoError
from rsgrpo.evaluation.benchmarks import find_benchmarks
from rsgrpo.run.summary import BenchmarkSummary, read_summary
from tests.fake_server import FakeServer, Reply, ok
from tests.unit.evaluation.answer_data import judged, write_answer_set, write_part, write_trec
from tests.unit.evaluation.rescoring import rescored
from tests.unit.evaluation.retrieval_data import COLOURS, ColourEmbedder
from tests.unit.recipes.benchmark_runs import _config

QUERIES: list[dict[str, Any]] = [
    {"query-id": "red-0", "query": "red", "answer": "42"},
    {"query-id": "green-1", "query": "green", "answer": "lime"},
]
RUN = {
    "red-0": [("blue", 0.5), ("red", 0.9), ("pink", 0.7)],
    "green-1": [("green", 0.9), ("yellow", 0.8), ("red", 0.1)],
}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """ChartQA with two questions, and a run that finds three pages for each."""
    root = tmp_path / "data"
    relevant = judged(("red-0", "red"), ("green-1", "green"))
    write_answer_set(root / "VisRAG-Ret-Test-ChartQA", QUERIES, relevant)
    write_trec(root / "runs" / "ours" / "ChartQA" / "test.0.trec", {"red-0": RUN["red-0"]})
    write_trec(root / "runs" / "ours" / "ChartQA" / "test.1.trec", {"green-1": RUN["green-1"]})
    return root


def asked(root: Path, server: FakeServer, *names: str, **settings: Any) -> dict[str, BenchmarkSummary]:
    """Run tasks with two pages a question, and give the summary."""
    settings = {"search_run": str(root / "runs" / "ours"), "top_k": 2, **settings}
    report = run_benchmarks(_config(root, *names, url=server.url, **settings))
    return read_summary(report.parent / "summary.json").benchmarks


def images(body: dict[str, Any]) -> list[Image.Image]:
    content = body["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def colours(body: dict[str, Any]) -> list[str]:
    """The colours of the pages that were sent, in order."""
    by_colour: dict[Any, str] = {colour: name for name, colour in COLOURS.items()}
    return [by_colour[image.convert("RGB").getpixel((5, 5))] for image in images(body)]


def bodies(server: FakeServer) -> dict[str, dict[str, Any]]:
    """The last request by the question that it asks."""
    return {("red" if "red" in json.dumps(body["messages"])[-80:] else "green"): body for body in server.bodies}


def test_pages_of_a_run_are_shown_best_first_and_files_are_the_original_s(server: FakeServer, root: Path) -> None:
    server.reply = lambda question, _: ok("40" if "red" in question else "Lime.")
    (found,) = asked(root, server, "visrag_gen/chartqa").values()
    # 40 is 4.8 % below 42, which ChartQA's rule lets pass; "Lime." is lime once its period is gone.
    assert (found.metric, found.official, found.strict, found.num_answered) == ("accuracy", 1.0, 1.0, 2)
    sent = bodies(server)
    assert colours(sent["red"]) == ["red", "pink"] and colours(sent["green"]) == ["green", "yellow"]
    text = "Answer the question using a single word or phrase.\nQuestion:red\nAnswer:"
    assert sent["red"]["messages"][-1]["content"][-1] == {"type": "text", "text": text}
    assert sent["red"]["max_tokens"] == 20 and "logprobs" not in sent["red"]
    folder = root.parent / "run/benchmarks/visrag_gen/chartqa/multi_image/predictions/run/ours"
    name = "run_ours_ChartQA_multi_image_top2"
    assert json.loads((folder / f"{name}_result.jsonl").read_text()) == {"Accuracy": 1.0}
    rows = [json.loads(line) for line in (folder / f"{name}_history.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "query": "red",
        "qid": "red-0",
        "original_answer": "42",
        "docid": ["red", "pink"],
        "prompt": text,
        "preprocessed_responds": "40",
        "preprocessed_answer": "42",
        "original_responds": "40",
    }


def test_what_was_written_is_scored_again_without_a_model(server: FakeServer, root: Path) -> None:
    server.reply = lambda question, _: ok("40" if "red" in question else "no")
    asked(root, server, "visrag_gen/chartqa")
    predictions = root.parent / "run/benchmarks/visrag_gen/chartqa/multi_image/predictions"
    for data in (root, root / "VisRAG-Ret-Test-ChartQA"):
        outcome = rescored("visrag_gen/chartqa", data, predictions)
        assert outcome.status == 0 and outcome.value("official", "accuracy") == 0.5
    write_part(root / "VisRAG-Ret-Test-ChartQA", "queries", [{"query-id": "red-0", "query": "red"}])
    outcome = rescored("visrag_gen/chartqa", root, predictions)
    assert outcome.status != 0 and "none of 1 queries" in outcome.err


def test_joined_pages_are_one_image(server: FakeServer, root: Path) -> None:
    asked(root, server, "visrag_gen/chartqa/page_concatenation")
    # red is 56 × 28, pink 56 × 56: red is scaled to 112 × 56.
    assert [image.size for image in images(bodies(server)["red"])] == [(168, 56)]
    server.bodies.clear()
    asked(root, server, "visrag_gen/chartqa/page_concatenation", concatenation="vertical", resume="auto")
    assert [image.size for image in images(bodies(server)["red"])] == [(56, 84)]


def _with_logprobs(text: str, *logprobs: float) -> Reply:
    content = [{"token": "t", "logprob": logprob} for logprob in logprobs]
    choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": content}}
    return 200, json.dumps({"choices": [choice]}), {}


def test_one_answer_of_several_pages_is_chosen_by_score_and_log_probability(server: FakeServer, root: Path) -> None:
    # Of the red question's pages red scores 0.9 and pink 0.7: 0.9 - 0.75 = 0.15 against 0.7 - 0.4 = 0.3.
    given = {"red": ("41", (-1.0, -0.5)), "pink": ("7", (-0.4,)), "green": ("lime", (-0.1,)), "yellow": ("x", (-3.0,))}

    def reply(question: str, _: int) -> Reply:
        (colour,) = colours(server.bodies[-1])
        text, logprobs = given[colour]
        return _with_logprobs(text, *logprobs)

    server.reply = reply
    config = _config(
        root, "visrag_gen/chartqa/weighted_selection", url=server.url, search_run=str(root / "runs/ours"), top_k=2
    )
    config.eval.endpoint.concurrency = 1
    report = run_benchmarks(config)
    (found,) = read_summary(report.parent / "summary.json").benchmarks.values()
    assert (found.num_questions, found.num_answered, found.official) == (2, 2, 0.5)  # 7 is wrong, lime is right
    assert all(body["logprobs"] is True for body in server.bodies) and len(server.bodies) == 4
    history = next(report.parent.rglob("*_history.jsonl"))
    rows = {row["qid"]: row for row in map(json.loads, history.read_text().splitlines())}
    assert rows["red-0"]["original_responds"] == "7" and rows["red-0"]["docid"] == ["red", "pink"]
    # Answers are kept with their log-probabilities: nothing is asked again.
    run_benchmarks(dataclasses.replace(config, resume="auto"))
    assert len(server.bodies) == 4


def test_a_server_without_log_probabilities_cannot_choose(server: FakeServer, root: Path) -> None:
    with pytest.raises(RsgrpoError, match="none of 2 questions has an answer"):
        asked(root, server, "visrag_gen/chartqa/weighted_selection")


def test_gold_pages_come_from_the_query_s_id_or_the_judgements(server: FakeServer, root: Path) -> None:
    relevant = judged(("red-0", "red"), ("q7", "green"), ("q7", "blue"))
    queries = [QUERIES[0], {"query-id": "q7", "query": "green", "answer": "lime"}]
    write_answer_set(root / "VisRAG-Ret-Test-ChartQA", queries, relevant)
    asked(root, server, "visrag_gen/chartqa/oracle", search_run="")  # no search is needed
    assert colours(bodies(server)["red"]) == ["red"] and colours(bodies(server)["green"]) == ["green", "blue"]
    assert next((root.parent / "run").rglob("*_history.jsonl")).name == "run_upper_bound_ChartQA_oracle_history.jsonl"


def test_texts_of_pages_stand_in_the_prompt(server: FakeServer, root: Path) -> None:
    texts = {"red": "RED 42", "pink": "PINK", "green": "GREEN", "yellow": "YELLOW"}
    relevant = judged(("red-0", "red"), ("green-1", "green"))
    write_answer_set(root / "VisRAG-Ret-Test-ChartQA", QUERIES, relevant, texts)
    asked(root, server, "visrag_gen/chartqa/text")
    (red,) = (body for body in server.bodies if "RED 42" in json.dumps(body))
    text = "Image:RED 42\nPINK\nAnswer the question using a single word or phrase.\nQuestion:red\nAnswer:"
    assert red["messages"][-1]["content"] == text
    with pytest.raises(RsgrpoError, match="shows no page that evidence could be given of"):
        asked(root, server, "visrag_gen/chartqa/text", prompt_style="evidence", resume="auto")


def test_an_ocr_that_is_not_installed_is_named(server: FakeServer, root: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("rsgrpo.documents.ocr.find_spec", lambda name: None)
    with pytest.raises(RsgrpoError, match=r"4 of 4 pages have no text, and no OCR is installed.*--extra ocr"):
        asked(root, server, "visrag_gen/chartqa/text")


def test_options_get_letters_and_two_tokens(server: FakeServer, root: Path) -> None:
    queries = [{"query-id": "red-0", "query": "red?", "answer": "B", "options": ["one", "two"]}]
    write_answer_set(root / "arxivqa", queries, judged(("red-0", "red")))
    server.reply = lambda *_: ok("b, two")
    run = write_trec(root / "arxivqa.trec", {"red-0": RUN["red-0"]})
    (found,) = asked(root, server, "visrag_gen/arxivqa", search_run=str(run)).values()
    (body,) = server.bodies
    assert body["max_tokens"] == 2 and "Options:\nA. one\nB. two\nAnswer" in body["messages"][-1]["content"][-1]["text"]
    assert found.official == 1.0


def test_the_pages_of_all_settings_are_embedded_once(server: FakeServer, root: Path) -> None:
    embedder = ColourEmbedder()
    names = [f"visrag_gen/chartqa/{setting}" for setting in ("multi_image", "page_concatenation")]
    config = dataclasses.replace(
        _config(root, *names, url=server.url, top_k=1), embedder=EmbedderConfig(model="colours")
    )
    run_benchmarks(config, lambda _: embedder)
    assert embedder.num_pages == len(COLOURS)
    assert colours(bodies(server)["red"]) == ["red"]
    assert (root.parent / "run/retrieval/visrag_ret/chartqa/run.trec").is_file()
    run_benchmarks(dataclasses.replace(config, resume="auto"), lambda _: embedder)
    assert embedder.num_pages == len(COLOURS)  # the vectors lie in the run folder
    index = root.parent / "run/retrieval/visrag_ret/chartqa/index"
    other = _config(root, names[0], url=server.url, top_k=1, search_index=str(index))
    run_benchmarks(
        dataclasses.replace(other, run_dir=str(root.parent / "other"), embedder=EmbedderConfig(model="colours")),
        lambda _: embedder,
    )
    assert embedder.num_pages == len(COLOURS)


def test_evidence_style_asks_in_our_words_and_scores_the_answer_section(server: FakeServer, root: Path) -> None:
    server.reply = lambda question, _: ok("<evidence>[1]: x</evidence><answer> 42 </answer>")
    (found,) = asked(root, server, "visrag_gen/chartqa", prompt_style="evidence").values()
    assert (found.official, found.strict) == (0.5, 0.5)
    assert "<evidence>" in json.dumps(server.bodies[0]["messages"])
    assert server.bodies[0]["max_tokens"] == 2048


@pytest.mark.parametrize(
    ("rankings", "message"),
    [
        ({"other": RUN["red-0"]}, "has none of the 2 questions: it has 'other', wanted are 'red-0', 'green-1'"),
        ({"red-0": RUN["red-0"]}, "fewer than 2 pages for 1 of 2 questions, such as 'green-1'; search deeper"),
        (
            {**RUN, "green-1": [("Green", 0.9), ("yellow", 0.8)]},
            r"names 1 pages that are not in the corpus: 'Green' \('Green' looks like 'green'\)",
        ),
    ],
    ids=["foreign queries", "too shallow", "unknown page"],
)
def test_a_run_that_does_not_fit_the_set_is_refused(
    server: FakeServer, root: Path, rankings: dict[str, Any], message: str
) -> None:
    run = write_trec(root / "bad.trec", rankings)
    with pytest.raises(RsgrpoError, match=message):
        asked(root, server, "visrag_gen/chartqa", search_run=str(run))
    assert not server.bodies


def test_questions_without_an_answer_are_named_or_left_out(server: FakeServer, root: Path) -> None:
    queries = [QUERIES[0], {"query-id": "green-1", "query": "green", "answer": None}]
    write_answer_set(root / "VisRAG-Ret-Test-ChartQA", queries, judged(("red-0", "red"), ("green-1", "green")))
    with pytest.raises(RsgrpoError, match="query 'green-1' has no answer to compare with"):
        asked(root, server, "visrag_gen/chartqa")
    data = DataConfig(min_pixels=784, max_images=8, on_bad_sample="skip", max_skipped_frac=0.6)
    (found,) = asked(root, server, "visrag_gen/chartqa", data=data, resume="auto").values()
    assert (found.num_questions, found.anomalies["bad_record"]) == (1, 1)


def test_what_is_missing_is_said_before_anything_is_asked(server: FakeServer, root: Path) -> None:
    with pytest.raises(RsgrpoError, match=r"'infovqa' is not in eval.data_root"):
        check_first(_config(root, "visrag_gen/infovqa", url=server.url, search_run=str(root)))
    with pytest.raises(RsgrpoError, match=r"eval.search_run=.* does not exist"):
        check_first(_config(root, "visrag_gen/chartqa", url=server.url, search_run=str(root / "none")))
    with pytest.raises(ConfigError, match=r"embedder.model is empty"):
        check_first(_config(root, "visrag_gen/chartqa", url=server.url))
    with pytest.raises(RsgrpoError, match="no benchmark 'visrag_gen/chartqa/pictures'"):
        check_first(_config(root, "visrag_gen/chartqa/pictures", url=server.url))
    with pytest.raises(ConfigError, match="both say which pages are found"):
        _config(root, "visrag_gen/chartqa", search_run="a", search_index="b")
    with pytest.raises(RsgrpoError, match=r"holds neither \*.trec nor ChartQA/\*.trec"):
        asked(root, server, "visrag_gen/chartqa", search_run=str(root / "VisRAG-Ret-Test-ChartQA"))
    (root / "VisRAG-Ret-Test-ChartQA/corpus/train-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"corpus holds no .*\.parquet"):
        asked(root, server, "visrag_gen/chartqa", resume="auto")
    assert not server.bodies


def test_short_names_stand_for_the_default_setting() -> None:
    assert [task.name for task in find_benchmarks("visrag_gen/plotqa")] == ["visrag_gen/plotqa/multi_image"]
    assert len(find_benchmarks("visrag_gen")) == 6
