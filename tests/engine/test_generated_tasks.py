"""Grounding, haystacks and multiple choice are data, prompt and rewards: a real step of each, on one set of engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoProcessor, Qwen2Tokenizer

from recipes.evaluation.evaluate import validate
from recipes.rs_grpo import RsGrpo, RsGrpoState
from recipes.setup.preparation import prepare
from rewards.boxes import find_boxes
from rollout.pool import RolloutPool
from rsgrpo.config import Config, QuickstartConfig, load_config, register_schema
from rsgrpo.data.evisrag_files import load_samples
from rsgrpo.data.synthetic.tasks import write_task
from rsgrpo.model.quickstart_model import build_quickstart_model
from rsgrpo.prompts.template import PromptBuilder
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress
from rsgrpo.trainer.policy import Policy
from rsgrpo.types import CreditedGroup, CreditedRollout, Sample
from tests.engine.local_ray import local_ray
from tests.engine.taught_model import teach

pytestmark = pytest.mark.engine

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = {"rl_grounding": "grounding", "rl_haystack": "haystack", "rl_multiple_choice": "choice"}
SMALL = (
    "model.dtype=float32",
    "model.gradient_checkpointing=false",
    "data.min_pixels=784",
    "trainer={num_ranks: 1, zero_stage: 2, micro_batch_tokens: 8192}",
    "rl.optimizer.learning_rate=1e-3",
    "rl.prompts_per_step=4",
    "rl.samples_per_prompt=4",
    "rl.filter.max_refills=0",
    "rollout={num_workers: 1, max_model_tokens: 512, max_num_sequences: 16, max_batched_tokens: 2048,"
    " enforce_eager: true, num_threads: 1, kv_cache_gib: 0.25}",
    "rollout.sampling.max_response_tokens=96",
    "logging.progress=false",
)
QUARTERS = ("(80,80),(450,450)", "(580,80),(950,450)", "(80,580),(450,950)", "(580,580),(950,950)")


def _config(recipe: str, *overrides: str) -> Config:
    GlobalHydra.instance().clear()
    register_schema()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return load_config(compose("config", overrides=[f"recipe={recipe}", *SMALL, *overrides]))


def _samples(config: Config) -> tuple[Sample, ...]:
    return load_samples(config.data.rl_path, config.data, is_training=True).samples


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """Each recipe on its own data, all with one model that knows how responses look."""
    root = tmp_path_factory.mktemp("tasks")
    for task in RECIPES.values():
        write_task(task, root / task, num_train=16, num_test=1, num_images=2, image_pixels=56, seed=0)
    configs = {
        recipe: _config(
            recipe,
            f"data.rl_path={root / task / 'train.jsonl'}",
            f"data.test_path={root / task / 'test.jsonl'}",
            f"model.path={root / 'model'}",
            f"run_dir={root / recipe}",
        )
        for recipe, task in RECIPES.items()
    }
    samples = {name: _samples(config) for name, config in configs.items()}
    corpus = [f"{Path(config.prompt.path).read_text()} {sample.question} {sample.gold_response}"
              for name, config in configs.items() for sample in samples[name]]  # fmt: skip
    size = QuickstartConfig(text_hidden=128, text_layers=2, vision_hidden=64, vision_heads=2, vocabulary_tokens=640)
    build_quickstart_model(size, root / "model", 0, corpus)
    processor = AutoProcessor.from_pretrained(root / "model")
    texts = []
    for name, config in configs.items():
        builder = PromptBuilder(config.prompt, processor)
        for number, sample in enumerate(samples[name]):
            # siblings must differ to earn credit: a box on each quarter of the page in turn, and each letter
            response = sample.gold_response
            if name == "rl_grounding":
                response = f"It is in the first image. {QUARTERS[number % 4]}"
            if name == "rl_multiple_choice":
                response = response.replace(f"<answer>{sample.answers[0]}", f"<answer>{'ABCD'[number % 4]}")
            texts.append((builder.build(sample).text, f"{response}<|im_end|>"))
    teach(root / "model", texts)
    return configs


@pytest.fixture(scope="module")
def engines(configs: dict[str, Config]) -> Iterator[tuple[Policy, RolloutPool]]:
    config = configs["rl_grounding"]
    with local_ray():
        pool = RolloutPool(config, Path(config.model.path), device="cpu", num_threads=1)
        policy = Policy.start(config, Path(config.model.path), device="cpu", num_threads=1)
        yield policy, pool
        pool.close()
        policy.close()


def _step(config: Config, engines: tuple[Policy, RolloutPool]) -> tuple[list[CreditedGroup], dict[str, float]]:
    """What the pipeline does for one step of a recipe, without its evaluations; the weights must change."""
    policy, pool = engines
    prepared = prepare(config, RunFolder(root=Path(config.run_dir)), Progress(False))
    policy.begin_stage(config.rl.optimizer, 1)
    pool.update_weights(policy.weights(trainable_only=False))
    training = RsGrpo(
        config=config, policy=policy, engine=pool, scorer=prepared.scorer, prompts=prepared.rl, state=RsGrpoState()
    )
    before = policy.weights().version.checksum
    report = training.train_step()
    assert policy.weights().version.checksum != before
    assert pool.policy_version == policy.version
    assert report.metrics["policy/grad_norm"] > 0.0
    assert report.metrics["engine/logprob_gap_max"] < 1e-3
    assert not report.metrics["policy/is_skipped"]
    held_out = validate(pool, prepared.test, config, prepared.scorer).numbers()
    assert held_out["num_responses"] == 1.0
    assert f"reward/{next(iter(config.rewards))}" in held_out
    return list(report.credited), dict(report.metrics)


def _scope_texts(tokenizer: Qwen2Tokenizer, credited: CreditedRollout, name: str, image_index: int = -1) -> list[str]:
    """What the sampled ids of a scope say, span by span."""
    rollout = credited.rollout
    (reward,) = (reward for reward in credited.rewards if reward.key == (name, image_index))
    return [tokenizer.decode(rollout.token_ids[span.start : span.stop]) for span in reward.spans]


def _rollouts(groups: list[CreditedGroup]) -> list[CreditedRollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def _tokenizer(config: Config) -> Qwen2Tokenizer:
    return AutoProcessor.from_pretrained(config.model.path).tokenizer


def test_grounding_credits_the_tokens_of_boxes(configs, engines):
    # iou alone: no token outside of a box may then receive anything
    config = configs["rl_grounding"]
    config = dataclasses.replace(config, rewards={"iou": config.rewards["iou"]})
    groups, metrics = _step(config, engines)
    tokenizer = _tokenizer(config)
    assert 0.0 < metrics["reward/iou/mean"] < 1.0
    num_boxes = 0
    for credited in _rollouts(groups):
        rollout = credited.rollout
        boxes = find_boxes(rollout.text)
        texts = _scope_texts(tokenizer, credited, "iou")
        num_boxes += len(boxes)
        for box, text in zip(boxes, texts, strict=True):
            # merged tokens: a bracket may stand behind a blank in a token that is not the box's, and the last
            # token may go on behind the box
            written = rollout.text[box.start : box.stop]
            assert text.startswith(written) or text.startswith(written[1:])
        touched = np.flatnonzero(credited.positive_weights + credited.negative_weights)
        inside = [
            index for reward in credited.rewards for span in reward.spans for index in range(span.start, span.stop)
        ]
        assert set(touched.tolist()) <= set(inside)
    assert num_boxes > 0
    assert any((credited.positive_weights > 0).any() for credited in _rollouts(groups))


def test_haystack_credits_each_images_own_line_and_the_answer(configs, engines):
    config = configs["rl_haystack"]
    groups, metrics = _step(config, engines)
    tokenizer = _tokenizer(config)
    assert 0.0 < metrics["reward/needle/mean"] < 1.0
    num_lines = 0
    for group in groups:
        needle = group.sample.positive_images[0]
        for credited in group.rollouts:
            for image_index in range(2):
                (reward,) = (reward for reward in credited.rewards if reward.key == ("needle", image_index))
                for text in _scope_texts(tokenizer, credited, "needle", image_index):
                    if not reward.scope_found:  # a line that is left out scores 0 and is blamed at the closing tag
                        assert reward.value == 0.0
                        assert "evidence>" in text
                        continue
                    # the label's bracket may be merged with what stands in front of it
                    assert text.startswith((f"[{image_index + 1}]:", f"{image_index + 1}]:"))
                    says_nothing = "no relevant information" in text
                    assert not (reward.value == 1.0 and says_nothing == (image_index == needle))
                    num_lines += 1
    assert num_lines > 0


def test_multiple_choice_credits_thinking_and_answer(configs, engines):
    config = configs["rl_multiple_choice"]
    groups, metrics = _step(config, engines)
    tokenizer = _tokenizer(config)
    assert 0.0 < metrics["reward/choice/mean"] < 1.0
    for credited in _rollouts(groups):
        values = {reward.name: reward.value for reward in credited.rewards}
        if values["choice"] == 1.0:
            (text,) = _scope_texts(tokenizer, credited, "choice")
            assert "</think><answer>" in text
