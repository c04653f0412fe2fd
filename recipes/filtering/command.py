"""``rsgrpo filter``: say which pages help to answer a question, and keep these; or filter the rows of a data set."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipes.filtering.command_settings import endpoint_settings, filter_settings, split_filter_settings
from recipes.indexing.places import MakeSingleEmbedder, make_single_embedder
from recipes.indexing.settings import data_settings, embedder_settings, split_data_settings, split_settings
from rsgrpo.config import DistractorConfig, FilterStageConfig, QueryFilterConfig
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.failures.command import CommandParser, UsageError, run_command

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from recipes.filtering.given_pages import GivenPage
    from recipes.filtering.questions import FilteredQuestions
    from recipes.filtering.stages import AskedModel
    from rsgrpo.retrieval.embedders.embedder import Embedder
    from rsgrpo.retrieval.filtering.page_filter import FilteredPages, FilterStage, PageScorer
    from rsgrpo.types import Sample

_PIPE_COLUMNS = 160  # rich takes 80 where there is no terminal, too few for names
_MISTAKES = DistractorConfig(relevance="filter", noise_chance=0.1, noise_max_frac=0.15)  # as MIRAGE trains
_FIRST_PASS_PAGES = 20  # that an embedder leaves for a model to look at
_COUNTED_BY_THE_MODEL = ("unfiltered_image_tokens", "answer_image_tokens", "answer_ratio", "total_ratio")
_SHOWN_NAME = 4096  # as long as a path may be
_EXAMPLES = """\
examples:
  uv run rsgrpo filter "What did it cost?" scan1.png scan2.png invoice.pdf#3 --policy models/qwen2.5-vl
  uv run rsgrpo filter "Who signed?" contract.pdf --index contracts.index --policy models/qwen2.5-vl --json
  uv run rsgrpo filter --data test.jsonl --out test.filtered.jsonl --index pages.index
  uv run rsgrpo filter --data train.jsonl --out train.shown.jsonl --by-gold
  uv run rsgrpo filter --calibrate dev.jsonl --index pages.index
  uv run rsgrpo filter "Who signed?" *.png --policy models/qwen2.5-vl 'filter.stages=[{scorer: yes_no, top_k: 5}]'
"""


def command_parser() -> CommandParser:
    """Make the parser of what ``rsgrpo filter`` takes beside settings."""
    parser = CommandParser(
        prog="rsgrpo filter",
        description="Which pages help to answer a question: each is judged by itself, and the best are kept.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("question", nargs="?", default="", help="in one argument, so in quotes")
    parser.add_argument("pages", nargs="*", help="image files, documents, or pages of them: page2.pdf#3")
    parser.add_argument("--data", default="", metavar="FILE", help="questions in EVisRAG's format, in place of pages")
    parser.add_argument(
        "--by-gold",
        action="store_true",
        help="of --data: ask nobody, keep gold pages, and in a tenth of the questions up to 15 %% of the others, as a "
        "filter's mistakes: rows to train the answering model on",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where filtered rows, or the calibration, go")
    parser.add_argument(
        "--calibrate", default="", metavar="FILE", help="fit probabilities on questions with gold pages"
    )
    parser.add_argument("--balance", action="store_true", help="of --calibrate: both kinds of pages weigh the same")
    parser.add_argument("--image-root", default="", metavar="FOLDER", help="what image paths of FILE are relative to")
    parser.add_argument("--index", default="", metavar="INDEX", help="an index, whose vectors and pages are used")
    parser.add_argument("--embedder", default="", metavar="MODEL", help="judge by cosines of this embedder")
    parser.add_argument("--policy", default="", metavar="MODEL", help="ask this model, which answers yes or no")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument_group(
        "settings",
        "filter.NAME=VALUE, embedder.NAME=VALUE, data.NAME=VALUE (such as data.on_bad_sample=skip), and "
        "eval.endpoint.url, eval.endpoint.model of a server that is "
        "asked in place of --policy; docs/settings.md lists them. Without filter.stages an embedder "
        f"keeps {_FIRST_PASS_PAGES} pages where a model is named as well, and whoever comes last keeps 3.",
    )
    return parser


def main(arguments: Sequence[str] | None = None, make_embedder: MakeSingleEmbedder | None = None) -> int:
    """Run ``rsgrpo filter``.

    Args:
        arguments: the arguments behind the command's name; None: those of this process.
        make_embedder: the function that makes the embedder; None: the one that the settings describe is made.

    Returns:
        The exit status of the process.
    """
    return run_command(
        lambda: _filter(sys.argv[1:] if arguments is None else arguments, make_embedder or make_single_embedder),
        way_on="nothing was changed; call it again",
    )


def _filter(arguments: Sequence[str], make_embedder: MakeSingleEmbedder) -> None:
    rest, reading = split_data_settings(arguments)
    rest, given = split_filter_settings(rest)
    rest, others = split_settings(rest)
    options = command_parser().parse_intermixed_args(rest)
    options.endpoint = endpoint_settings(given)
    settings = filter_settings(
        given, index=options.index, embedder=options.embedder, policy=options.policy, stages=_default_stages(options)
    )
    options.reading = data_settings(reading, image_root=options.image_root, max_images=settings.max_pages)
    if others.index or others.documents:
        raise UsageError("index.NAME and documents.NAME say how pages are kept and rendered; leave them out here")

    def embedder(config: EmbedderConfig) -> Embedder:
        return make_embedder(embedder_settings(others, "", config))

    if options.by_gold and (options.calibrate or not options.data):
        raise UsageError("--by-gold filters the rows of a data set; name it with --data")
    if options.by_gold and (options.index or options.embedder or options.policy or options.endpoint.url):
        raise UsageError("--by-gold asks nobody; leave --index, --embedder, --policy and eval.endpoint out")
    work = _calibrate if options.calibrate else _filter_data if options.data else _filter_pages
    with contextlib.redirect_stdout(sys.stderr):  # libraries say there what they find; the result goes out by itself
        told = work(options, settings, embedder)
    print(told)


def _default_stages(options: argparse.Namespace) -> list[FilterStageConfig] | None:
    """What the options name: an embedder looks first, and the model at what it leaves."""
    has_embedder = bool(options.index or options.embedder)
    if not has_embedder:
        return None
    if not (options.policy or options.endpoint.url):
        return [FilterStageConfig(scorer="cosine")]
    return [FilterStageConfig(scorer="cosine", top_k=_FIRST_PASS_PAGES, threshold=0.0), FilterStageConfig()]


def _filter_pages(options: argparse.Namespace, settings: QueryFilterConfig, make_embedder: Any) -> str:
    from recipes.filtering.given_pages import given_pages
    from rsgrpo.config.documents import RenderSettings
    from rsgrpo.retrieval.filtering.page_filter import PagesOfQuestion, filter_pages

    if not options.question.strip():
        raise UsageError("no question is given; ask something, in quotes, and name pages behind it")
    if not options.pages:
        raise UsageError("no page is given; name image files or pages of documents behind the question")
    index = _opened(settings)
    rendering = RenderSettings()
    if index is not None and index.embedder is not None:  # as the index renders, so that its vectors are found again
        rendering = RenderSettings(dpi=index.embedder.dpi, max_pixels=index.embedder.max_pixels)
    rules = options.reading.image_rules
    with tempfile.TemporaryDirectory(prefix="rsgrpo-filter-") as folder:
        given = given_pages(options.pages, Path(folder), rendering, rules, index)
        readable = [page.page for page in given if page.page is not None]
        if not readable:
            raise RsgrpoError(f"none of {len(given)} pages can be read ({given[0].name}: {given[0].problem})")
        stages = _stages(options, settings, make_embedder, _asked_model(options, settings))
        (found,) = filter_pages([PagesOfQuestion(question=options.question, pages=tuple(readable))], stages)
    return _pages_told(given, found, stages, options.question, as_json=options.json)


def _filter_data(options: argparse.Namespace, settings: QueryFilterConfig, make_embedder: Any) -> str:
    from recipes.filtering.questions import read_questions
    from recipes.filtering.row_files import check_filtered_place, write_filtered

    if options.question:
        raise UsageError("--data brings its own questions; leave the question and the pages out")
    source = Path(options.data.partition("@")[0])
    out = options.out or source.with_name(f"{source.stem}.filtered.jsonl")
    check_filtered_place(out, options.data, options.reading)
    loaded = read_questions(options.data, options.reading)
    model = None if options.by_gold else _asked_model(options, settings)
    if options.by_gold:
        found = _by_gold(options, loaded.samples)
    else:
        found = _judged(loaded.samples, options, settings, make_embedder, model)
    write_filtered(out, options.data, options.reading, found)
    if options.json:
        metrics = dataclasses.asdict(found.metrics)
        unknown = dict.fromkeys(_COUNTED_BY_THE_MODEL) if model is None else {}  # null: 0 would be a count
        return json.dumps({"out": str(out), "left_out": dict(loaded.skipped), **metrics, **unknown})
    return _metrics_told(found, out, counts_tokens=model is not None)


def _by_gold(options: argparse.Namespace, samples: Sequence[Sample]) -> FilteredQuestions:
    import numpy as np

    from recipes.filtering.questions import filter_by_gold

    known = [sample for sample in samples if sample.positive_images]
    if not known:
        raise RsgrpoError(f"none of {len(samples)} questions of {shown(options.data)} names a gold page (posImgs)")
    if len(known) < len(samples):
        print(f"{len(samples) - len(known)} questions without a gold page are left out")
    return filter_by_gold(known, _MISTAKES, np.random.default_rng(0))


def _judged(
    samples: Sequence[Sample],
    options: argparse.Namespace,
    settings: QueryFilterConfig,
    make_embedder: Any,
    model: AskedModel | None,
) -> FilteredQuestions:
    from recipes.filtering.questions import filter_questions
    from rsgrpo.data.images.image_tokens import ImageTokens

    count = ImageTokens(model.processor.image_processor, options.reading.image_rules).count if model else lambda page: 0
    return filter_questions(samples, _stages(options, settings, make_embedder, model), count)


def _calibrate(options: argparse.Namespace, settings: QueryFilterConfig, make_embedder: Any) -> str:
    from recipes.filtering.calibration import calibrate
    from recipes.filtering.questions import read_questions
    from recipes.filtering.stages import calibration_file, cosine_scorer

    if options.question or options.data:
        raise UsageError("--calibrate reads questions and pages from its file; leave question, pages and --data out")
    loaded = read_questions(options.calibrate, options.reading)
    plain = dataclasses.replace(settings, calibration="")
    made: list[Embedder] = []

    def keep(config: EmbedderConfig) -> Embedder:
        made.append(make_embedder(config))
        return made[-1]

    scorer = cosine_scorer(plain, keep, needs_calibration=False, reads_calibration=False)
    file = options.out or calibration_file(settings, made[0])
    report = calibrate(loaded.samples, scorer, made[0].identity, file, should_balance=options.balance)
    told = {
        "questions": report.num_questions,
        "questions without a gold page": report.num_left_out,
        "relevant pairs": report.calibration.num_relevant,
        "irrelevant pairs": report.calibration.num_irrelevant,
        "relevant at 0.5 and above": round(report.recall, 4),
        "irrelevant at 0.5 and above": round(report.false_frac, 4),
        "calibration": str(file),
    }
    return json.dumps(told) if options.json else "\n".join(f"{name}: {value}" for name, value in told.items())


def _stages(
    options: argparse.Namespace, settings: QueryFilterConfig, make_embedder: Any, model: AskedModel | None
) -> list[FilterStage]:
    from recipes.filtering.head import head_scorer, worded
    from recipes.filtering.stages import make_stages

    def ask_server(stage: FilterStageConfig) -> PageScorer:
        from recipes.filtering.endpoint_scorer import EndpointYesNoScorer

        answers = (settings.yes, settings.no)
        return EndpointYesNoScorer(
            options.endpoint, options.reading, worded(settings.prompt), answers, max_pixels=stage.max_pixels
        )

    make_head = head_scorer(settings, options.reading.image_rules)
    return make_stages(settings, model, make_embedder, make_head, ask_server if options.endpoint.url else None)


def _asked_model(options: argparse.Namespace, settings: QueryFilterConfig) -> AskedModel | None:
    """The model of ``yes_no``, loaded; None where no pass asks it, or none is named."""
    if not settings.policy or all(stage.scorer != "yes_no" for stage in settings.stages):
        return None
    from recipes.filtering.forward_judge import ForwardJudge
    from recipes.filtering.stages import AskedModel
    from rsgrpo.model.folder import find_model

    rules = options.reading.image_rules
    judge = ForwardJudge(find_model(settings.policy, ""), rules, f"filter.policy={settings.policy!r}")
    return AskedModel(judge=judge, processor=judge.processor, rules=rules)


def _opened(settings: QueryFilterConfig) -> Any:
    if not settings.index:
        return None
    from rsgrpo.retrieval.index.flat_index import open_index

    return open_index(Path(settings.index))


def _pages_told(
    given: Sequence[GivenPage], found: FilteredPages, stages: Sequence[FilterStage], question: str, *, as_json: bool
) -> str:
    readable = [page.number for page in given if page.page is not None]
    kept = {readable[index] for index in found.kept}
    columns = [dict(zip(readable, column, strict=True)) for column in found.probabilities]
    last = dict(zip(readable, found.last, strict=True))
    num_unreadable = len(given) - len(readable)
    if as_json:
        pages = [
            {
                "number": page.number,
                "page": page.name,
                "probability": last.get(page.number),
                "is_kept": page.number in kept,
                "problem": page.problem,
            }
            for page in given
        ]
        document = {
            "question": question,
            "pages": pages,
            "kept": sorted(kept),
            "num_unreadable": num_unreadable,
            "image_tokens": found.image_tokens,
            "text_tokens": found.text_tokens,
        }
        return json.dumps(document, ensure_ascii=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("page", justify="right")
    table.add_column("file", overflow="fold")
    for stage in stages:
        table.add_column(stage.name, justify="right")
    table.add_column("kept")
    for page in given:
        values = [column.get(page.number) for column in columns]
        told = ["" if value is None else f"{value:.3f}" for value in values]
        mark = "kept" if page.number in kept else f"cannot be read: {page.problem}" if page.problem else ""
        table.add_row(f"[{page.number}]", Text(shown(page.name, _SHOWN_NAME)), *told, Text(mark))
    console = Console(width=None if sys.__stdout__ and sys.__stdout__.isatty() else _PIPE_COLUMNS, markup=False)
    with console.capture() as drawn:
        console.print(table)
    return drawn.get() + (
        f"{len(kept)} of {len(given)} pages kept"
        + (f", {num_unreadable} cannot be read" if num_unreadable else "")
        + f"; the filter read {found.image_tokens:,} tokens of images"
    )


def _metrics_told(found: FilteredQuestions, out: Path, *, counts_tokens: bool) -> str:
    metrics = found.metrics
    lines = [f"{metrics.num_questions} questions, {metrics.kept_pages:.1f} of {metrics.pages:.1f} pages kept: {out}"]
    if metrics.num_gold_pages:
        lines.append(
            f"gold pages kept {metrics.image_recall:.1%}, kept pages that are gold {metrics.image_precision:.1%}"
        )
    if counts_tokens:
        lines.append(
            f"tokens of images ÷ {metrics.answer_ratio:.1f} in the answering prompt, ÷ {metrics.total_ratio:.1f} with "
            f"the filter's own ({metrics.filter_image_tokens:,.0f} a question)"
        )
    else:
        lines.append("tokens of the answering prompt are not counted: no model is named (--policy)")
    return "\n".join(lines)
