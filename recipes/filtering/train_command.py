"""``rsgrpo train-filter``: train a head that judges pages, on questions whose gold pages stand among distractors."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.filtering.command_settings import filter_settings, split_filter_settings
from recipes.indexing.settings import data_settings, split_data_settings
from rsgrpo.config import DataConfig, DistractorConfig, FilterStageConfig, QueryFilterConfig
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures.command import CommandParser, UsageError, run_command

if TYPE_CHECKING:  # they take long to import
    from recipes.filtering.head_run import HeldOutMeasures
    from rsgrpo.config.image_rules import ImageRules
    from rsgrpo.types import Sample

_MAX_DISTRACTORS = 30  # as MIRAGE trains
_LINES = 20  # about so many lines of progress
_EXAMPLES = """\
examples:
  uv run rsgrpo train-filter questions.jsonl --model runs/retriever/models/retriever --out heads/pages
  uv run rsgrpo train-filter questions.jsonl --model models/qwen2.5-vl --out heads/pages --index pages.index
  uv run rsgrpo train-filter questions.jsonl --pairs-out pairs.jsonl --max-distractors 10
  uv run rsgrpo train-filter questions.jsonl --model m --out h filter.head_training.max_steps=300
"""


def command_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo train-filter`` takes beside settings."""
    parser = CommandParser(
        prog="rsgrpo train-filter",
        description="Train a head that says whether a page helps to answer a question.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", metavar="FILE", help="questions in EVisRAG's format with gold pages (posImgs)")
    parser.add_argument("--model", default="", help="the embedder's or the policy's folder that the head starts from")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the head goes")
    parser.add_argument("--pairs-out", type=Path, metavar="FILE", help="write the labelled pairs as JSONL, too")
    parser.add_argument("--index", default="", metavar="INDEX", help="distractors are a question's nearest pages in it")
    parser.add_argument("--min-distractors", type=int, default=0, help="fewest distractors of a question (0)")
    parser.add_argument(
        "--max-distractors", type=int, default=_MAX_DISTRACTORS, help=f"most of them ({_MAX_DISTRACTORS})"
    )
    parser.add_argument("--image-root", default="", metavar="FOLDER", help="what image paths of FILE are relative to")
    parser.add_argument_group(
        "settings",
        "filter.head_training.NAME=VALUE, filter.yes, filter.no, filter.prompt, data.NAME=VALUE "
        "(data.on_bad_sample=skip); docs/settings.md lists them",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``rsgrpo train-filter``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.

    Returns:
        The exit status of the process.
    """
    return run_command(lambda: _train(sys.argv[1:] if arguments is None else arguments), way_on="call it again")


def _train(arguments: Sequence[str]) -> None:
    rest, reading = split_data_settings(arguments)
    rest, given = split_filter_settings(rest)
    options = command_parser().parse_args(rest)
    settings = filter_settings(given)
    options.reading = data_settings(reading, image_root=options.image_root, max_images=settings.max_pages)
    if bool(options.model) != bool(options.out) or not (options.model or options.pairs_out):
        raise UsageError("--model and --out belong together; give both to train, or --pairs-out to write pairs alone")
    if not 0 <= options.min_distractors <= options.max_distractors:
        raise UsageError(
            f"--min-distractors {options.min_distractors} and --max-distractors {options.max_distractors} leave no "
            "number between them; the first must be at least 0, the second at least as many"
        )
    if options.out is not None and options.out.exists():
        raise UsageError(f"{shown(options.out)} is there already; name another folder with --out")
    with contextlib.redirect_stdout(sys.stderr):  # libraries say there what they find
        told = _work(options, settings)
    for name, value in told.items():
        print(f"{name}: {value}")


def _work(options: argparse.Namespace, settings: QueryFilterConfig) -> dict[str, Any]:
    import numpy as np

    from recipes.filtering.questions import read_questions
    from rsgrpo.data.files import check_output, data_files
    from rsgrpo.data.filter_rows import random_distractors, with_more_pages

    if options.pairs_out:
        check_output(options.pairs_out, data_files(options.data), "--pairs-out")
    if options.model and not Path(options.model).is_dir():
        raise RsgrpoError(f"--model {shown(options.model)} is no folder; name that of an embedder or a policy")
    data = options.reading
    samples = read_questions(options.data, data).samples
    known = [sample for sample in samples if sample.positive_images]
    if not known:
        raise RsgrpoError(f"none of {len(samples)} questions of {shown(options.data)} names a gold page (posImgs)")
    rng = np.random.default_rng(settings.head_training.seed)
    mixing = DistractorConfig(min_images=options.min_distractors, max_images=options.max_distractors)
    find = _nearest(options.index, data) if options.index else random_distractors(samples, rng)
    mixed = [with_more_pages(sample, find, mixing, rng) for sample in known]
    num_held_out = round(settings.head_training.held_out_frac * len(mixed))
    places = rng.permutation(len(mixed))
    trained = [mixed[place] for place in places[num_held_out:].tolist()]
    held_out = [mixed[place] for place in places[:num_held_out].tolist()]
    told: dict[str, Any] = {
        "questions": len(known),
        "questions without a gold page": len(samples) - len(known),
        "pairs": sum(len(sample.images) for sample in mixed),
        "relevant pairs": sum(len(sample.positive_images) for sample in mixed),
    }
    if options.pairs_out:
        _write_pairs(options.pairs_out, mixed)
        told["pairs written"] = str(options.pairs_out)
    if options.model:
        trained_head = _train_head(options, settings, trained, rng)
        measures = _measured(options.out, settings, data.image_rules, held_out) if held_out else None
        _write_summary(options.out, settings, mixed, trained_head, measures)
        told["head"] = str(options.out)
        told |= measures.told() if measures else {}
    return told


def _nearest(folder: str, data: DataConfig) -> Any:
    """A function that gives a question's nearest pages in an index, its own gold pages left out."""
    from recipes.filtering.stages import file_digest
    from recipes.indexing.places import make_any_embedder
    from rsgrpo.retrieval.index.flat_index import open_index
    from rsgrpo.retrieval.index.page_index import find_pages
    from rsgrpo.types import ImageRef

    index = open_index(Path(folder))
    if index.embedder is None:
        raise RsgrpoError(f"{index.name} does not say how to run its embedder; make one with rsgrpo index")
    embedder = make_any_embedder(index.embedder)

    def find(sample: Sample, count: int) -> list[ImageRef]:
        own = {file_digest(page) for page in sample.images}
        if not count:
            return []
        (hits,) = find_pages(index, embedder, [sample.question], count + len(own))
        pages = [hit.page for hit in hits if hit.page.sha256 not in own]
        return [ImageRef(path=page.page_id, file=page.image_path) for page in pages[:count]]

    return find


def _write_pairs(file: Path, mixed: Sequence[Sample]) -> None:
    from rsgrpo.io.jsonl import write_rows

    rows = []
    for sample in mixed:
        gold = set(sample.positive_images)
        rows += [
            {
                "query": sample.question,
                "image": page.file or page.path,
                "label": int(index in gold),
                "qid": sample.sample_id,
            }
            for index, page in enumerate(sample.images)
        ]
    write_rows(file, [json.loads(json.dumps(row)) for row in rows])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trained:
    """How the training went.

    Attributes:
        num_steps: how many steps were taken.
        last_loss: the loss of the last one; None if it is not finite.
        seconds: the wall-clock time, in seconds.
    """

    num_steps: int
    last_loss: float | None
    seconds: float


def _train_head(
    options: argparse.Namespace, settings: QueryFilterConfig, trained: Sequence[Sample], rng: Any
) -> _Trained:
    from transformers import AutoTokenizer

    from recipes.filtering.head import worded
    from recipes.filtering.head_run import log_step, write_settings
    from rsgrpo.prompts.relevance import answer_tokens
    from rsgrpo.prompts.template import find_template
    from rsgrpo.retrieval.filtering.page_head import LabelledPage, train_head

    pairs = [
        LabelledPage(question=sample.question, page=page, is_relevant=index in set(sample.positive_images))
        for sample in trained
        for index, page in enumerate(sample.images)
    ]
    start = Path(options.model)
    losses: list[float | None] = []

    def on_step(step: int, num_steps: int, loss: float) -> None:
        losses.append(log_step(options.out, step, loss))
        if step == 1 or step == num_steps or step % max(1, num_steps // _LINES) == 0:
            print(f"step {step}/{num_steps}  loss {loss:.4f}", flush=True)

    begin = time.monotonic()
    train_head(
        [pairs[place] for place in rng.permutation(len(pairs)).tolist()],
        start,
        options.out,
        settings.head_training,
        tokens=answer_tokens(AutoTokenizer.from_pretrained(start), settings.yes, settings.no),
        wording=find_template(settings.prompt).read_text(encoding="utf-8"),
        word=worded(settings.prompt),
        rules=options.reading.image_rules,
        on_step=on_step,
    )
    call = {name: str(getattr(options, name) or "") for name in ("data", "model", "index", "image_root")}
    distractors = {"min_distractors": options.min_distractors, "max_distractors": options.max_distractors}
    write_settings(options.out, {**call, **distractors}, settings)
    return _Trained(num_steps=len(losses), last_loss=losses[-1], seconds=time.monotonic() - begin)


def _measured(
    head: Path, settings: QueryFilterConfig, rules: ImageRules, held_out: Sequence[Sample]
) -> HeldOutMeasures:
    """What the head is worth on questions that it was not trained on."""
    import dataclasses

    import numpy as np
    from sklearn.metrics import roc_auc_score

    from recipes.filtering.head import head_scorer
    from recipes.filtering.head_run import HeldOutMeasures

    stage = FilterStageConfig(scorer="head", max_pixels=settings.head_training.max_pixels)
    scorer = head_scorer(dataclasses.replace(settings, head=str(head)), rules)(stage)
    labels, found = [], []
    for sample in held_out:
        labels += [index in set(sample.positive_images) for index in range(len(sample.images))]
        found += scorer.score(sample.question, sample.images).tolist()
    is_relevant, probabilities = np.array(labels), np.array(found)
    if not 0 < is_relevant.sum() < len(is_relevant):
        return HeldOutMeasures(num_questions=len(held_out))
    return HeldOutMeasures(
        num_questions=len(held_out),
        auc=float(roc_auc_score(is_relevant, probabilities)),
        relevant_frac=float((probabilities[is_relevant] >= 0.5).mean()),
        irrelevant_frac=float((probabilities[~is_relevant] >= 0.5).mean()),
    )


def _write_summary(
    head: Path,
    settings: QueryFilterConfig,
    mixed: Sequence[Sample],
    trained: _Trained,
    measures: HeldOutMeasures | None,
) -> None:
    import torch

    from recipes.filtering.head_run import HeadSummary, write_head_summary
    from rsgrpo.run.summary import collect_versions
    from rsgrpo.system.machine import REPOSITORY

    summary = HeadSummary(
        num_questions=len(mixed),
        num_pairs=sum(len(sample.images) for sample in mixed),
        num_relevant_pairs=sum(len(sample.positive_images) for sample in mixed),
        num_steps=trained.num_steps,
        last_loss=trained.last_loss,
        seconds=trained.seconds,
        device="cuda" if torch.cuda.is_available() else "cpu",
        seed=settings.head_training.seed,
        held_out=measures,
        versions=collect_versions(REPOSITORY),
    )
    write_head_summary(head, summary)
