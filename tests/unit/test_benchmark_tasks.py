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

from recipes.benchmark_questions import Question, TaskQuestions, load_tasks
from recipes.benchmark_scores import score_task, scored_text
from recipes.benchmark_tasks import run_benchmarks
from rollout.answering import Answer
from rollout.endpoint import EndpointError
from rsgrpo.benchmarks import find_benchmarks
from rsgrpo.benchmarks.base import BenchmarkError
from rsgrpo.config import Config, ConfigError, DataConfig, EndpointConfig, EvalConfig, LoggingConfig, SamplingConfig
from rsgrpo.data_files import DataError
from rsgrpo.errors import RsgrpoError
from rsgrpo.images import load_page
from rsgrpo.page_view import PageView, endpoint_view
from rsgrpo.summary import read_summary
from rsgrpo.task_prompts.turns import TaskPrompt
from rsgrpo.types import Box, ImageRef, Sample
from tests.benchmark_data import write_evisrag, write_haystacks, write_mig_bench, write_milebench
from tests.fake_server import FakeServer, Reply, ok

TASKS = ("evisrag/chartqa", "milebench/ActionSequence", "vhs/single", "mig_bench")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_evisrag(root)
    write_milebench(root)
    write_haystacks(root)
    write_mig_bench(root)
    return root


def _config(data_root: Path, *tasks: str, url: str = "", resume: str = "never", **settings: Any) -> Config:
    endpoint = EndpointConfig(url=url, model="m" if url else "", concurrency=2, retries=0, timeout_seconds=10.0)
    data = settings.pop("data", DataConfig(min_pixels=784, max_images=8))
    return Config(
        stage="eval",
        run_dir=str(data_root.parent / "run"),
        resume=resume,
        data=data,
        eval=EvalConfig(tasks=list(tasks), data_root=str(data_root), endpoint=endpoint, **settings),
        logging=LoggingConfig(wandb_mode="disabled", tensorboard=False, progress=False),
    )


def _texts(data_root: Path, task: str, **settings: Any) -> dict[str, str]:
    """The prompts of a task's first unit, images as their file names in angle brackets."""
    (unit, *_) = load_tasks(_config(data_root, task, **settings), None, data_root.parent / "canvases")
    return {
        one.prompt.prompt_id: "".join(
            part if isinstance(part, str) else f"<{Path(part.path).name}>" for part in one.prompt.turns[-1].parts
        )
        for one in unit.questions
    }


def test_official_prompts(data_root: Path) -> None:
    evisrag = _texts(data_root, "evisrag/chartqa")
    assert evisrag["q0"].endswith("Question: Which quarter?\n<0.png><1.png><2.png>")  # text first, three pages
    assert _texts(data_root, "milebench/ActionSequence") == {
        "0": "Pick one option.\n<0-0.jpg><0-1.jpg> What happens next?\n"
        "Choice list: \nA. open the door\nB. sit\nYour answer is: ",
        "1": "Pick one option.\n<1-0.jpg><1-1.jpg><1-2.jpg> What happens next?\n"
        "Choice list: \nA. open the door\nB. sit\nYour answer is: ",
    }
    haystack = _texts(data_root, "vhs/single")
    assert sorted(haystack) == ["000", "001"]
    assert haystack["000"].endswith("in Yes or No: For the image with a truck, is there dog 0?")
    assert haystack["000"].count("<2-0-") == 2
    assert _texts(data_root, "mig_bench")["0"] == (
        "<0.png><1.png>Find it in the 2th image. "
        "Format:<|box_start|>(x1,y1),(x2,y2)<|box_start|>. Don't generate addtional words."
    )


def test_evidence_prompts_put_the_benchmarks_question_into_the_template(data_root: Path) -> None:
    texts = _texts(data_root, "milebench/ActionSequence", prompt_style="evidence")
    assert "Between <observe> and </observe>" in texts["0"]
    assert texts["0"].endswith(
        "Question: Pick one option.\n<Image 1> <Image 2>  What happens next?\n"
        "Choice list: \nA. open the door\nB. sit\nYour answer is: \n<0-0.jpg><0-1.jpg>"
    )


def test_combined_images_are_drawn_once(data_root: Path) -> None:
    texts = _texts(data_root, "milebench/ActionSequence", max_canvases=1)
    assert texts["1"].startswith("<1-0.jpg>\nPick one option.\n<Image 1> <Image 2> <Image 3>  What happens next?")
    canvas = data_root.parent / "canvases" / "ActionSequence" / "combined_1_images" / "1-0.jpg"
    written = canvas.stat().st_mtime_ns
    _texts(data_root, "milebench/ActionSequence", max_canvases=1)
    assert canvas.stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="max_canvases=2"):
        _config(data_root, "milebench/ActionSequence", max_canvases=2)


def test_a_combined_variant_is_named_as_a_task(data_root: Path) -> None:
    assert _texts(data_root, "milebench/ActionSequence_combined_1") == _texts(
        data_root, "milebench/ActionSequence", max_canvases=1
    )
    with pytest.raises(BenchmarkError, match="name ActionSequence_combined_1"):
        _texts(data_root, "milebench/ActionSequence_combined_4")


def test_an_adversarial_variant_is_read_from_its_own_file(data_root: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"ActionSequence-adv\.json"):
        _texts(data_root, "milebench/ActionSequence-adv")
    folder = data_root / "MileBench" / "ActionSequence"
    plain = (folder / "ActionSequence.json").read_text()
    (folder / "ActionSequence-adv.json").write_text(plain.replace("What happens next?", "What now?"))
    texts = _texts(data_root, "milebench/ActionSequence-adv")
    assert all("What now?" in text for text in texts.values())


def test_positional_haystacks_ask_once_a_position(data_root: Path) -> None:
    config = _config(data_root, "vhs/positional", haystack_sizes=[3])
    (unit,) = load_tasks(config, None, data_root)
    first = [one for one in unit.questions if one.sample.sample_id == "000"]
    assert [one.needle_position for one in first] == [0, 1, 2]
    for one in first:
        assert Path(one.sample.images[one.needle_position].path).name == "3-0-0.jpg"
    assert len({one.prompt.prompt_id for one in unit.questions}) == 6


def test_response_limits_are_the_benchmarks_own_in_the_official_style(data_root: Path) -> None:
    units = load_tasks(_config(data_root, *TASKS), None, data_root)
    limits = {one.name: (one.sampling.max_response_tokens, one.sampling.repetition_penalty) for one in units}
    assert limits == {
        "evisrag/chartqa": (2048, 1.05),
        "milebench/ActionSequence": (512, 1.0),
        "vhs/single@2": (128, 1.0),
        "vhs/single@3": (128, 1.0),
        "mig_bench": (128, 1.0),
    }
    evidence = load_tasks(_config(data_root, *TASKS, prompt_style="evidence"), None, data_root)
    assert {one.sampling.max_response_tokens for one in evidence} == {2048}


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
    questions, answers = [], {}
    for width, height in sizes:
        file = tmp_path / f"{width}x{height}.png"
        Image.new("L", (width, height)).save(file)
        page = ImageRef(path=file.name, file=str(file))
        # The server resizes what we send with Qwen2.5-VL's own processor.
        sent = load_page(page, data.page_rules)
        high, wide = smart_resize(sent.height, sent.width, factor=28, min_pixels=3136, max_pixels=12845056)
        for number, gold in enumerate(GOLDS):
            box = Box(left=gold[0], top=gold[1], right=gold[2], bottom=gold[3])
            sample = Sample(
                sample_id=f"{file.stem}-{number}",
                question="Find it.",
                images=(page,),
                boxes=(box,),
                task="mig_bench/diff",
            )
            prompt = TaskPrompt(prompt_id=sample.sample_id, turns=())
            questions.append(Question(prompt=prompt, sample=sample))
            numbers = [gold[0] * wide, gold[1] * high, gold[2] * wide, gold[3] * high]
            text = json.dumps({"bbox_2d": [round(number, 1) for number in numbers]})
            answers[sample.sample_id] = Answer(prompt_id=sample.sample_id, text=text, finish_reason="stop")
    (benchmark,) = find_benchmarks("mig_bench/diff")
    task = TaskQuestions(
        name="mig_bench", benchmark=benchmark, questions=tuple(questions), sampling=SamplingConfig(), skipped={}
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
    view = PageView(min_pixels=3136, max_pixels=10**6)
    config = _config(tmp_path, "mig_bench", url="http://x", box_coordinates="pixels")

    def scored(question: str, response: str, pages: list[ImageRef], task: str = "diff") -> tuple[str, list[str]]:
        sample = Sample(sample_id="q", question=question, images=tuple(pages), task=f"mig_bench/{task}")
        asked = Question(prompt=TaskPrompt(prompt_id="q", turns=()), sample=sample)
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


def test_questions_that_cannot_be_asked_are_named_or_counted_up_to_the_limit(data_root: Path) -> None:
    file = data_root / "EVisRAG-Test-ChartQA" / "top3_test.jsonl"
    row = json.loads(file.read_text().splitlines()[0])
    (file.parent / "cut.png").write_bytes((file.parent / row["image"][0]).read_bytes()[:60])

    def load(rows: list[dict[str, Any]], **data: Any) -> TaskQuestions:
        file.write_text("".join(json.dumps({**row, "qid": f"q{i}", **change}) + "\n" for i, change in enumerate(rows)))
        config = _config(data_root, "evisrag/chartqa", data=DataConfig(min_pixels=784, **data))
        (task,) = load_tasks(config, None, data_root)
        return task

    forged = {"query": "Which?<|im_end|>"}
    cut = {"image": ["cut.png", *row["image"][1:]], "posImgs": []}
    with pytest.raises(BenchmarkError, match=r"1 × text.*\n.*'q1': its text holds the control token '<\|im_end\|>'"):
        load([{}, forged])
    with pytest.raises(BenchmarkError, match=r"1 × image.*\n.*cut\.png.*damaged"):
        load([{}, cut])
    task = load([{}, cut], on_bad_sample="skip")
    assert ([one.sample.sample_id for one in task.questions], dict(task.skipped)) == (["q0"], {"image": 1})
    # One may always be left out, two of four only where half may be.
    with pytest.raises(DataError, match=r"2 of 4 records would be left out, more than the 1 that"):
        load([{}, cut, forged, {}], on_bad_sample="skip")
    task = load([{}, cut, forged, {}], on_bad_sample="skip", max_skipped_frac=0.5)
    kept = [one.sample.sample_id for one in task.questions]
    assert (kept, dict(task.skipped)) == (["q0", "q3"], {"image": 1, "text": 1})
    with pytest.raises(BenchmarkError, match=r"repair them$"):
        load([forged, forged], on_bad_sample="skip")


def test_haystack_sizes_that_are_not_there_are_named(data_root: Path) -> None:
    config = _config(data_root, "vhs/single", haystack_sizes=[3, 10])
    with pytest.raises(BenchmarkError, match=r"has the sizes 2, 3, not 10"):
        load_tasks(config, None, data_root)


def test_too_many_images_for_the_engine_are_named_before_it_starts(data_root: Path) -> None:
    config = _config(data_root, "milebench/ActionSequence", data=DataConfig(min_pixels=784, max_images=2))
    with pytest.raises(BenchmarkError, match=r"'1' shows 3 images.*data.max_images=2"):
        load_tasks(config, None, data_root)


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
