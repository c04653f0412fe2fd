"""Headline numbers: cards, test results by point, facts about the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rsgrpo.run.logger import MetricRow
from rsgrpo.run.progress import readable_seconds
from rsgrpo.run.summary import RunSummary, SearchSummary

_POINTS = {
    "before_sft": "Before SFT",
    "after_sft": "After SFT",
    "before_rl": "Before RL",
    "after_rl": "After RL",
    "before_retriever": "Before training",
    "after_retriever": "After training",
    "checkpoint": "Checkpoint",
}  # in the order of a run: the last one is the headline, and its gain is on the one before
_BARS = (
    ("accuracy", "Accuracy"),
    ("f1", "F1"),
    ("em", "Exact match"),
    ("evidence_f1", "Evidence F1"),
    ("answerable_accuracy", "Accuracy, answerable"),
    ("unanswerable_accuracy", "Accuracy, unanswerable"),
    ("well_formed_frac", "Well-formed"),
)
_FILTER_BARS = (
    ("filter/image_recall", "Filter: gold pages kept"),
    ("filter/image_precision", "Filter: kept pages that are gold"),
)
_RETRIEVAL_BARS = (("mrr@10", "MRR@10"), ("recall@10", "Recall@10"), ("ndcg@10", "nDCG@10"))
_REWARD = "reward/"
_CARDS = (
    ("accuracy", "Test accuracy"),
    ("evidence_f1", "Evidence F1"),
    ("well_formed_frac", "Well-formed"),
    ("mrr@10", "MRR@10"),
)


def collect_evaluations(summary: RunSummary | None, rows: Sequence[MetricRow]) -> list[dict[str, Any]]:
    """Test results in the order of the run.

    Args:
        summary: the summary of the run; None while it is under way: then the recorded metrics are used.
        rows: the rows of ``metrics.jsonl``.

    Returns:
        One object for each point, with ``label`` and ``bars``: name and value of each known score.
    """
    metrics: dict[str, Mapping[str, float]] = {}
    for row in rows:
        if row.stage in _POINTS:
            metrics[row.stage] = {name.removeprefix("eval/"): value for name, value in row.values.items()}
    if summary is not None:
        for point, evaluation in summary.evaluations.items():
            rewards = {f"{_REWARD}{name}": value for name, value in summary.evaluation_rewards.get(point, {}).items()}
            found = summary.evaluation_filters.get(point)
            filtered = {f"filter/{name}": value for name, value in dataclasses.asdict(found).items()} if found else {}
            metrics[point] = dataclasses.asdict(evaluation) | rewards | filtered
        for point, measures in summary.retrieval.items():
            metrics[point] = {**measures.numbers(), "num_responses": measures.num_queries}
    if summary is not None and (summary.benchmarks or summary.searches or summary.pipelines):
        return _benchmark_evaluations(summary) + _search_evaluations(summary) + _pipeline_evaluations(summary)
    order = [point for point in _POINTS if point in metrics] + [point for point in metrics if point not in _POINTS]
    return [
        {
            "point": point,
            "label": _POINTS.get(point, point.replace("_", " ")),
            "bars": [
                {"key": key, "name": name, "value": round(metrics[point][key], 6)}
                for key, name in (*_shown_bars(metrics.values()), *_FILTER_BARS)
                if key in metrics[point] and metrics[point][key] == metrics[point][key]  # not NaN
            ],
            "questions": int(metrics[point].get("num_responses", 0)),
        }
        for point in order
    ]


def _shown_bars(points: Collection[Mapping[str, float]]) -> list[tuple[str, str]]:
    """EVisRAG's scores; where no response ever had its sections, the run's own rewards, and what else is not 0."""
    if any("mrr@10" in point for point in points):
        return list(_RETRIEVAL_BARS)
    if any(point.get("well_formed_frac") for point in points):
        return list(_BARS)
    rewards = dict.fromkeys(key for point in points for key in point if key.startswith(_REWARD))
    shares = [key for key in rewards if all(0.0 <= point.get(key, 0.0) <= 1.0 for point in points)]
    scores = [(key, name) for key, name in _BARS if any(point.get(key) for point in points)]
    return [(key, f"Reward {key.removeprefix(_REWARD)}") for key in shares] + scores


def _benchmark_evaluations(summary: RunSummary) -> list[dict[str, Any]]:
    return [
        {
            "point": task,
            "label": f"{task} · {score.metric}",
            "bars": [
                {"key": "official", "name": "Official", "value": round(score.official, 6)},
                {"key": "strict", "name": "Strict", "value": round(score.strict, 6)},
            ],
            "questions": score.num_answered,
        }
        for task, score in summary.benchmarks.items()
    ]


def _search_evaluations(summary: RunSummary) -> list[dict[str, Any]]:
    return [
        {
            "point": task,
            "label": task,
            "bars": [
                {"key": key, "name": name, "value": round(measures[measure], 6)}
                for key, name, measures, measure in (
                    ("mrr", "MRR@10", found.official, "mrr@10"),
                    ("mrr_strict", "MRR@10, strict", found.strict, "mrr@10"),
                    ("recall", "Recall@10", found.official, "recall@10"),
                    ("ndcg", "nDCG@10", found.official, "ndcg@10"),
                )
            ],
            "questions": found.num_queries,
        }
        for task, found in summary.searches.items()
    ]


def _pipeline_evaluations(summary: RunSummary) -> list[dict[str, Any]]:
    """Shares of all questions: right, and lost in each of the ways that occurred."""
    return [
        {
            "point": task,
            "label": task,
            "bars": [
                {"key": outcome, "name": outcome.replace("_", " ").capitalize(), "value": round(share, 6)}
                for outcome, share in (
                    (outcome, count / max(1, found.num_questions)) for outcome, count in found.outcomes.items()
                )
            ],
            "questions": found.num_questions,
        }
        for task, found in summary.pipelines.items()
    ]


def collect_cards(
    summary: RunSummary | None, evaluations: Sequence[Mapping[str, Any]], rows: Sequence[MetricRow]
) -> list[dict[str, str]]:
    """The few numbers at the top: ``label``, ``value``, ``note`` and ``trend`` (up, down or empty)."""
    cards = []
    rewards = {
        bar["key"]: bar["name"]
        for evaluation in evaluations
        for bar in evaluation["bars"]
        if bar["key"].startswith(_REWARD)
    }
    for key, label in (*list(rewards.items())[: len(_CARDS)], *_CARDS):
        values = [
            (evaluation["label"], bar["value"])
            for evaluation in evaluations
            for bar in evaluation["bars"]
            if bar["key"] == key
        ]
        if values:
            cards.append(_score_card(label, values))
    if summary is not None:
        cards += [
            _card(
                f"Image tokens · {_POINTS.get(point, point)}",
                f"÷ {found.answer_ratio:.1f}",
                f"÷ {found.total_ratio:.1f} with the filter's own; {found.kept_pages:.1f} of {found.pages:.0f} pages",
            )
            for point, found in summary.evaluation_filters.items()
        ]
    rl = summary.rl if summary is not None else None
    if summary is not None and summary.stage_seconds:
        stages = _stage_times(summary.stage_seconds)
        cards.append(_card("Wall-clock time", readable_seconds(sum(summary.stage_seconds.values())), stages))
    if rl is not None and rl.logprob_gap_mean is not None:
        largest = "" if rl.logprob_gap_max is None else f"largest {rl.logprob_gap_max:.1e}, "
        cards.append(_card("Engine − trainer gap", f"{rl.logprob_gap_mean:.1e}", f"{largest}nats per token"))
    if rl is not None and rl.sampled_tokens_per_second is not None:
        trained = "" if rl.trained_tokens_per_second is None else f", trained {rl.trained_tokens_per_second:,.0f}"
        cards.append(_card("Tokens per second", f"{rl.sampled_tokens_per_second:,.0f}", f"sampled{trained}"))
    if rl is not None and rl.credit_time_frac is not None:
        cards.append(_card("Credit overhead", f"{rl.credit_time_frac:.2%}", "scopes, rewards and credit, of a step"))
    steps: dict[str, int] = {}
    for row in rows:
        if row.stage in ("sft", "rl", "retriever"):
            steps[row.stage] = max(row.step, steps.get(row.stage, 0))
    if steps:
        cards.append(_card("Steps", " + ".join(map(str, steps.values())), " + ".join(name.upper() for name in steps)))
    return cards


def collect_facts(summary: RunSummary | None, config: Mapping[str, Any]) -> list[list[str]]:
    """What the run was, as pairs of name and text."""
    if summary is None:
        return [[name, str(config[name])] for name in ("stage", "seed") if name in config]
    facts = [
        ["recipe", summary.recipe],
        ["stage", summary.stage],
        ["seed", str(summary.seed)],
        ["device", f"{summary.device}, {summary.num_cores} cores" if summary.device else ""],
        ["prompt", summary.prompt_fingerprint],
        ["skipped samples", str(summary.skipped_samples)],
    ]
    if summary.rl is not None:
        facts.append(["groups", f"{summary.rl.sampled_groups} sampled, {summary.rl.filtered_groups} filtered out"])
    facts += [[f"search {task}", _search_told(found)] for task, found in summary.searches.items()]
    facts += [[name.replace("_", " "), text[:12]] for name, text in summary.versions.items()]
    return [fact for fact in facts if fact[1]]


def _search_told(found: SearchSummary) -> str:
    """Say how fast pages and questions were embedded and searched, and what was left out."""
    pages = f"{found.num_pages:,} pages"
    if found.pages_per_second is not None:
        pages += f" at {found.pages_per_second:,.1f} a second"
    query = f"a question {found.query_embedding_milliseconds:.2f} ms, its search {found.search_milliseconds:.2f} ms"
    left_out = f"{found.refused_pages} pages left out" if found.refused_pages else ""
    missing = f"{found.missing_queries} queries without a page" if found.missing_queries else ""
    return ", ".join(part for part in (pages, query, left_out, missing) if part)


def _stage_times(stage_seconds: Mapping[str, float]) -> str:
    """The times of the training stages by name, and of everything else together."""
    training = {name.upper(): spent for name, spent in stage_seconds.items() if name in ("sft", "rl", "retriever")}
    other = sum(stage_seconds.values()) - sum(training.values())
    return " · ".join(f"{name} {readable_seconds(spent)}" for name, spent in (training | {"other": other}).items())


def _score_card(label: str, values: Sequence[tuple[str, float]]) -> dict[str, str]:
    point, last = values[-1]
    card = _card(f"{label} · {point}", f"{last:.1%}", "held-out questions")
    if len(values) == 1:
        return card
    change = (last - values[-2][1]) * 100
    earlier = " · ".join(f"{name} {value:.1%}" for name, value in reversed(values[:-1]))
    return {**card, "note": f"{change:+.1f} points · {earlier}", "trend": _trend(change)}


def _trend(change: float) -> str:
    if abs(change) < 0.05:  # prints as 0.0 points
        return ""
    return "up" if change > 0 else "down"


def _card(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note, "trend": ""}
