"""The stage ``retriever``: measure the start model, train, measure again, write summary and report.

prepare ─► measure before_retriever ─► train (one rank here, or several processes) ─► measure after_retriever
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from recipes.retriever.measuring import measure_point, read_measures
from recipes.retriever.preparation import PreparedRetriever, decided, prepare_retriever
from recipes.retriever.rank_work import (
    NEEDED,
    STAGE,
    CheckpointWritten,
    Event,
    RankTask,
    StepTaken,
    do_rank,
)
from recipes.retriever.ranks import train_in_ranks
from rsgrpo.config import Config
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.io.jsonl import cut_line_note
from rsgrpo.io.timers import StageClock
from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder
from rsgrpo.retrieval.training.start_model import embedder_config, load_start_model
from rsgrpo.run.folder import RunFolder, begin_run, open_run_folder
from rsgrpo.run.logger import METRICS_FILE, RunLogger, read_metrics
from rsgrpo.run.progress import Phase, Progress, step_line
from rsgrpo.run.report import build_report
from rsgrpo.run.summary import RunSummary, collect_versions, summarise_retriever, write_summary
from rsgrpo.system.machine import REPOSITORY
from rsgrpo.trainer.checkpoint import checkpoint_step, find_checkpoint

_SHOWN = {
    "loss": "retriever/loss",
    "batch accuracy": "retriever/batch_accuracy",
    "mrr@10": "eval/mrr@10",
    "grad norm": "retriever/grad_norm",
    "lr": "retriever/learning_rate",
    "pairs/s": "retriever/pairs_per_second",
}


def run_retriever(config: Config) -> Path:
    """Train a page retriever; what is done already is not done again.

    Args:
        config: the checked settings of the run.

    Returns:
        The path of the report.

    Raises:
        RsgrpoError: an error that a user can act on; nothing that was finished is lost.
    """
    config = decided(config)
    with ExitStack() as stack:
        folder = stack.enter_context(open_run_folder(config))
        progress = Progress(config.logging.progress)
        if folder.note:
            progress.line(folder.note)
        prepared = prepare_retriever(config, folder, progress)
        begin_run(folder, config)
        logger = stack.enter_context(RunLogger(folder.root, config))
        stage = _Stage(config, folder, prepared, progress, logger)
        stage.measure("before_retriever", lambda: _start_embedder(config, prepared.start_model))
        stage.train()
        stage.measure("after_retriever", lambda: SentenceEmbedder(trained_embedder(config, folder.model(STAGE))))
        stage.write_summary()
        report = build_report(folder.root)
        progress.line(f"report: {report}", indent=0)
    return report


def trained_embedder(config: Config, model: Path) -> EmbedderConfig:
    """Give the settings of an embedder for the trained model, as anybody would use it.

    Args:
        config: the settings of the run, with the device decided.
        model: the folder of the trained model.
    """
    return EmbedderConfig(model=str(model), device="cuda" if config.cluster.device == "gpu" else "cpu")


class _Stage:
    """One run's training with its logs and bookkeeping."""

    def __init__(
        self, config: Config, folder: RunFolder, prepared: PreparedRetriever, progress: Progress, logger: RunLogger
    ) -> None:
        self._config = config
        self._folder = folder
        self._prepared = prepared
        self._progress = progress
        self._logger = logger
        self._clock = StageClock(folder.stage_seconds_file)

    def measure(self, point: str, make_embedder: Callable[[], SentenceEmbedder]) -> None:
        """Search the test set, unless there is none or this point was measured before."""
        test = self._prepared.test
        if test is None or read_measures(self._folder.evaluation(point), self._progress.line) is not None:
            return
        if point == "before_retriever" and self._folder.model(STAGE).exists():
            return
        with self._clock.stage(f"evaluate_{point}"):
            found = measure_point(point, make_embedder(), test, self._folder, self._progress)
        self._logger.truncate_after(point, -1)
        self._logger.log(point, 0, {f"eval/{name}": value for name, value in found.numbers().items()})
        gc.collect()

    def train(self) -> None:
        """Train to the end, from the newest checkpoint if there is one."""
        if self._folder.model(STAGE).exists():
            return
        resume_from = self._restore()
        first = 0 if resume_from is None else checkpoint_step(resume_from)
        task = RankTask(
            run_folder=self._folder.root,
            start_model=self._prepared.start_model,
            validation=self._prepared.validation,
            resume_from=resume_from,
        )
        total = len(self._prepared.plan.batches)
        with self._clock.stage(STAGE), self._progress.phase("Training the retriever", total=total) as phase:
            phase.advance(count=first)
            tell = self._listener(phase, total)
            if self._config.trainer.num_ranks == 1:
                do_rank(self._config, task, tell)
            else:
                train_in_ranks(self._config, task, tell)

    def _listener(self, phase: Phase, total: int) -> Callable[[Event], None]:
        def tell(event: Event) -> None:
            if isinstance(event, CheckpointWritten):
                self._clock.keep()
            elif isinstance(event, StepTaken):
                self._logger.log(STAGE, event.step, event.values)
                shown = {name: event.values[key] for name, key in _SHOWN.items() if key in event.values}
                phase.advance(step_line(STAGE, event.step, total, shown))

        return tell

    def _restore(self) -> Path | None:
        """Find the checkpoint to go on from; what was logged after it is forgotten."""
        found = find_checkpoint(self._folder.checkpoints, STAGE, NEEDED)
        note = cut_line_note(self._folder.root / METRICS_FILE)
        for line in (*found.damaged, *([note] if note else [])):
            self._progress.line(line)
        step = -1 if found.folder is None else checkpoint_step(found.folder)
        self._logger.truncate_after(STAGE, step)
        if found.folder is not None:
            self._progress.line(f"going on from {found.folder.name}")
        return found.folder

    def write_summary(self) -> None:
        """Write ``summary.json`` from what the run folder holds."""
        points = {
            point: measures
            for point in ("before_retriever", "after_retriever")
            if (measures := read_measures(self._folder.evaluation(point), self._progress.line)) is not None
        }
        write_summary(
            self._folder.summary_file,
            RunSummary(
                name=self._config.name,
                stage=self._config.stage,
                recipe=self._config.name,
                seed=self._config.seed,
                device=self._config.cluster.device,
                num_cores=self._config.trainer.num_threads * self._config.trainer.num_ranks,
                versions=collect_versions(REPOSITORY),
                skipped_samples=self._prepared.num_skipped,
                stage_seconds=self._clock.seconds,
                retrieval=points,
                retriever=summarise_retriever(read_metrics(self._folder.root / METRICS_FILE)),
            ),
        )


def _start_embedder(config: Config, folder: Path) -> SentenceEmbedder:
    return SentenceEmbedder(embedder_config(config, folder), load_start_model(config, folder))
