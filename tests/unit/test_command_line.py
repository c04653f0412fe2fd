"""The command line as a user gets it wrong: exit status 0, or one sentence that names the item; never a traceback.

Every setting of the schema is tried with values that its type, or nothing at all, would make of it; settings that are
added later are covered as they come. Nearly all calls run in this process, up to where a run would need a model.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import recipes.lmms_tasks
import rewards.lab.__main__
import rsgrpo.generated.__main__
import rsgrpo.report.__main__
import rsgrpo.rescore.__main__
import train
from recipes.first_checks import check_first
from rsgrpo.config import Config, RewardConfig, SftPhaseConfig, SourceConfig, load_config, register_schema
from rsgrpo.config.building import build
from rsgrpo.data import load_samples
from rsgrpo.errors import RsgrpoError
from rsgrpo.failures import MAX_SENTENCE, Failure, explain, run_command
from rsgrpo.failures.settings import quoted_override

REPOSITORY = Path(__file__).resolve().parents[2]
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
def base() -> Iterator[DictConfig]:
    """The composition of a bare ``train.py``."""
    GlobalHydra.instance().clear()
    register_schema()
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base=None):
        composed = compose("config")
    typed = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.to_container(composed))
    assert isinstance(typed, DictConfig)
    yield typed


def tried(base: DictConfig, overrides: list[str]) -> Config:
    """As :func:`load_config` on hydra's composition, which takes a hundred times as long."""
    changed = base.copy()
    for override in OverridesParser.create().parse_overrides(overrides):
        try:
            OmegaConf.update(changed, override.key_or_group, override.value(), force_add=False, merge=True)
        except OmegaConfBaseException as error:
            raise ConfigCompositionException(f"Error merging override {override.input_line}") from error
    config = build(changed)
    assert isinstance(config, Config)
    return config


def is_one_sentence(text: str) -> bool:
    return bool(text) and len(text) < 500 and "\n" not in text.strip() and "Traceback" not in text


def names(sentence: str, *items: str) -> bool:
    return any(item.rpartition(".")[2][:20] in sentence or item[:20] in sentence for item in items if item)


def is_well_told(failure: Failure, *items: str) -> bool:
    return failure.is_foreseen and is_one_sentence(failure.sentence) and names(failure.sentence, *items)


def test_every_setting_takes_a_broken_value_or_refuses_it_by_name(base: DictConfig) -> None:
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
    base: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    good = tmp_path / "good.jsonl"
    good.write_text("{}\n")
    wrong = []
    for key, others in PATH_SETTINGS.items():
        (tmp_path / key).mkdir()
        for place in broken_places(tmp_path / key):
            value = f"{place}:f" if key.endswith("function") else place
            overrides = [f"run_dir={tmp_path / 'run'}", *(one.replace("same", str(good)) for one in others)]
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
def test_broken_data_files_are_named(base: DictConfig, tmp_path: Path, suffix: str) -> None:
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


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """``train.py`` in this process: exit status, standard error, and the settings that the pipeline was given."""
    begun: list[Config] = []
    pipeline = ModuleType("recipes.pipeline")
    pipeline.run = begun.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recipes.pipeline", pipeline)

    def called(*arguments: str) -> tuple[int, str, list[Config]]:
        begun.clear()
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        GlobalHydra.instance().clear()
        try:
            status = run_command(train.main, log_folder=lambda: tmp_path)
        except SystemExit as end:  # hydra leaves by itself
            status = int(end.code or 0)
        return status, capfd.readouterr().err, list(begun)

    return called


MISTAKES = [
    # what is typed, and what the sentence must hold
    (["rl.max_step=3"], "rl.max_steps"),
    (["max_steps=3"], "rl.max_steps"),
    (["rl.optimiser.learning_rate=1"], "rl.optimizer"),
    (["rewards.accuracy.wieght=2"], "rewards.accuracy.weight"),
    (["rewards.acuracy.weight=2"], "rewards.acuracy.function"),
    (["recipe=quickstrt"], "the nearest is quickstart"),
    (["recipe="], "recipe"),
    (["recipe=null"], "recipe"),
    (["algorithm=gpro"], "grpo"),
    (["algorthm=grpo"], "algorithm"),
    (["machine=laptop"], "+machine="),
    (["+machine=labtop"], "laptop"),
    (["+recipe=quickstart"], "recipe"),
    (["recipe=quickstart", "+recipe=rl_grounding"], "recipe"),
    (["+rl.max_steps=3"], "without the plus"),
    (["~foo"], "~foo"),
    (["~rl.max_step"], "rl.max_step"),
    (["rl.max_steps"], "rl.max_steps=VALUE"),
    (["rl.max_steps", "=", "3"], "without blanks"),
    (["=3"], "=3"),
    (["rl.max_steps=many"], "a whole number"),
    (["rl.max_steps=3.5"], "a whole number"),
    (["rl.max_steps=null"], "rl.max_steps=null"),
    (["logging.progress=perhaps"], "true or false"),
    (["rl=3"], "rl=3"),
    (["eval.tasks=evisrag/chartqa"], "a list such as"),
    (["prompt.system=a=b"], "'prompt.system=\"a=b\"'"),
    (["prompt.system={a}"], "'prompt.system=\"{a}\"'"),
    (["prompt.system=a,b"], "'prompt.system=\"a,b\"'"),
    (["prompt.system=[a"], "not balanced"),
    (["sft.phases=[{name:", "a}]"], "not balanced"),
    (["prompt.system='a"], "prompt.system"),
    (["prompt.system=(a)(b)"], "prompt.system"),
    (["prompt.system=a:b=c"], "prompt.system"),
    (["name=${foo}"], "${…}"),
    (["name=${name}"], "name"),
    (["name=${"], "name"),
    (["name=${oc.env:NO_SUCH_VARIABLE}"], "NO_SUCH_VARIABLE"),
    (["name=${nosuch:1}"], "name"),
    (["name=a/b"], "run_dir"),
    (["run_dir=~/runs"], "$HOME"),
    (["run_dir=s3://bucket/run"], "s3://bucket/run is an address"),
    (["data.media_cache=file:///tmp/media"], "data.media_cache=file:///tmp/media is an address"),
    (["model.vision_cache.folder=gs://bucket/features", "model.freeze_vision=true"], "model.vision_cache.folder=gs://"),
    (["run_dir=\udcff"], "run_dir"),
    (["rl.optimizer.learning_rate=nan"], "rl.optimizer.learning_rate=nan"),
    (["sft.phases=[{name: a, optimizer: {beta1: 2}}]"], "sft.phases[0].optimizer.beta1"),
    (["rewards.accuracy.scope.start=<thinking>"], "rewards.accuracy.scope"),
    (["--config-name", "nosuch"], "nosuch"),
    (["--config-dir", "/no/such/folder"], "/no/such/folder"),
    (["--config-path", "/no/such/folder"], "/no/such/folder"),
    (["--nosuch"], "--nosuch"),
    (["--cfg", "jobs"], "jobs"),
    (["--cfg", "job", "--multirun"], "--multirun"),
    (["--resolve"], "--resolve"),
    (["--cfg", "job", "rl.max_step=3"], "rl.max_steps"),
    (["--cfg", "job", "-p", "nosuch"], "nosuch"),
    (["--info", "defaults", "recipe=nosuch"], "nosuch"),
    (["hydra/launcher=nosuch"], "nosuch"),
    (["hydra.nosuch=1"], "hydra.nosuch"),
    (["hydra.run.dir=/proc/nosuch"], "/proc/nosuch"),
    (["rl.max_steps=1", "rl.max_steps=two"], "rl.max_steps=two"),
    (["="], "without a name"),
    (["rl..max_steps=3"], "'rl..max_steps' is no key"),
    ([".rl=3"], "'.rl' is no key"),
    (["näme=3"], "'näme' is no key"),
    (["eval.tasks=[null]"], "eval.tasks[0]=None does not fit"),
    (["--experimental-rerun", "config.pickle"], "--experimental-rerun"),
    (["--config-name", "recipe/quickstart", "seed=1"], "`# @package _global_`"),
    (["--multirun", "seed=range(0)"], "seed=range(0) sweeps over nothing"),
    (["--multirun", "seed=1,2"], "2 runs of --multirun share run_dir="),
    (["--config-dir", ".", "rl.max_step=3"], "rl.max_steps"),
    (["seed=1", "--cfg", "job", "rl.max_step=3"], "rl.max_steps"),
    (["a" * 5000], "aaaa"),
    (["prompt.system=" + "=" * 5000], "prompt.system"),
    (["run_dir=“runs/a”"], "the curly quote “"),
    (["prompt.system=’Say so’"], "the curly quote ’"),
    (["eval.tasks=[“evisrag/chartqa”]"], "the curly quote “"),
    (["“run_dir=runs/a”"], "the curly quote “"),
]


@pytest.mark.parametrize(("arguments", "named"), MISTAKES, ids=[" ".join(one)[:40] for one, _ in MISTAKES])
def test_a_mistake_on_the_command_line_gets_one_sentence(call: Any, arguments: list[str], named: str) -> None:
    status, told, begun = call(*arguments)
    assert (status in (1, 2), begun) == (True, [])
    assert is_one_sentence(told)
    assert "internal error" not in told
    assert named in told


YAML_FILES = {
    "broken": ("a: [1\nb: 2\n", "line 2"),
    "tabs": ("rl:\n\tmax_steps: 3\n", "line 2"),
    "unknown": ("# @package _global_\nrl: {max_step: 3}\n", "rl.max_step"),
    "number": ("3\n", "number"),
    "doubled": ("# @package _global_\nrl: {max_steps: 1, max_steps: 2}\n", "max_steps"),
    "typed": ("# @package _global_\nrl: {max_steps: many}\n", "rl.max_steps=many"),
    "looped": ("defaults: [looped]\n", "looped"),
    "binary": ("\0\1\2", "binary"),
    "latin": ("# @package _global_\nname: caf\udce9\n", "latin.yaml is no UTF-8 text"),
    "unplaced": ("seed: 3\n", "`# @package _global_`"),
    "listed": ("# @package _global_\n- a\n", "the content does not fit"),
}


@pytest.mark.parametrize("title", list(YAML_FILES))
def test_a_users_settings_file_is_named_with_what_is_wrong(call: Any, tmp_path: Path, title: str) -> None:
    content, named = YAML_FILES[title]
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / f"{title}.yaml").write_bytes(content.encode(errors="surrogateescape"))
    status, told, begun = call("--config-dir", str(tmp_path), f"recipe={title}")
    assert (status, begun) == (1, [])
    assert is_one_sentence(told)
    assert "internal error" not in told
    assert named in told
    assert title in told


def test_overrides_count_wherever_they_stand(call: Any, tmp_path: Path) -> None:
    # Hydra itself refuses those behind an option when others stand in front of it.
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [quickstart, _self_]\nrl: {max_steps: 7}\n"
    )
    run_dir = f"run_dir={tmp_path / 'run'}"
    status, told, begun = call(run_dir, "recipe=mine", "--config-dir", str(tmp_path), "algorithm=grpo", "seed=5")
    assert (status, told) == (0, "")
    assert [(one.rl.max_steps, one.seed) for one in begun] == [(7, 5)]


def test_a_sweep_runs_in_folders_of_its_own(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # hydra notes the sweep in the current folder
    status, told, begun = call("--multirun", "seed=range(1,3)", f"run_dir={tmp_path}/${{name}}-${{seed}}")
    assert (status, told) == (0, "")
    assert [Path(one.run_dir).name for one in begun] == ["quickstart-1", "quickstart-2"]


def test_what_hydra_answers_itself_still_works(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["--cfg", "job"],
        ["--help"],
        ["--hydra-help"],
        ["--info", "defaults"],
        ["--cfg", "job", "--resolve"],
    ):
        status, told, begun = call(*arguments)
        assert (status, told, begun) == (0, "", [])
    assert list(tmp_path.iterdir()) == []  # the working directory and what is in it stay


def test_a_good_command_reaches_the_pipeline(call: Any, tmp_path: Path) -> None:
    status, _, begun = call(f"run_dir={tmp_path / 'run'}", "rl.max_steps=3", 'prompt.system="a=b, {c}"')
    assert status == 0
    assert [(one.rl.max_steps, one.prompt.system) for one in begun] == [(3, "a=b, {c}")]


@pytest.mark.parametrize("text", ["He said: “yes”", "“yes”, “no”", "l’été", "«a»"])
def test_curly_quotes_inside_straight_ones_are_meant(call: Any, tmp_path: Path, text: str) -> None:
    status, told, begun = call(f"run_dir={tmp_path / 'run'}", f'prompt.system="{text}"')
    assert (status, told, [one.prompt.system for one in begun]) == (0, "", [text])


@pytest.mark.parametrize(
    "text", ["a=b", "a,b", "{a}", "[a", "a: b", 'say "x"', "it's", "${x}", "a\\", "(x", "100%", "#1"]
)
def test_the_advice_how_to_quote_is_right(base: DictConfig, text: str) -> None:
    # what the shell leaves of the advice, hydra reads as the text that was meant
    import shlex

    (override,) = shlex.split(quoted_override("prompt.system", text))
    assert tried(base, [override]).prompt.system == text


MODULES: list[tuple[Any, list[str], str]] = [
    (rsgrpo.report.__main__, [], "run_folder"),
    (rsgrpo.report.__main__, ["/no/such"], "/no/such"),
    (rsgrpo.report.__main__, ["FILE"], "FILE"),
    (rsgrpo.rescore.__main__, [], "--benchmark"),
    (rsgrpo.rescore.__main__, ["--benchmark", "x", "--data", "x", "--predictions", "x", "--out", "x"], "x"),
    (
        rsgrpo.rescore.__main__,
        ["--benchmark", "evisrag/chartqa", "--data", "/no", "--predictions", "/no", "--out", "OUT"],
        "/no",
    ),
    (
        rsgrpo.rescore.__main__,
        ["--benchmark", "evisrag/chartqa", "--data", "FILE", "--predictions", "FILE", "--out", "OUT"],
        "FILE",
    ),
    (rsgrpo.generated.__main__, ["nosuch", "OUT"], "nosuch"),
    (rsgrpo.generated.__main__, ["choice", "FILE/x"], "FILE"),
    (rsgrpo.generated.__main__, ["choice", "OUT", "--train", "-1"], "--train"),
    (rsgrpo.generated.__main__, ["choice", "OUT", "--pages", "99"], "--pages"),
    (rsgrpo.generated.__main__, ["choice", "OUT", "--pixels", "x"], "--pixels"),
    (rewards.lab.__main__, [], "command"),
    (rewards.lab.__main__, ["replay", "/no/such"], "/no/such"),
    (rewards.lab.__main__, ["replay", "EMPTY"], "EMPTY"),
    (rewards.lab.__main__, ["lint", "nosuch:x"], "nosuch"),
    (rewards.lab.__main__, ["lint", "FILE:x"], "FILE"),
    (rewards.lab.__main__, ["lint", "x"], "x"),
    (rewards.lab.__main__, ["lint", "--config", "FILE"], "FILE"),
    (rewards.lab.__main__, ["lint", "rewards.format:format", "--json", "FILE/x"], "FILE"),
    (recipes.lmms_tasks, [], "--tasks"),
    (recipes.lmms_tasks, ["--tasks", "nosuch", "--data-root", "/no", "--out", "OUT"], "nosuch"),
    (recipes.lmms_tasks, ["--tasks", "evisrag/chartqa", "--data-root", "/no", "--out", "OUT"], "/no"),
    (
        recipes.lmms_tasks,
        ["--tasks", "evisrag/chartqa", "--data-root", "EMPTY", "--out", "OUT", "--max-samples", "-1"],
        "max_samples",
    ),
]


@pytest.mark.parametrize(
    ("module", "arguments", "named"), MODULES, ids=[f"{one.__name__} {' '.join(rest)[:30]}" for one, rest, _ in MODULES]
)
def test_the_other_commands_keep_the_same_manners(
    module: Any, arguments: list[str], named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"EMPTY": tmp_path / "empty", "FILE": tmp_path / "file", "OUT": tmp_path / "out"}
    places["EMPTY"].mkdir()
    places["FILE"].write_bytes(b"\x89PNG\0\xff")

    def placed(text: str) -> str:
        return re.sub("EMPTY|FILE|OUT", lambda found: str(places[found[0]]), text)

    status = module.main([placed(one) for one in arguments])
    told = capfd.readouterr().err
    assert status in (1, 2)
    assert is_one_sentence(told)
    assert "internal error" not in told
    assert placed(named) in told


ENVIRONMENTS: list[tuple[dict[str, str], str]] = [
    ({"TMPDIR": "/no/such/folder"}, "TMPDIR=/no/such/folder"),
    ({"TMPDIR": "relative"}, "TMPDIR=relative"),
    ({"TMPDIR": "/proc", "RAY_TMPDIR": ""}, "TMPDIR=/proc"),
    ({"RAY_TMPDIR": "/no/such/folder"}, "RAY_TMPDIR=/no/such/folder"),
]
HARMLESS: list[dict[str, str]] = [
    {"RAY_ADDRESS": "10.255.255.1:6379"},
    {"HYDRA_FULL_ERROR": "1"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "nosuch"},
    {"OMP_NUM_THREADS": "many"},
    {"HOME": "/no/such/home"},
]


@pytest.mark.parametrize(("environment", "named"), ENVIRONMENTS, ids=str)
def test_an_environment_that_cannot_work_is_refused_at_once(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], named: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status, told, begun = call(f"run_dir={tmp_path / 'run'}")
    assert (status, begun) == (1, [])
    assert is_one_sentence(told)
    assert named in told


def test_a_long_temporary_folder_gives_way_to_a_short_one(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 107 bytes for a socket's path, of which Ray's session takes 75: TMPDIR may have 31
    long = tmp_path / ("t" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setenv("RAY_TMPDIR", "")
    status, told, begun = call(f"run_dir={tmp_path / 'run'}")
    assert (status, len(begun)) == (0, 1)
    assert is_one_sentence(told)
    assert str(long) in told
    assert len(os.environ["TMPDIR"]) <= 31
    assert Path(os.environ["TMPDIR"]).is_dir()


def process(*arguments: str, environment: dict[str, str] | None = None, stdin: Any = None) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        errors="replace",
        stdin=stdin,
        timeout=300,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["rl.max_step=3"], "rl.max_steps"),
        (["recipe=quickstrt", "--cfg", "job"], "quickstart"),
        (["stage=rl", "data.rl_path=/no/such.jsonl", "data.test_path=/no/such.jsonl"], "/no/such.jsonl"),
        (["run_dir=/dev/null/x"], "/dev/null/x"),
        (["cluster.address=127.0.0.1:1"], "127.0.0.1:1"),
    ],
)
def test_a_process_of_its_own_says_the_same(arguments: list[str], named: str, tmp_path: Path) -> None:
    status, printed, told = process(f"run_dir={tmp_path / 'run'}", *arguments)
    assert (status, printed) == (1, "")
    assert is_one_sentence(told)
    assert named in told


@pytest.mark.parametrize("environment", HARMLESS, ids=str)
def test_a_strange_environment_changes_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    # the last of the first checks, which the environment must let the command reach
    (tmp_path / "run").write_text("a file")
    status, _, told = process(f"run_dir={tmp_path / 'run'}", environment=environment)
    assert status == 1
    assert is_one_sentence(told.splitlines()[-1])
    assert f"{tmp_path}/run" in told
    assert "Traceback" not in told


def test_the_engines_are_not_imported_for_the_first_checks(tmp_path: Path) -> None:
    heavy = ("torch", "ray", "vllm", "transformers")
    code = f"import sys, recipes.first_checks, train; print([one for one in {heavy} if one in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert ended.stdout.strip() == "[]"


def test_what_nobody_foresaw_is_kept_in_a_file_that_the_sentence_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("of our own making")

    assert run_command(broken, log_folder=lambda: tmp_path) == 1
    told = capfd.readouterr().err
    assert is_one_sentence(told)
    assert f"{tmp_path}/error.log" in told
    assert "ZeroDivisionError: of our own making" in told
    assert 'raise ZeroDivisionError("of our own making")' in (tmp_path / "error.log").read_text()
    monkeypatch.setenv("RSGRPO_TRACEBACK", "1")
    assert run_command(broken, log_folder=lambda: tmp_path) == 1
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("number", [28, 13, 24, 36, 30, 2, 12, 5, 999])
def test_what_the_system_refuses_is_named(number: int) -> None:
    failure = explain(OSError(number, os.strerror(number), "/data/x.jsonl"))
    assert failure.is_foreseen
    assert "/data/x.jsonl" in failure.sentence
    assert len(failure.sentence) <= MAX_SENTENCE


def test_a_composition_and_a_file_are_checked_alike(base: DictConfig) -> None:
    assert load_config(base) == tried(base, [])


def test_a_message_of_several_lines_keeps_them_apart_in_one() -> None:
    listed = RsgrpoError(
        "a.parquet: 3 items cannot be used:\n  row 0: no image\n  row 1: no image\n  … and 1 more\nmend them"
    )
    assert explain(listed).sentence == (
        "a.parquet: 3 items cannot be used: row 0: no image; row 1: no image; … and 1 more; mend them"
    )
