"""Benchmarks as tasks, asked of a server: prompts, resuming, original files, both scores, defects by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from recipes.evaluation.answering import Answer
from recipes.evaluation.benchmark_scores import score_task, scored_text
from recipes.evaluation.benchmark_tasks import run_benchmarks
from recipes.evaluation.endpoint import EndpointError
from recipes.evaluation.task_records import BenchmarkRequest, TaskRequests
from rsgrpo.config import (
    Config,
    ConfigError,
    DataConfig,
    EndpointConfig,
    EvalConfig,
    ResponseConfig,
    SamplingConfig,
    SectionConfig,
)
from rsgrpo.data.files import DataError
from rsgrpo.data.images.image_view import ImageView, endpoint_view
from rsgrpo.data.images.loading import load_image
from rsgrpo.errors import RsgrpoError
from rsgrpo.evaluation.benchmarks import find_benchmarks
from rsgrpo.evaluation.prompts.turns import TaskPrompt
from rsgrpo.run.summary import read_summary
from rsgrpo.types import Box, ImageRef, Sample
from tests.fake_server import FakeServer, Reply, ok
from tests.unit.recipes.benchmark_runs import TASKS, _config


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


def _reply(question: str, _: int) -> Reply:
    if "dog" in question:
        return ok("Yes, there is." if "dog 0" in question else "yes")
    if "Find it" in question:
        return ok("<|box_start|>(100,200),(500,600)<|box_end|>")
    if "What happens" in question:
        return ok("A")
    return ok("<answer>Q3</answer>")


def test_a_run_scores_both_ways_and_a_rerun_asks_only_what_is_missing(server: FakeServer, data_root: Path) -> None:
    def flaky(question: str, attempt: int) -> Reply:
        if "dog 1" in question and attempt <= 2:
            return 500, "down", {}
        return _reply(question, attempt)

    server.reply = flaky
    report = run_benchmarks(_config(data_root, *TASKS, url=server.url))
    assert "vhs/single@2" in report.read_text()
    run = report.parent
    first = read_summary(run / "summary.json").benchmarks
    assert set(first) == {"evisrag/chartqa", "milebench/ActionSequence", "vhs/single@2", "vhs/single@3", "mig_bench"}
    # dog 1 failed in both sizes: one of two answered, the failed one not counted as wrong.
    for size in (2, 3):
        haystack = first[f"vhs/single@{size}"]
        assert (haystack.num_questions, haystack.num_answered, haystack.official) == (2, 1, 1.0)
        assert haystack.anomalies["request_failed"] == 1
    # q0 is right, q1 ("insufficient to answer" wanted) is not.
    assert first["evisrag/chartqa"].official == pytest.approx(0.5, abs=1e-6)
    assert first["milebench/ActionSequence"].official == 1.0
    assert first["mig_bench"].official == 1.0

    num_asked = sum(server.attempts.values())
    run_benchmarks(_config(data_root, *TASKS, url=server.url, resume="auto"))
    assert sum(server.attempts.values()) == num_asked + 2  # dog 1 in both sizes
    second = read_summary(run / "summary.json").benchmarks["vhs/single@2"]
    # gold yes, answered yes; gold no, answered yes.
    assert (second.num_answered, second.official, second.anomalies) == (2, 0.5, {})

    # What the originals' own scripts read.
    folder = run / "benchmarks"
    (line,) = [
        json.loads(line)
        for line in (folder / "evisrag/chartqa/predictions/ChartQA/run.jsonl").read_text().splitlines()
        if "q0" in line
    ]
    assert line["pred"] == "<answer>Q3</answer>"
    assert [Path(image).name for image in line["imgs"]] == ["0.png", "1.png", "2.png"]
    raw = [json.loads(line) for line in (folder / "mig_bench/answers.jsonl").read_text().splitlines()]
    assert {row["text"] for row in raw} == {"<|box_start|>(100,200),(500,600)<|box_end|>"}
    scores = json.loads((folder / "mig_bench/scores.json").read_text())
    assert scores["official"]["mode"] == "official"
    assert scores["strict"]["mode"] == "strict"


def test_evidence_answers_are_scored_by_their_answer_section(server: FakeServer, data_root: Path) -> None:
    tagged = "<observe>no</observe><evidence>[1]: no</evidence><think>no</think><answer> yes </answer>"
    server.reply = lambda question, _: ok(tagged if "dog 0" in question else "yes")
    run_benchmarks(_config(data_root, "vhs/single", url=server.url, prompt_style="evidence", haystack_sizes=[2]))
    run = data_root.parent / "run"
    summary = read_summary(run / "summary.json").benchmarks["vhs/single@2"]
    assert summary.official == 0.5
    assert summary.anomalies["no_answer_section"] == 1
    assert tagged in [
        json.loads(line)["text"] for line in (run / "benchmarks/vhs/single@2/answers.jsonl").read_text().splitlines()
    ]


def test_answers_stand_in_the_section_that_the_settings_name(server: FakeServer, data_root: Path) -> None:
    server.reply = lambda question, _: ok("<plan>no</plan><final> yes </final>" if "dog" in question else "<final>Q3")
    config = _config(
        data_root, "vhs/single", "evisrag/chartqa", url=server.url, prompt_style="evidence", haystack_sizes=[2]
    )
    sections = [SectionConfig(name="plan"), SectionConfig(name="final")]
    run_benchmarks(dataclasses.replace(config, response=ResponseConfig(sections=sections, answer_section="final")))
    found = read_summary(data_root.parent / "run" / "summary.json").benchmarks
    # gold yes and no; both say yes in their answer section, and both words in all
    haystack = found["vhs/single@2"]
    assert (haystack.official, haystack.strict, haystack.anomalies) == (0.5, 0.5, {})
    # q0 is right; its section is not closed, which the official rules do not ask for
    evisrag = found["evisrag/chartqa"]
    assert evisrag.official == pytest.approx(0.5, abs=1e-6)
    assert evisrag.strict == 0.0


def test_pixel_boxes_are_converted_by_the_size_that_the_server_made(server: FakeServer, data_root: Path) -> None:
    # 56 × 28 pixels stay at min_pixels=784. Qwen2.5-VL's own processor scales them up to 3136: sqrt(3136 / 1568) is
    # 1.414, so 79.2 × 39.6, whole tokens above: 84 × 56. (0.1, 0.2, 0.5, 0.6) of it is (8.4, 11.2, 42, 33.6).
    server.reply = lambda *_: ok("[8, 11, 42, 34]")
    run_benchmarks(_config(data_root, "mig_bench", url=server.url, box_coordinates="pixels"))
    (found,) = [read_summary(data_root.parent / "run" / "summary.json").benchmarks["mig_bench"]]
    assert found.official == 1.0


def test_another_servers_bounds_are_a_setting(server: FakeServer, data_root: Path) -> None:
    # 1568 pixels are within 784 … 10⁶, and 56 × 28 is whole tokens: (5.6, 5.6, 28, 16.8).
    server.reply = lambda *_: ok('```json\n[{"bbox_2d": [6, 6, 28, 17], "label": "it"}]\n```')
    config = _config(data_root, "mig_bench", url=server.url, box_coordinates="pixels")
    config.eval.endpoint.processor_min_pixels = 784
    run_benchmarks(config)
    assert read_summary(data_root.parent / "run" / "summary.json").benchmarks["mig_bench"].official == 1.0


GOLDS = ([0.1, 0.2, 0.3, 0.35], [0.8, 0.8, 0.86, 0.86])


@pytest.mark.parametrize("bounds", [(3136, 1568000), (784, 401408), (3136, 20_000_000)])
def test_an_exact_pixel_answer_scores_as_exact_for_any_size(tmp_path: Path, bounds: tuple[int, int]) -> None:
    sizes = [(1, 1), (30, 30), (640, 480), (1240, 1754), (2000, 2000), (3000, 1500), (40, 1000)]
    data = DataConfig(min_pixels=bounds[0], max_pixels=bounds[1])
    config = dataclasses.replace(_config(tmp_path, "mig_bench", url="http://x", box_coordinates="pixels"), data=data)
    view = endpoint_view(data, config.eval.endpoint)
    requests, answers = [], {}
    for width, height in sizes:
        file = tmp_path / f"{width}x{height}.png"
        Image.new("L", (width, height)).save(file)
        image = ImageRef(path=file.name, file=str(file))
        # The server resizes what we send with Qwen2.5-VL's own processor.
        sent = load_image(image, data.image_rules)
        high, wide = smart_resize(sent.height, sent.width, factor=28, min_pixels=3136, max_pixels=12845056)
        for number, gold in enumerate(GOLDS):
            box = Box(left=gold[0], top=gold[1], right=gold[2], bottom=gold[3])
            sample = Sample(
                sample_id=f"{file.stem}-{number}",
                question="Find it.",
                images=(image,),
                boxes=(box,),
                task="mig_bench/diff",
            )
            prompt = TaskPrompt(prompt_id=sample.sample_id, turns=())
            requests.append(BenchmarkRequest(prompt=prompt, sample=sample))
            numbers = [gold[0] * wide, gold[1] * high, gold[2] * wide, gold[3] * high]
            text = json.dumps({"bbox_2d": [round(number, 1) for number in numbers]})
            answers[sample.sample_id] = Answer(prompt_id=sample.sample_id, text=text, finish_reason="stop")
    (benchmark,) = find_benchmarks("mig_bench/diff")
    task = TaskRequests(
        name="mig_bench", benchmark=benchmark, requests=tuple(requests), sampling=SamplingConfig(), skipped={}
    )
    scores = score_task(config, task, answers, 0, tmp_path / "scores", view)
    assert scores.anomalies == {}
    # Edges are rounded to tenths of pixels of pages of 56 and more: 0.06 * 56 = 3.36 by 0.05 at either edge, and so
    # at least (3.26 / 3.36) ** 2 = 0.94 on these, and 0.97 and more from 140 pixels on.
    for result in scores.results.values():
        for item in result.items:
            is_small = item.sample_id.startswith(("1x1-", "30x30-", "40x1000-"))
            assert item.metrics["iou"] >= (0.94 if is_small else 0.97), item


def test_the_target_of_a_pixel_box_is_found_in_what_is_said(tmp_path: Path) -> None:
    images = []
    for number, size in enumerate([(280, 280), (560, 280), (280, 280)]):
        Image.new("L", size).save(tmp_path / f"{number}.png")
        images.append(ImageRef(path=f"{number}.png", file=str(tmp_path / f"{number}.png")))
    view = ImageView(min_pixels=3136, max_pixels=10**6)
    config = _config(tmp_path, "mig_bench", url="http://x", box_coordinates="pixels")

    def scored(question: str, response: str, shown: list[ImageRef], task: str = "diff") -> tuple[str, list[str]]:
        sample = Sample(sample_id="q", question=question, images=tuple(shown), task=f"mig_bench/{task}")
        asked = BenchmarkRequest(prompt=TaskPrompt(prompt_id="q", turns=()), sample=sample)
        return scored_text(config, asked, Answer(prompt_id="q", text=response, finish_reason="stop"), view)

    tenth = "[0.1000000, 0.1000000, 0.5000000, 0.5000000]"
    assert scored("Find it.", "[28, 28, 140, 140]", images[:1]) == (tenth, [])
    assert scored("Find it.", "[28, 28, 140, 140]", [images[0], images[2]]) == (tenth, [])  # the same size on both
    assert scored("In the 2th image.", "[56, 28, 280, 140]", images) == (tenth, [])
    assert scored("Find it.", "In image 2: [56, 28, 280, 140]", images) == (f"In image 2: {tenth}", [])
    assert scored("Find it.", "[28, 28, 140, 140]", images[:2], "region") == (tenth, [])
    assert scored("Find it.", "[28, 28, 140, 140]", images) == ("[28, 28, 140, 140]", ["unknown_target_image"])


def test_cut_responses_are_counted(server: FakeServer, data_root: Path) -> None:
    server.reply = lambda *_: ok("<answer>Q3", "length")
    run_benchmarks(_config(data_root, "evisrag/chartqa", url=server.url))
    summary = read_summary(data_root.parent / "run" / "summary.json").benchmarks["evisrag/chartqa"]
    assert summary.anomalies["response_cut"] == 2


def test_another_model_needs_another_run_folder(server: FakeServer, data_root: Path) -> None:
    server.reply = _reply
    run_benchmarks(_config(data_root, "mig_bench", url=server.url))
    config = _config(data_root, "mig_bench", url=server.url, resume="auto")
    config.eval.endpoint.model = "another"
    with pytest.raises(RsgrpoError, match=r"differ in model \('m'\); choose another run_dir"):
        run_benchmarks(config)


def test_an_interrupted_run_goes_on_where_it_was(server: FakeServer, data_root: Path) -> None:
    server.reply = lambda question, attempt: (404, "gone", {}) if "dog 1" in question else _reply(question, attempt)
    with pytest.raises(EndpointError, match="404"):
        run_benchmarks(_config(data_root, "mig_bench", "vhs/single", url=server.url))
    server.reply = _reply
    server.attempts.clear()
    run_benchmarks(_config(data_root, "mig_bench", "vhs/single", url=server.url, resume="auto"))
    assert not any("Find it" in question for question in server.attempts)
    assert any("dog 1" in question for question in server.attempts)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("oops", "not JSON"),
        ("5", "expected an object"),
        ('{"qid": 1, "pred": "x"}', "line 3: no text under id, digest, text, finish_reason, failure"),
        ('{"id": "q0", "digest": "x", "text": null, "finish_reason": "stop", "failure": ""}', "no text under text"),
    ],
)
def test_a_damaged_or_foreign_line_among_the_answers_is_named(
    server: FakeServer, data_root: Path, line: str, message: str
) -> None:
    server.reply = _reply
    run_benchmarks(_config(data_root, "evisrag/chartqa", url=server.url))
    file = data_root.parent / "run" / "benchmarks" / "evisrag" / "chartqa" / "answers.jsonl"
    with file.open("a") as answers:
        answers.write(line + "\n")
    with pytest.raises(RsgrpoError, match=message) as caught:
        run_benchmarks(_config(data_root, "evisrag/chartqa", url=server.url, resume="auto"))
    assert "remove the line" in str(caught.value) and "answers.jsonl" in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", '{"model": "m'])
def test_a_damaged_note_of_who_answered_is_named(server: FakeServer, data_root: Path, content: str) -> None:
    server.reply = _reply
    run_benchmarks(_config(data_root, "evisrag/chartqa", url=server.url))
    (data_root.parent / "run" / "benchmarks" / "answered_by.json").write_text(content)
    with pytest.raises(RsgrpoError, match=r"answered_by\.json does not say"):
        run_benchmarks(_config(data_root, "evisrag/chartqa", url=server.url, resume="auto"))


def test_half_characters_of_a_server_are_replaced(server: FakeServer, data_root: Path) -> None:
    server.reply = lambda *_: ok("<answer>Q3 \ud83d</answer>")
    run_benchmarks(_config(data_root, "evisrag/chartqa", url=server.url))
    (file,) = (data_root.parent / "run" / "benchmarks" / "evisrag" / "chartqa" / "predictions").rglob("*.jsonl")
    assert "Q3 \ufffd" in file.read_text(encoding="utf-8")


def test_a_task_without_a_single_answer_has_no_score(server: FakeServer, data_root: Path) -> None:
    server.reply = lambda *_: (400, "too long", {})
    with pytest.raises(RsgrpoError, match=r"none of 2 questions has an answer \(2 x request_failed\)"):
        run_benchmarks(_config(data_root, "evisrag/chartqa", url=server.url))
    assert not list((data_root.parent / "run" / "benchmarks").rglob("scores.json"))


@pytest.mark.parametrize(
    ("tasks", "change", "message"),
    [
        (["evisrag/chartqaa"], None, "there is no benchmark 'evisrag/chartqaa'; the choices are evisrag/chartqa, "),
        (["evisrag/docvqa"], None, "EVisRAG-Test-DocVQA.* exists; download"),
        (["milebench/ALFRED"], None, "ALFRED.json.*download"),
        (["vhs/multi"], None, "multi_needle"),
        (["mig_bench"], "MIG-Bench/MIG_data.json", "MIG_data.json"),
        (["vhs/single"], "coco", "set eval.image_root"),
        (["evisrag/chartqa"], "EVisRAG-Test-ChartQA/imgs/0.png", "0.png"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_asked(
    server: FakeServer, data_root: Path, tasks: list[str], change: str | None, message: str
) -> None:
    if change is not None:
        (data_root / change).rename(data_root / "elsewhere")
    with pytest.raises(RsgrpoError, match=f"(?s){message}"):
        run_benchmarks(_config(data_root, *tasks, url=server.url))
    assert not server.attempts


def test_a_doubled_id_is_refused_or_counted(server: FakeServer, data_root: Path) -> None:
    file = data_root / "EVisRAG-Test-ChartQA" / "top3_test.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(DataError, match="q0"):
        run_benchmarks(_config(data_root, "evisrag/chartqa", url=server.url))
    server.reply = _reply
    data = DataConfig(min_pixels=784, on_bad_sample="skip")
    run_benchmarks(_config(data_root, "evisrag/chartqa", url=server.url, data=data))
    summary = read_summary(data_root.parent / "run" / "summary.json").benchmarks["evisrag/chartqa"]
    assert summary.num_answered == 2
    assert summary.anomalies["bad_record"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["mig_bench", "mig_bench"], "data_root": "x"}, "more than once"),
        ({"tasks": ["mig_bench"]}, "needs eval.data_root"),
        ({"endpoint": EndpointConfig(url="http://x", model="m")}, "name some in eval.tasks"),
        ({"prompt_style": "own"}, "prompt_style"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvalConfig(**settings)
    with pytest.raises(ConfigError, match="belong together"):
        EndpointConfig(url="http://x")
    with pytest.raises(ConfigError, match="stage=eval"):
        Config(stage="sft", eval=EvalConfig(tasks=["mig_bench"], data_root="x"))
