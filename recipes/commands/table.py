"""Every command of ``rsgrpo``. A new one is a new entry here, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command.

    Attributes:
        summary: what the command does, as one line of ``rsgrpo --help``.
        entry: the command's function as ``module:function``, imported when the command is called; it takes the
            arguments behind the command's name, knows ``--help`` and returns the exit status.
    """

    summary: str
    entry: str


COMMANDS: Mapping[str, Command] = {
    "train": Command(
        summary="train and evaluate: supervised stage, reinforcement stage, report",
        entry="recipes.commands.train:main",
    ),
    "plan": Command(
        summary="memory, time and cost of a training run, before anything is started",
        entry="recipes.commands.plan:main",
    ),
    "doctor": Command(
        summary="check machine, data, model and rewards for a training run",
        entry="recipes.doctor.command:main",
    ),
    "report": Command(
        summary="write a run's report.html again",
        entry="rsgrpo.run.report.__main__:main",
    ),
    "lab": Command(
        summary="try rewards without a model: on a run's saved responses, and against known tricks",
        entry="rewards.lab.__main__:main",
    ),
    "rescore": Command(
        summary="score saved predictions, and compare two sets of them sample by sample",
        entry="rsgrpo.evaluation.rescore.__main__:main",
    ),
    "tasks": Command(
        summary="write the benchmarks as task files for lmms-eval",
        entry="recipes.evaluation.lmms_tasks:main",
    ),
    "index": Command(
        summary="render documents to pages, embed the pages, and keep their vectors in an index",
        entry="recipes.indexing.index_command:main",
    ),
    "search": Command(
        summary="the pages of an index that answer a question best",
        entry="recipes.indexing.search_command:main",
    ),
    "ask": Command(
        summary="answer a question about pages, or about an index, with evidence",
        entry="recipes.asking.ask_command:main",
    ),
    "serve": Command(
        summary="a page in the browser to ask documents, an OpenAI-compatible API, and tools for agents",
        entry="recipes.serving.serve_command:main",
    ),
    "measure-run": Command(
        summary="MRR, recall and nDCG of a run in TREC's format, and of two runs query by query",
        entry="recipes.evaluation.measure_run_command:main",
    ),
    "mine-negatives": Command(
        summary="hard negatives for the training pairs of a page retriever",
        entry="recipes.indexing.mining_command:main",
    ),
    "tune-search": Command(
        summary="how much the text of an index's pages should count beside their vectors, on judged questions",
        entry="recipes.indexing.tune_command:main",
    ),
    "filter": Command(
        summary="say which pages help to answer a question, and keep these; or filter a data set",
        entry="recipes.filtering.command:main",
    ),
    "train-filter": Command(
        summary="train a head that judges pages for the filter",
        entry="recipes.filtering.train_command:main",
    ),
    "distill-relevance": Command(
        summary="training pairs of a retriever from what a trained policy says of its pages",
        entry="recipes.distilling.distill_command:main",
    ),
    "make-data": Command(
        summary="write a small data set of generated pages to try a recipe on",
        entry="rsgrpo.data.synthetic.__main__:main",
    ),
}
"""Every command by its name, in the order in which ``rsgrpo --help`` lists them."""
