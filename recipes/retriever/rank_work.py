"""What one rank does, whether it is this process or one of several: train, measure, write checkpoints and the model."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from recipes.retriever.preparation import PAIRS_FILE
from rsgrpo.config import Config
from rsgrpo.io.manifest import CHECKPOINT_VERSION, write_manifest
from rsgrpo.io.record_codec import read_record, write_record
from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder
from rsgrpo.retrieval.measuring.measured_search import measure_embedder
from rsgrpo.retrieval.measuring.relevance_files import RetrievalSet
from rsgrpo.retrieval.training.pair_table import read_pairs
from rsgrpo.retrieval.training.sentence_trainer import TRAINED_FILE, RetrieverTraining
from rsgrpo.retrieval.training.training_batches import BatchPlan, plan_batches
from rsgrpo.retrieval.training.training_pairs import TrainingPair
from rsgrpo.run.folder import RunFolder
from rsgrpo.system.quiet import hush_device_search
from rsgrpo.trainer.checkpoint import CheckpointError, remove_old_checkpoints, write_folder

STAGE = "retriever"
"""The stage's name in logs, checkpoints and models."""

ADAPTER = "retriever_adapter"
"""The name of the folder with the adapters by themselves, beside the model's."""

_CHECKPOINTS_KEPT = 2
_STATE = "driver"
NEEDED = (f"{_STATE}.json", f"{_STATE}.safetensors", TRAINED_FILE, "optimizer.pt", "scheduler.pt", "trainer_state.json")
"""The names of files that every checkpoint has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTaken:
    """The numbers of a step.

    Attributes:
        step: how many steps were taken.
        values: the numbers, by name.
    """

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointWritten:
    """A checkpoint is complete.

    Attributes:
        step: the step that it was written after.
    """

    step: int


Event = StepTaken | CheckpointWritten
"""What the first rank tells while it trains."""


@dataclass(kw_only=True, slots=True)
class RetrieverState:
    """What a checkpoint notes beside weights and optimizer.

    Attributes:
        step: how many steps were taken.
        data_digest: the digest of the pairs and batches that are trained on.
    """

    step: int = 0
    data_digest: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankTask:
    """What a rank is asked to do.

    Attributes:
        run_folder: the folder of the run.
        start_model: the folder of the model to start from.
        validation: the pairs that are held out; None: none are.
        resume_from: the folder of the checkpoint to go on from; None: begin.
    """

    run_folder: Path
    start_model: Path
    validation: RetrievalSet | None = None
    resume_from: Path | None = field(default=None)


def do_rank(config: Config, task: RankTask, tell: Callable[[Event], None], *, is_first: bool = True) -> None:
    """Train, and on the first rank write the model.

    Args:
        config: the settings of the run, with device and threads decided.
        task: what to do.
        tell: told of every step and checkpoint, on the first rank.
        is_first: whether this is the first rank.

    Raises:
        RsgrpoError: training cannot go on.
    """
    hush_device_search()
    torch.set_num_threads(max(1, config.trainer.num_threads))
    folder = RunFolder(root=task.run_folder)
    pairs = read_pairs(folder.data / PAIRS_FILE)
    plan = planned(config, pairs)
    digest = data_digest(pairs, plan)
    if task.resume_from is not None:
        check_same_data(task.resume_from, digest)
    scratch = folder.root / ".retriever_checkpoint"
    hooks = _Hooks(config=config, folder=folder, validation=task.validation, data_digest=digest, tell=tell)
    training = RetrieverTraining(
        config, start_model=task.start_model, pairs=pairs, batches=plan.batches, scratch=scratch, hooks=hooks
    )
    training.train(task.resume_from)
    if not is_first:
        return
    if config.retriever.keep_adapter and config.model.lora.rank:
        write_folder(folder.model(ADAPTER), training.save_adapter)
    write_folder(folder.model(STAGE), training.save)
    shutil.rmtree(scratch, ignore_errors=True)


def planned(config: Config, pairs: Sequence[TrainingPair]) -> BatchPlan:
    """Plan the batches of a run."""
    settings = config.retriever
    return plan_batches(
        pairs,
        batch_size=settings.batch_size,
        num_epochs=settings.num_epochs,
        max_steps=settings.max_steps,
        seed=config.seed,
    )


def data_digest(pairs: Sequence[TrainingPair], plan: BatchPlan) -> str:
    """Compute the digest of what is trained on, in which order: 32 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        found.update(f"{pair.query}\0{pair.page.digest}\0{pair.source}\0{pair.weight}\n".encode())
        found.update("\0".join(page.digest for page in pair.negatives).encode())
    for batch in plan.batches:
        found.update(batch.tobytes())
    return found.hexdigest()


def check_same_data(checkpoint: Path, digest: str) -> None:
    """Refuse to go on from a checkpoint with other data than those that it was trained on.

    Raises:
        CheckpointError: the data are others.
    """
    state = read_record(checkpoint, _STATE, RetrieverState, version=CHECKPOINT_VERSION)
    if state.data_digest != digest:
        raise CheckpointError(
            f"{checkpoint.name} was trained on other pairs, or on these in another order: the files of retriever.data "
            "have changed since; put them back, or start a new run"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Hooks:
    """Measures, moves checkpoints to their place, and tells whoever listens."""

    config: Config
    folder: RunFolder
    validation: RetrievalSet | None
    data_digest: str
    tell: Callable[[Event], None]

    def on_step(self, step: int, values: Mapping[str, float], embedder: Callable[[], SentenceEmbedder]) -> None:
        """Measure where it is time to, and tell the numbers."""
        found = dict(values)
        if self.validation is not None and step % self.config.retriever.validate_every_steps == 0:
            measured = measure_embedder(embedder(), self.validation)
            found |= {f"eval/{name}": value for name, value in measured.values.items()}
        self.tell(StepTaken(step=step, values=found))

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Move a checkpoint among those of the run."""

        def write(partial: Path) -> None:
            for file in folder.iterdir():
                shutil.move(file, partial / file.name)
            write_record(
                partial, _STATE, RetrieverState(step=step, data_digest=self.data_digest), version=CHECKPOINT_VERSION
            )
            write_manifest(partial)

        write_folder(self.folder.checkpoints / f"{STAGE}-{step:06d}", write)
        shutil.rmtree(folder, ignore_errors=True)
        remove_old_checkpoints(self.folder.checkpoints, STAGE, keep=_CHECKPOINTS_KEPT, newest=step)
        self.tell(CheckpointWritten(step=step))
