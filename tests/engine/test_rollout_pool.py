"""Real vLLM engines behind the pool: log-probabilities, weight updates, dead workers."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from recipes.filtering.forward_judge import ForwardJudge
from rollout.engine import RolloutError
from rollout.pool import RolloutPool
from rsgrpo.config import Config, DataConfig, LoraConfig, ModelConfig, RolloutConfig, SamplingConfig, VisionCacheConfig
from rsgrpo.model.folder import load_processor
from rsgrpo.model.lora import adapter_layers, adapter_parameters, exported_parameters, of_trained_layers
from rsgrpo.model.policy_model import load_model
from rsgrpo.model.suppressed_tokens import suppressed_token_ids
from rsgrpo.prompts.relevance import answer_tokens
from rsgrpo.retrieval.filtering.relevance import yes_no_probability
from rsgrpo.types import PromptedSample, Sample
from rsgrpo.weights.buckets import WeightVersion
from rsgrpo.weights.update import WeightUpdate
from tests.engine.answers import MAX_GAP_NATS, largest_gap, largest_gap_by_version, num_mixed, weight_update
from tests.engine.image_feed import feed_features, feed_pixels
from tests.engine.kept_layers import heard, listen
from tests.engine.local_ray import local_ray
from tests.engine.logprob_forms import both_forms
from tests.tiny_model import build_tiny_model, make_group, write_images

pytestmark = pytest.mark.engine

SAMPLING = SamplingConfig(max_response_tokens=12)


def _config(run_dir: Path) -> Config:
    return Config(
        run_dir=str(run_dir),
        stage="eval",
        model=ModelConfig(dtype="float32", vision_cache=VisionCacheConfig(folder="features")),
        data=DataConfig(min_pixels=784, max_pixels=10**6, max_images=3),
        rollout=RolloutConfig(
            sampling=SAMPLING,
            num_workers=2,
            max_model_tokens=256,
            max_num_sequences=16,
            max_batched_tokens=512,
            enforce_eager=True,
            num_threads=1,
            max_restarts=1,
            image_embeds=True,
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # vLLM's attention wants heads of at least 32: hidden 128 in 4 heads. Tied, as Qwen2.5-VL-3B is.
    return build_tiny_model(tmp_path_factory.mktemp("model"), hidden=128, tie=True)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[PromptedSample]:
    images = write_images(tmp_path_factory.mktemp("pages"), [(56, 56), (84, 56), (56, 84)])
    return [
        PromptedSample(
            sample=Sample(sample_id=f"q{index}", question="?", images=tuple(images[:count])),
            prompt=make_group(f"q{index}", images[:count], [1]).prompt,
        )
        for index, count in enumerate((0, 1, 3))
    ]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


def _in_engines(pool: RolloutPool, function: Callable[..., None], *arguments: object) -> None:
    ray.get([worker.__ray_call__.remote(function, *arguments) for worker in pool._workers])


@pytest.fixture(scope="module")
def pool(folder: Path, run_dir: Path) -> Iterator[RolloutPool]:
    """Two engines that could take features, and see pixels."""
    with local_ray():
        pool = RolloutPool(_config(run_dir), folder, device="cpu", num_threads=1)
        pool.wait_ready()
        _in_engines(pool, feed_pixels)
        yield pool
        pool.close()


def test_stored_features_give_what_pixels_give(
    pool: RolloutPool, folder: Path, run_dir: Path, prompts: list[PromptedSample]
) -> None:
    pixels = pool.generate(prompts, num_samples=2, sampling=SAMPLING, seed=1)
    stored = run_dir / "features"
    assert not list(stored.glob("*.safetensors"))
    _in_engines(pool, feed_features, _config(run_dir), folder, stored)
    computed = pool.generate(prompts, num_samples=2, sampling=SAMPLING, seed=1)
    assert len(list(stored.glob("*.safetensors"))) == 3
    read = pool.generate(prompts, num_samples=2, sampling=SAMPLING, seed=1)
    _in_engines(pool, feed_pixels)
    for groups in zip(pixels, computed, read, strict=True):
        for from_pixels, from_features, from_stored in zip(*(group.rollouts for group in groups), strict=True):
            assert from_pixels.token_ids.tolist() == from_features.token_ids.tolist() == from_stored.token_ids.tolist()
            np.testing.assert_allclose(from_features.logprobs, from_pixels.logprobs, atol=MAX_GAP_NATS)
            # The prompt comes from a cache.
            np.testing.assert_allclose(from_stored.logprobs, from_features.logprobs, atol=1e-5)


def test_named_tokens_have_the_probabilities_of_a_plain_forward_pass(
    pool: RolloutPool, folder: Path, run_dir: Path, prompts: list[PromptedSample]
) -> None:
    rules = _config(run_dir).data.image_rules
    judge = ForwardJudge(folder, rules, "filter.policy=tiny")
    tokens = answer_tokens(judge.processor.tokenizer, "y", "n")
    for max_pixels in (10**6, 3136):  # the second scales two of the pages down
        found = pool.named_logprobs(prompts, tokens, max_pixels=max_pixels)
        expected = judge.named_logprobs(prompts, tokens, max_pixels=max_pixels)
        for ours, plain in zip(found, expected, strict=True):
            assert ours.num_prompt_tokens == plain.num_prompt_tokens
            probability = yes_no_probability(*ours.logprobs)
            assert probability == pytest.approx(yes_no_probability(*plain.logprobs), abs=1e-5)
    # Pages scaled down for this are not those of the answers that follow.
    greedy = dataclasses.replace(SAMPLING, temperature=0.0)
    before = pool.generate(prompts, num_samples=1, sampling=greedy, seed=1)
    assert largest_gap(before, Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval(), judge.processor) < (
        MAX_GAP_NATS
    )
    assert pool.named_logprobs([], tokens, max_pixels=3136) == []


def test_engine_agrees_with_transformers_before_and_after_updates(
    pool: RolloutPool, folder: Path, prompts: list[PromptedSample], tmp_path: Path
) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    processor = load_processor(folder)
    first = pool.generate(prompts, num_samples=2, sampling=SAMPLING, seed=1)
    assert [len(group.rollouts) for group in first] == [2, 2, 2]
    assert largest_gap(first, model, processor) < MAX_GAP_NATS

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    pool.update_weights(weight_update(model.named_parameters(), 7))
    second = pool.generate(prompts, num_samples=2, sampling=SAMPLING, seed=1)
    assert {rollout.policy_version for group in second for rollout in group.rollouts} == {7}
    assert largest_gap(second, model, processor) < MAX_GAP_NATS

    # Trainable weights alone, as after a frozen vision tower: the others stay as they were.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    language = [(name, parameter) for name, parameter in model.named_parameters() if "language_model" in name]
    pool.update_weights(weight_update(language, 8, is_complete=False))
    third = pool.generate(prompts, num_samples=2, sampling=SAMPLING, seed=1)
    assert largest_gap(third, model, processor) < MAX_GAP_NATS

    # Merged adapters: the engine keeps q, k and v in one layer, of which q alone has an adapter.
    model.save_pretrained(tmp_path)
    lora = LoraConfig(rank=4, target_modules=["q_proj", "up_proj"])
    adapted = load_model(tmp_path, ModelConfig(dtype="float32", lora=lora))
    with torch.no_grad():
        for layer in adapter_layers(adapted).values():
            for parameter in adapter_parameters(layer):
                parameter.normal_(0.0, 0.2)
    merged = [(weight.name, weight.tensor()) for weight in of_trained_layers(exported_parameters(adapted))]
    pool.update_weights(weight_update(merged, 9, is_complete=False))
    fourth = pool.generate(prompts, num_samples=2, sampling=SAMPLING, seed=1)
    assert largest_gap(fourth, model, processor) > 10 * MAX_GAP_NATS
    model.load_state_dict(dict(merged), strict=False)
    assert largest_gap(fourth, model, processor) < MAX_GAP_NATS


def test_responses_go_on_under_weights_that_come_in_the_middle(
    pool: RolloutPool, folder: Path, prompts: list[PromptedSample]
) -> None:
    old = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    new = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    pool.update_weights(weight_update(old.named_parameters(), 20))
    # Each engine runs 8 questions at a time. A call lasts 64 steps at most, so that the first of them, of 150 tokens
    # each, are far from their end when the first answer is there: of these or of those that came after them.
    many = [
        PromptedSample(
            sample=dataclasses.replace(prompted.sample, sample_id=f"{prompted.sample.sample_id}-{copy}"),
            prompt=dataclasses.replace(prompted.prompt, sample_id=f"{prompted.sample.sample_id}-{copy}"),
        )
        for copy in range(10)
        for prompted in prompts
    ]
    stream = pool.stream(many, num_samples=2, sampling=SamplingConfig(max_response_tokens=150), seed=2)
    groups = [next(stream)]
    pool.update_weights(weight_update(new.named_parameters(), 21))
    groups += list(stream)
    assert sorted(group.sample.sample_id for group in groups) == sorted(prompted.sample.sample_id for prompted in many)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert {version for rollout in rollouts for version in (rollout.policy_version, rollout.newest_version)} == {20, 21}
    mixed = [rollout for rollout in rollouts if rollout.token_versions is not None]
    assert mixed
    for rollout in mixed:
        assert rollout.token_versions is not None
        assert rollout.token_versions.shape == rollout.token_ids.shape
        assert set(rollout.token_versions.tolist()) == {20, 21}
        assert (np.diff(rollout.token_versions) >= 0).all()
    processor = load_processor(folder)
    shown = [group for group in groups if num_mixed([group])][:4] + groups[:1] + groups[-1:]
    assert largest_gap_by_version(shown, {20: old, 21: new}, processor) < MAX_GAP_NATS
    # The versions matter: under the weights before, the tokens of the second half look quite different.
    assert largest_gap_by_version(shown, {20: old, 21: old}, processor) > 10 * MAX_GAP_NATS


def test_responses_hold_no_banned_token_and_their_text_is_their_bytes(
    pool: RolloutPool, folder: Path, prompts: list[PromptedSample]
) -> None:
    tokenizer = load_processor(folder).tokenizer
    suppressed = set(suppressed_token_ids(tokenizer, len(tokenizer)))
    assert suppressed
    for group in pool.generate(prompts, num_samples=8, sampling=SAMPLING, seed=3):
        for rollout in group.rollouts:
            assert not suppressed & set(rollout.token_ids.tolist())
            assert rollout.text == tokenizer.decode(rollout.token_ids, skip_special_tokens=True)
            assert len(rollout.token_char_starts) == len(rollout.token_ids) == len(rollout.logprobs)


def test_lists_of_logprobs_hold_what_objects_hold_to_the_bit(pool: RolloutPool) -> None:
    for num_ranks in (0, 3):
        objects, lists = ray.get(pool._workers[0].__ray_call__.remote(both_forms, num_ranks))
        assert objects.dtype == lists.dtype == np.float32
        assert len(objects) == 200
        assert objects.tobytes() == lists.tobytes()


def test_an_update_keeps_silent_about_layers_that_it_leaves_out(pool: RolloutPool, folder: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    language = [(name, parameter) for name, parameter in model.named_parameters() if "language_model" in name]
    _in_engines(pool, listen)
    pool.update_weights(weight_update(language, 1, is_complete=False))
    assert ray.get(pool._workers[0].__ray_call__.remote(heard)) == ["Layer: still heard"]


def test_a_layer_that_misses_its_weights_is_named(pool: RolloutPool, folder: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    everything = dict(model.named_parameters())
    norm, key = "model.language_model.norm.weight", "model.language_model.layers.0.self_attn.k_proj.weight"
    without = {left_out: {**everything} for left_out in (norm, key)}
    for left_out, rest in without.items():
        del rest[left_out]
    with pytest.raises(RolloutError, match=r"leave 1 of the engine's layers .*\(language_model.model.norm\)"):
        pool.update_weights(weight_update(without[norm].items(), 2))
    # A part of a layer is never right, whatever the update says of itself.
    for is_complete in (True, False):
        with pytest.raises(RolloutError, match=r"leave 1 of .*\(language_model.model.layers.0.self_attn.qkv_proj\)"):
            pool.update_weights(weight_update(without[key].items(), 2, is_complete=is_complete))
    # An update that was refused leaves nothing behind that could disturb the next.
    pool.update_weights(weight_update(everything.items(), 3))


def test_the_pool_keeps_no_copy_of_the_weights(pool: RolloutPool, folder: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    for is_complete in (True, False):
        update = weight_update(model.named_parameters(), 4, is_complete=is_complete)
        bucket = update.buckets[0].hex().encode()
        pool.update_weights(dataclasses.replace(update, whole=_never_asked))
        assert bucket in _referenced()
        del update
        gc.collect()
        assert bucket not in _referenced()


def _never_asked() -> WeightUpdate:
    raise AssertionError("no engine has died")


def _referenced() -> set[bytes]:
    """Ids of all objects in Ray's store that this process keeps alive."""
    return set(ray._private.worker.global_worker.core_worker.get_all_reference_counts())


def test_broken_weights_are_refused(pool: RolloutPool, folder: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    update = weight_update(model.named_parameters(), 9)
    broken = dataclasses.replace(update, version=WeightVersion(version=9, checksum="00000000"))
    with pytest.raises(RolloutError, match="arrived with checksum"):
        pool.update_weights(broken)
    pool.update_weights(update)


def test_a_dead_worker_is_replaced_and_its_answers_are_the_same(
    pool: RolloutPool, prompts: list[PromptedSample]
) -> None:
    before = pool.generate(prompts, num_samples=3, sampling=SAMPLING, seed=5)
    os.kill(ray.get(pool._workers[0].ready.remote()), signal.SIGKILL)
    after = pool.generate(prompts, num_samples=3, sampling=SAMPLING, seed=5)
    assert pool.num_restarts == 1
    for old, new in zip(before, after, strict=True):
        for left, right in zip(old.rollouts, new.rollouts, strict=True):
            assert left.token_ids.tolist() == right.token_ids.tolist()
            assert right.policy_version == left.policy_version
    # rollout.max_restarts is 1: the next death ends the run, and says how to go on.
    os.kill(ray.get(pool._workers[1].ready.remote()), signal.SIGKILL)
    with pytest.raises(RolloutError, match="resume=auto"):
        pool.generate(prompts, num_samples=1, sampling=SAMPLING, seed=6)
