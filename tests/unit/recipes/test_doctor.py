"""The doctor finds what would stop a run, says what to do about it, and never breaks down itself."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from recipes.doctor.check import MAX_ADVICE, MAX_FOUND, Check, Step, Subject, ok, refused, shortened
from recipes.doctor.command import run_doctor
from recipes.doctor.data_checks import data_checks, headers_checks, image_checks
from recipes.doctor.examination import STEPS, examine
from recipes.doctor.model_checks import folder_checks, model_checks, template_checks
from recipes.doctor.output import MAX_COLUMNS, check_lines
from recipes.doctor.reward_checks import reward_checks
from recipes.doctor.settings import read_settings
from rsgrpo.data.synthetic.quickstart_tokenizer import build_tokenizer
from rsgrpo.data.synthetic.tasks import write_task
from rsgrpo.errors import RsgrpoError
from rsgrpo.types import ImageRef

# torch answers in a process of its own, some seconds later; test_doctor_machine.py asks it.
WITHOUT_TORCH = tuple(step for step in STEPS if not step.asks_torch)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grounding data set, and a model folder that can be looked at but not run."""
    folder = tmp_path_factory.mktemp("task")
    write_task("grounding", folder, num_train=3, num_test=1, num_images=2, image_pixels=56, seed=0)
    model_folder(folder / "model")
    return folder


def model_folder(folder: Path) -> Path:
    tokenizer = build_tokenizer(["Find the red square."], 300)
    tokenizer.save_pretrained(folder)
    ids = tokenizer.get_vocab()
    settings = {
        "model_type": "qwen2_5_vl",
        "image_token_id": ids["<|image_pad|>"],
        "text_config": {"vocab_size": 320},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    save_file({"w": np.zeros(3, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def subject_of(task: Path, scratch: Path, *overrides: str) -> Subject:
    paths = [f"data.rl_path={task}/train.jsonl", f"data.test_path={task}/test.jsonl", f"model.path={task}/model"]
    return Subject(config=read_settings(["recipe=rl_grounding", *paths, *overrides]), scratch=scratch)


def examined(subject: Subject) -> list[Check]:
    """Data, model, templates and rewards, as the list of steps has them."""
    steps = (data_checks, image_checks, model_checks, template_checks, reward_checks)
    return [check for step in steps for check in step(subject)]


def named(checks: Sequence[Check], name: str) -> Check:
    found = [check for check in checks if check.name == name]
    assert found, f"no {name!r} among {[check.name for check in checks]}"
    return found[0]


def bad(checks: Sequence[Check]) -> list[str]:
    """Names of what is not well; each of them says what to do, within what a person reads."""
    for check in checks:
        assert len(check.found) + len(check.advice) < 500
        assert bool(check.advice) == (check.status != "ok"), check
        assert all(len(line) <= MAX_COLUMNS for line in check_lines(check))
    return [check.name for check in checks if check.status != "ok"]


def test_a_whole_environment_has_no_problem(task: Path, tmp_path: Path) -> None:
    checks = examined(subject_of(task, tmp_path))
    assert bad(checks) == []
    # 3 questions of 2 pages to train on, 1 held out: 8 images of 56×56
    assert named(checks, "rl data").found == "3 samples with 6 images"
    assert named(checks, "images").found == "8; 8 PNG; 8 RGB; 56×56 to 56×56 pixels"
    assert "'grounding-train-00000', judged by" in named(checks, "gold response").found
    assert named(checks, "chat template").found.startswith("2 images give 2 placeholders")


def test_a_pixel_reward_is_judged_and_text_that_counts_otherwise_is_a_warning(task: Path, tmp_path: Path) -> None:
    checks = examined(subject_of(task, tmp_path, "rewards.iou.kwargs={convention: pixels}"))
    assert bad(checks) == ["reward iou"]
    found = named(checks, "reward iou")
    assert found.status == "warning" and "earns 0.00 by rewards.iou" in found.found


def test_the_quickstart_is_well_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = list(examine([f"run_dir={tmp_path}/run"], steps=WITHOUT_TORCH))
    problems = [line.check for line in lines if line.check.status == "problem"]
    assert problems == []
    assert "24 samples" in named([line.check for line in lines], "sft data").found
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_data_that_are_not_there_are_one_problem_and_the_rest_goes_on(task: Path, tmp_path: Path) -> None:
    checks = examined(subject_of(task, tmp_path, "data.rl_path=/nowhere/train.jsonl"))
    assert bad(checks) == ["rl data"]
    assert "/nowhere/train.jsonl" in named(checks, "rl data").found
    assert named(checks, "test data").status == named(checks, "weights").status == "ok"


def test_names_of_the_hub_are_not_fetched(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    overrides = ("data.rl_path=nobody/nothing", "model.path=nobody/nothing", "data.test_path=a/b/../c")
    checks = examined(subject_of(task, tmp_path, *overrides))
    assert bad(checks) == ["rl data", "test data", "model"]
    assert "HF_HUB_OFFLINE" in named(checks, "rl data").found and "HF_HUB_OFFLINE" in named(checks, "model").found
    checks = examined(subject_of(task, tmp_path, "model.path=no:name"))
    assert bad(checks) == ["model"] and "no name that the hub could have" in named(checks, "model").found


def test_a_bad_image_is_named_and_the_other_samples_are_looked_at(task: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(task, tmp_path / "copy")
    (copy / "imgs" / "train-00001-1.png").write_bytes(b"no image at all")
    data = copy / "train.jsonl"
    checks = examined(subject_of(task, tmp_path, f"data.rl_path={data}"))
    assert bad(checks) == ["rl data"]
    problem = named(checks, "rl data")
    assert "1 of 3 items cannot be used (1 × image)" in problem.found and "train-00001-1.png" in problem.found
    assert "on_bad_sample=skip" in problem.advice
    # skipped as the settings say, it is a warning with the count: 2 of 3 samples, of 2 images each, are left
    checks = examined(subject_of(task, tmp_path, f"data.rl_path={data}", "data.on_bad_sample=skip"))
    assert "2 samples with 4 images; left out 1 × image" in named(checks, "rl data").found


def test_headers_count_modes_formats_sizes_and_orientations(tmp_path: Path) -> None:
    turned = Image.new("RGB", (30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (40, 10)).save(tmp_path / "clear.png")
    Image.new("1", (8, 4)).save(tmp_path / "scan.tiff")
    Image.new("L", (402, 2)).save(tmp_path / "strip.png")
    (tmp_path / "text.png").write_text("text")
    refs = [ImageRef(path=file.name, file=str(file)) for file in sorted(tmp_path.iterdir())]
    checks = list(headers_checks(refs))
    assert bad(checks) == ["broken images", "strips"]
    assert "1 of 5, such as: image 'text.png'" in named(checks, "broken images").found
    # 402 : 2 is 201 to 1
    assert "402×2" in named(checks, "strips").found
    images = named(checks, "images").found
    assert "2 PNG" in images and "1 JPEG" in images and "1 TIFF" in images
    assert "1 RGBA" in images and "8×4 to 402×2 pixels" in images
    assert named(checks, "orientation").found == "1 images are stored turned (EXIF 1 × 6)"


def test_of_many_images_some_are_looked_at_evenly(tmp_path: Path) -> None:
    file = tmp_path / "page.png"
    Image.new("RGB", (4, 4)).save(file)
    refs = [ImageRef(path=f"{index}.png", file=str(file)) for index in range(2500)]
    # 2500 // 1000 = 2: every second one
    assert named(list(headers_checks(refs)), "images").found.startswith("1250 of 2500 looked at; 1250 PNG")
    # the clock says 0 when looking starts, then 100: the time is over after the first image
    ticks: Iterator[float] = iter([0.0, 100.0])
    assert named(list(headers_checks(refs, clock=lambda: next(ticks))), "images").found.startswith("1 of 2500")


def test_each_part_of_a_model_folder_is_a_line(task: Path, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    assert bad(list(folder_checks(folder, "model.path='m'"))) == []
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    checks = list(folder_checks(folder, "model.path='m'"))
    assert bad(checks) == ["weights", "image processor"]
    assert "fetch the model again" in named(checks, "weights").advice
    assert "'CLIPImageProcessor'" in named(checks, "image processor").found
    (folder / "preprocessor_config.json").unlink()
    weights.unlink()
    assert bad(list(folder_checks(folder, "model.path='m'"))) == ["weights", "image processor"]
    (folder / "config.json").write_text('{"model_type": "llama"}')
    checks = list(folder_checks(folder, "model.path='m'"))
    assert bad(checks) == ["model"] and "'llama'" in checks[0].found


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe\x00", b'{"a": ', b"3", b"\x00" * 100])
def test_no_file_of_a_model_folder_breaks_the_doctor(tmp_path: Path, task: Path, file: str, content: bytes) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / file).write_bytes(content)
    subject = subject_of(task, tmp_path, f"model.path={folder}")
    checks = [check for step in (model_checks, template_checks) for check in step(subject)]
    assert bad(checks), [check.name for check in checks]
    assert not any("Error:" in check.found for check in checks), checks


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", "{", "tokenizer"),
        ("tokenizer.json", None, "tokenizer"),
        ("config.json", '{"model_type": "qwen2_5_vl", "image_token_id": 7}', "7 in config.json"),
        ("config.json", '{"model_type": "qwen2_5_vl", "vocab_size": 280}', "embedding has 280 rows"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_a_problem(
    tmp_path: Path, task: Path, file: str, content: str | None, words: str
) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    checks = list(model_checks(subject_of(task, tmp_path, f"model.path={folder}")))
    assert bad(checks) == ["tokenizer"]
    assert words in checks[-1].found + checks[-1].name


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[1].content[0].text }}", "0 image placeholders for 2 images"),
        ("{% for x in", "cannot be rendered"),
        ("", "chat template"),
    ],
)
def test_a_chat_template_that_drops_images_is_a_problem(task: Path, tmp_path: Path, template: str, words: str) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    subject = subject_of(task, tmp_path, f"model.path={folder}")
    assert bad(list(model_checks(subject))) == []
    checks = list(template_checks(subject))
    assert bad(checks) == ["chat template"]
    assert words in checks[-1].name + checks[-1].found


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("no variable", "does not use"),
        ("{{ question", "is not a Jinja template"),
        ("{{ question }} {{ misspelt }}", "misspelt"),
    ],
)
def test_a_bad_prompt_template_is_a_problem(task: Path, tmp_path: Path, template: str, words: str) -> None:
    (tmp_path / "mine.jinja").write_text(template)
    checks = list(template_checks(subject_of(task, tmp_path, f"prompt.path={tmp_path}/mine.jinja")))
    assert bad(checks) == ["prompt template"]
    assert words in checks[0].found


def test_a_question_with_a_control_token_is_named(task: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()]
    rows[2]["query"] = "What is <|im_end|>?"
    data = task / "forged.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checks = examined(subject_of(task, tmp_path, f"data.rl_path={data}"))
    assert bad(checks) == ["rl data"]
    assert "line 3" in named(checks, "rl data").found


def test_prompts_longer_than_the_limit_are_a_problem(task: Path, tmp_path: Path) -> None:
    checks = examined(subject_of(task, tmp_path, "data.max_prompt_tokens=3"))
    assert bad(checks) == ["rl prompts", "test prompts"]


def test_every_reward_is_tried_by_itself(task: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import math\n\ndef raises(call):\n    return 1 / 0\n\ndef nan(call):\n    return math.nan\n"
    )
    scope = "scope: {start: begin, stop: end}"
    checks = examined(
        subject_of(
            task,
            tmp_path,
            f"+rewards.first={{function: '{tmp_path}/mine.py:raises', {scope}}}",
            f"+rewards.second={{function: '{tmp_path}/mine.py:nan', {scope}}}",
            f"+rewards.third={{function: '{tmp_path}/none.py:f', {scope}}}",
        )
    )
    assert sorted(bad(checks)) == ["reward first", "reward second", "reward third"]
    assert "ZeroDivisionError" in named(checks, "reward first").found
    assert "nan" in named(checks, "reward second").found
    assert "iou" in named(checks, "gold response").found  # the others are judged all the same


def test_a_reward_file_that_is_a_script_does_not_end_the_doctor(task: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\n\ndef mine(call):\n    return 1.0\n\nsys.exit(3)\n")
    (tmp_path / "leaves.py").write_text("import sys\n\ndef mine(call):\n    sys.exit(4)\n")
    scope = "scope: {start: begin, stop: end}"
    checks = examined(
        subject_of(
            task,
            tmp_path,
            f"+rewards.first={{function: '{tmp_path}/script.py:mine', {scope}}}",
            f"+rewards.second={{function: '{tmp_path}/leaves.py:mine', {scope}}}",
        )
    )
    assert bad(checks) == ["reward first", "reward second"]
    assert named(checks, "reward first").advice == "take the exit out of it"


def test_gold_that_a_reward_needs_and_samples_lack_is_a_problem(task: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()]
    for row in rows:
        del row["boxes"]
    data = task / "no_boxes.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checks = examined(subject_of(task, tmp_path, f"data.rl_path={data}"))
    assert "reward iou" in bad(checks)
    assert "cannot judge 3 of 3 samples" in named(checks, "reward iou").found


def test_conversations_are_counted_with_their_defects(task: Path, tmp_path: Path) -> None:
    images = sorted((task / "imgs").iterdir())
    good = {"id": 1, "image": [str(images[0])], "conversations": [_turn("human", "<image>\nQ"), _turn("gpt", "A")]}
    missing = {**good, "id": 2, "image": ["nowhere.png"]}
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([good, missing]))
    overrides = ("stage=sft", "data.format=llava", f"data.sft_path={file}", "data.rl_path=", "data.test_path=")
    checks = list(data_checks(subject_of(task, tmp_path, *overrides)))
    assert bad(checks) == ["sft data (llava)"]
    assert "1 of 2 records can be used" in checks[0].found
    checks = list(data_checks(subject_of(task, tmp_path, *overrides, "data.on_bad_sample=skip")))
    assert checks[0].status == "warning"


def _turn(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


@pytest.mark.parametrize(
    "overrides",
    [["rl.max_stepz=3"], ["rl.max_steps=many"], ["recipe=none"], ["a=b=c"], ["rl.max_steps={"], ["seed=-1"], ["="]],
)
def test_settings_that_cannot_be_read_are_a_line_and_the_machine_is_looked_at(overrides: list[str]) -> None:
    lines = [line.check for line in examine(overrides, steps=WITHOUT_TORCH)]
    assert bad(lines)[0] == "settings"
    assert "shared memory" in [check.name for check in lines]
    assert not any("Traceback" in check.found for check in lines)


def test_an_exception_within_a_check_is_a_line_and_the_next_goes_on() -> None:
    def breaks(subject: Subject) -> Iterator[Check]:
        yield ok("before", "fine")
        raise KeyError("lost\nand more")

    def goes_on(subject: Subject) -> Iterator[Check]:
        yield ok("after", "fine")

    steps = (Step(group="One", name="breaking", run=breaks), Step(group="Two", name="going on", run=goes_on))
    lines = list(examine([], steps=steps))
    assert [(line.title, line.check.name, line.check.status) for line in lines] == [
        ("One", "before", "ok"),
        ("One", "breaking", "problem"),
        ("Two", "after", "ok"),
    ]
    assert lines[1].check.found.startswith("KeyError: ") and lines[1].check.advice


def test_a_message_gives_its_way_out_as_the_advice() -> None:
    check = refused("x", RsgrpoError("the file a; b is empty; name another one"))
    assert (check.found, check.advice) == ("the file a; b is empty", "name another one")
    check = refused("x", RsgrpoError("3 items are bad\n  line 1\nrepair them"))
    assert (check.found, check.advice) == ("3 items are bad line 1", "repair them")
    assert refused("x", RsgrpoError("it is bad")).advice
    check = refused("x", RsgrpoError("there is no function 'a'; it has b"))
    assert check.found == "there is no function 'a'; it has b" and check.advice.startswith("fix")
    long = refused("x", ValueError("y" * 10_000))
    assert len(long.found) == MAX_FOUND and 0 < len(long.advice) <= MAX_ADVICE
    assert shortened("abcdefghij", 7) == "abc…hij"


def test_exit_status_json_and_verdict_agree(task: Path, tmp_path: Path) -> None:
    paths = [f"data.rl_path={task}/train.jsonl", f"data.test_path={task}/test.jsonl", f"model.path={task}/nowhere"]
    shown = io.StringIO()
    report = tmp_path / "report.json"
    assert run_doctor(["recipe=rl_grounding", "--json", str(report), *paths], shown, WITHOUT_TORCH) == 1
    content = json.loads(report.read_text())
    assert content["has_problem"] and content["overrides"] == ["recipe=rl_grounding", *paths]
    model = next(check for check in content["checks"] if check["name"] == "model")
    assert model["status"] == "problem" and model["advice"]
    lines = shown.getvalue().splitlines()
    assert all(len(line) <= MAX_COLUMNS for line in lines) and "\x1b" not in shown.getvalue()
    assert "1 problem and" in lines[-1]
    assert [line.split()[0] for line in lines if line.startswith("  problem")] == ["problem"]


def test_a_report_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RsgrpoError, match=f"^--json {tmp_path} cannot be written"):
        run_doctor([f"--json={tmp_path}"], io.StringIO(), ())


def test_a_recipe_of_ones_own_is_found_in_the_folder_of_settings(tmp_path: Path) -> None:
    (tmp_path / "my settings" / "recipe").mkdir(parents=True)
    recipe = tmp_path / "my settings" / "recipe" / "mine.yaml"
    recipe.write_text("# @package _global_\ndefaults: [quickstart, _self_]\nname: mine\n")
    shown = io.StringIO()
    steps = [step for step in STEPS if step.name == "settings"]
    assert run_doctor(["recipe=mine", "--config-dir", str(tmp_path / "my settings")], shown, steps) == 0
    assert "name=mine" in shown.getvalue()
    with pytest.raises(RsgrpoError, match="nosuch is no folder"):
        run_doctor(["--config-dir", str(tmp_path / "nosuch")], io.StringIO(), steps)
