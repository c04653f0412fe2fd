"""Which recorded numbers become which curve."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from rsgrpo.run.logger import MetricRow

_Item = TypeVar("_Item")
_MAX_POINTS = 600  # a curve is about 600 pixels wide


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a chart."""

    name: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Lines that share their axes."""

    section: str
    title: str
    note: str
    is_log: bool
    series: list[Series]


@dataclass(frozen=True, slots=True)
class _Spec:
    section: str
    title: str
    note: str
    stage: str
    pattern: str
    """A regular expression of the whole metric name; its group, if any, names the line."""
    is_log: bool = False


_SPECS = (
    _Spec("rewards", "Rewards", "mean over the step's responses, before weights", "rl",
          r"reward/(?!total$)(?!.*[_/](?:std|min|max|frac|total|sum)$)(.+?)(?:[_/]mean)?"),
    _Spec("rewards", "Weighted sum of rewards", "mean over the step's responses", "rl", r"reward/(.*(?:total|sum).*)"),
    _Spec("rewards", "Held-out questions", "greedy answers to questions that training does not see", "rl",
          r"eval/(accuracy|evidence_f1|well_formed_frac|abstention_answerable_frac)"),
    _Spec("rewards", "Scope found", "share of responses in which the reward's scope stands", "rl",
          r"scope/(.+?)[_/]found(?:_frac)?"),
    _Spec("rewards", "Groups without variance", "share of groups in which a reward says nothing", "rl",
          r"scope/(.+?)[_/](?:zero_variance_groups|flat_groups|no_variance|constant|without_variance)(?:_frac)?"),
    _Spec("rewards", "Signal of the credit", "times its noise, by reward and section; below 1: mostly chance", "rl",
          r"signal/(.+)"),
    _Spec("policy", "Entropy", "nats per token, whole next-token distribution", "rl",
          r"policy/(entropy(?:_mean)?)"),
    _Spec("policy", "Gradient norm", "before clipping", "rl", r"policy/(grad_norm)"),
    _Spec("policy", "Log-probability gap", "|engine − trainer| in nats, log scale", "rl",
          r"engine/logprob_gap_(mean|max)", is_log=True),
    _Spec("policy", "Response length", "tokens", "rl",
          r"(?:policy|response|engine)/((?:mean_)?(?:response_)?(?:tokens|length)(?:_mean|_max|_min)?)"),
    _Spec("policy", "Clipping and truncation", "shares of tokens and of responses", "rl",
          r"(?:policy|response)/(clip_fraction|cut_frac|truncated_frac)"),
    _Spec("policy", "Groups kept and filled", "shares", "rl", r"selection/(kept_frac|filled_frac)"),
    _Spec("sft", "Supervised loss", "mean negative log-likelihood of a response token, nats", "sft",
          r"(?:policy|sft|eval)/((?:validation_)?loss)"),
    _Spec("retriever", "Contrastive loss", "nats per question, each against the pages of its batch", "retriever",
          r"retriever/(loss)"),
    _Spec("retriever", "Right page first", "share of the batch; MRR, recall and nDCG on pairs held out", "retriever",
          r"(?:retriever|eval)/(batch_accuracy|mrr@10|recall@10|ndcg@10)"),
    _Spec("retriever", "Gradient norm", "before clipping", "retriever", r"retriever/(grad_norm)"),
    _Spec("retriever", "Learning rate", "", "retriever", r"retriever/(learning_rate)"),
    _Spec("sft", "Gradient norm", "before clipping", "sft", r"policy/(grad_norm)"),
    _Spec("sft", "Learning rate", "", "sft", r"policy/(learning_rate)"),
)  # fmt: skip


def collect_charts(rows: Sequence[MetricRow]) -> list[Chart]:
    """The curves of a run: chosen ones first, then every recorded number by itself.

    Args:
        rows: the rows of ``metrics.jsonl``.

    Returns:
        The charts that have something to show; those of the section ``all`` hold one line each.
    """
    table = _series_by_name(rows)
    charts = []
    for spec in _SPECS:
        series = []
        for (stage, name), curve in table.items():
            match = re.fullmatch(spec.pattern, name)
            if stage == spec.stage and match:
                label = (match.group(1) if match.re.groups else name).replace("_", " ")
                series.append(Series(name=label, steps=curve.steps, values=curve.values))
        if series:
            charts.append(
                Chart(section=spec.section, title=spec.title, note=spec.note, is_log=spec.is_log, series=series)
            )
    for (stage, name), curve in sorted(table.items()):
        if len(curve.steps) > 1:
            charts.append(Chart(section="all", title=name, note=stage, is_log=False, series=[curve]))
    return charts


def collect_times(rows: Sequence[MetricRow]) -> dict[str, object]:
    """Seconds of every RL step by phase, for stacking; ``{}`` if none were recorded.

    Returns:
        The steps and phases as ``{"steps": [...], "phases": [{"name": ..., "values": [...]}, ...]}``, thinned like the
        curves.
    """
    timed = [row for row in rows if row.stage == "rl" and any(name.startswith("time/") for name in row.values)]
    thinned = _thin(timed)
    names = dict.fromkeys(name for row in thinned for name in row.values if name.startswith("time/"))
    phases = [name for name in names if name not in ("time/step", "time/total")]
    if not phases:
        return {}

    def seconds(row: MetricRow, name: str) -> float:
        value = row.values.get(name, 0.0)
        return _short(value) if math.isfinite(value) else 0.0

    return {
        "steps": [row.step for row in thinned],
        "phases": [
            {"name": name.removeprefix("time/").replace("_", " "), "values": [seconds(row, name) for row in thinned]}
            for name in phases
        ],
    }


def _series_by_name(rows: Sequence[MetricRow]) -> dict[tuple[str, str], Series]:
    points: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        for name, value in row.values.items():
            if math.isfinite(value):
                points.setdefault((row.stage, name), {})[row.step] = _short(value)
    table = {}
    for key, by_step in points.items():
        kept = _thin(sorted(by_step.items()))
        table[key] = Series(name=key[1], steps=[step for step, _ in kept], values=[value for _, value in kept])
    return table


def _thin(items: Sequence[_Item]) -> list[_Item]:
    if len(items) <= _MAX_POINTS:
        return list(items)
    return [items[round(index * (len(items) - 1) / (_MAX_POINTS - 1))] for index in range(_MAX_POINTS)]


def _short(value: float) -> float:
    return float(f"{value:.6g}")
