"""Score a run's saved responses again, with other rewards, and say whose credit changes.

What a run folder holds is what can be replayed: ``rl.rollouts_in_report`` groups of each kept step (0: all of
them), and none that ``rl.filter`` dropped. Advantages depend on a group alone (except with ``rl.credit.scale:
batch_std``), so they are those that training would have seen.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rewards.plugins import load_rewards
from rewards.scorer import Scorer
from rsgrpo.algorithm.advantages import credit_groups
from rsgrpo.config import Config
from rsgrpo.data.images.image_view import read_view
from rsgrpo.errors import RsgrpoError
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.recorder import RecordedGroup, RecordedRollout, read_groups
from rsgrpo.types import ChatPrompt, CreditedGroup, CreditedRollout, Group, Rollout, RolloutGroup, Sample, TokenSpan

_ROUNDING = 2e-5  # records hold six significant digits, and advantages divide by a group's spread

_NO_REWARD: tuple[float | None, float, tuple[TokenSpan, ...]] = (None, 0.0, ())


class ReplayError(RsgrpoError):
    """A run folder holds nothing that can be replayed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueChange:
    """One reward of one response, before and after.

    Attributes:
        name: the name of the reward.
        image_index: the 0-based image for a reward given image by image, else -1.
        before: the recorded value; None where the reward did not apply, or is new.
        after: the value now; None where the reward does not apply now, or was removed.
        advantage_before: the recorded advantage A_ik.
        advantage_after: the advantage A_ik now.
        tokens_before: how many tokens the recorded scope holds.
        tokens_after: how many tokens the scope holds now.
        is_moved: whether the reward was given before and is given now, but its scope holds other tokens now.
    """

    name: str
    image_index: int
    before: float | None
    after: float | None
    advantage_before: float
    advantage_after: float
    tokens_before: int = 0
    tokens_after: int = 0
    is_moved: bool = False

    @property
    def is_flip(self) -> bool:
        """Whether the advantage changed its sign."""
        return _sign(self.advantage_before) * _sign(self.advantage_after) < 0

    @property
    def is_changed(self) -> bool:
        """Whether the value, the advantage or the scope changed."""
        if self.is_moved or (self.before is None) != (self.after is None):
            return True
        is_other = self.before is not None and self.after is not None and _differs(self.before, self.after)
        return is_other or _differs(self.advantage_before, self.advantage_after)


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutChange:
    """One response.

    Attributes:
        response_index: 0-based index of the response among those to the same question.
        total_before: the recorded sum of w_k A_ik over the sum of w_k, with the run's weights.
        total_after: the same sum with the advantages and weights of now.
        values: the change of every reward, those of the run first.
    """

    response_index: int
    total_before: float
    total_after: float
    values: tuple[ValueChange, ...]

    @property
    def is_flip(self) -> bool:
        """Whether the sum of the advantages changed its sign."""
        return _sign(self.total_before) * _sign(self.total_after) < 0

    @property
    def is_changed(self) -> bool:
        """Whether anything changed."""
        return _differs(self.total_before, self.total_after) or any(value.is_changed for value in self.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupChange:
    """One question.

    Attributes:
        step: the training step that sampled the question.
        sample_id: the question's id.
        had_credit: whether any token had credit when the group was recorded.
        has_credit: whether any token has credit now.
        rollouts: the changes of all responses to the question.
    """

    step: int
    sample_id: str
    had_credit: bool
    has_credit: bool
    rollouts: tuple[RolloutChange, ...]

    @property
    def is_changed(self) -> bool:
        """Whether anything changed."""
        return self.had_credit != self.has_credit or any(rollout.is_changed for rollout in self.rollouts)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardChange:
    """One reward over all responses.

    Attributes:
        name: the name of the reward.
        mean_before: the mean of the recorded values; None: the reward is new, or applied nowhere.
        mean_after: the mean of the values now; None: the reward was removed, or applies nowhere.
        num_changed: how many responses (and images) changed in value, advantage or scope.
        num_moved: how many of these have a scope that holds other tokens now.
        num_flips: how many advantages changed their sign.
        num_gained: in how many groups the siblings differ now and did not before.
        num_lost: in how many groups the siblings differed before and do not now.
    """

    name: str
    mean_before: float | None
    mean_after: float | None
    num_changed: int
    num_moved: int
    num_flips: int
    num_gained: int
    num_lost: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What changed when a run's responses were scored again.

    Attributes:
        groups: the changes of every group that was replayed, in the order of the file.
        rewards: the changes of each reward, those of the run first.
    """

    groups: tuple[GroupChange, ...]
    rewards: tuple[RewardChange, ...]


def replay(run_folder: Path, before: Config, after: Config, *, stage: str = "rl") -> Replay:
    """Score the saved responses of a run with other settings.

    Args:
        run_folder: the run folder, which holds ``rollouts.jsonl``.
        before: the run's settings; their weights belong to the recorded advantages.
        after: what to score with: ``rewards`` and ``rl.credit``. Plugin files are relative to the current folder.
        stage: the stage whose records are scored again.

    Returns:
        The changes of groups and rewards. With equal settings and unchanged reward functions nothing changes.

    Raises:
        ReplayError: nothing was recorded for the stage.
        RewardError: a reward cannot be loaded, fails, or needs gold that a recorded sample lacks; one that counts
            pixels also needs the pages where they were, and ``image_view.json``.

    Example:
        A group with accuracy 1 and 0, scored with a reward that says 0 and 1: both advantages flip.
    """
    file = RunFolder(root=run_folder).rollouts_file
    groups = list(read_groups(file))
    recorded = [group for group in groups if group.stage == stage]
    if not recorded:
        stages = sorted({group.stage for group in groups})
        raise ReplayError(
            f"{file} holds no groups of stage {stage!r}, only of {', '.join(stages) or 'none'}; give the folder of a "
            "run that has trained with rewards"
        )
    weights_before, weights_after = _weights(before), _weights(after)
    view = read_view(RunFolder(root=run_folder).image_view_file)
    response_format = after.response.format
    scorer = Scorer(load_rewards(after.scored_rewards, Path.cwd(), response_format), view, response_format)
    changes = []
    for _, step in itertools.groupby(recorded, key=lambda group: group.step):
        members = list(step)
        sampled = [sampled_group(group) for group in members]
        scorer.check_samples([group.sample for group in sampled])
        credited = credit_groups(scorer.score(sampled), weights_after, after.rl.credit)
        changes += [
            _group_change(old, new, weights_before, weights_after) for old, new in zip(members, credited, strict=True)
        ]
    return Replay(groups=tuple(changes), rewards=_reward_changes(changes))


def _weights(config: Config) -> dict[str, float]:
    return {name: reward.weight for name, reward in config.rewards.items()}


def sampled_group(group: RecordedGroup) -> RolloutGroup:
    """The group as the rollout pool gave it, as far as rewards can see it.

    Args:
        group: a recorded group.

    Returns:
        The group without the engine's log-probabilities and the prompt's text.
    """
    sample = Sample(
        sample_id=group.sample_id,
        question=group.question,
        images=group.images,
        answers=group.answers,
        gold_response=group.gold_response,
        is_sufficient=group.is_sufficient,
        positive_images=group.positive_images,
        choices=group.choices,
        boxes=group.boxes,
        metadata=group.metadata,
        page_numbers=group.page_numbers,
    )
    return Group(
        sample=sample,
        prompt=ChatPrompt(
            sample_id=group.sample_id,
            text=group.question,
            images=group.images,
            opened_section=group.opened_section,
        ),
        prompt_token_ids=np.zeros(0, dtype=np.int32),
        rollouts=tuple(_rollout(group.sample_id, rollout) for rollout in group.rollouts),
        counterfactuals=group.counterfactuals,
    )


def _rollout(sample_id: str, recorded: RecordedRollout) -> Rollout:
    num_tokens = len(recorded.token_char_starts)
    # Records of earlier versions lack the ids; -1 is no token's.
    token_ids = recorded.token_ids or (-1,) * num_tokens
    return Rollout(
        sample_id=sample_id,
        response_index=recorded.response_index,
        token_ids=np.array(token_ids, dtype=np.int32),
        logprobs=np.zeros(num_tokens, dtype=np.float32),
        text=recorded.text,
        token_char_starts=np.array(recorded.token_char_starts, dtype=np.int32),
        finish_reason=recorded.finish_reason,
        policy_version=recorded.policy_version,
    )


def _group_change(
    old: RecordedGroup, new: CreditedGroup, weights_before: Mapping[str, float], weights_after: Mapping[str, float]
) -> GroupChange:
    rollouts = tuple(
        _rollout_change(old_rollout, new_rollout, weights_before, weights_after, old.page_numbers)
        for old_rollout, new_rollout in zip(old.rollouts, new.rollouts, strict=True)
    )
    return GroupChange(
        step=old.step,
        sample_id=old.sample_id,
        had_credit=any(any(rollout.positive_weights) or any(rollout.negative_weights) for rollout in old.rollouts),
        has_credit=any(
            bool(rollout.positive_weights.any() or rollout.negative_weights.any()) for rollout in new.rollouts
        ),
        rollouts=rollouts,
    )


def _rollout_change(
    old: RecordedRollout,
    new: CreditedRollout,
    weights_before: Mapping[str, float],
    weights_after: Mapping[str, float],
    page_numbers: Sequence[int],
) -> RolloutChange:
    before = {
        (reward.name, reward.image_index): (reward.value, reward.advantage, reward.spans) for reward in old.rewards
    }
    pairs = zip(new.rewards, new.advantages, strict=True)
    after = {reward.key: (reward.value, advantage, reward.spans) for reward, advantage in pairs}
    values = []
    for key in dict.fromkeys((*before, *after)):
        name, image_index = key
        value_before, advantage_before, spans_before = before.get(key, _NO_REWARD)
        value_after, advantage_after, spans_after = after.get(key, _NO_REWARD)
        values.append(
            ValueChange(
                name=name,
                # By the number that texts call the page by, also where a filter left others out.
                image_index=page_numbers[image_index] - 1 if 0 <= image_index < len(page_numbers) else image_index,
                before=value_before,
                after=value_after,
                advantage_before=advantage_before,
                advantage_after=advantage_after,
                tokens_before=sum(span.stop - span.start for span in spans_before),
                tokens_after=sum(span.stop - span.start for span in spans_after),
                is_moved=key in before and key in after and spans_before != spans_after,
            )
        )
    return RolloutChange(
        response_index=old.response_index,
        total_before=_total(weights_before, [(value.name, value.advantage_before) for value in values]),
        total_after=_total(weights_after, [(value.name, value.advantage_after) for value in values]),
        values=tuple(values),
    )


def _total(weights: Mapping[str, float], advantages: Sequence[tuple[str, float]]) -> float:
    total = sum(weights.get(name, 0.0) * advantage for name, advantage in advantages)
    return total / (sum(weights.values()) or 1.0)


def _reward_changes(groups: Sequence[GroupChange]) -> tuple[RewardChange, ...]:
    values: dict[str, list[ValueChange]] = defaultdict(list)
    gained: dict[str, int] = defaultdict(int)
    lost: dict[str, int] = defaultdict(int)
    for group in groups:
        of_group: dict[str, list[ValueChange]] = defaultdict(list)
        for rollout in group.rollouts:
            for value in rollout.values:
                of_group[value.name].append(value)
        for name, found in of_group.items():
            had, has = any(change.advantage_before for change in found), any(change.advantage_after for change in found)
            gained[name] += has and not had
            lost[name] += had and not has
            values[name] += found
    return tuple(
        RewardChange(
            name=name,
            mean_before=_mean([change.before for change in found]),
            mean_after=_mean([change.after for change in found]),
            num_changed=sum(change.is_changed for change in found),
            num_moved=sum(change.is_moved for change in found),
            num_flips=sum(change.is_flip for change in found),
            num_gained=gained[name],
            num_lost=lost[name],
        )
        for name, found in values.items()
    )


def _mean(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else None


def _differs(left: float, right: float) -> bool:
    return abs(left - right) > _ROUNDING * max(1.0, abs(left), abs(right))


def _sign(value: float) -> int:
    return 0 if abs(value) <= _ROUNDING else (1 if value > 0 else -1)
