"""The command line as a user gets it wrong: exit status 0, or one sentence that names the item; never a traceback.

All calls run in this process, up to where a run would need a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.command_line import is_one_sentence

MISTAKES = [
    # what is typed, and what the sentence must hold
    (["rl.max_step=3"], "rl.max_steps"),
    (["max_steps=3"], "rl.max_steps"),
    (["rl.optimiser.learning_rate=1"], "rl.optimizer"),
    (["rewards.accuracy.wieght=2"], "rewards.accuracy.weight"),
    (["rewards.acuracy.weight=2"], "rewards.acuracy.function"),
    (["recipe=quickstrt"], "the nearest are quickstart and quickstart_ledger"),
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
    (
        ["rewards.accuracy.scope={start: <think>, stop: end}"],
        "'rewards.accuracy.scope={start: \"<think>\", stop: end}'",
    ),
    (["rewards.accuracy.kwargs={a: b=c}"], 'such as {key: "a = b"}'),
    (["rewards.accuracy.scope={section: answer}"], '{section: think, start: "", stop: ""}'),
    (["prompt.system={a=b}"], "'prompt.system=\"{a=b}\"'"),
    (["recipe=mine/pages.yaml"], "recipe=mine/pages.yaml names a file"),
    (["algorithm=mine.yaml"], "--config-dir"),
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
    (["--config-name", "recipe/rl_grounding", "seed=1"], "`# @package _global_`"),
    (["--config-name", "recipe/quickstart", "seed=1"], "recipe=NAME, not by --config-name"),
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


@pytest.mark.parametrize(("arguments", "named"), MISTAKES, ids=[" ".join(arguments)[:40] for arguments, _ in MISTAKES])
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
    assert [(config.rl.max_steps, config.seed) for config in begun] == [(7, 5)]


def test_a_sweep_runs_in_folders_of_its_own(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # hydra notes the sweep in the current folder
    status, told, begun = call("--multirun", "seed=range(1,3)", f"run_dir={tmp_path}/${{name}}-${{seed}}")
    assert (status, told) == (0, "")
    assert [Path(config.run_dir).name for config in begun] == ["quickstart-1", "quickstart-2"]


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
    assert [(config.rl.max_steps, config.prompt.system) for config in begun] == [(3, "a=b, {c}")]


@pytest.mark.parametrize("text", ["He said: “yes”", "“yes”, “no”", "l’été", "«a»"])
def test_curly_quotes_inside_straight_ones_are_meant(call: Any, tmp_path: Path, text: str) -> None:
    status, told, begun = call(f"run_dir={tmp_path / 'run'}", f'prompt.system="{text}"')
    assert (status, told, [config.prompt.system for config in begun]) == (0, "", [text])
