"""Groups kept in full: what was asked, what was answered, and what credit every token received.

One JSON line a group in ``rollouts.jsonl``. Training groups carry rewards and credit, evaluated ones
only scores. The report, and anyone with a JSON reader, reads them back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsgrpo.io.atomic_files import FileError, shown_value
from rsgrpo.io.jsonl import append_rows, keep_rows, line_problem, numbered_rows, refuse
from rsgrpo.io.record_codec import RecordError, from_plain
from rsgrpo.types import (
    Box,
    Counterfactuals,
    CreditedGroup,
    CreditedRollout,
    FloatArray,
    ImageRef,
    Rollout,
    Sample,
    ScopedReward,
    ScoredGroup,
    TokenSpan,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedReward:
    """What one reward said of one response.

    Attributes:
        name: the reward's name in the config, or the score's name in an evaluation.
        value: the value before the weight; None where the reward did not apply.
        advantage: the advantage A_ik; 0.0 in an evaluation.
        image_index: the 0-based image for a reward given image by image, else -1.
        scope_found: whether the scope stood in the response.
        spans: the ranges of response tokens in its scope; empty in an evaluation.
    """

    name: str
    value: float | None
    advantage: float = 0.0
    image_index: int = -1
    scope_found: bool = True
    spans: tuple[TokenSpan, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedRollout:
    """One response.

    Attributes:
        response_index: 0-based index of the response among those to the same question.
        text: the text of the response.
        finish_reason: why the response ended: ``stop`` or ``length``.
        policy_version: the version stamp of the weights that wrote it.
        token_char_starts: [R], the offset in ``text`` at which each token starts.
        rewards: what each reward said of the response.
        positive_weights: [R], P_t of each token with six significant digits; empty in an evaluation.
        negative_weights: [R], Q_t of each token with six significant digits; empty in an evaluation.
        token_ids: [R], the sampled ids; empty in records of earlier versions.
    """

    response_index: int
    text: str
    finish_reason: str
    policy_version: int
    token_char_starts: tuple[int, ...]
    rewards: tuple[RecordedReward, ...] = ()
    positive_weights: tuple[float, ...] = ()
    negative_weights: tuple[float, ...] = ()
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedGroup:
    """One question with its responses.

    Attributes:
        stage: ``rl``, or the point of an evaluation such as ``after_sft``.
        step: the step of the stage.
        sample_id: the question's id.
        question: the bare question, or the data set's ready prompt where it has only that.
        images: the pages.
        answers: the accepted answers.
        gold_response: the tagged gold response; empty if there is none.
        is_sufficient: whether the pages hold the answer.
        rollouts: all responses to the question.
        scope_tokens: N_k by reward name: how many tokens its scope has in all groups of the step, not only in those
            that are kept.
        positive_images: the 0-based indexes of the gold pages, where known.
        choices: the options of a multiple-choice question.
        boxes: the gold rectangles of a grounding question.
        metadata: the further columns of the data set, as text.
        opened_section: the section that the prompt opened, so that the responses begin inside of it; empty: none.
        page_numbers: the number by which texts call each of the images; empty: 1, 2, ….
        counterfactuals: what the policy answered without single pages; None: no reward asked.
    """

    stage: str
    step: int
    sample_id: str
    question: str
    images: tuple[ImageRef, ...]
    answers: tuple[str, ...]
    gold_response: str
    is_sufficient: bool
    rollouts: tuple[RecordedRollout, ...]
    scope_tokens: Mapping[str, int] = field(default_factory=dict)
    positive_images: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    opened_section: str = ""
    page_numbers: tuple[int, ...] = ()
    counterfactuals: Counterfactuals | None = None


def record_groups(path: Path, stage: str, step: int, credited: Sequence[CreditedGroup], *, num_kept: int = 0) -> None:
    """Append a training step's groups, credit included.

    Args:
        path: the file ``rollouts.jsonl`` of the run.
        stage: the name of the stage, ``rl``.
        step: the number of the optimizer batch.
        credited: all groups of the step; their token counts N_k are noted with every kept group.
        num_kept: how many groups are kept, the first ones; 0: all.
    """
    scope_tokens = _scope_tokens(credited)
    kept = credited[:num_kept] if num_kept else credited
    append_rows(path, [_group_row(stage, step, group, scope_tokens) for group in kept])


def record_evaluation(
    path: Path,
    stage: str,
    samples: Sequence[Sample],
    rollouts: Sequence[Rollout],
    scores: Sequence[Mapping[str, float]] | None = None,
    *,
    step: int = 0,
    opened_sections: Sequence[str] | None = None,
) -> None:
    """Append evaluated answers, one response per question.

    Args:
        path: the file ``rollouts.jsonl`` of the run.
        stage: the point of evaluation, such as ``after_rl``.
        samples: the samples that were asked.
        rollouts: their responses, in the same order.
        scores: named scores of each response, such as ``{"em": 1.0}``; None: none.
        step: the step of training, for several evaluations of one stage.
        opened_sections: which section each question's prompt opened; None: none did.

    Raises:
        ValueError: the sequences differ in length.
    """
    every_score = scores if scores is not None else [{}] * len(samples)
    opened = opened_sections if opened_sections is not None else [""] * len(samples)
    rows = [
        _sample_row(stage, step, sample, section)
        | {"rollouts": [_rollout_row(rollout) | {"rewards": _score_rows(named)}]}
        for sample, rollout, named, section in zip(samples, rollouts, every_score, opened, strict=True)
    ]
    append_rows(path, rows)


def record_sampled(path: Path, stage: str, groups: Sequence[ScoredGroup]) -> None:
    """Append groups that were sampled and scored, but not trained on.

    Args:
        path: the file, such as ``rollouts.jsonl`` of ``rsgrpo distill-relevance``.
        stage: what they were sampled for, such as ``distill``.
        groups: the groups; of their rewards only the values are kept.
    """
    rows = [
        _sample_row(stage, 0, group.sample, group.prompt.opened_section)
        | {
            "rollouts": [
                _rollout_row(scored.rollout)
                | {"rewards": [_reward_row(dataclasses.replace(one, spans=()), 0.0) for one in scored.rewards]}
                for scored in group.rollouts
            ]
        }
        for group in groups
    ]
    append_rows(path, rows)


def read_groups(path: Path, on_problem: Callable[[FileError], None] = refuse) -> tuple[RecordedGroup, ...]:
    """Everything that was recorded, in the order of writing.

    Where a question stands twice for one step (a stage that ran again), the later record counts.

    Args:
        path: the file ``rollouts.jsonl``; a missing one holds nothing, a half-written last line is left out.
        on_problem: is called with a line's problem, see :func:`rsgrpo.io.jsonl.numbered_rows`.

    Returns:
        The groups, in the order of the file.

    Raises:
        FileError: a line is no record; the message names file, line and sample.
    """
    groups: dict[tuple[str, int, str], RecordedGroup] = {}
    for number, row in numbered_rows(path, on_problem):
        try:
            group = _read_group(row)
        except RecordError as error:
            sample = shown_value(row.get("sample_id"))
            on_problem(FileError(line_problem(path, number, f"no record of sample {sample} ({error})")))
            continue
        groups[group.stage, group.step, group.sample_id] = group
    return tuple(groups.values())


def truncate_after(path: Path, stage: str, step: int) -> int:
    """Drop a stage's groups of later steps, so that a resumed run equals an uninterrupted one.

    Args:
        path: the file ``rollouts.jsonl`` of the run.
        stage: the stage that goes on.
        step: the step of the checkpoint; -1 drops all of the stage.

    Returns:
        How many groups were dropped.

    Raises:
        FileError: a line is no record; the message names file, line and sample.
    """
    read_groups(path)
    return keep_rows(path, lambda row: row["stage"] != stage or row["step"] <= step)


def _scope_tokens(credited: Sequence[CreditedGroup]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for group in credited:
        for rollout in group.rollouts:
            for reward in rollout.rewards:
                length = sum(span.stop - span.start for span in reward.spans)
                totals[reward.name] = totals.get(reward.name, 0) + length
    return totals


def _rounded(values: FloatArray) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def _reward_row(reward: ScopedReward, advantage: float) -> dict[str, Any]:
    return {
        "name": reward.name,
        "image_index": reward.image_index,
        "value": None if reward.value is None else float(f"{reward.value:.6g}"),
        "advantage": float(f"{advantage:.6g}"),
        "scope_found": reward.scope_found,
        "spans": [[span.start, span.stop] for span in reward.spans],
    }


def _score_rows(named: Mapping[str, float]) -> list[dict[str, Any]]:
    rewards = (ScopedReward(name=name, value=value, spans=(), scope_found=True) for name, value in named.items())
    return [_reward_row(reward, 0.0) for reward in rewards]


def _rollout_row(rollout: Rollout) -> dict[str, Any]:
    return {
        "response_index": rollout.response_index,
        "text": rollout.text,
        "finish_reason": rollout.finish_reason,
        "policy_version": rollout.policy_version,
        "token_char_starts": rollout.token_char_starts.tolist(),
        "token_ids": rollout.token_ids.tolist(),
    }


def _credited_row(credited: CreditedRollout) -> dict[str, Any]:
    pairs = zip(credited.rewards, credited.advantages, strict=True)
    return _rollout_row(credited.rollout) | {
        "rewards": [_reward_row(reward, advantage) for reward, advantage in pairs],
        "positive_weights": _rounded(credited.positive_weights),
        "negative_weights": _rounded(credited.negative_weights),
    }


def _sample_row(stage: str, step: int, sample: Sample, opened_section: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "step": step,
        "sample_id": sample.sample_id,
        "question": sample.question or sample.prompt,
        "images": [dataclasses.asdict(image) for image in sample.images],
        "answers": list(sample.answers),
        "gold_response": sample.gold_response,
        "is_sufficient": sample.is_sufficient,
        "positive_images": list(sample.positive_images),
        "choices": list(sample.choices),
        "boxes": [dataclasses.asdict(box) for box in sample.boxes],
        "metadata": dict(sample.metadata),
        "opened_section": opened_section,
        "page_numbers": list(sample.page_numbers),
    }


def _group_row(stage: str, step: int, group: CreditedGroup, scope_tokens: Mapping[str, int]) -> dict[str, Any]:
    return _sample_row(stage, step, group.sample, group.prompt.opened_section) | {
        "scope_tokens": dict(scope_tokens),
        **({"counterfactuals": dataclasses.asdict(group.counterfactuals)} if group.counterfactuals else {}),
        "rollouts": [_credited_row(rollout) for rollout in group.rollouts],
    }


def _read_group(row: Mapping[str, Any]) -> RecordedGroup:
    try:
        plain = {**row, "rollouts": [_named_spans(rollout) for rollout in row["rollouts"]]}
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError("its rollouts have another form") from error
    group = from_plain(RecordedGroup, plain)
    _check(group)
    return group


def _named_spans(rollout: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded rollout with its spans as objects; in the file each is two numbers."""
    rewards = [
        {**reward, "spans": [{"start": start, "stop": stop} for start, stop in reward["spans"]]}
        for reward in rollout["rewards"]
    ]
    return {**rollout, "rewards": rewards}


def _check(group: RecordedGroup) -> None:
    """Refuse a recorded group whose numbers do not go together."""
    if not group.rollouts:
        raise RecordError("it has no rollouts")
    keys = [[(reward.name, reward.image_index) for reward in rollout.rewards] for rollout in group.rollouts]
    if any(own != keys[0] for own in keys):
        raise RecordError("its rollouts have different rewards")
    for rollout in group.rollouts:
        starts = rollout.token_char_starts
        edges = (0, *starts, len(rollout.text))
        if tuple(sorted(edges)) != edges:
            raise RecordError(f"the token_char_starts of rollout {rollout.response_index} do not follow its text")
        for name in ("positive_weights", "negative_weights", "token_ids"):
            values: Sequence[float] = getattr(rollout, name)
            if values and len(values) != len(starts):
                raise RecordError(f"{len(values)} values of {name} for {len(starts)} tokens")
        spans = [span for reward in rollout.rewards for span in reward.spans]
        if any(not 0 <= span.start <= span.stop <= len(starts) for span in spans):
            raise RecordError(f"a span lies outside the {len(starts)} tokens of rollout {rollout.response_index}")
