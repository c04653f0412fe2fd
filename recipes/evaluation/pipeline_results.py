"""What became of the questions of a pipeline: summary, table, files, metrics, and cases for the report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsgrpo.config import Config
from rsgrpo.evaluation.benchmarks.aggregate import summarize_values
from rsgrpo.evaluation.pipeline_outcomes import OUTCOMES, Outcome, PipelineCase, PipelineQuestion, ShownPages
from rsgrpo.io.atomic_files import write_json
from rsgrpo.io.jsonl import write_rows
from rsgrpo.io.record_codec import to_plain
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.logger import RunLogger
from rsgrpo.run.recorder import read_groups, record_evaluation, truncate_after
from rsgrpo.run.summary import PipelineSummary
from rsgrpo.types import Rollout, Sample

ORACLE = "oracle"
"""Name of the setting in which a question is answered from its gold pages."""

_RECORDED_CASES = 6  # of each outcome at each depth, for the report
_COLUMNS: Mapping[Outcome, str] = {
    "page_not_found": "unfound",
    "filtered_out": "filter",
    "read_wrongly": "read",
    "reasoned_wrongly": "reason",
    "unclear": "unclear",
    "should_have_abstained": "abstain",
    "not_answered": "none",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedQuestion:
    """A question at one depth of the search, with what became of it.

    Attributes:
        question: the question with its gold.
        pages: the pages that were found and shown.
        sample: the question as it was asked, with the pages that were shown.
        response: the response; None: there is none.
        case: what became of it.
    """

    question: PipelineQuestion
    pages: ShownPages
    sample: Sample
    response: str | None
    case: PipelineCase


def summarise(judged: Sequence[JudgedQuestion]) -> PipelineSummary:
    """Count what became of the questions at one depth.

    Args:
        judged: all questions.

    Returns:
        The shares and counts; the outcomes add up to the number of questions.
    """
    right = summarize_values([float(one.case.is_right) for one in judged])
    answerable = [one.case for one in judged if one.question.is_answerable]
    counts = Counter(one.case.outcome for one in judged)
    return PipelineSummary(
        num_questions=len(judged),
        right=right.value,
        right_low=right.low,
        right_high=right.high,
        official_right=_mean([one.case.is_official_right for one in judged]),
        found_frac=_mean([case.is_found for case in answerable]),
        shown_frac=_mean([case.is_shown for case in answerable]),
        right_without_pages=sum(case.is_right and not case.is_shown for case in answerable),
        outcomes={outcome: counts[outcome] for outcome in OUTCOMES},
    )


def table_lines(summaries: Mapping[str, PipelineSummary]) -> list[str]:
    """Write what became of the questions as lines of at most 118 columns.

    Args:
        summaries: the summaries by set and depth.

    Returns:
        A heading, and one line for each depth: the share of right answers with its 95 % interval and the shares of
        questions whose gold pages were found and shown, in percent, and how many questions went wrong in which way.
    """
    heading = f"{'task':<26}{'asked':>6}{'right':>19}{'found':>7}{'shown':>7}"
    lines = [heading + "".join(f"{title:>8}" if len(title) > 6 else f"{title:>7}" for title in _COLUMNS.values())]
    for name, found in summaries.items():
        right = f"{100 * found.right:.1f} [{100 * found.right_low:.1f}, {100 * found.right_high:.1f}]"
        line = (
            f"{name:<26}{found.num_questions:>6}{right:>19}{100 * found.found_frac:>7.1f}{100 * found.shown_frac:>7.1f}"
        )
        for outcome, title in _COLUMNS.items():
            line += f"{found.outcomes[outcome]:>{8 if len(title) > 6 else 7}}"
        lines.append(line)
    return lines


def write_results(
    folder: RunFolder, config: Config, task: str, judged: Mapping[str, Sequence[JudgedQuestion]]
) -> dict[str, PipelineSummary]:
    """Write what became of the questions of one set, and give it to the report.

    Args:
        folder: the folder of the run.
        config: the settings of the run.
        task: the name of the task, such as ``pipeline/manuals``.
        judged: the questions by the name of the depth: ``top1``, …, ``oracle``.

    Returns:
        The summaries by task and depth, such as ``pipeline/manuals@top3``.
    """
    summaries = {f"{task}@{depth}": summarise(questions) for depth, questions in judged.items()}
    root = folder.root / task
    write_rows(
        root / "cases.jsonl",
        ({"depth": depth, **_row(one)} for depth, questions in judged.items() for one in questions),
    )
    write_json(root / "outcomes.json", {name: to_plain(found) for name, found in summaries.items()}, indent=2)
    _log(folder, config, task, summaries)
    _record(folder.rollouts_file, task, judged)
    return summaries


def _row(one: JudgedQuestion) -> dict[str, object]:
    return {
        "qid": one.question.query_id,
        "query": one.sample.question,
        "answer": list(one.question.accepted),
        "gold_pages": list(one.question.gold_pages),
        "found_pages": list(one.pages.found),
        "shown_pages": list(one.pages.shown),
        "page_numbers": list(one.pages.numbers),
        "response": one.response,
        **dataclasses.asdict(one.case),
    }


def _log(folder: RunFolder, config: Config, task: str, summaries: Mapping[str, PipelineSummary]) -> None:
    """Log the shares of each depth as steps of a stage, those of the gold pages as a stage of its own."""
    with RunLogger(folder.root, config) as logger:
        for stage in (task, f"{task}/{ORACLE}"):
            logger.truncate_after(stage, -1)
        for name, found in summaries.items():
            depth = name.rpartition("@")[2]
            values = {
                "pipeline/right": found.right,
                "pipeline/found_frac": found.found_frac,
                "pipeline/shown_frac": found.shown_frac,
                **{
                    f"pipeline/{outcome}_frac": found.outcomes[outcome] / max(1, found.num_questions)
                    for outcome in _COLUMNS
                },
            }
            is_oracle = depth == ORACLE
            stage = f"{task}/{ORACLE}" if is_oracle else task
            logger.log(stage, 0 if is_oracle else int(depth.removeprefix("top")), values)


def _record(file: Path, task: str, judged: Mapping[str, Sequence[JudgedQuestion]]) -> None:
    """Keep a few cases of each outcome with their pages, for the report."""
    for stage in sorted({group.stage for group in read_groups(file) if group.stage.startswith(task)}):
        truncate_after(file, stage, -1)
    for depth, questions in judged.items():
        for outcome in OUTCOMES:
            cases = [one for one in questions if one.case.outcome == outcome and one.response is not None]
            if not cases:
                continue
            is_oracle = depth == ORACLE
            shown = cases[:_RECORDED_CASES]
            record_evaluation(
                file,
                f"{task}{f' {ORACLE}' if is_oracle else ''}: {outcome.replace('_', ' ')}",
                [_recorded(one) for one in shown],
                [_rollout(one) for one in shown],
                [{"right": float(one.case.is_right), "gold pages shown": float(one.case.is_shown)} for one in shown],
                step=0 if is_oracle else int(depth.removeprefix("top")),
            )


def _recorded(one: JudgedQuestion) -> Sample:
    gold = ", ".join(one.question.gold_pages) or "none"
    told = f"gold pages: {gold}; shown: {', '.join(one.pages.shown)}"
    evidence = [f"{page_id}: {text}" for page_id, text in one.question.gold_evidence.items()]
    return dataclasses.replace(one.sample, gold_response="\n".join([told, *evidence]))


def _rollout(one: JudgedQuestion) -> Rollout:
    nothing = np.zeros(0, dtype=np.int32)
    return Rollout(
        sample_id=one.question.query_id,
        response_index=0,
        token_ids=nothing,
        logprobs=np.zeros(0, dtype=np.float32),
        text=one.response or "",
        token_char_starts=nothing,
        finish_reason="stop",
        policy_version=0,
        temperature=0.0,
    )


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
