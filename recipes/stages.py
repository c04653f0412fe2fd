"""The two training stages: their loops, checkpoints and log lines."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from recipes.counterfactuals import CounterfactualAnswers
from recipes.evaluation.evaluate import compare_engine, validate
from recipes.prompt_stream import SearchAgain
from recipes.rs_grpo import RsGrpo, RsGrpoState, StepReport
from recipes.setup.job import Job
from recipes.sft import SftPhase, SftState, SupervisedTraining
from rsgrpo.config import RlConfig
from rsgrpo.data.images.counts import ImageCounts, update_report
from rsgrpo.io.atomic_files import write_json
from rsgrpo.run.progress import step_line
from rsgrpo.run.recorder import record_groups
from rsgrpo.types import PromptedSample

_COMPARED_RESPONSES = 8  # by engine and trainer
_NUM_SHOWN_REWARDS = 3  # on the line of a step: those that weigh most
_SHOWN_METRICS = {
    "total": "reward/total",
    "entropy": "policy/entropy",
    "tokens": "response/mean_tokens",
    "gap": "engine/logprob_gap_max",
    "s": "time/step",
}


def run_sft(job: Job) -> None:
    """Supervised fine-tuning, its model and the evaluations around it; what is done already is not done again."""
    if job.config.eval.before_sft and not job.folder.model("sft").exists():
        job.evaluate("before_sft")
    if not job.folder.model("sft").exists():
        with job.clock.stage("sft"):
            _train_sft(job)
    job.evaluate("after_sft")


def _train_sft(job: Job) -> None:
    job.begin_from(job.start_model, needs_reference=False, is_alone=True)
    state = job.restore("sft", SftState) or SftState()
    phases = job.prepared.sft
    num_steps = sum(phase.num_steps for phase in phases)
    with job.progress.phase("Supervised fine-tuning", total=num_steps) as shown:
        shown.advance(count=state.step)
        for index, phase in enumerate(phases):
            if index < state.phase:
                continue
            if index > state.phase:
                state.phase, state.phase_step, state.position = index, 0, 0
            if not state.phase_step:
                job.policy.begin_stage(phase.optimizer, phase.num_steps)
            _train_sft_phase(job, phase, state, lambda line: shown.advance(line), num_steps)
        _show_skipped(job, state)
        for phase in phases:
            phase.source.close()
        _show_images(job)
    if job.prepared.test:
        job.engine.update_weights(job.policy.weights())
    job.export("sft")


def _show_skipped(job: Job, state: SftState) -> None:
    """Say which conversations training passed over, and why."""
    findings = state.skipped.findings()
    for finding in findings:
        title, *examples = finding.lines()
        job.progress.line(f"passed over {title}")
        for example in examples:
            job.progress.line(example)
    if findings:
        content = [dataclasses.asdict(finding) for finding in findings]
        write_json(job.folder.root / "skipped_conversations.json", content, indent=2)


def _show_images(job: Job) -> None:
    """Say what was changed about the images of a mixture, which are looked at when they are taken."""
    taken = ImageCounts.total(phase.source.images for phase in job.prepared.sft)
    for line in taken.lines():
        job.progress.line(line)
    if taken.read:
        update_report(job.folder.root, {"images": ImageCounts.total([job.prepared.images, taken]).document()})


def _train_sft_phase(
    job: Job, phase: SftPhase, state: SftState, advance: Callable[[str], None], num_steps: int
) -> None:
    settings = job.config.sft
    training = SupervisedTraining(
        phase=phase,
        policy=job.policy,
        tokenizer=job.prepared.tokenizer,
        image_tokens=job.prepared.image_tokens,
        state=state,
    )
    while state.phase_step < phase.num_steps:
        begin = time.perf_counter()
        metrics = training.train_step()
        values = {f"policy/{name}": float(value) for name, value in dataclasses.asdict(metrics).items()}
        values["data/num_skipped"] = float(sum(finding.count for finding in state.skipped.findings()))
        values["time/step"] = time.perf_counter() - begin
        if state.step % settings.validate_every_steps == 0 or state.phase_step == phase.num_steps:
            loss = training.validation_loss()
            if loss is not None:
                values["policy/validation_loss"] = loss
        job.logger.log("sft", state.step, values)
        advance(_sft_line(state.step, num_steps, values))
        if state.step % settings.save_every_steps == 0:
            job.save("sft", state.step, state)


def _sft_line(step: int, num_steps: int, values: dict[str, float]) -> str:
    shown = {
        "loss": values["policy/loss"],
        "grad norm": values["policy/grad_norm"],
        "lr": values["policy/learning_rate"],
    }
    if "policy/validation_loss" in values:
        shown["validation loss"] = values["policy/validation_loss"]
    return step_line("sft", step, num_steps, shown | {"s": values["time/step"]})


def run_rl(job: Job) -> None:
    """Reinforcement learning, its model and the evaluations around it; what is done already is not done again."""
    if not job.folder.model("rl").exists():
        if not job.folder.model("sft").exists():
            job.evaluate("before_rl")
        with job.clock.stage("rl"):
            _train_rl(job)
    job.evaluate("after_rl")


def _search_again(job: Job, num_trained: int) -> SearchAgain | None:
    """Finds pages for the questions that are trained on; those held out for validation keep theirs."""
    find = job.prepared.rl_behind_retriever
    if find is None:
        return None

    def search_again(number: int) -> tuple[Sequence[PromptedSample], Mapping[str, float]]:
        prompts, metrics = find(number)
        return prompts[:num_trained], metrics

    return search_again


def _counterfactuals(job: Job, prompts: Sequence[PromptedSample]) -> CounterfactualAnswers | None:
    """Asks the policy again without single pages, where a reward wants it."""
    if all(reward.pages_in_question is None for reward in job.prepared.scorer.rewards):
        return None
    return CounterfactualAnswers(
        prompts,
        job.config.rollout.sampling,
        num_exchanges=job.config.rl.counterfactual_exchanges,
        image_tokens=job.prepared.image_tokens,
        seed=job.config.seed,
    )


def _train_rl(job: Job) -> None:
    settings = job.config.rl
    num_trained = len(job.prepared.rl) - min(settings.validation_samples, len(job.prepared.rl) // 2)
    prompts, validation = job.prepared.rl[:num_trained], job.prepared.rl[num_trained:]
    if settings.validation_samples and not validation:
        job.progress.line(f"no validation: {len(prompts)} question is too few to hold one out")
    job.begin_from(job.start_model, needs_reference=settings.loss.kl.coefficient > 0, is_alone=False)
    state = job.restore("rl", RsGrpoState)
    training = RsGrpo(
        config=job.config,
        policy=job.policy,
        engine=job.engine,
        scorer=job.prepared.scorer,
        prompts=prompts,
        state=state or RsGrpoState(),
        search_again=_search_again(job, num_trained),
        counterfactuals=_counterfactuals(job, prompts),
    )
    if len(prompts) < settings.prompts_per_step:
        job.progress.line(
            f"{len(prompts)} questions to train on are fewer than rl.prompts_per_step={settings.prompts_per_step}: "
            "each step has all of them"
        )
    num_steps = planned_steps(settings, len(prompts))
    if state is None:
        job.policy.begin_stage(settings.optimizer, num_steps * settings.updates_per_batch)
    # Adapters of nothing, which change nothing: a response under way at the first update then goes on with it.
    if state is not None or job.config.model.lora.update == "adapter":
        job.engine.update_weights(job.policy.weights())
    with job.progress.phase(f"Reinforcement learning ({settings.algorithm})", total=num_steps) as phase:
        phase.advance(count=training.state.step)
        while training.state.step < num_steps:
            report = training.train_step(is_last=training.state.step + 1 == num_steps)
            if report.step % settings.validate_every_steps == 0 or report.step == num_steps:
                report = dataclasses.replace(report, metrics={**report.metrics, **_measured(job, validation)})
            job.logger.log("rl", report.step, report.metrics)
            phase.advance(_rl_line(report, num_steps, training.weights))
            note = step_note(report, min(settings.prompts_per_step, len(prompts)))
            if note:
                job.progress.line(note)
            is_shown, is_recorded = kept_steps(settings, report.step, num_steps)
            if is_recorded:
                record_groups(
                    job.folder.rollouts_file, "rl", report.step, report.credited, num_kept=settings.rollouts_in_report
                )
            if is_shown:
                job.logger.log_rollouts(report.step, report.credited[: settings.rollouts_in_report])
            if report.step % settings.save_every_steps == 0:
                job.save("rl", report.step, training.state)
    job.export("rl")


def _measured(job: Job, validation: Sequence[PromptedSample]) -> dict[str, float]:
    """Measure between two steps what is due: answers to held-out questions, and the gap of engine and trainer."""
    metrics: dict[str, float] = {}
    if validation:
        found = validate(job.engine, validation, job.config, job.prepared.scorer).numbers()
        metrics = {f"eval/{name}": value for name, value in found.items()}
    if job.config.rl.max_staleness_steps:
        shown = (validation or job.prepared.rl)[:_COMPARED_RESPONSES]
        metrics |= compare_engine(job.policy, job.engine, shown, job.config)
    return metrics


def _rl_line(report: StepReport, num_steps: int, weights: Mapping[str, float]) -> str:
    metrics = report.metrics
    heaviest = sorted(weights, key=lambda name: -weights[name])[:_NUM_SHOWN_REWARDS]
    shown = {name: metrics[f"reward/{name}/mean"] for name in heaviest if f"reward/{name}/mean" in metrics}
    for name, key in _SHOWN_METRICS.items():
        if key in metrics:
            shown[name] = metrics[key]
    return step_line("rl", report.step, num_steps, shown)


def kept_steps(settings: RlConfig, step: int, num_steps: int) -> tuple[bool, bool]:
    """Whether the groups of a step are shown by the dashboards, and whether they are recorded in ``rollouts.jsonl``.

    Args:
        settings: the settings of the stage.
        step: the step, from 1.
        num_steps: how many steps there are.

    Example:
        With ``save_every_steps=10`` and ``record_every_steps=4`` of 20 steps 1, 10 and 20 are shown, and these and 4,
        8, 12 and 16 recorded.
    """
    is_shown = step % settings.save_every_steps == 0 or step in (1, num_steps)
    return is_shown, is_shown or bool(settings.record_every_steps and step % settings.record_every_steps == 0)


def planned_steps(settings: RlConfig, num_prompts: int) -> int:
    """How many steps reinforcement learning takes.

    Args:
        settings: the settings of the stage.
        num_prompts: how many prompts are trained on; where they are fewer than a step wants, each step has all of them.

    Example:
        Four epochs of 3 questions with ``prompts_per_step=8``: 4 steps of 3.
    """
    per_step = max(1, min(settings.prompts_per_step, num_prompts))
    by_epochs = max(1, settings.num_epochs * num_prompts // per_step)
    return min(by_epochs, settings.max_steps) if settings.max_steps else by_epochs


def step_note(report: StepReport, num_wanted: int) -> str:
    """Why a step had far less to train on than it wanted, less than half; else empty.

    A line of its own, or it would be cut. A few groups fewer are common (``selection/filled_frac`` has them all).

    Args:
        report: what the step reported.
        num_wanted: how many groups the step could have had.
    """
    if not report.credited:
        return f"step {report.step}: no reward varied in any group: nothing to learn from"
    if 2 * len(report.credited) < num_wanted:
        return (
            f"step {report.step}: only {len(report.credited)} of {num_wanted} groups: no more of the questions asked "
            "had a reward that varied"
        )
    return ""


def run_evaluation(job: Job) -> None:
    """Evaluate one checkpoint (``stage=eval``)."""
    job.evaluate("checkpoint")
