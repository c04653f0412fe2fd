"""Requests of benchmark tasks, and which of them can be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rsgrpo.config import Config, SamplingConfig
from rsgrpo.data.images.counts import ImageCounts, look_at_images
from rsgrpo.data.readers.findings import Tally, short_report
from rsgrpo.data.readers.skipping import check_skipped
from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import Benchmark, BenchmarkError
from rsgrpo.evaluation.prompts.turns import TaskPrompt
from rsgrpo.text.control_tokens import control_token
from rsgrpo.types import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkRequest:
    """One request of a benchmark.

    Attributes:
        prompt: the prompt that the model gets.
        sample: the record of the benchmark, its images in the order shown (MileBench: as the data set has them).
        needle_position: 0-based position of the needle among the images (``vhs/positional``); else -1.
        page_score: the score of the one page that is shown, where the question is asked of each of its pages and one
            answer is chosen; None: the question is asked once.
    """

    prompt: TaskPrompt
    sample: Sample
    needle_position: int = -1
    page_score: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRequests:
    """All requests of one task, or of one haystack size of it.

    Attributes:
        name: the task's name, for haystacks with ``@size``; also the name of its folder in the run.
        benchmark: the benchmark that scores the answers.
        requests: the requests, in the data set's order.
        sampling: how responses are drawn.
        skipped: how many records were left out, by reason (``data.on_bad_sample=skip``).
        images: counts of the task's images by what reading changes about them; each image counts once.
    """

    name: str
    benchmark: Benchmark
    requests: tuple[BenchmarkRequest, ...]
    sampling: SamplingConfig
    skipped: Mapping[str, int]
    images: ImageCounts = field(default_factory=ImageCounts)

    @property
    def prompts(self) -> list[TaskPrompt]:
        """The prompts of all requests, in order."""
        return [request.prompt for request in self.requests]


def checked_task(
    name: str,
    benchmark: Benchmark,
    asked: Sequence[BenchmarkRequest],
    unusable: Tally,
    num_samples: int,
    sampling: SamplingConfig,
    skipped: Mapping[str, int],
    config: Config,
) -> TaskRequests:
    """Make a task of requests, without those that our engines cannot take.

    Args:
        name: the name of the task.
        benchmark: the benchmark that scores the answers.
        asked: the requests.
        unusable: what was left out while they were made; what is left out here is added.
        num_samples: how many records there were.
        sampling: how responses are drawn.
        skipped: how many records were left out before, by reason.
        config: the settings of the run.

    Raises:
        RsgrpoError: a request cannot be used (``data.on_bad_sample=reject``), or too few can.
    """
    requests, left_out, images = checked_requests(name, asked, unusable, num_samples, config)
    return TaskRequests(
        name=name,
        benchmark=benchmark,
        requests=requests,
        sampling=sampling,
        skipped={**skipped, **left_out},
        images=images,
    )


def checked_requests(
    name: str, asked: Sequence[BenchmarkRequest], unusable: Tally, num_samples: int, config: Config
) -> tuple[tuple[BenchmarkRequest, ...], dict[str, int], ImageCounts]:
    """Leave out requests that our engines cannot take; a sample that loses one request loses all.

    Args:
        name: the name of the task.
        asked: the requests.
        unusable: what was left out while they were made; what is left out here is added.
        num_samples: how many records there were.
        config: the settings of the run.

    Returns:
        The requests, how many records were left out, by reason, and counts of the images.

    Raises:
        RsgrpoError: a request cannot be used (``data.on_bad_sample=reject``), or too few can.
    """
    is_strict = config.data.on_bad_sample == "reject"
    requests, images = _usable(asked, config, unusable)
    findings = unusable.findings()
    if findings and (is_strict or not requests):
        advice = "repair them" if not requests else "repair them, or set data.on_bad_sample=skip to go on without them"
        raise BenchmarkError(short_report(f"{name}: questions that cannot be asked", findings, advice))
    check_skipped(name, findings, num_samples, config.data.max_skipped_frac)
    _check_images(name, requests, config)
    return requests, {finding.reason: finding.count for finding in findings}, images


def _usable(
    asked: Sequence[BenchmarkRequest], config: Config, unusable: Tally
) -> tuple[tuple[BenchmarkRequest, ...], ImageCounts]:
    """Questions whose images and words our engines can take; a sample that loses one question loses all."""
    broken, images = look_at_images(
        (image for request in asked for image in request.sample.images), config.data.image_rules
    )
    lost: dict[str, tuple[str, str]] = {}
    for request in asked:
        image = next((broken[image] for image in request.sample.images if image in broken), "")
        texts = [part for turn in request.prompt.turns for part in turn.parts if isinstance(part, str)]
        # A server's tokenizer is its own affair.
        token = "" if config.eval.endpoint.url else control_token(*texts)
        if image:
            lost.setdefault(request.sample.sample_id, ("image", image))
        elif token:
            detail = f"sample {shown(request.sample.sample_id)!r}: its text holds the control token {token!r}"
            lost.setdefault(request.sample.sample_id, ("text", detail))
    for reason, detail in lost.values():
        unusable.add(reason, detail)
    return tuple(request for request in asked if request.sample.sample_id not in lost), images


def _check_images(name: str, requests: Sequence[BenchmarkRequest], config: Config) -> None:
    most = max(requests, key=lambda request: len(request.prompt.images))
    if len(most.prompt.images) > config.data.max_images and not config.eval.endpoint.url:
        raise BenchmarkError(
            f"{name}: question {most.prompt.prompt_id!r} shows {len(most.prompt.images)} images, the engine is set up "
            f"for data.max_images={config.data.max_images}; raise it (and rollout.max_model_tokens with it)"
        )
