"""Train a page retriever with sentence-transformers: its trainer and GradCache, our batches, loss and image reader.

One process is one rank. Each rank embeds its share of a batch; vectors are gathered, so that a question meets the pages
of all ranks, and the result is that of one large device (GradCache, arXiv:2101.06983).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.util.distributed import get_world_size
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.utils.data import BatchSampler
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from rsgrpo.config import Config, OptimizerConfig
from rsgrpo.data.images.loading import load_image
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from rsgrpo.retrieval.embedders.saved_form import write_instruction
from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder
from rsgrpo.retrieval.training.pair_loss import PairLoss
from rsgrpo.retrieval.training.start_model import (
    READING_RULES,
    choose_trained,
    embedder_config,
    load_start_model,
    merge_adapters,
)
from rsgrpo.retrieval.training.training_batches import Rows
from rsgrpo.retrieval.training.training_pairs import TrainingPage, TrainingPair, chosen_negatives

TRAINED_FILE = "trained.safetensors"
"""The trained weights of a checkpoint; the others are those of the start model."""

_SCHEDULES = {"constant": "constant_with_warmup", "cosine": "cosine", "linear": "linear"}
_DECODING_THREADS = 4
_STAGING = "checkpoint-"  # how the trainer calls the folder of a checkpoint


class RetrieverTrainingError(RsgrpoError):
    """Training cannot go on; the message says why, and the way out."""


class TrainingHooks(Protocol):
    """What a training tells whoever started it; only the first rank does."""

    def on_step(self, step: int, values: Mapping[str, float], embedder: Callable[[], SentenceEmbedder]) -> None:
        """Take the numbers of a step.

        Args:
            step: how many steps were taken.
            values: the numbers, by name.
            embedder: gives the embedder as it is trained so far; the other ranks wait for as long as it is used.
        """

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Take a whole checkpoint.

        Args:
            step: the step that it was written after.
            folder: the folder that it lies in, which may be moved away.
        """


class RetrieverTraining:
    """The training of one rank.

    Args:
        config: the settings of the run; ``cluster.device`` is decided.
        start_model: the folder of the model to start from.
        pairs: all training pairs.
        batches: the numbers of the pairs of each step, as
            :func:`rsgrpo.retrieval.training.training_batches.plan_batches` gives them; the same on every rank.
        scratch: a folder for checkpoints while they are written; the same on every rank.
        hooks: told what happens; used on the first rank.

    Raises:
        EmbeddingError: the model cannot be loaded, or does not fit the settings.
    """

    def __init__(
        self,
        config: Config,
        *,
        start_model: Path,
        pairs: Sequence[TrainingPair],
        batches: Sequence[Rows],
        scratch: Path,
        hooks: TrainingHooks,
    ) -> None:
        self._config = config
        self._start_model = start_model
        self._model = load_start_model(config, start_model)
        dimension = int(self._model.get_embedding_dimension() or 0)
        too_long = [length for length in config.retriever.matryoshka_dimensions if length > dimension]
        if too_long:
            raise EmbeddingError(
                f"retriever.matryoshka_dimensions names {too_long[0]}, and vectors of {shown(start_model)} have "
                f"{dimension} numbers; leave it out"
            )
        self._instruction = self._embedder().identity.query_instruction
        self._in_text = self._embedder().identity.instruction_place == "text"
        choose_trained(self._model, config)
        loss = PairLoss(self._model, config, pairs)
        self._trainer = _Trainer(
            model=self._model,
            args=_arguments(config, len(batches), scratch),
            train_dataset=Dataset.from_dict({"row": list(range(len(pairs)))}),
            loss=loss,
            data_collator=self._collator(pairs),
            callbacks=[_Reporter(config, loss, hooks, self._embedder)],
        )
        self._trainer.shares_optimizer = config.retriever.zero_stage == 1
        self._trainer.plan = _PlannedBatches(batches, num_ranks=get_world_size())
        self._trainer.remove_callback(PrinterCallback)

    def train(self, resume_from: Path | None = None) -> None:
        """Train to the end of the plan.

        Args:
            resume_from: the folder of the checkpoint to go on from; None: begin.

        Raises:
            RetrieverTrainingError: the loss is no finite number any more, or the memory does not suffice.
            ImageError: a page cannot be read any more.
        """
        if get_world_size() != self._config.trainer.num_ranks:
            raise RetrieverTrainingError(
                f"trainer.num_ranks={self._config.trainer.num_ranks}, and {get_world_size()} processes train; let "
                "`rsgrpo train` start them"
            )
        try:
            self._trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
        except torch.OutOfMemoryError as error:
            raise RetrieverTrainingError(
                f"the GPU's memory does not suffice for {self._config.retriever.micro_batch_size} items at once; lower "
                "retriever.micro_batch_size or retriever.max_pixels, or set model.gradient_checkpointing=true"
            ) from error

    def save_adapter(self, folder: Path) -> None:
        """Write the adapters of ``model.lora`` by themselves, as peft saves them.

        Args:
            folder: the folder to write to.
        """
        self._model.transformers_model.save_pretrained(str(folder))

    def save(self, folder: Path) -> None:
        """Write the trained model; adapters are merged into it, so that it cannot be trained on.

        Args:
            folder: the folder to write to; embedders load it with ``embedder.preset=auto``.
        """
        if self._config.model.lora.rank:
            merge_adapters(self._model.transformers_model)
        self._model.eval()
        if self._config.model.dtype == "bfloat16":
            self._model.to(torch.bfloat16)
        shows_progress = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            self._model.save_pretrained(str(folder), create_model_card=False)
        finally:
            if shows_progress:
                transformers_logging.enable_progress_bar()
        if self._in_text:
            write_instruction(folder, self._instruction)

    def _embedder(self) -> SentenceEmbedder:
        return SentenceEmbedder(embedder_config(self._config, self._start_model), self._model)

    def _collator(self, pairs: Sequence[TrainingPair]) -> _PairCollator:
        prompts: dict[str, str] = {}
        if not self._in_text:
            prompts = {"query": self._instruction} if self._instruction else {}
            document = self._model.prompts.get("document")
            if document:
                names = ["page", *_negative_names(self._config.retriever.negatives.num_pages)]
                prompts |= dict.fromkeys(names, document)
        return _PairCollator(
            preprocess_fn=self._model.preprocess,
            prompts=prompts,
            pairs=pairs,
            instruction=self._instruction if self._in_text else "",
            num_negatives=self._config.retriever.negatives.num_pages,
        )


class _Trainer(SentenceTransformerTrainer):
    """Their trainer on our plan; a checkpoint holds the weights that are trained.

    Attributes:
        plan: the batches.
        shares_optimizer: whether each rank holds its share of the optimizer's states only (ZeRO 1).
    """

    plan: _PlannedBatches
    shares_optimizer = False

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer, of which every rank holds all or its share."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.shares_optimizer and get_world_size() > 1:
            groups = [dict(group) for group in optimizer.param_groups]
            taken = inspect.signature(type(optimizer)).parameters  # some defaults are noted, and cannot be given
            defaults = {name: value for name, value in optimizer.defaults.items() if name in taken}
            self.optimizer = optimizer = _SharedOptimizer(groups, type(optimizer), **defaults)
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if isinstance(self.optimizer, _SharedOptimizer):
            self.optimizer.consolidate_state_dict(to=0)
        super()._save_optimizer_and_scheduler(output_dir)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Write no card: it would count examples of the data and print bars of its progress."""

    def get_batch_sampler(self, *_: Any, **__: Any) -> BatchSampler:
        return self.plan

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().cpu() for name, tensor in _trained(self.model)}, folder / TRAINED_FILE)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        stored = load_file(Path(checkpoint_path) / TRAINED_FILE)
        trained = dict(_trained(self.model))
        if stored.keys() != trained.keys():
            other = sorted(stored.keys() ^ trained.keys())[0]
            raise RetrieverTrainingError(
                f"{shown(checkpoint_path)} holds other weights than are trained ({shown(other)}); go on with the "
                "settings that the run was begun with"
            )
        with torch.no_grad():
            for name, tensor in trained.items():
                tensor.copy_(stored[name])


class _SharedOptimizer(ZeroRedundancyOptimizer):
    """An optimizer whose states are shared out over the ranks; accelerate leaves it as it is.

    It would ask for the whole state, which no rank has, and wrap it in order to skip steps in float16.
    """

    _is_accelerate_prepared = True
    step_was_skipped = False


class _PlannedBatches(BatchSampler):
    """The batches of the plan, each cut into one share for each rank, which the data loader hands out in turn."""

    def __init__(self, batches: Sequence[Rows], *, num_ranks: int) -> None:
        self._batches = batches
        self._num_ranks = num_ranks
        self.batch_size = len(batches[0]) // num_ranks
        self.drop_last = True

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            for rank in range(self._num_ranks):
                yield batch[rank * self.batch_size : (rank + 1) * self.batch_size].tolist()

    def __len__(self) -> int:
        return len(self._batches) * self._num_ranks


class _PairCollator(SentenceTransformerDataCollator):
    """Turns numbers of pairs into the model's inputs; images are decoded here."""

    def __init__(
        self, *, pairs: Sequence[TrainingPair], instruction: str, num_negatives: int, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._pairs = pairs
        self._instruction = instruction
        self._num_negatives = num_negatives

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [int(feature["row"]) for feature in features]
        pages = [
            page
            for row in rows
            for page in (self._pairs[row].page, *chosen_negatives(self._pairs[row], self._num_negatives))
        ]
        with ThreadPoolExecutor(_DECODING_THREADS) as threads:
            read = iter(list(threads.map(_read, pages)))
        names = ("page", *_negative_names(self._num_negatives))
        batch: dict[str, Any] = super().__call__(
            [
                {
                    "query": self._instruction + self._pairs[row].query,
                    **{name: next(read) for name in names},
                    "label": row,
                }
                for row in rows
            ]
        )
        return batch


class _Reporter(TrainerCallback):
    """Reads the numbers of each step, and hands them and checkpoints to the hooks."""

    def __init__(
        self, config: Config, loss: PairLoss, hooks: TrainingHooks, embedder: Callable[[], SentenceEmbedder]
    ) -> None:
        self._config = config
        self._loss = loss
        self._hooks = hooks
        self._embedder = embedder
        self._begin = 0.0
        self._accuracy = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        accuracy = self._loss.accuracy.detach().clone()
        if get_world_size() > 1:
            torch.distributed.all_reduce(accuracy)
        self._accuracy = float(accuracy) / get_world_size()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        if not torch.isfinite(torch.tensor(logs["loss"])):
            raise RetrieverTrainingError(
                f"the loss of step {state.global_step} is no finite number: training has gone astray; lower "
                "retriever.optimizer.learning_rate or raise retriever.warmup_frac, and start anew"
            )
        if not state.is_world_process_zero:
            return
        seconds = time.perf_counter() - self._begin
        values = {
            "retriever/loss": logs["loss"],
            "retriever/batch_accuracy": self._accuracy,
            "retriever/grad_norm": logs.get("grad_norm", 0.0),
            "retriever/learning_rate": logs["learning_rate"],
            "retriever/pairs_per_second": self._config.retriever.batch_size / seconds,
            "time/step": seconds,
        }
        self._hooks.on_step(state.global_step, values, self._embedder)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if get_world_size() > 1:
            torch.distributed.barrier()  # every rank writes the state of its generators
        if state.is_world_process_zero:
            self._hooks.on_checkpoint(state.global_step, Path(args.output_dir) / f"{_STAGING}{state.global_step}")


def _read(page: TrainingPage) -> Image.Image | str:
    return page.text if page.image is None else load_image(page.image, READING_RULES)


def _negative_names(num_pages: int) -> tuple[str, ...]:
    return tuple(f"negative_{number}" for number in range(1, num_pages + 1))


def _trained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _arguments(config: Config, num_steps: int, scratch: Path) -> SentenceTransformerTrainingArguments:
    settings = config.retriever
    optimizer = settings.optimizer
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(scratch),
        max_steps=num_steps,
        per_device_train_batch_size=settings.batch_size // config.trainer.num_ranks,
        learning_rate=optimizer.learning_rate,
        learning_rate_mapping=_vision_rate(optimizer),
        lr_scheduler_type=_SCHEDULES[optimizer.schedule],
        warmup_steps=optimizer.warmup_steps or int(settings.warmup_frac * num_steps + 0.999999),
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        max_grad_norm=optimizer.max_grad_norm,
        bf16=config.model.dtype == "bfloat16",
        gradient_checkpointing=config.model.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=config.cluster.device == "cpu",
        ddp_timeout=max(1, int(config.trainer.timeout_seconds)),
        ddp_find_unused_parameters=False,
        dataloader_drop_last=True,
        seed=config.seed,
        data_seed=config.seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_every_steps,
        report_to="none",
        disable_tqdm=True,
    )
    if config.trainer.num_ranks == 1 and arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else torch's DataParallel would share the batch out over all GPUs
    return arguments


def _vision_rate(optimizer: OptimizerConfig) -> dict[str, float]:
    return {r".*visual\..*": optimizer.vision_learning_rate} if optimizer.vision_learning_rate else {}
