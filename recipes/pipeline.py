"""The main job: data and model, supervised stage, reinforcement stage, evaluations, report.

    prepare ─► evaluate before_sft ─► SFT ─► evaluate after_sft ─► RS-GRPO ─► evaluate after_rl ─► report

``stage=retriever`` goes a way of its own (``recipes.retriever.stage``): it needs neither Ray nor engines.

Every stage leaves what the next one needs in the run folder, so that ``resume=auto`` goes on from the
newest checkpoint whichever stage it belongs to.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack
from pathlib import Path

from recipes.evaluation.benchmark_tasks import run_benchmarks
from recipes.plan.command import show_plan
from recipes.setup.job import Job
from recipes.setup.preparation import prepare
from recipes.stages import run_evaluation, run_rl, run_sft
from rsgrpo.cluster.ray_cluster import open_cluster
from rsgrpo.config import Config
from rsgrpo.model.folder import check_limits, check_sizes
from rsgrpo.run.folder import begin_run, open_run_folder
from rsgrpo.run.progress import Progress
from rsgrpo.run.report import build_report
from rsgrpo.system.quiet import hush_cuda_search


def run(config: Config) -> Path | None:
    """Run the stages that ``config.stage`` names.

    Args:
        config: the checked settings of the run.

    Returns:
        The report's path; None where only a plan was asked for.

    Raises:
        RsgrpoError: an error that a user can act on; nothing that was finished is lost.
    """
    hush_cuda_search()
    if config.plan:
        show_plan(config)
        return None
    if config.eval.tasks:
        return run_benchmarks(config)
    if config.stage == "retriever":
        from recipes.retriever.stage import run_retriever  # here, because sentence-transformers takes seconds

        return run_retriever(config)
    with ExitStack() as stack:
        folder = stack.enter_context(open_run_folder(config))
        progress = Progress(config.logging.progress)
        if folder.note:
            progress.line(folder.note)
        prepared = prepare(config, folder, progress)
        check_sizes(prepared.base_model)
        check_limits(prepared.base_model, config)
        begin_run(folder, config)
        cluster = stack.enter_context(open_cluster(config.cluster))
        job = stack.enter_context(Job(config, folder, prepared, cluster, progress))
        # What was imported and read so far stays: collections that walk it all again and again took half of
        # the time that scoring needs.
        gc.freeze()
        if config.stage in ("sft", "all"):
            run_sft(job)
        if config.stage in ("rl", "all"):
            run_rl(job)
        if config.stage == "eval":
            run_evaluation(job)
        job.write_summary()
        report = build_report(folder.root)
        progress.line(f"report: {report}", indent=0)
    return report
