"""Every setting with values that its type, or nothing at all, would make of it; paths and data files likewise.

Settings that are added later are covered as they come.
"""

from __future__ import annotations

import dataclasses
import pickle
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.setup.first_checks import check_first
from rsgrpo.config import Config, RewardConfig, SftPhaseConfig, SourceConfig, load_config, register_schema
from rsgrpo.config.building import build
from rsgrpo.config.refusals import quoted_override
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.failures import Failure, explain
from tests.unit.command_line import REPOSITORY, is_one_sentence

LONG = "x" * 5000


BROKEN: dict[Any, tuple[str, ...]] = {
    int: ("-1", "0", "1.5", "abc", "null", "99999999999999999999", "1000000000"),
    float: ("nan", "-inf", "-1", "abc", "null", "1e308"),
    bool: ("maybe", "3", "null"),
    str: ("''", "null", "[a]", LONG, "${nosuch.key}", "'a\nb'", ".."),
    list: ("abc", "null", "[1]", "[null]", "{a: 1}", "[{nosuch: 1}]", f"[{LONG}]"),
    dict: ("abc", "null", "[a]", "{a: 3}", "{a: {nosuch: 1}}"),
    "settings": ("abc", "null", "[a]", "{nosuch: 1}", "3"),
    Any: ("null", "3", "{a: 1}", "[1]", "'['", f"[{LONG}]"),
}


def settings_of(kind: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every key below a prefix with its type."""
    for name, wanted in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(wanted):
            yield f"{prefix}{name}", "settings"
            yield from settings_of(typing.cast(type, wanted), f"{prefix}{name}.")
        else:
            wanted = next(
                (option for option in typing.get_args(wanted) if type(None) in typing.get_args(wanted)), wanted
            )
            yield f"{prefix}{name}", typing.get_origin(wanted) or wanted


def overrides_of_all_settings() -> Iterator[tuple[str, str]]:
    """The last name of a key, and an override that breaks it; also inside lists and dictionaries."""
    for key, kind in (*settings_of(Config, ""), *settings_of(RewardConfig, "rewards.accuracy.")):
        for value in BROKEN[kind]:
            yield key, f"{key}={value}"
    places = ((SftPhaseConfig, "sft.phases", "name: a, "), (SourceConfig, "data.mixture", "path: a.json, "))
    for element, place, rest in places:
        for key, kind in settings_of(element, ""):
            if "." not in key:
                for value in BROKEN[kind]:
                    yield key, f"{place}=[{{{rest.replace(f'{key}: a, ', '')}{key}: {value}}}]"


@pytest.fixture(scope="module")
def base() -> bytes:
    """The composition of a bare ``train.py``, pickled: it is read a thousand times, four times as fast as copied."""
    GlobalHydra.instance().clear()
    register_schema()
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base=None):
        composed = compose("config")
    typed = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(composed))
    assert isinstance(typed, DictConfig)
    return pickle.dumps(typed)


def tried(base: bytes, overrides: list[str]) -> Config:
    """As :func:`load_config` on hydra's composition, which takes a hundred times as long."""
    changed = pickle.loads(base)
    for override in OverridesParser.create().parse_overrides(overrides):
        try:
            OmegaConf.update(changed, override.key_or_group, override.value(), force_add=False, merge=True)
        except OmegaConfBaseException as error:
            raise ConfigCompositionException(f"Error merging override {override.input_line}") from error
    config = build(changed)
    assert isinstance(config, Config)
    return config


def names(sentence: str, *items: str) -> bool:
    return any(item.rpartition(".")[2][:20] in sentence or item[:20] in sentence for item in items if item)


def is_well_told(failure: Failure, *items: str) -> bool:
    return failure.is_foreseen and is_one_sentence(failure.sentence) and names(failure.sentence, *items)


def test_every_setting_takes_a_broken_value_or_refuses_it_by_name(base: bytes) -> None:
    cases = list(overrides_of_all_settings())
    assert len(cases) > 700
    wrong = []
    for key, override in cases:
        try:
            tried(base, [override])
        except Exception as error:
            failure = explain(error)
            if not (
                failure.is_foreseen and is_one_sentence(failure.sentence) and names(failure.sentence, key, override)
            ):
                wrong.append((override[:80], failure))
    assert wrong == []


PATH_SETTINGS = {
    "run_dir": (),
    "model.path": (),
    "prompt.path": (),
    "eval.checkpoint": ("stage=eval",),
    "data.sft_path": ("data.test_path=same",),
    "data.rl_path": ("data.test_path=same", "data.sft_path=same"),
    "data.test_path": ("stage=eval",),
    "data.image_root": ("data.rl_path=same", "data.test_path=same", "data.sft_path=same"),
    "eval.data_root": ("stage=eval", "eval.tasks=[evisrag/chartqa]"),
    "eval.image_root": ("stage=eval", "eval.tasks=[vhs/single]", "eval.data_root=."),
    "rewards.accuracy.function": (),
}


def broken_places(folder: Path) -> list[str]:
    """Paths that cannot be what any path setting wants."""
    (folder / "file").write_bytes(b"\x89PNG\0\xff")
    (folder / "empty.jsonl").touch()
    (folder / "empty_folder").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere")
    names = (
        "nosuch",
        "nosuch/x.jsonl",
        "file",
        "file/x.json",
        "empty_folder",
        "loop",
        "dangling",
        "n" * 300,
        "ä\u0301 b.jsonl",
    )
    return [*(f"{folder}/{name}" for name in names), "/dev/null", "/proc/self/mem", "s3://bucket/x", "/" + "d/" * 3000]


def test_no_path_setting_lets_a_broken_path_through_as_a_traceback(
    base: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    good = tmp_path / "good.jsonl"
    good.write_text("{}\n")
    wrong = []
    for key, others in PATH_SETTINGS.items():
        (tmp_path / key).mkdir()
        for place in broken_places(tmp_path / key):
            value = f"{place}:f" if key.endswith("function") else place
            overrides = [f"run_dir={tmp_path / 'run'}", *(override.replace("same", str(good)) for override in others)]
            try:
                check_first(tried(base, [*overrides, f"{key}='{value}'"]))
            except Exception as error:
                failure = explain(error)
                if not (
                    failure.is_foreseen and is_one_sentence(failure.sentence) and names(failure.sentence, key, place)
                ):
                    wrong.append((key, place[:80], failure))
    assert wrong == []


CONTENTS = {
    "empty": b"",
    "blank lines": b"\n\n\n",
    "binary": bytes(range(256)),
    "utf-16": '{"qid": "a"}'.encode("utf-16"),
    "a list": b"[1, 2",
    "a number": b"3\n",
    "null": b"null\n",
    "nothing known": b"{}\n",
    "nested": b'{"qid": {"a": []}, "query": 3, "image": {"x": 1}, "answer": null}\n',
    "missing image": b'{"qid": "a", "query": "q", "image": ["nosuch.png"], "answer": ["x"]}\n',
    "long name": b'{"qid": "a", "query": "q", "image": ["' + b"n" * 5000 + b'"], "answer": ["x"]}\n',
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_broken_data_files_are_named(base: bytes, tmp_path: Path, suffix: str) -> None:
    data = tried(base, []).data
    wrong = []
    for title, content in CONTENTS.items():
        file = tmp_path / f"{title.replace(' ', '_')}.{suffix}"
        file.write_bytes(content)
        try:
            load_samples(str(file), data, is_training=True)
        except Exception as error:
            failure = explain(error)
            if not is_well_told(failure, file.name, "data."):
                wrong.append((file.name, failure))
    assert wrong == []


@pytest.mark.parametrize(
    "text", ["a=b", "a,b", "{a}", "[a", "a: b", 'say "x"', "it's", "${x}", "a\\", "(x", "100%", "#1"]
)
def test_the_advice_how_to_quote_is_right(base: bytes, text: str) -> None:
    # what the shell leaves of the advice, hydra reads as the text that was meant
    import shlex

    (override,) = shlex.split(quoted_override("prompt.system", text))
    assert tried(base, [override]).prompt.system == text


def test_a_composition_and_a_file_are_checked_alike(base: bytes) -> None:
    assert load_config(pickle.loads(base)) == tried(base, [])
