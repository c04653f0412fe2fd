"""Everything that a retriever's training can be refused for before a rank starts: data, start model, batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from recipes.retriever.wanted_data import check_retriever_data
from rsgrpo.cluster.device import choose_device
from rsgrpo.config import Config
from rsgrpo.config.embedder import VISRAG_INSTRUCTION, EmbedderConfig
from rsgrpo.data.file_bytes import naming
from rsgrpo.data.images.counts import ImageCounts, update_report
from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.data.synthetic.quickstart import corpus
from rsgrpo.data.synthetic.ticket_sets import build_retriever_data
from rsgrpo.errors import shown
from rsgrpo.model.quickstart_model import build_quickstart_model
from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from rsgrpo.retrieval.measuring.relevance_files import RetrievalSet, read_retrieval_set
from rsgrpo.retrieval.training.held_out_pairs import hold_out
from rsgrpo.retrieval.training.pair_table import write_pairs
from rsgrpo.retrieval.training.training_batches import BatchPlan, plan_batches
from rsgrpo.retrieval.training.training_pairs import LoadedPairs, TrainingPair, image_digests, read_training_pairs
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress
from rsgrpo.system.machine import MachineError

PAIRS_FILE = "training_pairs.parquet"
"""The pairs that are trained on, in the data folder of a run: every rank reads them from there."""

_TEMPLATE_TOKENS = 48  # more than chat templates put around a question


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRetriever:
    """What a retriever is trained and measured on.

    Attributes:
        start_model: the folder of the model to start from.
        pairs: the training pairs.
        plan: the batches of the training.
        validation: the pairs that are held out; None: none are.
        test: the test set; None: there is none.
        num_skipped: how many rows were left out because something is wrong with them.
    """

    start_model: Path
    pairs: tuple[TrainingPair, ...]
    plan: BatchPlan
    validation: RetrievalSet | None
    test: RetrievalSet | None
    num_skipped: int


def decided(config: Config) -> Config:
    """Give the settings with the device, and the threads of each rank, that this machine has.

    Args:
        config: the settings of the run.

    Raises:
        MachineError: there are fewer GPUs than ranks.
    """
    import torch

    choice = choose_device(config.cluster, torch.cuda.device_count(), has_engines=False)
    ranks = config.trainer.num_ranks
    if choice.device == "gpu" and torch.cuda.device_count() < ranks:
        raise MachineError(
            f"trainer.num_ranks={ranks}, and torch finds {torch.cuda.device_count()} GPUs; lower it, or set "
            "cluster.device=cpu"
        )
    cores = len(os.sched_getaffinity(0))
    threads = config.trainer.num_threads or max(1, cores // ranks)
    return replace(
        config,
        cluster=replace(config.cluster, device=choice.device),
        trainer=replace(config.trainer, num_threads=threads),
    )


def prepare_retriever(config: Config, folder: RunFolder, progress: Progress) -> PreparedRetriever:
    """Read the data, find the start model, and plan the batches; refuse what cannot work.

    Args:
        config: the checked settings of the run.
        folder: gets the pairs that are trained on.
        progress: shows what is being done.

    Raises:
        RsgrpoError: the data cannot be used, the model is not there, or nothing fills a batch.
    """
    from rsgrpo.retrieval.embedders.model_loading import model_folder
    from rsgrpo.retrieval.training.start_model import READING_RULES

    settings = config.retriever
    check_retriever_data(config)
    with progress.phase("Reading data and model"):
        start_model = (
            model_folder(EmbedderConfig(model=config.model.path, revision=config.model.revision))
            if config.model.path
            else build_quickstart_model(
                config.quickstart, folder.base_model, config.seed, corpus(config.quickstart, config.seed)
            )
        )
        paths, test_path = settings.data, settings.test_path
        if not paths:
            built = build_retriever_data(config.quickstart, folder.data / "retriever", config.seed)
            paths, test_path = [built.train_path], built.test_path
        with naming(f"retriever.test_path={test_path}"):
            test = read_retrieval_set(Path(test_path)) if test_path else None
        loaded = read_training_pairs(
            paths,
            config.data,
            READING_RULES,
            tested_pages=_tested_pages(test),
            check_query=_query_check(config, start_model),
        )
        held_out = hold_out(loaded.pairs, settings.validation_samples, config.seed)
        plan = plan_batches(
            held_out.trained,
            batch_size=settings.batch_size,
            num_epochs=settings.num_epochs,
            max_steps=settings.max_steps,
            seed=config.seed,
        )
        num_skipped = sum(finding.count for finding in loaded.skipped)
        for line in _lines(config, loaded, plan, held_out.data, test):
            progress.line(line)
        for finding in loaded.skipped:
            for line in finding.lines():
                progress.line(f"left out {line}" if line[0].isdigit() else line)
        write_pairs(folder.data / PAIRS_FILE, held_out.trained)
        update_report(folder.root, _report(loaded, plan))
    return PreparedRetriever(
        start_model=start_model,
        pairs=held_out.trained,
        plan=plan,
        validation=held_out.data,
        test=test,
        num_skipped=num_skipped,
    )


def _tested_pages(test: RetrievalSet | None) -> dict[str, str]:
    """The pages that are relevant to a question of the test set: their names by digest."""
    if test is None:
        return {}
    relevant = {page for pages in test.relevant.values() for page, score in pages.items() if score > 0}
    images = {page.image: page.page_id for page in test.pages if page.page_id in relevant and page.image is not None}
    return {digest: images[ref] for ref, digest in image_digests(images).items()}


def _query_check(config: Config, start_model: Path) -> Callable[[str], None]:
    """Make a check of a question's length; only long ones are counted token by token."""
    from transformers import AutoTokenizer

    settings = config.retriever
    instruction = settings.query_instruction or (VISRAG_INSTRUCTION if settings.preset == "visrag" else "")
    room = settings.max_tokens - _TEMPLATE_TOKENS
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(start_model))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EmbeddingError(
            f"the tokenizer of {shown(start_model)} cannot be loaded ({shown(error, 160)}); model.path must be a "
            "folder with config.json, weights, tokenizer and processor"
        ) from error

    def check(query: str) -> None:
        if len((instruction + query).encode()) <= room:  # a token is a byte at least
            return
        num_tokens = len(tokenizer(instruction + query, verbose=False)["input_ids"])
        if num_tokens > room:
            raise BadRecordError(
                "long question",
                f"its query has {num_tokens} tokens with its instruction, and retriever.max_tokens="
                f"{settings.max_tokens} leaves {max(0, room)} beside the template",
            )

    return check


def _lines(
    config: Config, loaded: LoadedPairs, plan: BatchPlan, validation: RetrievalSet | None, test: RetrievalSet | None
) -> list[str]:
    settings = config.retriever
    pages = {pair.page.digest for pair in loaded.pairs}
    sources = {pair.source for pair in loaded.pairs}
    lines = [
        f"{len(loaded.pairs)} pairs on {len(pages)} pages of {len(sources)} source{'s' * (len(sources) != 1)}; "
        f"{len(plan.batches)} steps of {settings.batch_size}",
        *loaded.images.lines(),
    ]
    if validation is not None:
        lines.append(f"held out: {len(validation.queries)} pairs on {len(validation.pages)} pages")
    if test is not None:
        lines.append(f"test: {len(test.queries)} questions, {len(test.pages)} pages")
    if plan.num_left_out:
        lines.append(f"an epoch leaves out {plan.num_left_out} pairs, which fill no batch")
    if plan.small_sources:
        named = ", ".join(f"{shown(name or 'without a name', 30)} ({n})" for name, n in plan.small_sources.items())
        lines.append(f"sources with too few pages for a batch, never trained on: {shown(named, 80)}")
    with_negatives = sum(bool(pair.negatives) for pair in loaded.pairs)
    if with_negatives and not settings.negatives.num_pages:
        lines.append(f"{with_negatives} pairs name hard negatives; retriever.negatives.num_pages=0 takes none of them")
    if settings.negatives.num_pages and not with_negatives:
        lines.append("no pair names hard negatives: retriever.negatives.num_pages only costs time")
    return lines


def _report(loaded: LoadedPairs, plan: BatchPlan) -> dict[str, object]:
    total = ImageCounts.total([loaded.images])
    return {
        "images": total.document(),
        "retriever": {
            "pairs": len(loaded.pairs),
            "steps": len(plan.batches),
            "left_out_of_an_epoch": plan.num_left_out,
            "small_sources": plan.small_sources,
            "skipped": [
                {"reason": finding.reason, "count": finding.count, "examples": list(finding.examples)}
                for finding in loaded.skipped
            ],
        },
    }
