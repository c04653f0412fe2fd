"""What cannot work is refused before a worker starts, by name and with the way out."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from recipes import pipeline
from recipes.setup.preparation import prepare
from rewards.base import RewardError
from rsgrpo.config import Config, load_config, register_schema
from rsgrpo.data.files import DataError
from rsgrpo.data.images import sources as image_sources
from rsgrpo.data.images.image_view import read_view
from rsgrpo.data.images.known_images import KNOWN_IMAGES
from rsgrpo.data.synthetic.tasks import write_task
from rsgrpo.errors import RsgrpoError
from rsgrpo.model.folder import ModelError, check_model_type, load_processor, stored_tensors
from rsgrpo.prompts.template import PromptWriter
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress
from rsgrpo.types import ImageRef, Sample
from tests.unit.report_run import sampled_group

GOLD = "<observe>cards</observe>\n<answer>4</answer>"
CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grounding data set, and a small model beside it."""
    folder = tmp_path_factory.mktemp("task")
    write_task("grounding", folder, num_train=3, num_test=1, num_images=2, image_pixels=56, seed=0)
    prepared = prepare(_config(folder, "model.path="), RunFolder(root=folder / "run"), Progress(False))
    shutil.copytree(prepared.base_model, folder / "model")
    return folder


def _config(task: Path, *overrides: str) -> Config:
    GlobalHydra.instance().clear()
    register_schema()
    paths = [f"data.rl_path={task}/train.jsonl", f"data.test_path={task}/test.jsonl", f"model.path={task}/model"]
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return load_config(compose("config", overrides=["recipe=rl_grounding", *paths, *overrides]))


def _refusal(task: Path, *overrides: str) -> str:
    with pytest.raises(RsgrpoError) as caught:
        prepare(_config(task, *overrides), RunFolder(root=task / "run"), Progress(False))
    return str(caught.value)


def test_generated_data_and_a_small_model_pass(task: Path) -> None:
    prepared = prepare(_config(task), RunFolder(root=task / "run"), Progress(False))
    assert (len(prepared.rl), len(prepared.test), prepared.num_skipped) == (3, 1, 0)


def test_a_template_is_rendered_once_a_question(task: Path, tmp_path: Path, monkeypatch) -> None:
    rendered: list[str] = []
    render = PromptWriter._render

    def counted(writer: PromptWriter, sample: Sample) -> str:
        rendered.append(sample.sample_id)
        return render(writer, sample)

    monkeypatch.setattr(PromptWriter, "_render", counted)
    prepared = prepare(_config(task), RunFolder(root=tmp_path / "run"), Progress(False))
    assert sorted(rendered) == sorted(prompted.sample.sample_id for prompted in (*prepared.rl, *prepared.test))


def test_a_second_start_reads_no_page_and_reports_the_same_of_them(task: Path, tmp_path: Path, monkeypatch) -> None:
    for image in (task / "imgs").iterdir():
        os.utime(image, (1e9, 1e9))  # written long ago, so that its time says whether it changed
    opened: list[str] = []
    open_image_file = image_sources._open

    def counted(ref: ImageRef) -> io.RawIOBase:
        opened.append(ref.path)
        return open_image_file(ref)

    monkeypatch.setattr(image_sources, "_open", counted)
    config = _config(
        task, f"data.media_cache={tmp_path}/cache", "rewards.iou.kwargs={convention: pixels}", "data.min_pixels=784"
    )
    reports = []
    for name in ("first", "second"):
        KNOWN_IMAGES._by_place.clear()  # as in a new process
        KNOWN_IMAGES._by_content.clear()
        run = RunFolder(root=tmp_path / name)
        prepared = prepare(config, run, Progress(False))
        assert sum(map(len, (prepared.rl, prepared.test))) == 4
        reports.append((run.root / "data_report.json").read_text())
        assert bool(opened) == (name == "first")
        opened.clear()
    assert reports[0] == reports[1]


def test_a_reward_that_cannot_work_is_found_on_a_gold_response(task: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("import math\n\ndef raises(call):\n    return 1 / 0\n\ndef nan(call):\n    return math.nan\n")
    mine = f"rewards.mine={{function: '{plugin}:raises', scope: {{start: begin, stop: end}}}}"
    assert "reward 'mine'" in (message := _refusal(task, mine)) and "ZeroDivisionError" in message
    assert "returned nan (float) for sample 'grounding-train-00000'" in _refusal(task, mine.replace("raises", "nan"))
    assert "convention='permile' is not known" in _refusal(task, "rewards.iou.kwargs={convention: permile}")


def test_pixel_rewards_know_the_size_that_the_models_own_processor_makes(task: Path, tmp_path: Path) -> None:
    # The small model's processor keeps areas between 784 and 12544, Qwen's begins at 3136: bounds are the folder's.
    run = RunFolder(root=tmp_path / "run")
    prepared = prepare(
        _config(task, "rewards.iou.kwargs={convention: pixels}", "data.min_pixels=784"), run, Progress(False)
    )
    view = read_view(run.image_view_file)
    assert view is not None
    assert (view.processor_min_pixels, view.processor_max_pixels, view.max_pixels) == (784, 12544, 1003520)
    sample = prepared.rl[0].sample
    (box,) = sample.boxes
    # Pages of 56 × 56: within both, and whole tokens. Boxes are whole pixels of it.
    text = str([round(56 * edge) for edge in (box.left, box.top, box.right, box.bottom)])
    (scored,) = prepared.scorer.score([sampled_group(sample, [text])])
    assert [reward.value for reward in scored.rollouts[0].rewards if reward.name == "iou"] == [pytest.approx(1.0)]
    assert "have one place, data.min_pixels" in _refusal(
        task, "rewards.iou.kwargs={convention: pixels, max_pixels: 1003520}"
    )


def test_gold_text_that_counts_otherwise_than_the_reward_is_remarked_on(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for convention, is_other in (("pixels", True), ("permille", False)):
        run = RunFolder(root=tmp_path / convention)
        prepare(_config(task, f"rewards.iou.kwargs={{convention: {convention}}}"), run, Progress(True))
        assert ("by rewards.iou: it counts otherwise" in capsys.readouterr().out) == is_other


def test_a_box_without_an_image_of_its_own_is_named_before_the_start(task: Path) -> None:
    rows = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()]
    Image.new("L", (84, 56)).save(task / "other.png")
    for row in rows[1:]:
        row["image"] = [row["image"][0], "other.png"]
        row["boxes"] = [{"box": [0.1, 0.1, 0.5, 0.5]}]
    (task / "nameless.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = _refusal(task, f"data.rl_path={task}/nameless.jsonl", "rewards.iou.kwargs={convention: pixels}")
    assert "cannot judge 2 of 3 samples ('grounding-train-00001': " in message
    assert "do not say on which of 2 images" in message and len(message) <= 500


def test_every_kind_of_question_is_rehearsed(task: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()]
    rows[1]["choices"] = ["left", "right"]
    (task / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text("def mine(call):\n    return 1 / (len(call.sample.choices) - 2)\n")
    message = _refusal(
        task,
        f"data.rl_path={task}/mixed.jsonl",
        f"rewards.mine={{function: '{tmp_path}/mine.py:mine', scope: {{start: begin, stop: end}}}}",
    )
    assert "sample 'grounding-train-00001'" in message and "ZeroDivisionError" in message


def test_a_plugin_that_fails_at_import_names_its_line(task: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("# a comment\nTABLE = {}['key']\n")
    message = _refusal(task, f"rewards.iou.function={tmp_path}/bad.py:iou")
    assert message.endswith("bad.py: KeyError: 'key' (line 2)")


def test_a_misspelt_reward_lists_the_rewards_of_its_module_alone(task: Path) -> None:
    message = _refusal(task, "rewards.iou.function=rewards.functions.grounding:iuo")
    assert message.endswith("it has best_matching, box_count, box_iou, iou")


def test_boxes_that_are_missing_are_named(task: Path) -> None:
    rows = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()]
    del rows[1]["boxes"]
    (task / "no_box.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RewardError, match=r"cannot judge 1 of 3 samples \('grounding-train-00001': it has no gold"):
        prepare(_config(task, f"data.rl_path={task}/no_box.jsonl"), RunFolder(root=task / "run"), Progress(False))


def test_trajectories_need_the_sections_that_the_settings_name(task: Path) -> None:
    config = _config(task, "stage=all", f"data.sft_path={task}/train.jsonl")
    with pytest.raises(DataError, match=r"not well formed \(missing: it has no <observe>"):
        prepare(config, RunFolder(root=task / "run"), Progress(False))
    untagged = dataclasses.replace(config, data=dataclasses.replace(config.data, sft_sections=[]))
    assert len(prepare(untagged, RunFolder(root=task / "run"), Progress(False)).sft) == 1  # one phase
    # a tag that is opened must still be closed
    row = json.loads((task / "train.jsonl").read_text().splitlines()[0]) | {"gold_response": "<think>it is here"}
    (task / "open.jsonl").write_text(json.dumps(row) + "\n")
    half = dataclasses.replace(untagged.data, sft_path=str(task / "open.jsonl"))
    with pytest.raises(DataError, match="unclosed: <think>"):
        prepare(dataclasses.replace(untagged, data=half), RunFolder(root=task / "run"), Progress(False))


def test_model_folders_are_looked_at_file_by_file(task: Path, tmp_path: Path) -> None:
    stored_tensors(task / "model", "model.path")
    model = shutil.copytree(task / "model", tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read .*fetch the model again"):
        stored_tensors(model, "model.path='m'")
    weights.unlink()
    with pytest.raises(ModelError, match=r"model\.path='m' holds no weights"):
        stored_tensors(model, "model.path='m'")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-1-of-2.safetensors"}}))
    with pytest.raises(ModelError, match=r"model-1-of-2\.safetensors"):
        stored_tensors(model, "model.path='m'")
    (model / "preprocessor_config.json").unlink(missing_ok=True)
    (model / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match="has no complete processor"):
        load_processor(model, "model.path='m'")
    (model / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="is a 'llama' model"):
        check_model_type(model, "model.path='m'")


def test_a_checkpoint_that_is_not_there_is_refused(task: Path) -> None:
    assert "eval.checkpoint='/nowhere' has no readable config.json" in _refusal(
        task, "stage=eval", "eval.checkpoint=/nowhere"
    )


def test_a_negative_seed_is_refused(task: Path) -> None:
    with pytest.raises(RsgrpoError, match="seed=-1 is too small"):
        _config(task, "seed=-1")


@pytest.mark.parametrize("recipe", sorted(file.stem for file in (CONFIGS / "recipe").glob("*.yaml")))
def test_laptop_settings_go_with_every_recipe(recipe: str) -> None:
    GlobalHydra.instance().clear()
    register_schema()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = load_config(compose("config", overrides=[f"recipe={recipe}", "+machine=laptop"]))
    assert (config.model.path, config.trainer.num_ranks, config.rollout.num_workers) == ("", 1, 1)


def _rewritten(task: Path, target: Path, **columns: object) -> str:
    """The training questions in a file of their own, the second one with other columns."""
    rows = [json.loads(line) | {"gold_response": GOLD} for line in (task / "train.jsonl").read_text().splitlines()]
    rows[1] |= columns
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(target)


def test_a_text_with_a_control_token_is_a_bad_record(task: Path, tmp_path: Path) -> None:
    paths = ["stage=sft", f"data.image_root={task}", "data.sft_sections=[]"]
    for where, columns in (
        ("prompt", {"query": "Where <|image_pad|>?"}),
        ("gold response", {"gold_response": f"{GOLD}<|image_pad|>"}),
    ):
        file = f"data.sft_path={_rewritten(task, tmp_path / 'd.jsonl', **columns)}"
        refusal = _refusal(task, *paths, file)
        assert "(1 × text)" in refusal and f"line 2: its {where} holds the control token '<|image_pad|>'" in refusal
        skipping = _config(task, *paths, file, "data.on_bad_sample=skip")
        assert prepare(skipping, RunFolder(root=tmp_path / "run"), Progress(False)).num_skipped == 1
    signs = {"query": "Read a <| b as a pipe, <|box_start|> as it stands."}
    file = f"data.sft_path={_rewritten(task, tmp_path / 'd.jsonl', **signs)}"
    assert prepare(_config(task, *paths, file), RunFolder(root=tmp_path / "run"), Progress(False)).num_skipped == 0


def test_a_response_that_no_row_of_the_trainer_holds_is_refused_before_it_is_sampled(task: Path) -> None:
    config = _config(task)
    response = config.rollout.sampling.max_response_tokens
    # Room for a response and 10 tokens of a prompt: each has two pages and a question.
    message = _refusal(task, f"trainer.micro_batch_tokens={response + 10}")
    assert (
        "3 of 3 rl prompts are too long" in message
        and "10 are left for it; raise trainer.micro_batch_tokens" in message
    )
    # The engine answers test questions alone: the trainer's rows do not matter to them.
    message = _refusal(task, f"rollout.max_model_tokens={response + 10}")
    assert "10 are left for it; raise rollout.max_model_tokens" in message


def test_a_trajectory_that_no_row_of_the_trainer_holds_is_refused(task: Path) -> None:
    file = _rewritten(task, task / "d.jsonl", gold_response=f"{GOLD} and more")
    sft = ["stage=sft", f"data.sft_path={file}", "data.sft_sections=[]"]
    prepared = prepare(_config(task, *sft), RunFolder(root=task / "run"), Progress(False))
    (phase,) = prepared.sft
    taken = phase.source.take(0, 3).conversations
    lengths = [
        prepared.image_tokens(taken[0].images[0]) * len(conversation.images)
        - len(conversation.images)
        + len(prepared.tokenizer.encode(conversation.prompt.text, add_special_tokens=False))
        + len(prepared.tokenizer.encode(conversation.parts[0].text, add_special_tokens=False))
        for conversation in taken
    ]
    longest = max(lengths)
    prepare(_config(task, *sft, f"trainer.micro_batch_tokens={longest}"), RunFolder(root=task / "run"), Progress(False))
    message = _refusal(task, *sft, f"trainer.micro_batch_tokens={longest - 1}")
    assert f"{lengths.count(longest)} of 3 sft prompts are too long" in message
    assert "raise trainer.micro_batch_tokens," in message


@pytest.mark.parametrize(
    ("change", "overrides", "told"),
    [
        ({"image": ["nowhere.png"]}, [], "nowhere.png"),
        ({"query": "Where is it? " * 4000}, ["rollout.max_model_tokens=4096"], "1 of 1 test prompts are too long"),
        ({"query": "Where <|im_end|> is it?"}, [], "control token '<|im_end|>'"),
        ({}, ["rollout.max_model_tokens=100000000"], "positions of the model"),
    ],
    ids=["no page", "too long", "control token", "engine too short"],
)
def test_test_questions_of_a_supervised_stage_that_cannot_be_asked_are_refused_before_ray_starts(
    task: Path, tmp_path: Path, monkeypatch, change: dict[str, object], overrides: list[str], told: str
) -> None:
    def started(config: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(pipeline, "open_cluster", started)
    (row,) = (json.loads(line) for line in (task / "test.jsonl").read_text().splitlines())
    test = task / f"test-{tmp_path.name}.jsonl"
    test.write_text(json.dumps(row | change) + "\n")
    supervised = ["stage=sft", f"data.sft_path={task}/train.jsonl", "data.sft_sections=[]", "data.rl_path=''"]
    run = f"run_dir={tmp_path / 'run'}"
    with pytest.raises(RsgrpoError) as caught:
        pipeline.run(_config(task, *supervised, f"data.test_path={test}", run, "logging.progress=false", *overrides))
    assert told in str(caught.value)
