"""The adapter and our tasks inside the real lmms-eval, which the development environment holds."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recipes.evaluation.lmms_tasks import main as write_tasks
from rsgrpo.errors import RsgrpoError
from tests.benchmark_data import write_evisrag, write_haystacks, write_mig_bench, write_milebench
from tests.fake_server import FakeServer, ok
from tests.oracles.lmms_choice import mmmu_choice

lmms_eval = pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (group dev)")

pytestmark = pytest.mark.engine  # imports all of lmms-eval and Ray: a quarter of a minute

TAGGED = "<observe>o</observe><evidence>[1]: e</evidence><think>A. is wrong, so is A.</think><answer>{}</answer>"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


def _evaluate(tasks: list[str], folder: Path, server: FakeServer, **settings: Any) -> dict[str, dict[str, float]]:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    arguments = {"endpoint": server.url, "model": "m", "raw_log": str(folder / "raw.jsonl"), **settings}
    outcome = simple_evaluate(
        model="rsgrpo",
        model_args=",".join(f"{name}={value}" for name, value in arguments.items()),
        tasks=tasks,
        batch_size=1,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    results: dict[str, dict[str, float]] = outcome["results"]
    return results


def _write_task(folder: Path, base: str, name: str, split: str, rows: list[dict[str, Any]]) -> None:
    """A task of lmms-eval's own, with its prompts, filters and scorers, on questions of ours."""
    import datasets

    data = folder / f"{name}.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(data))
    original = Path(lmms_eval.__file__).parent / "tasks" / base
    (folder / f"{name}.yaml").write_text(
        f"include: {original}\ntask: {name}\ndataset_path: parquet\n"
        f"dataset_kwargs:\n  data_files:\n    {split}: {data}\n"
    )


def test_its_multiple_choice_tasks_read_the_answer_section(server: FakeServer, tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30), (200, 10, 10))
    muir = {
        "task": "Counting",
        "image_relation": "r",
        "image_type": "t",
        "question": "How many <image> <image>?",
        "options": ["one", "two", "three"],
        "answer": "C",
        "image_list": [picture, picture],
    }
    _write_task(tmp_path, "muirbench/muirbench.yaml", "our_muirbench", "test", [{**muir, "idx": str(i)} for i in "01"])
    mmmu = {
        "id": "validation_Art_1",
        "question": "Which fruit is <image 1>?",
        "options": "['red apple', 'green pear']",
        "question_type": "multiple-choice",
        "answer": "B",
        "subfield": "Art",
        "image_1": picture,
    }
    empty = {f"image_{number}": None for number in range(2, 8)}
    _write_task(tmp_path, "mmmu/mmmu_val.yaml", "our_mmmu", "validation", [{**mmmu, **empty}])
    server.reply = lambda question, _: ok(TAGGED.format("B" if "fruit" in question else "C."))
    results = _evaluate(["our_muirbench", "our_mmmu"], tmp_path, server)
    assert results["our_muirbench"]["muirbench_score_overall,flexible-extract"] == 1.0
    assert results["our_mmmu"]["mmmu_acc,none"] == 1.0
    # The tasks ask for 16 and 128 tokens; images and the evidence prompt travel.
    assert {body["max_tokens"] for body in server.bodies} == {2048}
    muir_parts = next(body for body in server.bodies if "How many" in str(body["messages"]))["messages"][-1]["content"]
    assert [part["type"] for part in muir_parts] == ["text", "image_url", "image_url"]
    assert "Question: How many <image> <image>?\nA. one\nB. two\nC. three" in muir_parts[0]["text"]
    assert "<answer>" in muir_parts[0]["text"]
    raw = [json.loads(line) for line in (tmp_path / "raw.jsonl").read_text().splitlines()]
    assert len(raw) == 3
    assert all("<think>" in row["text"] for row in raw)


def test_our_benchmarks_run_as_its_tasks(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, tasks = tmp_path / "data", tmp_path / "tasks"
    for write in (write_evisrag, write_milebench, write_haystacks, write_mig_bench):
        write(data)
    names = "evisrag/chartqa,milebench/ActionSequence,vhs/single,vhs/positional,mig_bench"
    write_tasks(["--tasks", names, "--data-root", str(data), "--out", str(tasks)])
    written = capsys.readouterr().out.split()
    assert "rsgrpo_vhs_positional_3" in written

    def reply(question: str, _: int) -> Any:
        for key, text in (("dog", "yes"), ("Find it", "(100,200),(500,600)"), ("What happens", "A")):
            if key in question:
                return ok(TAGGED.format(text))
        return ok(TAGGED.format("Q3"))

    server.reply = reply
    results = _evaluate(written, tasks, server)
    assert set(results) == set(written)
    # EVisRAG: q0 right; q1 is unanswerable. Haystacks: gold yes and no, always yes.
    expected = {name: 0.5 if "vhs" in name else 1.0 for name in written} | {"rsgrpo_evisrag_chartqa": 0.5}
    for name in written:
        assert results[name]["official,none"] == pytest.approx(expected[name], abs=1e-6), name
        assert results[name]["strict,none"] == pytest.approx(expected[name], abs=1e-6), name
    # EVisRAG's questions come in the evidence prompt and are not wrapped once more; 1.05 is its repetition penalty.
    by_penalty: dict[float, list[str]] = {penalty: [] for penalty in (1.0, 1.05)}
    for body in server.bodies:
        text = "".join(part.get("text", "") for part in body["messages"][-1]["content"])
        assert text.count("<evidence>") == text.count("</evidence>") == 1, text
        by_penalty[body.get("repetition_penalty", 1.0)].append(text)
    asked = sorted(text.rstrip().rpartition("Question: ")[2] for text in by_penalty[1.05])
    assert asked == ["Which quarter?", "Which year?"]
    assert len(by_penalty[1.0]) == len(server.bodies) - 2


def test_a_request_that_fails_is_no_answer(server: FakeServer, tmp_path: Path) -> None:
    write_mig_bench(tmp_path / "data")
    write_tasks(["--tasks", "mig_bench", "--data-root", str(tmp_path / "data"), "--out", str(tmp_path)])
    server.reply = lambda *_: (400, "prompt is too long", {})
    with pytest.raises(RsgrpoError, match=r"2 of 2 requests failed.*prompt is too long"):
        _evaluate(["rsgrpo_mig_bench"], tmp_path, server)


@pytest.mark.parametrize(
    "response", ["B.", "The answer is (B) not (C)", "**B**", "A or B", "it is the Plum or so I guess"]
)
def test_our_reading_of_choices_equals_that_of_lmms_eval(response: str) -> None:
    from lmms_eval.tasks._task_utils.mmmu_mcq_utils import parse_mmmu_multi_choice_response

    options = {"A": "apple", "B": "plum", "C": "fig"}
    drawn = {parse_mmmu_multi_choice_response(response, list(options), options) for _ in range(64)}
    read = mmmu_choice(response, list(options.values()))
    # A random letter: three of them in 64 draws, but for one run in 10^11.
    assert drawn == ({read} if read else set(options))


class _Request:
    """One request for the first document of task ``t``, as lmms-eval hands it over."""

    def __init__(self, image: object) -> None:
        message = {"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": "q"}]}
        self.arguments: tuple[Any, ...] = ("", lambda _: [message], {}, 0, "t", "test")


def _shown_image(server: FakeServer, image: object) -> Image.Image:
    """What the server gets of an image of a task."""
    from recipes.evaluation.lmms_eval_model import RsgrpoModel

    model = RsgrpoModel(endpoint=server.url, model="m", raw_log="", min_pixels=1)
    model.task_dict = {"t": {"test": {0: {}}}}
    server.bodies.clear()
    model.generate_until([_Request(image)])
    (part,) = (part for part in server.bodies[0]["messages"][-1]["content"] if part["type"] == "image_url")
    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))).convert("RGB")


def test_the_section_with_the_answer_is_an_argument(server: FakeServer) -> None:
    from recipes.evaluation.lmms_eval_model import RsgrpoModel

    server.reply = lambda *_: ok("<plan>A or B</plan><final> B </final>")
    returned = []
    for section in ("answer", "final"):
        model = RsgrpoModel(endpoint=server.url, model="m", raw_log="", min_pixels=1, answer_section=section)
        model.task_dict = {"t": {"test": {0: {}}}}
        returned += model.generate_until([_Request(Image.new("RGB", (28, 28)))])
    assert returned == ["<plan>A or B</plan><final> B </final>", "B"]


def test_images_come_as_pictures_paths_urls_and_bytes(server: FakeServer, tmp_path: Path) -> None:
    # Orientation 6: stored lying, 6 wide and 4 high; upright it is 4 wide and 6 high, its stored left end above.
    stored, orientation = Image.new("RGB", (6, 4), "white"), Image.Exif()
    stored.paste("red", (0, 0, 2, 4))
    orientation[0x0112] = 6
    file = tmp_path / "a b.png"
    stored.save(file, exif=orientation)
    data = file.read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    with Image.open(file) as opened:
        for image in (opened, str(file), f"file://{tmp_path}/a%20b.png", data, uri, {"bytes": data, "path": None}):
            found = _shown_image(server, image)
            assert found.size == (4, 6)
            assert found.getpixel((1, 0)) == (255, 0, 0)
            assert found.getpixel((1, 5)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (Image.new("RGB", (2, 500)), r"t/test/0/0: image .* is 2×500: a strip .*; repair the task's data$"),
        ("https://example.org/a.png", r"t/test/0/0: image 0 is at 'https://example.org/a.png': nothing is fetched"),
        ("/nowhere/a.png", r"t/test/0/0: image '/nowhere/a.png' does not exist"),
        (None, r"t/test/0/0: image 0 is None"),
    ],
)
def test_an_image_that_cannot_be_shown_is_named_by_its_request(server: FakeServer, image: object, told: str) -> None:
    with pytest.raises(RsgrpoError, match=told):
        _shown_image(server, image)


def test_arguments_that_cannot_work_are_refused() -> None:
    from recipes.evaluation.lmms_eval_model import LmmsEvalError, RsgrpoModel

    with pytest.raises(LmmsEvalError, match="not both"):
        RsgrpoModel()
    with pytest.raises(LmmsEvalError, match="not both"):
        RsgrpoModel(checkpoint="x", endpoint="http://y", model="m")
    with pytest.raises(LmmsEvalError, match=r"no config.json"):
        RsgrpoModel(checkpoint="nowhere")
