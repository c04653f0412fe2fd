"""What hydra composes becomes checked settings; what does not fit is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException, MissingConfigException

from rsgrpo.config import EVISRAG, ConfigError
from rsgrpo.config.refusals import settings_sentence
from tests.unit.composition import ALGORITHMS, RECIPES, composed

REWARD = "rewards.short={function: 'my_rewards.py:short_thinking', scope: {section: think}, weight: 0.5}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes(recipe: str) -> None:
    config = composed(f"recipe={recipe}")
    assert config.name == recipe
    # what was measured on the quickstart says so (docs/choosing_scopes.md); published models are trained as published
    assert config.rl.algorithm == ("causal_rs_grpo" if recipe in ("quickstart", "quickstart_ledger") else "rs_grpo")


@pytest.mark.parametrize("base", ["quickstart", "evisrag_3b"])
def test_a_recipe_of_ones_own_chooses_its_algorithm_and_the_command_line_another(base: str, tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    header = f"# @package _global_\ndefaults: [{base}, override /algorithm: dr_grpo, _self_]\n"
    # the algorithm's values hold against the recipe's
    (tmp_path / "recipe" / "mine.yaml").write_text(header + "name: mine\nrl: {credit: {scale: group_std}}\n")
    where = f"hydra.searchpath=[file://{tmp_path}]"
    mine = composed(where, "recipe=mine").rl
    assert mine.credit == composed(f"recipe={base}", "algorithm=dr_grpo").rl.credit
    assert (mine.algorithm, mine.credit.scale) == ("dr_grpo", "none")
    other = composed(where, "recipe=mine", "algorithm=grpo").rl
    assert other.credit == composed(f"recipe={base}", "algorithm=grpo").rl.credit


@pytest.mark.parametrize("recipe", [name for name in RECIPES if not name.startswith(("sft_", "retriever_"))])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_composes_with_every_recipe(recipe: str, algorithm: str) -> None:
    config = composed(f"recipe={recipe}", f"algorithm={algorithm}")
    assert (config.name, config.rl.algorithm) == (recipe, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_recipe_and_algorithm_may_come_in_either_order(algorithm: str) -> None:
    overrides = ("recipe=evisrag_7b", f"algorithm={algorithm}")
    assert composed(*reversed(overrides)) == composed(*overrides)


def test_an_algorithm_overrules_the_recipe_and_the_command_line_overrules_both() -> None:
    # evisrag_7b clips at 0.28 with a dual clip of 3, GRPO at 0.2 without one; refills are the recipe's own matter
    config = composed("recipe=evisrag_7b", "algorithm=grpo")
    assert (config.rl.loss.clip_high, config.rl.loss.dual_clip, config.rl.credit.scoping) == (0.2, 0.0, "whole")
    assert composed("recipe=quickstart", "algorithm=grpo").rl.filter.max_refills == 0
    assert composed("recipe=evisrag_7b").rl.loss.clip_high == 0.28
    chosen = composed("rl.loss.clip_high=0.4", "rl.credit.aggregation=token_mean", "algorithm=grpo")
    assert (chosen.rl.loss.clip_high, chosen.rl.credit.aggregation) == (0.4, "token_mean")


def test_an_unknown_algorithm_is_refused_with_the_choices() -> None:
    with pytest.raises(MissingConfigException) as error:
        composed("algorithm=gpro")
    assert all(name in str(error.value) for name in ("algorithm/gpro", *ALGORITHMS))


def test_published_hyper_parameters() -> None:
    # benchmarks of the public recipe: 32 questions × 8 rollouts, lr 1e-6, clip 0.2/0.28, dual clip 3, SFT batch 64
    config = composed("recipe=evisrag_7b")
    rl, sft = config.rl, config.sft
    assert (rl.prompts_per_step, rl.samples_per_prompt) == (32, 8)
    assert (rl.optimizer.learning_rate, rl.optimizer.weight_decay) == (1e-6, 0.01)
    assert (rl.loss.clip_low, rl.loss.clip_high, rl.loss.dual_clip) == (0.2, 0.28, 3.0)
    assert (sft.optimizer.learning_rate, sft.optimizer.warmup_steps, sft.samples_per_step) == (5e-7, 200, 64)


@pytest.mark.parametrize(
    ("recipe", "phases"),
    [
        # name, rate, rate of the vision tower, warm-up, epochs, samples a step, longest conversation
        ("sft_mammoth_vl", [("si", 1e-5, 2e-6, 0.03, 1, 256, 8192), ("ov", 1e-5, 2e-6, 0.03, 1, 256, 16384)]),
        ("sft_mgrounding", [("tasks", 5e-6, 0, 0.015, 1, 48, 6000), ("free_form", 4e-6, 0, 0.05, 1, 48, 8192)]),
        ("sft_mirage", [("retrieve", 1e-5, 0, 0.03, 2, 32, 8192), ("answer", 1e-4, 0, 0.03, 1, 32, 8192)]),
    ],
)
def test_published_supervised_phases(recipe: str, phases: list[tuple[str, float, float, float, int, int, int]]) -> None:
    config = composed(f"recipe={recipe}")
    assert config.stage == "sft"
    assert [
        (
            phase.name,
            phase.optimizer.learning_rate,
            phase.optimizer.vision_learning_rate,
            phase.warmup_frac,
            phase.num_epochs,
            phase.samples_per_step,
            phase.max_tokens,
        )
        for phase in config.sft.phases
    ] == phases
    assert all(
        (phase.optimizer.schedule, phase.optimizer.weight_decay) == ("cosine", 0.0) for phase in config.sft.phases
    )
    longest = max(phase.max_tokens for phase in config.sft.phases)
    assert longest <= min(config.trainer.micro_batch_tokens, config.data.max_prompt_tokens)


def test_mirage_mixes_in_up_to_thirty_distractors_and_a_retrievers_mistakes() -> None:
    config = composed("recipe=sft_mirage")
    assert (config.model.lora.rank, config.model.lora.alpha) == (128, 256.0)
    retrieve, answer = (phase.mixture[0].distractors for phase in config.sft.phases)
    assert (retrieve.min_images, retrieve.max_images, retrieve.relevance, retrieve.noise_chance) == (0, 30, "named", 0)
    assert (answer.max_images, answer.relevance) == (30, "filter")
    assert (answer.noise_chance, answer.noise_max_frac) == (0.1, 0.15)


@pytest.mark.parametrize("plus", ["", "+"])
def test_a_reward_is_added_on_the_command_line(plus: str) -> None:
    config = composed(plus + REWARD)
    added = config.rewards["short"]
    assert (added.function, added.scope.section, added.weight) == ("my_rewards.py:short_thinking", "think", 0.5)
    assert config.rewards["accuracy"].weight == 3.0


def test_a_rewards_unwritten_settings_need_no_plus() -> None:
    assert composed("rewards.accuracy.on_missing=whole").rewards["accuracy"].on_missing == "whole"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("+foo=1", "foo"),
        ("+rl.foo=1", "rl.foo"),
        ("rl.samples_per_prompt=1", "rl.samples_per_prompt=1"),
        ("rollout.sampling.top_p=0.9", "rollout.sampling.top_p=0.9"),
        ("rollout.sampling.temperature=0", "rollout.sampling.temperature=0"),
        ("rewards.accuracy.wieght=2", "rewards.accuracy.wieght"),
        ("rewards.accuracy.weight=much", "rewards.accuracy.weight"),
        ("rewards.acuracy.weight=2", "rewards.acuracy.function"),
        ("rewards.accuracy.scope={section: thought}", "thought"),
        ("rewards.accuracy.scope={start: '<thought>', stop: end}", "rewards.accuracy.scope.start='thought' is not"),
        ("rewards.accuracy.scope={start: think, stop: end}", "start='think' is no edge"),
        ("response.sections=[{name: answer}]", "rewards.accuracy.scope.start='think' is not declared"),
        ("response.sections=[]", "response.sections is empty"),
        ("response.sections=[{name: ''}]", "response.sections[0].name='' is no name of a tag"),
        ("response.sections=[{name: 'a b'}]", "response.sections[0].name='a b' is no name"),
        ("response.sections=[{name: '<answer>'}]", "without < and >"),
        ("response.sections=[{name: image}]", "the marker <image> of data sets"),
        ("response.sections=[{name: a}, {name: b}, {name: a}]", "declares a more than once"),
        ("response.sections=[{name: a, order: -2}]", "response.sections[0].order=-2 is too small"),
        ("response.sections=[{required: false}]", "response.sections[0].name has no value"),
        (
            "response.sections=[{name: a, per_image_lines: true}, {name: b, per_image_lines: true}]",
            "per_image_lines: true on a, b",
        ),
        (
            "response.sections=[{name: plan}, {name: final}]",
            "response.answer_section='answer' is not declared; response.sections has plan, final: set",
        ),
        ("response.answer_section=Answer", "response.answer_section='Answer' is not declared"),
        (
            "response.sections=[{name: answer, repeatable: true}]",
            "response.answer_section='answer' has repeatable: true, so that it is open which",
        ),
        ("data.sft_sections=[thought]", "data.sft_sections='thought' is not declared"),
        ("sft.phases=[{name: a}, {name: a}]", "sft.phases"),
        ("sft.warmup_frac=1.5", "sft.warmup_frac=1.5"),
    ],
)
def test_wrong_settings_are_refused_by_name(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        composed(override)


def test_a_scope_on_what_is_not_declared_is_refused_with_what_is() -> None:
    # the other recipes' scopes, without their sections
    with pytest.raises(ConfigError) as error:
        composed("recipe=rl_haystack", "response.sections=[{name: plan}, {name: answer}]")
    assert str(error.value) == (
        "rewards.needle.scope.evidence_line=true needs a section with one line per image; response.sections has plan, "
        "answer: set per_image_lines: true on one of them"
    )
    with pytest.raises(ConfigError) as error:
        composed("recipe=rl_haystack", "rewards.yes_no.scope={section: final}")
    assert str(error.value) == (
        "rewards.yes_no.scope.section='final' is not declared; response.sections has observe, evidence, think, answer"
    )


def test_the_default_sections_are_evisrags_and_an_order_defaults_to_the_place() -> None:
    assert composed().response.format == EVISRAG
    assert composed().trajectory_sections == EVISRAG.names
    config = composed(
        "recipe=rl_grounding",
        "response.sections=[{name: a}, {name: b, required: false, order: 5}, {name: c}]",
        "response.answer_section=c",
    )
    assert config.response.format.answer_section == "c"
    assert [(rule.name, rule.order) for rule in config.response.format.sections] == [("a", 0), ("b", 5), ("c", 2)]
    assert config.trajectory_sections == ("a", "c")
    assert composed("data.sft_sections=[]").trajectory_sections == ()


def test_what_a_setting_takes_that_may_be_null_is_said() -> None:
    with pytest.raises(ConfigCompositionException) as error:
        composed("data.sft_sections=3")
    assert "must be a list such as [a, b]" in settings_sentence(error.value)


def test_a_frozen_vision_tower_has_no_rate() -> None:
    with pytest.raises(ConfigError, match=r"set model\.freeze_vision=false"):
        composed("recipe=sft_mammoth_vl", "model.freeze_vision=true")


@pytest.mark.parametrize("override", ["rl.foo=1", "foo=1", "recipe=nosuch", "rl.max_steps=many"])
def test_hydra_refuses_what_the_schema_lacks(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        composed(override)
