"""Model folders with odd content: what is wrong with the processor is one sentence before workers start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rsgrpo.config import PromptConfig
from rsgrpo.failures import explain
from rsgrpo.model.folder import ModelError, check_sizes, load_processor
from rsgrpo.prompts.template import PromptBuilder, PromptTemplateError
from rsgrpo.types import ImageRef, Sample
from tests.tiny_model import build_tiny_model

PROCESSOR_FILES = ("chat_template.jinja", "processor_config.json", "tokenizer.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def remove(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def other_json(file: Path) -> None:
    file.write_text("[1]")


def hollow(file: Path) -> None:
    file.write_text("{}")


def bytes_of_another_kind(file: Path) -> None:
    file.write_bytes(b"\0\xff junk")


@pytest.mark.parametrize("damage", [remove, empty, other_json, hollow, bytes_of_another_kind])
@pytest.mark.parametrize("name", PROCESSOR_FILES)
def test_a_damaged_file_of_the_processor_is_one_sentence(
    name: str, damage: Callable[[Path], None], model: Path
) -> None:
    damage(model / name)
    if name == "chat_template.jinja" and damage in (other_json, hollow):
        assert load_processor(model, "model.path=m").chat_template  # a template, which shows no image
        return
    with pytest.raises(ModelError) as raised:
        load_processor(model, "model.path=m")
    failure = explain(raised.value)
    assert failure.is_foreseen
    assert failure.sentence.startswith("model.path=m has no c")
    assert "copy" in failure.sentence
    assert len(failure.sentence) < 500


def test_other_files_do_not_matter(model: Path) -> None:
    (model / "training_args.bin").write_bytes(b"\x80\x04.")
    (model / "sub").mkdir()
    (model / "sub" / "config.json").write_text("{")
    (model / "loop").symlink_to("loop")
    (model / "ünï \n.md").touch()
    load_processor(model, "model.path=m")


@pytest.mark.parametrize("template", ["{{ 1 / }}", "{{ raise_exception('no system') }}", "{{ nosuch.key }}", "hello"])
def test_a_chat_template_that_fails_is_one_sentence(template: str, model: Path) -> None:
    (model / "chat_template.jinja").write_text(template)
    builder = PromptBuilder(PromptConfig(), load_processor(model, "model.path=m"))
    with pytest.raises(PromptTemplateError, match="chat template") as raised:
        builder.build(Sample(sample_id="q0", question="What?", images=(ImageRef(path="a.png", file="a.png"),)))
    assert len(explain(raised.value).sentence) < 500


def test_a_whole_model_has_the_sizes_that_its_config_says(model: Path) -> None:
    check_sizes(model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_config.num_hidden_layers", "two"),
        ("text_config.num_hidden_layers", 5),
        ("text_config.hidden_size", 256),
        ("text_config.vocab_size", 10),
        ("text_config.num_attention_heads", 0),
        ("vision_config.depth", 7),
        ("dtype", "float12"),
        ("text_config", None),
        ("vision_config", None),
    ],
)
def test_a_config_of_another_model_is_one_sentence(key: str, value: object, model: Path) -> None:
    settings = json.loads((model / "config.json").read_text())
    *outer, last = key.split(".")
    part = settings[outer[0]] if outer else settings
    part[last] = value
    (model / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"config\.json") as raised:
        check_sizes(model)
    failure = explain(raised.value)
    assert failure.is_foreseen
    assert str(model) in failure.sentence
    assert len(failure.sentence) < 500
