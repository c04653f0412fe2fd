"""One run's workers, logs and bookkeeping, shared by its stages."""

from __future__ import annotations

import json
import pickle
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from recipes.evaluate import Evaluation, evaluate
from recipes.preparation import Prepared
from recipes.workers import open_workers
from rsgrpo.checkpoint import latest_checkpoint, remove_old_checkpoints, write_folder
from rsgrpo.cluster import REPOSITORY, Cluster
from rsgrpo.config import Config
from rsgrpo.evisrag_metrics import EvaluationMetrics
from rsgrpo.images import load_page
from rsgrpo.metrics import METRICS_FILE, RunLogger, read_metrics
from rsgrpo.progress import Progress
from rsgrpo.recorder import record_evaluation, truncate_after
from rsgrpo.run_folder import RunFolder
from rsgrpo.stopwatch import StageClock
from rsgrpo.summary import RunSummary, collect_versions, summarise_rl, summarise_sft, write_summary
from rsgrpo.types import ImageRef, RolloutGroup

_RECORDED_ANSWERS = 24  # answers of an evaluation that the report shows
_CHECKPOINTS_KEPT = 2
_STATE_FILE = "driver.pkl"


class Job:
    """Starts the workers in the background; leaving the block ends them.

    Args:
        config: the run's settings.
        folder: the run folder.
        prepared: data, rewards, base model.
        cluster: what Ray offers.
        progress: shows what is being done.
    """

    def __init__(
        self, config: Config, folder: RunFolder, prepared: Prepared, cluster: Cluster, progress: Progress
    ) -> None:
        self.config = config
        self.folder = folder
        self.prepared = prepared
        self.progress = progress
        self._cluster = cluster
        self._stack = ExitStack()
        self.clock = StageClock(folder.stage_seconds_file)

    def __enter__(self) -> Job:
        data = self.config.data

        def read_image(ref: ImageRef) -> object:
            return load_page(ref, data.min_pixels, data.max_pixels)

        self.logger = self._stack.enter_context(RunLogger(self.folder.root, self.config, read_image))
        needs_engine = bool(self.prepared.test) or self.config.stage != "sft"
        workers = self._stack.enter_context(
            open_workers(self.config, self.start_model, self._cluster, needs_engine=needs_engine)
        )
        if workers.engine is not None:
            self.engine = workers.engine
        if workers.policy is not None:
            self.policy = workers.policy
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def start_model(self) -> Path:
        """What the workers load: the newest finished stage's model, else the base model."""
        if self.config.stage == "eval" and self.config.eval.checkpoint:
            return Path(self.config.eval.checkpoint).absolute()
        finished = [self.folder.model(stage) for stage in ("rl", "sft") if self.folder.model(stage).exists()]
        return finished[0] if finished else self.prepared.base_model

    def save(self, stage: str, step: int, state: object) -> None:
        """Write a checkpoint of policy and driver; older ones go once it is complete."""

        def write(partial: Path) -> None:
            self.policy.save_checkpoint(partial / "policy")
            (partial / _STATE_FILE).write_bytes(pickle.dumps(state))

        write_folder(self.folder.checkpoints / f"{stage}-{step:06d}", write)
        self.clock.keep()
        remove_old_checkpoints(self.folder.checkpoints, stage, keep=_CHECKPOINTS_KEPT)

    def restore(self, stage: str) -> Any:
        """Driver state of a stage's newest checkpoint, the policy set to it; None if there is none.

        Whatever was logged after it is forgotten, so that a resumed run reads as an uninterrupted one.
        """
        newest = latest_checkpoint(self.folder.checkpoints, stage)
        step = int(newest.name.rsplit("-", 1)[1]) if newest is not None else -1
        self.logger.truncate_after(stage, step)
        truncate_after(self.folder.rollouts_file, stage, step)
        if newest is None:
            return None
        self.policy.load_checkpoint(newest / "policy")
        self.progress.line(f"going on from {newest.name}")
        return pickle.loads((newest / _STATE_FILE).read_bytes())

    def evaluate(self, point: str) -> None:
        """Score the test questions, unless there are none or this point was scored before."""
        if not self.prepared.test:
            return
        folder = self.folder.evaluation(point)
        if (folder / "metrics.json").exists():
            return
        count = self.config.eval.max_samples or len(self.prepared.test)
        questions = self.prepared.test[:count]
        with (
            self.clock.stage(f"evaluate_{point}"),
            self.progress.phase(f"Evaluating {point}", total=len(questions)) as phase,
        ):
            found, groups = evaluate(
                self.engine,
                questions,
                self.config,
                self.prepared.scorer,
                folder,
                lambda done: phase.advance(count=done),
            )
            self.progress.line(_evaluation_line(point, found))
        self._record(point, found, groups)

    def _record(self, point: str, found: Evaluation, groups: list[RolloutGroup]) -> None:
        shown = groups[:_RECORDED_ANSWERS]
        truncate_after(self.folder.rollouts_file, point, -1)
        self.logger.truncate_after(point, -1)
        record_evaluation(
            self.folder.rollouts_file, point, [one.sample for one in shown], [one.rollouts[0] for one in shown]
        )
        self.logger.log(point, 0, {f"eval/{name}": value for name, value in found.numbers().items()})

    def write_summary(self) -> None:
        """Write ``summary.json`` from what the run folder holds."""
        rows = read_metrics(self.folder.root / METRICS_FILE)
        evaluations = {
            path.parent.name: EvaluationMetrics(**json.loads(path.read_text()))
            for path in sorted(self.folder.root.glob("evaluations/*/metrics.json"))
        }
        write_summary(
            self.folder.summary_file,
            RunSummary(
                name=self.config.name,
                stage=self.config.stage,
                recipe=self.config.name,
                seed=self.config.seed,
                device=self._cluster.device,
                num_cores=self._cluster.num_threads,
                versions=collect_versions(REPOSITORY),
                prompt_fingerprint=self.prepared.prompt_fingerprint,
                skipped_samples=self.prepared.num_skipped,
                stage_seconds=self.clock.seconds,
                evaluations=evaluations,
                evaluation_rewards={
                    path.parent.name: json.loads(path.read_text())
                    for path in sorted(self.folder.root.glob("evaluations/*/rewards.json"))
                },
                sft=summarise_sft(rows),
                rl=summarise_rl(rows),
            ),
        )


def _evaluation_line(point: str, found: Evaluation) -> str:
    """The headline numbers; evidence only where there is gold for it."""
    metrics = found.metrics
    parts = [f"accuracy {metrics.accuracy:.1%}", f"F1 {metrics.f1:.3f}"]
    if metrics.num_with_gold_evidence:
        parts.append(f"evidence F1 {metrics.evidence_f1:.3f}")
    parts.append(f"well formed {metrics.well_formed_frac:.1%}")
    rewards = "  ".join(f"{name} {value:.3f}" for name, value in found.rewards.items())
    return f"{point}: {'  '.join(parts)}" + (f"  rewards: {rewards}" if rewards else "")
