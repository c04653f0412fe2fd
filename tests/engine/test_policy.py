"""The policy as recipes use it: Ray actors, DeepSpeed, real checkpoints."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from rsgrpo.algorithm.staleness import StaleWeightsError
from rsgrpo.config import Config, DataConfig, KlConfig, LossConfig, ModelConfig, OptimizerConfig, TrainerConfig
from rsgrpo.data.images.sources import ImageError
from rsgrpo.io.manifest import folder_problem
from rsgrpo.model.folder import load_processor
from rsgrpo.model.micro_batches import TokenBudgetError
from rsgrpo.model.vlm import PromptError
from rsgrpo.trainer.checkpoint import CheckpointError
from rsgrpo.trainer.faults import read_faulty_batch
from rsgrpo.trainer.policy import Policy, TooManySkippedStepsError
from rsgrpo.trainer.rank_calls import PolicyWorkerDiedError, PolicyWorkerSilentError
from rsgrpo.trainer.results import UpdateResult
from rsgrpo.types import ResponseStats
from rsgrpo.weights.buckets import bucket_checksum, bucket_tensors, format_checksum
from tests.engine.fake_rank import WAITING_SECONDS, FakeRank
from tests.engine.local_ray import local_ray
from tests.pickles import pickled_files
from tests.plain_forward import plain_logprobs
from tests.tiny_model import build_tiny_model, make_group, three_groups

pytestmark = pytest.mark.engine

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=2)
LOSS = LossConfig()


def _config(run_dir: Path, **trainer: object) -> Config:
    return Config(
        run_dir=str(run_dir),
        stage="sft",
        model=ModelConfig(dtype="float32", freeze_vision=True, gradient_checkpointing=False),
        data=DataConfig(min_pixels=1, max_pixels=10**7),
        trainer=TrainerConfig(micro_batch_tokens=200, **trainer),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def pair(cluster: None, folder: Path, run_dir: Path) -> Iterator[tuple[Policy, Policy]]:
    """Two policies that started alike, both in the background at once."""
    first, second = (Policy.start(_config(run_dir), folder, device="cpu", num_threads=1) for _ in range(2))
    yield first, second
    first.close()
    second.close()


@pytest.fixture
def policy(pair: tuple[Policy, Policy]) -> Policy:
    return pair[0]


def _same(left: UpdateResult, right: UpdateResult) -> bool:
    same_metrics = all(
        getattr(left.metrics, field.name) == getattr(right.metrics, field.name)
        for field in dataclasses.fields(left.metrics)
        if not field.name.endswith("_seconds")
    )

    def same(a: ResponseStats, b: ResponseStats) -> bool:
        if a.entropy is None or b.entropy is None:
            return a.entropy is b.entropy and np.array_equal(a.logprobs, b.logprobs)
        return np.array_equal(a.logprobs, b.logprobs) and np.array_equal(a.entropy, b.entropy)

    return same_metrics and all(same(a, b) for a, b in zip(left.responses, right.responses, strict=True))


def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(pair, groups, tmp_path):
    first, second = pair
    first.begin_stage(OPTIMIZER, 8)
    for step in range(3):
        first.update(groups[step % 2 :], "policy", LOSS)
    first.save_checkpoint(tmp_path / "policy")
    expected = [first.update(groups, "policy", LOSS) for _ in range(3)]
    # The other one has a past of its own, which loading has to wipe out.
    second.begin_stage(OptimizerConfig(learning_rate=0.1), 3)
    second.update(groups[:1], "nll")
    second.load_checkpoint(tmp_path / "policy")
    assert second.version == 3
    resumed = [second.update(groups, "policy", LOSS) for _ in range(3)]
    assert all(_same(a, b) for a, b in zip(expected, resumed, strict=True))
    assert first.version == second.version == 6
    # Cosine over 8 steps after 2 of warm-up: step 3 (0-based) is at 1/6 of the way, cos(pi/6) = 0.8660
    assert expected[0].metrics.learning_rate == pytest.approx(1e-3 * 0.5 * (1 + 0.8660254), rel=1e-6)
    assert first.weights(trainable_only=False).version.checksum == second.weights(trainable_only=False).version.checksum


def test_a_stage_begins_without_the_last_ones_moments(policy, groups, tmp_path):
    policy.begin_stage(OPTIMIZER, 8)
    policy.save_checkpoint(tmp_path / "policy")
    policy.update(groups, "policy", LOSS)
    expected = policy.weights(trainable_only=False).version.checksum
    policy.load_checkpoint(tmp_path / "policy")
    # at this rate the weights stay to the bit, the moments do not
    policy.begin_stage(OptimizerConfig(learning_rate=1e-30), 8)
    for _ in range(2):
        policy.update(groups[1:], "nll")
    policy.begin_stage(OPTIMIZER, 8)
    policy.update(groups, "policy", LOSS)
    assert policy.weights(trainable_only=False).version.checksum == expected


def test_checkpoint_of_another_shape_is_refused(policy, tmp_path):
    policy.save_checkpoint(tmp_path / "policy")
    meta = tmp_path / "policy" / "policy.json"
    meta.write_text(meta.read_text().replace('"trainer.zero_stage": 2', '"trainer.zero_stage": 3'))
    with pytest.raises(CheckpointError, match=r"written with trainer\.zero_stage=3, now it is 2"):
        policy.load_checkpoint(tmp_path / "policy")
    with pytest.raises(CheckpointError, match="holds no policy checkpoint"):
        policy.load_checkpoint(tmp_path / "nothing")
    # as the release before wrote it
    meta.write_text('{"version": 3, "shape": {}, "origin": ""}')
    with pytest.raises(CheckpointError, match="is of version 1; this release reads version 3: start a new run"):
        policy.load_checkpoint(tmp_path / "policy")


def test_a_checkpoint_is_whole_holds_no_pickle_and_names_what_is_damaged(policy, tmp_path):
    policy.save_checkpoint(tmp_path / "policy")
    names = {"manifest.json", "policy.json", "optimizer-00000.safetensors", "weights-00000.safetensors"}
    assert {path.name for path in (tmp_path / "policy").iterdir()} == names
    assert pickled_files(tmp_path) == []
    assert folder_problem(tmp_path / "policy", names - {"manifest.json"}) == ""
    share = tmp_path / "policy" / "optimizer-00000.safetensors"
    content = bytearray(share.read_bytes())
    content[-1] ^= 1
    share.write_bytes(content)
    assert folder_problem(tmp_path / "policy") == f"{share.name} has other bytes than when it was written"


def test_metrics_and_statistics_of_an_update(policy, groups):
    policy.begin_stage(OPTIMIZER, 8)
    scored = policy.score(groups)
    assert all(stats.entropy is None for stats in scored)
    with_entropy = policy.score(groups, with_entropy=True)
    result = policy.update(groups, "policy", LOSS)
    metrics = result.metrics
    # 5+9+7 + 3+12 + 6+1+4 response tokens, in the order given
    assert metrics.num_response_tokens == 47
    keys = [response.key for response in result.responses]
    assert keys == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("c", 0), ("c", 1), ("c", 2)]
    assert [len(response.logprobs) for response in result.responses] == [5, 9, 7, 3, 12, 6, 1, 4]
    for after, before in zip(result.responses, scored, strict=True):
        np.testing.assert_allclose(after.logprobs, before.logprobs, atol=1e-6)
        assert (after.logprobs < 0).all()
    for after, before in zip(result.responses, with_entropy, strict=True):
        np.testing.assert_allclose(after.entropy, before.entropy, atol=1e-5)
        # at most log of the vocabulary of 263
        assert (after.entropy > 0).all() and (after.entropy <= np.log(263) + 1e-5).all()
    # on policy the ratio is 1: no clipping, no divergence, loss = Σ weight · (Q - P)
    assert (metrics.clip_fraction, metrics.kl_old, metrics.is_skipped) == (0.0, 0.0, False)
    flat = [response for group in groups for response in group.responses]
    weights = [
        np.minimum(np.exp(stats.logprobs - response.rollout_logprobs), 2.0)
        for stats, response in zip(result.responses, flat, strict=True)
    ]
    expected = sum(
        float((w * (response.negative_weights - response.positive_weights)).sum())
        for w, response in zip(weights, flat, strict=True)
    )
    assert metrics.loss == pytest.approx(expected, rel=1e-4)
    assert metrics.importance_weight_mean == pytest.approx(np.concatenate(weights).mean(), rel=1e-5)
    # the update went somewhere
    moved = policy.score(groups)
    assert any(np.abs(a.logprobs - b.logprobs).max() > 1e-4 for a, b in zip(scored, moved, strict=True))


def test_a_step_that_is_refused_changes_nothing_and_the_next_is_as_if_it_had_not_been(pair, groups, tmp_path):
    refused, untouched = pair
    refused.begin_stage(OPTIMIZER, 8)
    refused.update(groups, "policy", LOSS)
    refused.save_checkpoint(tmp_path / "policy")
    untouched.load_checkpoint(tmp_path / "policy")
    version, checksum = refused.version, refused.weights(trainable_only=False).version.checksum
    seen: list[ResponseStats] = []

    def refuse(stats: Sequence[ResponseStats]) -> None:
        seen.extend(stats)
        raise StaleWeightsError("too far apart")

    with pytest.raises(StaleWeightsError, match="too far apart"):
        refused.update(groups[:2], "policy", LOSS, before_step=refuse)
    assert [stats.key for stats in seen] == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert (refused.version, refused.weights(trainable_only=False).version.checksum) == (version, checksum)
    assert _same(refused.update(groups, "policy", LOSS), untouched.update(groups, "policy", LOSS))
    checksums = {member.weights(trainable_only=False).version.checksum for member in pair}
    assert len(checksums) == 1 and checksum not in checksums


def test_given_old_logprobs_make_the_ratio(policy, groups):
    policy.begin_stage(OPTIMIZER, 8)
    scored = {stats.key: stats for stats in policy.score(groups)}
    with_old = [
        dataclasses.replace(
            group,
            responses=tuple(
                dataclasses.replace(
                    response, old_logprobs=scored[group.sample_id, response.response_index].logprobs + 0.25
                )
                for response in group.responses
            ),
        )
        for group in groups
    ]
    result = policy.update(with_old, "policy", LossConfig(importance_cap=0.0))
    # log old - log new = 0.25 everywhere: ratio e^-0.25 = 0.7788, below 1 - 0.2, so the clip acts where A < 0
    assert result.metrics.kl_old == pytest.approx(0.25, abs=1e-4)
    flat = [response for group in groups for response in group.responses]
    num_negative = sum(int((response.negative_weights > 0).sum()) for response in flat)
    assert result.metrics.clip_fraction == pytest.approx(num_negative / 47)
    expected = sum(
        float((0.8 * response.negative_weights - 0.7788008 * response.positive_weights).sum()) for response in flat
    )
    assert result.metrics.loss == pytest.approx(expected, rel=1e-4)


def test_exported_model_gives_the_same_logprobs_and_sent_weights_are_its_tensors(policy, groups, tmp_path):
    policy.export_model(tmp_path / "model")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "model", attn_implementation="eager")
    processor = load_processor(tmp_path / "model")
    group = groups[0]
    with torch.no_grad():
        expected = plain_logprobs(model, processor, group.prompt, group.responses[1].token_ids).numpy()
    np.testing.assert_allclose(policy.score(groups)[1].logprobs, expected, atol=1e-5)

    written = load_file(tmp_path / "model" / "model.safetensors")
    update = policy.weights(max_bucket_bytes=20_000, trainable_only=False)
    assert update.is_complete and len(update.buckets) > 3
    checksum = 0
    sent: dict[str, torch.Tensor] = {}
    for reference in update.buckets:
        bucket = ray.get(reference)
        checksum = bucket_checksum(bucket, checksum)
        sent |= dict(bucket_tensors(bucket))
    assert update.version.checksum == format_checksum(checksum)
    assert update.version.version == policy.version
    assert sent.keys() == written.keys()  # the tied head is in neither
    assert all(torch.equal(sent[name], written[name]) for name in written)
    later = policy.weights()
    assert not later.is_complete
    names = [name for reference in later.buckets for name in ray.get(reference).names]
    assert names == [name for name in sent if not name.startswith("visual.")]


def test_bad_input_is_named_and_the_policy_goes_on(policy, groups):
    policy.begin_stage(OPTIMIZER, 8)
    wrong = dataclasses.replace(groups[0], prompt_token_ids=np.arange(5, dtype=np.int32))
    with pytest.raises(PromptError, match=r"'a'.*the engine's 5"):
        policy.update([wrong], "policy", LOSS)
    long = make_group("long", [], [170], seed=0)
    with pytest.raises(TokenBudgetError, match=r"'long'.*micro_batch_tokens=200"):
        policy.update([groups[0], long], "policy", LOSS)
    with pytest.raises(ValueError, match="'a' response 0 stands twice"):
        policy.score([groups[0], groups[0]])
    with pytest.raises(ValueError, match="no groups"):
        policy.update([], "nll")
    with pytest.raises(ValueError, match="needs loss"):
        policy.update(groups, "policy")
    assert policy.update(groups, "policy", LOSS).metrics.num_response_tokens == 47


def test_too_many_skipped_steps_stop_the_run_and_leave_what_reproduces_them(policy, groups, run_dir):
    policy.begin_stage(OPTIMIZER, 8)
    bad = [
        dataclasses.replace(
            group,
            responses=tuple(
                dataclasses.replace(response, positive_weights=np.full_like(response.positive_weights, np.nan))
                for response in group.responses
            ),
        )
        for group in groups
    ]
    version = policy.version
    for _ in range(2):
        assert policy.update(bad, "nll").metrics.is_skipped
    folder = run_dir / "faults" / f"{version:06d}"
    with pytest.raises(TooManySkippedStepsError, match=f"(?s)3 steps in a row.*{folder} holds the last batch"):
        policy.update(bad, "nll")
    assert policy.version == version
    # the model that it fails on, and the very call
    sent = {
        name: tensor
        for reference in policy.weights(trainable_only=False).buckets
        for name, tensor in bucket_tensors(ray.get(reference))
    }
    written = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(sent[name], written[name]) for name in written)
    assert pickled_files(folder) == []
    kept = read_faulty_batch(folder)
    assert (kept.objective, kept.loss, kept.version) == ("nll", None, version)
    policy.begin_stage(OPTIMIZER, 8)
    assert policy.update(kept.groups, "nll").metrics.is_skipped
    assert not policy.update(groups, "policy", LOSS).metrics.is_skipped


def test_a_dead_rank_is_named_with_its_last_words_and_its_checkpoint_lives(pair, groups, tmp_path):
    survivor, doomed = pair
    pid = int(Path(doomed._ranks.log_paths[0]).stem.rsplit("-", 1)[1])
    doomed.begin_stage(OPTIMIZER, 8)
    doomed.update(groups, "policy", LOSS)
    doomed.save_checkpoint(tmp_path / "policy")
    expected = doomed.update(groups, "policy", LOSS)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(
        PolicyWorkerDiedError, match=r"(?s)training rank 0 of 1 died.*last line of .*\.err.*resume=auto"
    ):
        doomed.save_checkpoint(tmp_path / "policy")
    survivor.load_checkpoint(tmp_path / "policy")
    assert _same(survivor.update(groups, "policy", LOSS), expected)


@contextmanager
def _fake_ranks(config: Config, *doings: str) -> Iterator[Policy]:
    environment = {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
    workers = [ray.remote(FakeRank).options(num_cpus=0, runtime_env=environment).remote(doing) for doing in doings]
    policy = Policy(config, workers, "cpu")
    policy._loading = []  # they have no model to load
    yield policy
    policy.close()


@pytest.mark.parametrize("other", ["waits", "fails"])
def test_a_rank_that_dies_while_another_needs_it_is_named_at_once(cluster, groups, run_dir, other):
    # the other one waits for it, or sees first that the connection is gone
    with _fake_ranks(_config(run_dir, num_ranks=2), other, "dies") as policy:
        start = time.monotonic()
        with pytest.raises(PolicyWorkerDiedError, match="training rank 1 of 2 died"):
            policy.update(groups, "nll")
        assert time.monotonic() - start < WAITING_SECONDS / 2


def test_ranks_that_say_nothing_are_named_and_ended(cluster, groups, run_dir):
    with _fake_ranks(_config(run_dir, num_ranks=2, timeout_seconds=60), "answers", "waits") as policy:
        policy._prepare(groups)  # their processes have started
        policy._ranks._timeout_seconds = 1.5
        with pytest.raises(
            PolicyWorkerSilentError,
            match=r"rank 1 of 2 did not answer within trainer\.timeout_seconds=1\.5.*resume=auto",
        ):
            policy.update(groups, "nll")
        assert policy._ranks.workers == []


def test_a_rank_that_dies_while_it_gives_out_weights_is_named_at_once(cluster, run_dir):
    with _fake_ranks(_config(run_dir, num_ranks=2), "waits", "dies") as policy:
        policy._transfer = "cuda_ipc"
        sender = policy.weights().sender
        assert sender is not None
        start = time.monotonic()
        with pytest.raises(PolicyWorkerDiedError, match="training rank 1 of 2 died"):
            next(sender.buckets())
        assert time.monotonic() - start < WAITING_SECONDS / 2


def test_a_page_damaged_since_the_start_is_named_though_another_rank_waits(cluster, folder, run_dir, tmp_path):
    groups = three_groups(tmp_path / "pages")[:2]  # one a rank; the last page is in the second
    image = groups[1].prompt.images[-1]
    data = bytearray(Path(image.file).read_bytes())
    data[len(data) // 2] ^= 1  # its header says what it said, so that prompts are encoded
    Path(image.file).write_bytes(data)
    policy = Policy.start(_config(run_dir, num_ranks=2), folder, device="cpu", num_threads=1)
    try:
        policy.begin_stage(OPTIMIZER, 8)
        with pytest.raises(ImageError, match=r"imgs/2\.png.*truncated or damaged"):
            policy.update(groups, "nll")
    finally:
        policy.close()


def test_kl_term_holds_on_to_the_model_that_the_stage_began_with(policy, groups, tmp_path):
    policy.export_model(tmp_path / "model")
    policy.begin_from(tmp_path / "model", needs_reference=True)
    policy.begin_stage(OPTIMIZER, 8)
    loss = LossConfig(kl=KlConfig(coefficient=0.5))
    held = [
        dataclasses.replace(
            group, responses=tuple(dataclasses.replace(response, kl_weight=0.01) for response in group.responses)
        )
        for group in groups
    ]
    distances = [policy.update(held, "policy", loss).metrics.kl_reference for _ in range(3)]
    # k3 of no difference is 0; each step of Adam then moves every weight by up to 1e-3
    assert distances[0] < 1e-9
    assert 1e-7 < distances[1] < distances[2]
    policy.begin_from(tmp_path / "model", needs_reference=False)
    assert policy.update(groups, "policy", LOSS).metrics.kl_reference == 0.0


def test_a_checkpoint_of_a_stage_that_started_elsewhere_is_refused(policy, folder, tmp_path):
    other = build_tiny_model(tmp_path / "other", tie=True, seed=1)
    policy.begin_from(folder, needs_reference=True)
    policy.save_checkpoint(tmp_path / "policy")
    policy.begin_from(other, needs_reference=True)
    with pytest.raises(CheckpointError, match=r"started from a model with checksum \w{8}, the present one has \w{8}"):
        policy.load_checkpoint(tmp_path / "policy")
    policy.begin_from(folder, needs_reference=False)
    policy.load_checkpoint(tmp_path / "policy")
