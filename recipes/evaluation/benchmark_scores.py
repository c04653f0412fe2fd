"""Score what a benchmark run answered, in both modes, and say it: files, table, summary."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.evaluation.answering import Answer
from recipes.evaluation.chosen_answers import choose_answers, count_questions
from recipes.evaluation.task_records import BenchmarkRequest, TaskRequests
from rsgrpo.config import Config
from rsgrpo.data.images.image_view import ImageView
from rsgrpo.evaluation.benchmarks.base import MODES, Answered, BenchmarkError, BenchmarkResult, Gaps, Mode
from rsgrpo.evaluation.prompts.grounding import shares_from_pixels, target_image
from rsgrpo.io.atomic_files import write_json
from rsgrpo.io.jsonl import write_rows
from rsgrpo.run.summary import BenchmarkSummary
from rsgrpo.text.sections import section_content
from rsgrpo.types import Sample

REQUEST_FAILED = "request_failed"
"""Anomaly: the server gave no response to this question, however often it was asked."""
NOT_ASKED = "prompt_too_long"
"""Anomaly: the prompt does not fit into the model (``data.on_bad_sample=skip``)."""
BAD_RECORD = "bad_record"
"""Anomaly: a record of the benchmark that could not be read (``data.on_bad_sample=skip``)."""
NO_ANSWER_SECTION = "no_answer_section"
"""Anomaly: an evidence-style response without an answer section; the whole of it was scored."""
CUT_RESPONSE = "response_cut"
"""Anomaly: a response that the token limit cut off."""
UNKNOWN_TARGET = "unknown_target_image"
"""Anomaly: pixel boxes on an image that the question does not name; scored as they stand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScores:
    """One task's outcome.

    Attributes:
        task: the requests of the task.
        results: the results by mode (``official``, ``strict``).
        anomalies: how often the run itself saw each kind of anomaly; what the scorers saw stands in ``results``.
    """

    task: TaskRequests
    results: Mapping[Mode, BenchmarkResult]
    anomalies: Mapping[str, int]


def score_task(
    config: Config,
    task: TaskRequests,
    answers: Mapping[str, Answer],
    num_too_long: int,
    folder: Path,
    view: ImageView,
) -> TaskScores:
    """Score one task and write predictions, scores and items.

    Args:
        config: the settings: prompt style, coordinates, and which section holds the answer.
        task: the benchmark with its requests.
        answers: the answers by prompt id; failed ones count as missing predictions.
        num_too_long: questions with a prompt that did not fit and was not asked.
        folder: the folder that the scores of the task are written to.
        view: says at which size the model that answered sees images.

    Returns:
        The results of both modes, and the anomalies.

    Raises:
        BenchmarkError: no question has an answer.
    """
    answered: list[Answered] = []
    anomalies: Counter[str] = Counter({BAD_RECORD: sum(task.skipped.values()), NOT_ASKED: num_too_long})
    answered_ids = set()
    for request, answer in choose_answers(task.requests, answers):
        if answer is None or answer.failure:
            anomalies[REQUEST_FAILED] += answer is not None
            continue
        text, found = scored_text(config, request, answer, view)
        anomalies.update(found)
        answered_ids.add(request.sample.sample_id)
        answered.append(Answered(sample=request.sample, text=text, needle_position=request.needle_position))
    if not answered:
        listed = ", ".join(f"{count} x {kind}" for kind, count in anomalies.items() if count)
        raise BenchmarkError(
            f"{task.name}: none of {count_questions(task.requests)} questions has an answer "
            f"({listed or 'none was asked'}), so there is nothing to score; fix what stopped them and "
            "run again with resume=auto"
        )
    samples = {request.sample.sample_id: request.sample for request in task.requests}
    gaps = Gaps(missing=tuple(sample for sample_id, sample in samples.items() if sample_id not in answered_ids))
    task.benchmark.write_predictions(answered, folder / "predictions", model=config.name)
    section = config.response.answer_section
    results = {mode: task.benchmark.score(answered, mode, gaps, answer_section=section) for mode in MODES}
    seen = {kind: count for kind, count in sorted(anomalies.items()) if count}
    scores = TaskScores(task=task, results=results, anomalies=seen)
    _write_scores(folder, scores)
    return scores


def scored_text(config: Config, request: BenchmarkRequest, answer: Answer, view: ImageView) -> tuple[str, list[str]]:
    """What the scorer reads of an answer.

    Args:
        config: the settings: prompt style, coordinates, and which section holds the answer.
        request: what was asked, with its sample.
        answer: the answer as the model gave it.
        view: says at which size the model that answered sees images.

    Returns:
        The text to score, and the kinds of anomalies that were seen in it.
    """
    anomalies = [CUT_RESPONSE] if answer.finish_reason == "length" else []
    text = answer.text
    family = request.sample.task.split("/")[0]
    # EVisRAG's scorer looks for the answer section by itself.
    if config.eval.prompt_style == "evidence" and family != "evisrag":
        section = section_content(text, config.response.answer_section)
        if section is None:
            anomalies.append(NO_ANSWER_SECTION)
        else:
            text = section.strip()
    if family == "mig_bench" and config.eval.box_coordinates == "pixels":
        size = _target_size(request.sample, text, view)
        if size is None:
            return text, [*anomalies, UNKNOWN_TARGET]
        text = shares_from_pixels(text, *size)
    return text, anomalies


def _target_size(sample: Sample, response: str, view: ImageView) -> tuple[int, int] | None:
    """Width and height in pixels, as the model saw it, of the image that a box is on; None if unknown."""
    index = sample.boxes[0].image_index if sample.boxes else -1
    if index < 0 and sample.task.endswith("/region"):
        index = 0  # the other images are crops of the first
    if index < 0:
        index = target_image(sample.question, len(sample.images))
    if index >= 0:
        return view.seen_size(sample.images[index])
    sizes = [view.seen_size(image) for image in sample.images]
    if len(set(sizes)) == 1:
        return sizes[0]
    index = target_image(response, len(sizes))  # a response may name its image where the question does not
    return sizes[index] if index >= 0 else None


def _write_scores(folder: Path, scores: TaskScores) -> None:
    summaries: dict[str, object] = {"anomalies": scores.anomalies}
    for mode, result in scores.results.items():
        fields = dataclasses.asdict(result)
        del fields["items"]  # one a line in their own file
        summaries[mode] = fields
    write_json(folder / "scores.json", summaries, indent=2)
    write_rows(
        folder / "items.jsonl",
        (
            {"mode": mode, **dataclasses.asdict(item)}
            for mode, result in scores.results.items()
            for item in result.items
        ),
    )


def table_lines(scores: Sequence[TaskScores]) -> list[str]:
    """The results as lines of at most 118 columns, one a task.

    Args:
        scores: the scores of every task.

    Returns:
        One line for each task with anomalies, then a heading and one line for each task with the main metric of both
        modes and its 95 % interval in percent.
    """
    lines = []
    for score in scores:
        found = _anomalies(score)
        if found:
            listed = ", ".join(f"{count} × {kind}" for kind, count in found.items())
            lines.append(f"{score.task.name}: {listed}")
    lines.append(f"{'task':<30}{'answered':>12}  {'metric':<12}{'official':>22}{'strict':>22}")
    for score in scores:
        official, strict = (score.results[mode] for mode in MODES)
        both = "".join(
            f"{f'{100 * main.value:.2f} [{100 * main.low:.1f}, {100 * main.high:.1f}]':>22}"
            for main in (official.main, strict.main)
        )
        total = count_questions(score.task.requests)
        lines.append(f"{score.task.name:<30}{f'{_num_answered(score)}/{total}':>12}  {official.main_metric:<12}{both}")
    return lines


def _anomalies(scores: TaskScores) -> dict[str, int]:
    """Counts of what run and scorer saw, by kind; where both modes count a thing, the larger count."""
    found: Counter[str] = Counter()
    for result in scores.results.values():
        found |= Counter(result.anomalies)
    return dict(sorted((found | Counter(scores.anomalies)).items()))


def _num_answered(scores: TaskScores) -> int:
    not_answered = scores.anomalies.get(REQUEST_FAILED, 0) + scores.anomalies.get(NOT_ASKED, 0)
    return count_questions(scores.task.requests) - not_answered


def summarise_benchmarks(scores: Sequence[TaskScores]) -> dict[str, BenchmarkSummary]:
    """The main metrics of all tasks for ``summary.json``, by task."""
    benchmarks = {}
    for score in scores:
        official, strict = (score.results[mode] for mode in MODES)
        benchmarks[score.task.name] = BenchmarkSummary(
            metric=official.main_metric,
            official=official.main.value,
            official_low=official.main.low,
            official_high=official.main.high,
            strict=strict.main.value,
            strict_low=strict.main.low,
            strict_high=strict.main.high,
            num_questions=count_questions(score.task.requests),
            num_answered=_num_answered(score),
            anomalies=_anomalies(score),
        )
    return benchmarks
