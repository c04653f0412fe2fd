"""What --model means."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from recipes.asking.model_choice import ModelChoiceError, choose_model, split_ask_settings
from rsgrpo.config import Config, ConfigError, DataConfig, PromptConfig, SamplingConfig, resolved_yaml
from rsgrpo.model.folder import ModelError


def make_model(folder: Path, kind: str = "qwen2_5_vl", positions: int = 128_000) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "max_position_embeddings": positions}))
    return folder


def make_run(folder: Path, *stages: str, **changes: object) -> Path:
    config = Config(stage="sft", prompt=PromptConfig(path="configs/prompt/quickstart.jinja", system="Be brief."))
    config.eval.sampling = SamplingConfig(temperature=0.0, max_response_tokens=96)
    config.data = DataConfig(max_images=4, max_pixels=12544)
    for key, value in changes.items():
        setattr(config, key, value)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(resolved_yaml(config))
    for stage in stages:
        make_model(folder / "models" / stage)
    return folder


def test_a_run_gives_the_model_of_its_newest_stage_asked_as_the_run_asks(tmp_path):
    run = make_run(tmp_path / "run", "sft", "rl")
    chosen = choose_model(str(run))
    assert (chosen.folder, chosen.run) == (run / "models" / "rl", run)
    settings = chosen.settings
    assert (settings.prompt.path, settings.prompt.system) == ("configs/prompt/quickstart.jinja", "Be brief.")
    assert (settings.max_images, settings.image_rules.max_pixels) == (4, 12544)
    assert (settings.sampling.temperature, settings.sampling.max_response_tokens) == (0.0, 96)
    # A run that names neither data nor model has made the small ones of the quickstart.
    assert not settings.keeps_turns


def test_a_model_in_a_run_is_asked_as_the_run_asks_and_one_elsewhere_with_pages_first(tmp_path):
    run = make_run(tmp_path / "run", "sft", "rl")
    inner = choose_model(str(run / "models" / "sft"))
    assert (inner.run, inner.settings.max_images) == (run, 4)
    plain = choose_model(str(make_model(tmp_path / "plain")))
    assert plain.run is None
    assert (plain.settings.prompt.path, plain.settings.prompt.image_order) == (
        "configs/prompt/ask.jinja",
        "images_first",
    )
    assert plain.settings.keeps_turns


def test_a_model_of_no_run_gets_no_more_tokens_than_it_has_positions(tmp_path):
    settings = choose_model(str(make_model(tmp_path / "small", positions=512))).settings
    assert (settings.rollout.max_model_tokens, settings.sampling.max_response_tokens) == (512, 256)


def test_without_a_name_the_newest_run_with_a_model_is_taken(tmp_path):
    runs = tmp_path / "runs"
    old, new, empty = (make_run(runs / name, *stages) for name, *stages in (("a", "rl"), ("b", "sft"), ("c",)))
    os.utime(old / "models" / "rl", (1, 1))
    assert choose_model("", runs=runs).run == new
    os.utime(new / "models" / "sft", (0, 0))
    assert choose_model("", runs=runs).run == old
    with pytest.raises(ModelChoiceError, match="has no model of a finished stage yet"):
        choose_model(str(empty))


@pytest.mark.parametrize("has_runs", [False, True], ids=["no-runs", "no-model-in-runs"])
def test_without_any_model_the_sentence_says_how_to_get_one(tmp_path, has_runs):
    if has_runs:
        make_run(tmp_path / "runs" / "a")
    with pytest.raises(ModelChoiceError, match=r"uv run train\.py"):
        choose_model("", runs=tmp_path / "runs")


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelChoiceError, match="does not exist"):
        choose_model(str(tmp_path / "nothing"))
    with pytest.raises(ModelChoiceError, match="holds neither a model"):
        choose_model(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="is a 'llama' model"):
        choose_model(str(make_model(tmp_path / "llama", "llama")))


def test_a_server_is_known_by_its_address_and_may_be_asked_as_a_run_asks(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    run = make_run(tmp_path / "run")
    chosen = choose_model("http://localhost:8000/v1/", served_name="m", key_variable="MY_KEY", settings_from=str(run))
    assert (chosen.url, chosen.served_name, chosen.key) == ("http://localhost:8000/v1", "m", "secret")
    assert chosen.settings.max_images == 4
    assert "secret" not in repr(chosen)
    with pytest.raises(ModelChoiceError, match="not set"):
        choose_model("http://localhost:8000/v1", key_variable="NO_SUCH_KEY")
    with pytest.raises(ModelChoiceError, match="of a server"):
        choose_model(str(run), served_name="m")
    with pytest.raises(ModelChoiceError, match="neither a run folder"):
        choose_model("http://localhost:8000/v1", settings_from=str(tmp_path / "nothing"))


def test_settings_of_the_call_hold_before_those_of_the_run(tmp_path):
    run = make_run(tmp_path / "run", "rl")
    rest, given = split_ask_settings(
        [
            "why?",
            "data.max_images=2",
            "eval.sampling.top_p=0.5",
            "rollout.max_model_tokens=400",
            "sampling.top_k=3",
            "a=b",
        ]
    )
    assert rest == ["why?", "sampling.top_k=3", "a=b"]
    settings = choose_model(str(run), given=given).settings
    assert (settings.max_images, settings.sampling.top_p, settings.rollout.max_model_tokens) == (2, 0.5, 400)
    assert settings.sampling.max_response_tokens == 96
    with pytest.raises(ConfigError, match=r"data\.max_imagse"):
        choose_model(str(run), given={"data": {"max_imagse": 3}})


def test_settings_of_an_earlier_release_lack_what_was_added_since(tmp_path):
    run = make_run(tmp_path / "run", "rl")
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("  answer_section: answer\n", ""))
    assert choose_model(str(run)).settings.response_format.answer_section == "answer"
