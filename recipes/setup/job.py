"""One run's workers, logs and bookkeeping, shared by its stages."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from recipes.evaluation.evaluate import Evaluation, evaluate, read_evaluation
from recipes.filtering.head import head_scorer
from recipes.filtering.questions import filter_questions
from recipes.filtering.stages import AskedModel, make_stages
from recipes.indexing.places import make_single_embedder
from recipes.setup.preparation import Prepared
from recipes.setup.workers import open_workers
from rsgrpo.cluster.ray_cluster import REPOSITORY, Cluster
from rsgrpo.config import Config
from rsgrpo.data.images.loading import load_image
from rsgrpo.io.atomic_files import FileError, write_json
from rsgrpo.io.jsonl import cut_line_note, write_rows
from rsgrpo.io.manifest import CHECKPOINT_VERSION, MANIFEST_FILE, write_manifest
from rsgrpo.io.record_codec import read_record, to_plain, write_record
from rsgrpo.io.timers import StageClock
from rsgrpo.model.folder import check_model_type, load_processor, stored_tensors
from rsgrpo.retrieval.filtering.page_filter import FilterMetrics
from rsgrpo.run.folder import RunFolder, begin_run
from rsgrpo.run.logger import METRICS_FILE, RunLogger, read_metrics
from rsgrpo.run.progress import Progress
from rsgrpo.run.recorder import record_evaluation, truncate_after
from rsgrpo.run.summary import RunSummary, collect_versions, summarise_rl, summarise_sft, write_summary
from rsgrpo.trainer.checkpoint import (
    checkpoint_folders,
    checkpoint_step,
    find_checkpoint,
    remove_old_checkpoints,
    write_folder,
)
from rsgrpo.types import ImageRef, PromptedSample, RolloutGroup

_RECORDED_ANSWERS = 24  # answers of an evaluation that the report shows
_CHECKPOINTS_KEPT = 2
_STATE = "driver"  # driver.json and driver.safetensors
_POLICY = "policy"
_NEEDED = (f"{_STATE}.json", f"{_STATE}.safetensors", f"{_POLICY}/{MANIFEST_FILE}")
# The stage whose model the engines must hold when a point is scored: the stages trained by then, newest first.
_STAGES_BEFORE = {"before_sft": (), "before_rl": (), "after_sft": ("sft",), "after_rl": ("rl",)}

State = TypeVar("State")


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
        self._attention_lines: list[str] = []
        self.clock = StageClock(folder.stage_seconds_file)
        if self.clock.problem:
            self._say(self.clock.problem, "the time that earlier processes took is not counted")

    def __enter__(self) -> Job:
        self._check_finished_model()
        rules = self.config.data.image_rules

        def read_image(ref: ImageRef) -> object:
            return load_image(ref, rules)

        needs_engine = bool(self.prepared.test) or self.config.stage != "sft"
        workers = self._stack.enter_context(
            open_workers(self.config, self.start_model, self._cluster, needs_engine=needs_engine)
        )
        self._say(*workers.fitted.lines)
        self.config = workers.fitted.config
        begin_run(self.folder, self.config)  # the record says what was decided where settings left it open
        # While the workers load: a dashboard takes seconds to begin.
        self.logger = self._stack.enter_context(RunLogger(self.folder.root, self.config, read_image))
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
        """The folder of the model that workers load: that of the newest finished stage, else the base model."""
        if self.config.stage == "eval" and self.config.eval.checkpoint:
            return Path(self.config.eval.checkpoint).absolute()
        stage = self._finished_stage()
        return self.folder.model(stage) if stage else self.prepared.base_model

    def _finished_stage(self) -> str:
        """Name of the newest finished stage; empty if none is finished."""
        return next((stage for stage in ("rl", "sft") if self.folder.model(stage).exists()), "")

    def _check_finished_model(self) -> None:
        """Refuse a finished stage's model that lost files, before workers start on it."""
        stage = self._finished_stage()
        if not stage or (self.config.stage == "eval" and self.config.eval.checkpoint):
            return
        folder = self.folder.model(stage)
        setting = f"the run's own models/{stage} (move it away to make it again from the newest checkpoint)"
        check_model_type(folder, setting)
        stored_tensors(folder, setting)
        load_processor(folder, setting)

    def _say(self, *lines: str) -> None:
        for line in lines:
            self.progress.line(line)

    def begin_from(self, model: Path, *, needs_reference: bool, is_alone: bool) -> None:
        """Tell the policy which model a stage starts from; say, and keep, what it computes attention with.

        Args:
            model: the model folder to begin from, see :meth:`rsgrpo.trainer.policy.Policy.begin_from`.
            needs_reference: whether the reference model is needed, see there.
            is_alone: whether no engine works during the stage, see there.
        """
        self.policy.begin_from(model, needs_reference=needs_reference, is_alone=is_alone)
        choices = self.policy.attention()
        write_json(self.folder.attention_file, [to_plain(choice) for choice in choices], indent=1)
        lines = list(dict.fromkeys(line for choice in choices for line in choice.lines()))
        if lines != self._attention_lines:
            self._say(*lines)
        self._attention_lines = lines

    def export(self, stage: str) -> None:
        """Write the model that a stage ends with; before it, where they are wanted, its adapters alone.

        Args:
            stage: ``sft`` or ``rl``.
        """
        if self.config.model.lora.export == "adapter":
            self.policy.export_model(self.folder.model(f"{stage}_adapter"), is_adapter=True)
        self.policy.export_model(self.folder.model(stage))

    def save(self, stage: str, step: int, state: object) -> None:
        """Write a checkpoint of policy and driver; older ones go once it is complete."""

        def write(partial: Path) -> None:
            self.policy.save_checkpoint(partial / _POLICY)
            write_record(partial, _STATE, state, version=CHECKPOINT_VERSION)
            write_manifest(partial)

        write_folder(self.folder.checkpoints / f"{stage}-{step:06d}", write)
        self.clock.keep()
        remove_old_checkpoints(self.folder.checkpoints, stage, keep=_CHECKPOINTS_KEPT, newest=step)

    def restore(self, stage: str, kind: type[State]) -> State | None:
        """Driver state of a stage's newest whole checkpoint, the policy set to it; None if there is none.

        Whatever was logged after it is forgotten, so that a resumed run reads as an uninterrupted one.

        Args:
            stage: ``sft`` or ``rl``.
            kind: the class of its driver state.

        Raises:
            CheckpointError: there are checkpoints, but none can be used.
            FileError: the logged numbers or groups cannot be read.
        """
        found = find_checkpoint(self.folder.checkpoints, stage, _NEEDED)
        step = checkpoint_step(found.folder) if found.folder is not None else -1
        notes = [cut_line_note(self.folder.root / METRICS_FILE), cut_line_note(self.folder.rollouts_file)]
        self._say(*found.damaged, *(note for note in notes if note))
        if found.folder is None:
            self.logger.truncate_after(stage, step)
            truncate_after(self.folder.rollouts_file, stage, step)
            return None
        state = read_record(found.folder, _STATE, kind, version=CHECKPOINT_VERSION)
        self.policy.load_checkpoint(found.folder / _POLICY)
        self.logger.truncate_after(stage, step)
        truncate_after(self.folder.rollouts_file, stage, step)
        self.progress.line(f"going on from {found.folder.name}")
        if found.damaged:
            last = checkpoint_step(checkpoint_folders(self.folder.checkpoints, stage)[-1])
            self.progress.line(f"what was learned in steps {step + 1} to {last} is lost: they are trained again")
        return state

    def evaluate(self, point: str) -> None:
        """Score the test questions, unless there are none or this point was scored before."""
        if not self.prepared.test:
            return
        folder = self.folder.evaluation(point)
        if self._is_scored(point):
            return
        count = self.config.eval.max_samples or len(self.prepared.test)
        prompts = self.prepared.test[:count]
        with (
            self.clock.stage(f"evaluate_{point}"),
            self.progress.phase(f"Evaluating {point}", total=len(prompts)) as phase,
        ):
            filter_metrics = None
            if self.config.filter.enabled:
                prompts, filter_metrics = self._filtered(prompts, folder)
            found, groups = evaluate(
                self.engine,
                prompts,
                self.config,
                self.prepared.scorer,
                folder,
                lambda done: phase.advance(count=done),
                filter_metrics,
            )
            self.progress.line(_evaluation_line(point, found))
        self._record(point, found, groups)

    def _filtered(
        self, prompts: Sequence[PromptedSample], folder: Path
    ) -> tuple[tuple[PromptedSample, ...], FilterMetrics]:
        """The questions with the pages that the filter keeps; what it said of each page goes into ``filter.jsonl``."""
        settings, prepared = self.config.filter, self.prepared
        model = AskedModel(judge=self.engine, processor=prepared.processor, rules=self.config.data.image_rules)
        stages = make_stages(settings, model, make_single_embedder, head_scorer(settings, model.rules))
        found = filter_questions([prompt.sample for prompt in prompts], stages, prepared.image_tokens)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "filter.jsonl", found.rows())
        return tuple(prepared.builder.prompted(sample) for sample in found.samples), found.metrics

    def _is_scored(self, point: str) -> bool:
        """Whether a point needs no more scoring: damaged files are scored again as long as its weights are here."""
        folder = self.folder.evaluation(point)
        try:
            return read_evaluation(folder) is not None
        except FileError as error:
            holds = self._finished_stage()
            if point in _STAGES_BEFORE and holds not in (*_STAGES_BEFORE[point], ""):
                self._say(
                    f"{point}: {error}",
                    f"{point} is left out: the engines hold models/{holds}; score it with stage=eval eval.checkpoint=…",
                )
                return True
            self._say(f"{point}: {error}", f"{point}: scored again")
        shutil.rmtree(folder, ignore_errors=True)
        return False

    def _evaluations(self) -> dict[str, Evaluation]:
        """The evaluations of every point that was scored and can be read."""
        found = {}
        for folder in sorted(path.parent for path in self.folder.root.glob("evaluations/*/metrics.json")):
            try:
                evaluation = read_evaluation(folder)
            except FileError as error:
                self._say(f"{error}", f"{folder.name} is left out of summary.json")
                continue
            if evaluation is not None:
                found[folder.name] = evaluation
        return found

    def _record(self, point: str, found: Evaluation, groups: list[RolloutGroup]) -> None:
        shown = groups[:_RECORDED_ANSWERS]
        truncate_after(self.folder.rollouts_file, point, -1)
        self.logger.truncate_after(point, -1)
        record_evaluation(
            self.folder.rollouts_file,
            point,
            [group.sample for group in shown],
            [group.rollouts[0] for group in shown],
            opened_sections=[group.prompt.opened_section for group in shown],
        )
        self.logger.log(point, 0, {f"eval/{name}": value for name, value in found.numbers().items()})

    def write_summary(self) -> None:
        """Write ``summary.json`` from what the run folder holds."""
        rows = read_metrics(self.folder.root / METRICS_FILE)
        evaluations = self._evaluations()
        write_summary(
            self.folder.summary_file,
            RunSummary(
                name=self.config.name,
                stage=self.config.stage,
                recipe=self.config.name,
                seed=self.config.seed,
                device=self.config.cluster.device,
                num_cores=self._cluster.num_cores,
                versions=collect_versions(REPOSITORY),
                prompt_fingerprint=self.prepared.prompt_fingerprint,
                skipped_samples=self.prepared.num_skipped,
                stage_seconds=self.clock.seconds,
                evaluations={point: evaluation.metrics for point, evaluation in evaluations.items()},
                evaluation_rewards={
                    point: dict(evaluation.rewards) for point, evaluation in evaluations.items() if evaluation.rewards
                },
                evaluation_filters={
                    point: evaluation.filter for point, evaluation in evaluations.items() if evaluation.filter
                },
                sft=summarise_sft(rows),
                rl=summarise_rl(rows),
            ),
        )


def _evaluation_line(point: str, found: Evaluation) -> str:
    """The main numbers of an evaluation in one line; evidence only where there is gold for it."""
    metrics = found.metrics
    parts = [f"accuracy {metrics.accuracy:.1%}", f"F1 {metrics.f1:.3f}"]
    if metrics.num_with_gold_evidence:
        parts.append(f"evidence F1 {metrics.evidence_f1:.3f}")
    parts.append(f"well formed {metrics.well_formed_frac:.1%}")
    rewards = "  ".join(f"{name} {value:.3f}" for name, value in found.rewards.items())
    line = f"{point}: {'  '.join(parts)}" + (f"  rewards: {rewards}" if rewards else "")
    return line + (f"  filter: {_filter_text(found.filter)}" if found.filter else "")


def _filter_text(metrics: FilterMetrics) -> str:
    """What a filter found and saved, such as ``recall 97.0%  precision 33.1%  image tokens ÷ 33.3 (÷ 18.1 with …)``."""
    pages = f"recall {metrics.image_recall:.1%}  precision {metrics.image_precision:.1%}  "
    saved = f"image tokens ÷ {metrics.answer_ratio:.1f} (÷ {metrics.total_ratio:.1f} with the filter's own)"
    return (pages if metrics.num_gold_pages else "") + saved
