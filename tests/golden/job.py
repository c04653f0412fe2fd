"""The golden job: supervised and reinforcement learning on the real engines, small enough to be written down whole.

Two supervised steps, then two steps of Reward-Scoped GRPO with two updates each, on one rank, one engine and one
thread. It starts from a committed model that knows how responses look (:mod:`tests.golden.make_model`): a model made
from nothing writes no sections, and learning them here would blow up the last bits in which two CPUs differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from recipes.rs_grpo import RsGrpo, RsGrpoState, StepReport
from recipes.setup.preparation import Prepared, prepare
from recipes.setup.workers import open_workers
from recipes.sft import SftState, SupervisedTraining
from rollout.pool import RolloutPool
from rsgrpo.cluster.ray_cluster import open_cluster
from rsgrpo.config import Config, load_config, register_schema
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress
from rsgrpo.system.machine import REPOSITORY
from rsgrpo.trainer.policy import Policy
from rsgrpo.types import CreditedRollout

MODEL = Path(__file__).resolve().parent / "model"
SIZE = (
    "quickstart.text_hidden=64",
    "quickstart.text_layers=2",
    "quickstart.text_heads=2",
    "quickstart.vision_hidden=32",
    "quickstart.vision_heads=2",
    "quickstart.vocabulary_tokens=512",
)
JOB = (
    "algorithm=rs_grpo",  # the paper's, whatever the quickstart trains with
    f"model.path={MODEL}",
    "quickstart.num_sft_samples=24",
    "quickstart.num_rl_samples=24",
    "quickstart.num_test_samples=1",
    "sft.max_steps=2",
    "sft.samples_per_step=6",
    "sft.optimizer.learning_rate=1e-4",
    "sft.optimizer.warmup_steps=0",
    "rl.max_steps=2",
    "rl.prompts_per_step=4",
    "rl.samples_per_prompt=4",
    "rl.updates_per_batch=2",
    "rl.max_staleness_steps=0",
    "rl.validation_samples=0",
    "rl.filter.mode=none",
    "rl.optimizer.learning_rate=1e-4",
    "rl.optimizer.warmup_steps=0",
    "trainer.num_threads=1",
    "rollout.num_threads=1",
    "rollout.max_num_sequences=16",
    "rollout.kv_cache_gib=0.25",
    "logging.progress=false",
)
_SHOWN = ("loss", "grad_norm", "clip_fraction")


def run_job(folder: Path) -> dict[str, Any]:
    """Run the job.

    Args:
        folder: for its data.

    Returns:
        What ``trace.json`` holds: ``sft``, loss and gradient norm of each step; ``rl``, for each step the numbers of
        its updates, and every response with its tokens, its rewards and their spans, and the credit of its tokens.
    """
    GlobalHydra.instance().clear()
    register_schema()
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base=None):
        config = load_config(compose("config", overrides=[*SIZE, *JOB, f"run_dir={folder}"]))
    prepared = prepare(config, RunFolder(root=folder), Progress(False))
    with (
        open_cluster(config.cluster) as cluster,
        open_workers(config, prepared.base_model, cluster) as workers,
    ):
        assert workers.policy is not None and workers.engine is not None
        sft = _supervised(prepared, workers.policy)
        workers.engine.update_weights(workers.policy.weights())
        return {"sft": sft, "rl": _reinforced(config, prepared, workers.policy, workers.engine)}


def _supervised(prepared: Prepared, policy: Policy) -> list[dict[str, float]]:
    (phase,) = prepared.sft
    policy.begin_stage(phase.optimizer, phase.num_steps)
    training = SupervisedTraining(
        phase=phase,
        policy=policy,
        tokenizer=prepared.tokenizer,
        image_tokens=prepared.image_tokens,
        state=SftState(),
    )
    steps = [training.train_step() for _ in range(phase.num_steps)]
    return [
        {"loss": report.loss, "grad_norm": report.grad_norm, "num_tokens": report.num_response_tokens}
        for report in steps
    ]


def _reinforced(config: Config, prepared: Prepared, policy: Policy, engine: RolloutPool) -> list[dict[str, Any]]:
    policy.begin_stage(config.rl.optimizer, config.rl.max_steps * config.rl.updates_per_batch)
    training = RsGrpo(
        config=config,
        policy=policy,
        engine=engine,
        scorer=prepared.scorer,
        prompts=prepared.rl,
        state=RsGrpoState(),
    )
    num_steps, names = config.rl.max_steps, list(config.rewards)
    return [_step(training.train_step(is_last=step + 1 == num_steps), names) for step in range(num_steps)]


def _step(report: StepReport, rewards: Sequence[str]) -> dict[str, Any]:
    shown = {
        name: value
        for name, value in report.metrics.items()
        if name.startswith("policy/") and name.rsplit("/")[-1] in _SHOWN
    }
    means = {f"reward/{name}/mean": report.metrics[f"reward/{name}/mean"] for name in rewards}
    samples = {
        group.sample_id: [_response(rollout) for rollout in group.rollouts]
        for group in sorted(report.credited, key=lambda group: group.sample_id)
    }
    return {"metrics": dict(sorted((shown | means).items())), "samples": samples}


def _response(credited: CreditedRollout) -> dict[str, Any]:
    rollout = credited.rollout
    return {
        "tokens": rollout.token_ids.tolist(),
        "text": rollout.text,
        "rewards": {
            "/".join(map(str, reward.key)): {
                "value": reward.value,
                "spans": [[span.start, span.stop] for span in reward.spans],
            }
            for reward in credited.rewards
        },
        "positive": [float(value) for value in credited.positive_weights],
        "negative": [float(value) for value in credited.negative_weights],
    }
