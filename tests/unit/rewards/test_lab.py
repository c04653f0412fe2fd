"""The reward lab: replayed credit equals the recorded one, and tricks are found out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from rewards.base import RewardError
from rewards.lab.__main__ import main
from rewards.lab.cases import TRICKS, cases_of
from rewards.lab.lint import lint
from rewards.lab.replay import ReplayError, replay
from rewards.lab.settings import changed_settings, run_settings, yaml_rewards
from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.config import (
    Config,
    ConfigError,
    DataConfig,
    ResponseFormat,
    RewardConfig,
    ScopeConfig,
    SectionRule,
    resolved_yaml,
)
from rsgrpo.data.images.image_view import ImageView, write_view
from rsgrpo.run.recorder import read_groups, record_groups
from rsgrpo.text.sections import parse_response
from rsgrpo.types import Box, ImageRef, Sample
from tests.unit.report_run import make_sample, response, sampled_group

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
REWARDS = {
    "accuracy": RewardConfig(
        function="rewards.functions.accuracy:accuracy", scope=ScopeConfig(start="<think>", stop="end"), weight=3.0
    ),
    "lines": RewardConfig(
        function="rewards.functions.evidence:evidence_per_image", scope=ScopeConfig(evidence_line=True)
    ),
    "format": RewardConfig(function="rewards.functions.format:format", scope=ScopeConfig(start="begin", stop="end")),
}
IMAGES = (ImageRef(path="a.png"), ImageRef(path="b.png"))
PLUGIN = """
def opposite(call):
    return -float(call.parsed.content("answer") == call.sample.answers[0])

def same(call):
    return 0.5

def first_token(call):
    return float(call.token_ids[0])
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two steps: in each, one question with a right and a wrong answer, and one with two right ones."""
    config = Config(name="made", stage="rl", rewards=REWARDS)
    (tmp_path / "config.yaml").write_text(resolved_yaml(config))
    (tmp_path / "mine.py").write_text(PLUGIN)
    right, wrong = response("7", well_read=True), response("4", well_read=True)
    for step in (1, 2):
        groups = [
            sampled_group(make_sample("mixed", IMAGES), [right, wrong]),
            sampled_group(make_sample("solved", IMAGES), [right, right]),
        ]
        scored = Scorer(load_rewards(REWARDS, tmp_path)).score(groups)
        weights = {name: reward.weight for name, reward in REWARDS.items()}
        record_groups(tmp_path / "rollouts.jsonl", "rl", step, credit_groups(scored, weights, config.rl.credit))
    return tmp_path


def test_replaying_the_same_settings_changes_nothing(run: Path) -> None:
    result = replay(run, run_settings(run), changed_settings(run, None, []))
    assert [(group.step, group.sample_id, group.is_changed) for group in result.groups] == [
        (1, "mixed", False), (1, "solved", False), (2, "mixed", False), (2, "solved", False),
    ]  # fmt: skip
    assert [reward.name for reward in result.rewards] == list(REWARDS)
    assert all(reward.num_changed == 0 and reward.mean_before == reward.mean_after for reward in result.rewards)
    assert result.rewards[0].mean_before == 0.75  # three right answers of four


def test_an_opposite_reward_changes_the_sign_of_every_advantage(run: Path) -> None:
    after = changed_settings(run, None, [f"rewards.accuracy.function={run}/mine.py:opposite", "~rewards.lines"])
    result = replay(run, run_settings(run), after)
    mixed, solved = result.groups[:2]
    # values 1, 0 become -1, 0; A = +-.7071 (unbiased std) changes its sign in both responses
    flips = [value.is_flip for rollout in mixed.rollouts for value in rollout.values if value.name == "accuracy"]
    assert flips == [True, True]
    # before: (3 * .7071 + 1 * .7071 of line [2]) / 5; after: 3 * -.7071 / 4
    assert mixed.rollouts[0].total_before == pytest.approx(4 * 0.70711 / 5, abs=1e-4)
    assert mixed.rollouts[0].total_after == pytest.approx(-3 * 0.70711 / 4, abs=1e-4)
    assert [rollout.is_flip for rollout in mixed.rollouts] == [True, True]
    assert not solved.had_credit
    assert not solved.has_credit
    by_name = {reward.name: reward for reward in result.rewards}
    assert (by_name["accuracy"].num_flips, by_name["accuracy"].num_gained, by_name["accuracy"].num_lost) == (4, 0, 0)
    assert (by_name["lines"].mean_after, by_name["lines"].num_lost) == (None, 2)


def test_pixel_rewards_are_replayed_at_the_size_that_the_run_saw(tmp_path: Path) -> None:
    Image.new("L", (2000, 1500)).save(tmp_path / "a.png")
    image = ImageRef(path="a.png", file=str(tmp_path / "a.png"))
    box = Box(left=0.1, top=0.2, right=0.6, bottom=0.8, image_index=0)
    sample = Sample(sample_id="s", question="Find it.", images=(image,), boxes=(box,))
    kwargs = {"convention": "pixels"}
    rewards = {
        "iou": RewardConfig(function="rewards.functions.grounding:iou", scope=ScopeConfig(pattern="box"), kwargs=kwargs)
    }
    data = DataConfig(max_pixels=1003520)
    config = Config(name="made", stage="rl", rewards=rewards, data=data)
    (tmp_path / "config.yaml").write_text(resolved_yaml(config))
    view = ImageView(min_pixels=data.min_pixels, max_pixels=data.max_pixels)
    # sqrt(1003520 / 3e6) = 0.5784: 1156 × 867, 41.3 and 31.0 tokens: 1148 × 868; 0.1 * 1148 = 114.8 and so on
    texts = ["[115, 174, 689, 694]", "[1, 1, 100, 100]"]
    scored = Scorer(load_rewards(rewards, tmp_path), view).score([sampled_group(sample, texts)])
    assert [rollout.rewards[0].value for rollout in scored[0].rollouts] == [pytest.approx(1.0), 0.0]
    record_groups(tmp_path / "rollouts.jsonl", "rl", 1, credit_groups(scored, {"iou": 1.0}, config.rl.credit))
    with pytest.raises(RewardError, match="not known here at which size"):
        replay(tmp_path, config, config)
    write_view(tmp_path / "image_view.json", view)
    assert not any(group.is_changed for group in replay(tmp_path, config, config).groups)


def test_tricks_are_played_on_pixel_rewards_too() -> None:
    config = RewardConfig(
        function="rewards.functions.grounding:iou", scope=ScopeConfig(pattern="box"), kwargs={"convention": "pixels"}
    )
    permille = dataclasses.replace(config, kwargs={})
    found, other = (lint("iou", load_rewards({"iou": reward}, Path.cwd())) for reward in (config, permille))
    assert found == other and found.honest > 0.9


def test_signal_gained_and_lost_is_counted(run: Path) -> None:
    flat = changed_settings(
        run, None, [f"rewards.accuracy.function={run}/mine.py:same", "~rewards.lines", "~rewards.format"]
    )
    assert [(group.had_credit, group.has_credit) for group in replay(run, run_settings(run), flat).groups] == [
        (True, False), (False, False),
    ] * 2  # fmt: skip
    # the other way round: a run that was trained with the flat reward would gain what it lost
    (run / "config.yaml").write_text(resolved_yaml(flat))
    file = run / "rollouts.jsonl"
    groups = [json.loads(line) for line in file.read_text().splitlines()]
    for group in groups:
        for rollout in group["rollouts"]:
            rollout["rewards"] = [reward | {"value": 0.5, "advantage": 0.0} for reward in rollout["rewards"][:1]]
            rollout["positive_weights"] = rollout["negative_weights"] = [0.0] * len(rollout["positive_weights"])
    file.write_text("".join(json.dumps(group) + "\n" for group in groups))
    back = changed_settings(run, None, ["rewards.accuracy.function=rewards.functions.accuracy:accuracy"])
    result = replay(run, run_settings(run), back)
    assert [(group.had_credit, group.has_credit) for group in result.groups] == [(False, True), (False, False)] * 2
    assert result.rewards[0].num_gained == 2


def test_only_weights_change_totals_but_no_values(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(run), "rewards.accuracy.weight=0", "--json", str(run / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "2 of 4 groups and 4 of 8 responses change; 0 responses are pushed the other way" in printed
    document = json.loads((run / "out.json").read_text())
    assert "  response 0: total +0.57 -> +0.35\n" in printed
    assert [reward["num_changed"] for reward in document["rewards"]] == [0, 0, 0]
    # (3 + 1) / 5 of .7071, then 1 / 2 of it
    assert document["groups"][0]["rollouts"][0]["total_after"] == pytest.approx(0.70711 / 2, abs=1e-4)


def test_a_new_reward_and_a_new_scope(run: Path) -> None:
    overrides = [
        "rewards.accuracy.scope={section: answer}",
        f"+rewards.token={{function: {run}/mine.py:first_token, scope: {{section: think}}, weight: 0.5}}",
    ]
    result = replay(run, run_settings(run), changed_settings(run, None, overrides))
    by_name = {reward.name: reward for reward in result.rewards}
    # the same values, on the answer section's tokens instead of all from <think> on
    assert (by_name["accuracy"].num_changed, by_name["accuracy"].num_moved, by_name["format"].num_moved) == (8, 8, 0)
    moved = result.groups[0].rollouts[0].values[0]
    assert (moved.name, moved.before, moved.after) == ("accuracy", 1.0, 1.0)
    assert moved.tokens_before > moved.tokens_after > 0
    assert (by_name["token"].mean_before, by_name["token"].mean_after) == (None, 0.0)  # the ids are recorded: 0, 1, …


def test_rewards_from_another_file_take_the_place_of_the_runs(run: Path) -> None:
    after = changed_settings(run, CONFIGS / "recipe" / "quickstart.yaml", ["rewards.overlong.weight=0"])
    assert list(after.rewards) == list(yaml_rewards(CONFIGS / "recipe" / "quickstart.yaml")[0])
    result = replay(run, run_settings(run), after)
    # lines is gone, evidence came: both stand in the comparison
    assert [reward.name for reward in result.rewards][:4] == ["accuracy", "lines", "format", "evidence"]


def test_sections_can_be_declared_anew(run: Path) -> None:
    after = changed_settings(run, None, ["response.sections.2.required=false", "response.answer_section=think"])
    assert after.response.format.answer_section == "think"
    assert [rule.required for rule in after.response.format.sections] == [True, True, False, True]
    # an evidence section that is not declared is text between the others, which no well-formed response has
    sections = "response.sections=[{name: observe, per_image_lines: true}, {name: think}, {name: answer}]"
    result = replay(run, run_settings(run), changed_settings(run, None, [sections, "~rewards.lines"]))
    by_name = {reward.name: reward for reward in result.rewards}
    assert (by_name["format"].mean_before, by_name["format"].mean_after) == (1.0, 0.0)
    assert by_name["accuracy"].num_changed == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.max_steps=3", r"is no setting that can be changed here; these can: rewards\.\*, rl\.credit\.\*, response"),
        ("response.sections=[{name: plan}]", "answer_section='answer' is not declared"),
        ("response.section=3", "response.section"),
        ("~response.sections", "no such reward"),
        ("rewards.nosuch.weight=3", "has no reward 'nosuch'"),
        ("~rewards.nosuch", "no such reward"),
        ("rewards.accuracy.weight", "has no value"),
        ("rewards.accuracy.weight=-1", "too small"),
        ("rewards.accuracy.wieght=1", "wieght"),
    ],
)
def test_bad_overrides_are_refused(run: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed_settings(run, None, [override])


def test_a_folder_without_a_run_is_refused(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "nowhere")]) == 2
    assert "name a run folder" in capsys.readouterr().err
    with pytest.raises(ReplayError, match="no groups of stage 'after_rl', only of rl"):
        replay(run, run_settings(run), run_settings(run), stage="after_rl")


def test_records_hold_what_rewards_may_ask_for(tmp_path: Path) -> None:
    sample = Sample(
        sample_id="q",
        question="?",
        images=IMAGES,
        answers=("B",),
        positive_images=(1,),
        choices=("a", "b"),
        boxes=(Box(left=0.1, top=0.2, right=0.3, bottom=0.4, image_index=1),),
        metadata={"kind": "made"},
    )
    config = RewardConfig(function="rewards.functions.format:format", scope=ScopeConfig(start="begin", stop="end"))
    scored = Scorer(load_rewards({"format": config}, tmp_path)).score([sampled_group(sample, ["x", "y"])])
    record_groups(tmp_path / "r.jsonl", "rl", 1, credit_groups(scored, {"format": 1.0}, Config(stage="eval").rl.credit))
    (read,) = read_groups(tmp_path / "r.jsonl")
    assert (read.positive_images, read.choices, read.boxes, read.metadata) == (
        sample.positive_images, sample.choices, sample.boxes, {"kind": "made"},
    )  # fmt: skip
    assert read.rollouts[0].token_ids == (0, 1)
    # a record of an earlier version
    old = json.loads((tmp_path / "r.jsonl").read_text())
    for name in ("positive_images", "choices", "boxes", "metadata"):
        del old[name]
    del old["rollouts"][0]["token_ids"]
    (tmp_path / "old.jsonl").write_text(json.dumps(old) + "\n")
    (read,) = read_groups(tmp_path / "old.jsonl")
    assert (read.choices, read.rollouts[0].token_ids) == ((), ())


# --- lint ---


def loaded(function: str, folder: Path, **kwargs: object):
    config = RewardConfig(function=function, scope=ScopeConfig(start="begin", stop="end"), kwargs=kwargs)
    return load_rewards({"reward": config}, folder)


@pytest.mark.parametrize(
    ("function", "kind", "paying"),
    [
        # set-F1 of words does not count them; overlong has to see to it
        ("rewards.functions.accuracy:accuracy", "pages", {"contents repeated"}),
        # the public accuracy deletes decimal points as well: 42.5 and 425 are the same to it
        ("rewards.functions.upstream:accuracy", "pages", {"contents repeated", "decimal points dropped"}),
        ("rewards.functions.evidence:evidence", "pages", set()),
        ("rewards.functions.evidence:evidence_per_image", "pages", set()),
        ("rewards.functions.grounding:iou", "grounding", set()),
        ("rewards.functions.haystack:yes_no", "haystack", {"contents repeated"}),
        ("rewards.functions.haystack:needle_lines", "haystack", set()),
        ("rewards.functions.haystack:needle_found", "haystack", set()),
        ("rewards.functions.multiple_choice:choice", "choice", set()),
    ],
)
def test_what_pays_on_our_own_rewards(function: str, kind: str, paying: set[str], tmp_path: Path) -> None:
    result = lint(function, loaded(function, tmp_path))
    assert result.kind == kind
    assert {trick.trick for trick in result.paying} == paying
    assert result.honest > 0.7


@pytest.mark.parametrize(
    "recipe",
    [
        "quickstart", "evisrag_7b", "rl_grounding", "rl_haystack", "rl_multiple_choice", "rl_plan_look", "rl_looks",
    ],
)  # fmt: skip
def test_no_trick_pays_on_the_rewards_of_a_recipe_together(recipe: str, tmp_path: Path) -> None:
    rewards, response_format = yaml_rewards(CONFIGS / "recipe" / f"{recipe}.yaml")
    assert lint(recipe, load_rewards(rewards, tmp_path, response_format), "", response_format).paying == ()


def test_a_constant_pays_for_everything_and_length_for_repetition(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "def constant(call):\n    return 1\n\n"
        "def length(call):\n    return len(call.text)\n\n"
        "def contains(call):\n    return float(any(one in call.text for one in call.sample.answers))\n\n"
        "async def later(call):\n    return 1.0 if 'Page' in (call.parsed.content('think') or '') else None\n\n"
        "def broken(call):\n    return 'good'\n"
    )
    everything = lint("constant", loaded("bad.py:constant", tmp_path))
    assert len(everything.paying) == len(everything.tricks)
    assert {trick.trick for trick in everything.tricks} <= set(TRICKS)
    paying = {trick.trick for trick in lint("length", loaded("bad.py:length", tmp_path)).paying}
    assert {"contents repeated", "response repeated", "tag spam"} <= paying
    assert "empty" not in paying
    # a substring finds the answer in a list of everything
    paying = {trick.trick for trick in lint("contains", loaded("bad.py:contains", tmp_path)).paying}
    assert "every option listed" in paying
    # None is no score: a trick to which the reward does not apply does not pay
    result = lint("later", loaded("bad.py:later", tmp_path))
    assert next(trick for trick in result.tricks if trick.trick == "empty").score is None
    with pytest.raises(Exception, match="returned 'good'"):
        lint("broken", loaded("bad.py:broken", tmp_path))


def test_exit_status_says_whether_a_trick_pays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "rewards.functions.multiple_choice:choice", "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())[0]["kind"] == "choice"
    assert main(["lint", "rewards.functions.accuracy:accuracy"]) == 1
    assert "contents repeated" in capsys.readouterr().out
    assert main(["lint", "--config", str(CONFIGS / "recipe" / "rl_grounding.yaml")]) == 0
    assert main(["lint", "rewards.functions.format:sections", "names=[think, answer]"]) == 1
    assert main(["lint"]) == 2
    assert main(["lint", "rewards.nosuch:reward"]) == 2
    assert main(["lint", "rewards.functions.grounding:iou", "--kind", "pages"]) == 2
    assert "no gold boxes" in capsys.readouterr().err


def test_every_case_has_an_honest_response_that_differs_from_its_tricks() -> None:
    for kind, cases in cases_of().items():
        assert len({case.sample.sample_id for case in cases}) == len(cases) >= 3
        for trick, write in TRICKS.items():
            # truncation and emptiness change every response; no trick is dead on all kinds
            texts = [write(case) for case in cases]
            assert all(isinstance(text, str) for text in texts), (kind, trick)
    assert all(
        any(write(case) != case.text for cases in cases_of().values() for case in cases) for write in TRICKS.values()
    )


def test_cases_are_written_in_the_declared_sections() -> None:
    looks = ResponseFormat(
        sections=(
            SectionRule(name="final", order=2),
            SectionRule(name="look", order=1, repeatable=True, per_image_lines=True),
            SectionRule(name="plan", order=0),
        ),
        answer_section="final",
    )
    for kind, cases in cases_of(looks).items():
        for case in cases:
            parsed = parse_response(case.text, looks)
            assert parsed.is_well_formed, kind
            # one look for each image, its line in it; the answer stands where the settings say
            assert len(parsed.all_of("look")) == len(case.sample.images) == len(parsed.evidence_lines)
            assert parsed.content("final") == case.sections["final"]
            assert parse_response(case.sample.gold_response, looks).is_well_formed
            assert parse_response(TRICKS["tag spam"](case), looks).all_of("look")
    assert [case.text for case in cases_of()["haystack"]] != [case.text for case in cases_of(looks)["haystack"]]


def test_lint_of_a_recipe_goes_by_its_sections(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--config", str(CONFIGS / "recipe" / "rl_looks.yaml")]) == 0
    assert "questions: haystack" in capsys.readouterr().out


def test_lint_takes_other_sections_and_rewards_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    sections = "response.sections=[{name: plan}, {name: final}]"
    choice = "rewards.functions.multiple_choice:choice"
    assert main(["lint", choice, sections, "response.answer_section=final"]) == 0
    assert main(["lint", choice, sections]) == 2
    assert "response.answer_section='answer' is not declared" in capsys.readouterr().err
    recipe = ["lint", "--config", str(CONFIGS / "recipe" / "rl_multiple_choice.yaml")]
    # no reward but one that pays for a form
    assert main([*recipe, "rewards.choice.weight=0.0"]) == 1
    assert main([*recipe, "~rewards.nosuch"]) == 2
    assert main(["lint", choice, "rewards.choice.weight=0.0"]) == 2
    assert "these can: response.*" in capsys.readouterr().err


def test_replay_begins_inside_of_what_the_prompt_opened(tmp_path: Path) -> None:
    sample = Sample(sample_id="q", question="?", images=IMAGES, answers=("3",))
    config = RewardConfig(function="rewards.functions.copying:think_copy", scope=ScopeConfig(section="think"))
    group = sampled_group(sample, ["3</think><answer>3</answer>", "x</think><answer>3</answer>"])
    group = dataclasses.replace(group, prompt=dataclasses.replace(group.prompt, opened_section="think"))
    scored = Scorer(load_rewards({"copy": config}, tmp_path)).score([group])
    settings = Config(stage="eval", rewards={"copy": config})
    credited = credit_groups(scored, {"copy": 1.0}, settings.rl.credit)
    record_groups(tmp_path / "rollouts.jsonl", "rl", 1, credited)
    assert read_groups(tmp_path / "rollouts.jsonl")[0].opened_section == "think"
    assert [rollout.rewards[0].value for rollout in credited[0].rollouts] == [-1.0, 0.0]
    assert not any(group.is_changed for group in replay(tmp_path, settings, settings).groups)
