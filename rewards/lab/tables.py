"""What the lab prints."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.lab.lint import Lint
from rewards.lab.replay import GroupChange, Replay, RolloutChange


def replay_table(result: Replay, num_shown: int) -> str:
    """Rewards, totals, and the groups that change most.

    Args:
        result: of ``replay``.
        num_shown: groups shown one by one.
    """
    rows = [["reward", "mean before", "mean after", "changed", "sign flips", "groups gain", "lose signal"]]
    for reward in result.rewards:
        counts = (reward.num_changed, reward.num_flips, reward.num_gained, reward.num_lost)
        rows.append([reward.name, _value(reward.mean_before), _value(reward.mean_after), *map(str, counts)])
    rollouts = [rollout for group in result.groups for rollout in group.rollouts]
    changed = [group for group in result.groups if group.is_changed]
    gained = sum(group.has_signal and not group.had_signal for group in result.groups)
    lost = sum(group.had_signal and not group.has_signal for group in result.groups)
    lines = [
        _aligned(rows),
        "",
        f"{len(changed)} of {len(result.groups)} groups and {sum(one.is_changed for one in rollouts)} of "
        f"{len(rollouts)} responses change; {sum(one.is_flip for one in rollouts)} responses are pushed the other way; "
        f"{gained} groups gain signal, {lost} lose it",
    ]
    changed.sort(key=_size, reverse=True)
    for group in changed[:num_shown]:
        lines += ["", *_group_lines(group)]
    if len(changed) > num_shown:
        lines += ["", f"… and {len(changed) - num_shown} more groups (--show N, or --json FILE for all)"]
    return "\n".join(lines)


def lint_table(results: Sequence[Lint]) -> str:
    """Every trick with its score; those that pay are marked."""
    blocks = []
    for result in results:
        rows = [["trick", "score", ""], ["an honest response", _value(result.honest), ""]]
        for trick in result.tricks:
            mark = "PAYS" if trick.pays else ("untouched" if trick.is_untouched else "")
            rows.append([trick.trick, _value(trick.score), mark])
        verdict = f"{len(result.paying)} of {len(result.tricks)} tricks pay as much as an honest response, or more"
        blocks.append(f"{result.name} (questions: {result.kind})\n{_aligned(rows)}\n{verdict}")
    return "\n\n".join(blocks)


def _size(group: GroupChange) -> tuple[bool, float]:
    moved = sum(abs(one.total_after - one.total_before) for one in group.rollouts)
    return group.had_signal != group.has_signal, moved


def _group_lines(group: GroupChange) -> list[str]:
    title = f"step {group.step}  {group.sample_id}"
    if group.had_signal != group.has_signal:
        title += "  gains signal" if group.has_signal else "  loses its signal"
    return [title, *(_rollout_line(one) for one in group.rollouts if one.is_changed)]


def _rollout_line(rollout: RolloutChange) -> str:
    values = ", ".join(
        f"{value.name}{f'[{value.image_index + 1}]' if value.image_index >= 0 else ''} "
        f"{_value(value.before)} -> {_value(value.after)}"
        for value in rollout.values
        if value.before != value.after and value.is_changed
    )
    flip = "  FLIP" if rollout.is_flip else ""
    return (
        f"  response {rollout.rollout_index}: {rollout.total_before:+.2f} -> {rollout.total_after:+.2f}{flip}  {values}"
    )


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns: the first to the left, the others to the right."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
