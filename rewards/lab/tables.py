"""What the lab prints."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.lab.lint import Lint
from rewards.lab.replay import GroupChange, Replay, RolloutChange, ValueChange


def replay_table(result: Replay, num_shown: int) -> str:
    """Table of rewards, totals, and the groups that change most.

    Args:
        result: what ``replay`` returned.
        num_shown: how many groups are shown one by one.
    """
    rows = [
        ["reward", "mean before", "mean after", "changed", "other tokens", "sign flips", "groups gain", "lose credit"]
    ]
    for reward in result.rewards:
        counts = (reward.num_changed, reward.num_moved, reward.num_flips, reward.num_gained, reward.num_lost)
        rows.append([reward.name, _value(reward.mean_before), _value(reward.mean_after), *map(str, counts)])
    rollouts = [rollout for group in result.groups for rollout in group.rollouts]
    changed = [group for group in result.groups if group.is_changed]
    gained = sum(group.has_credit and not group.had_credit for group in result.groups)
    lost = sum(group.had_credit and not group.has_credit for group in result.groups)
    lines = [
        _aligned(rows),
        "",
        f"{len(changed)} of {len(result.groups)} groups and {sum(rollout.is_changed for rollout in rollouts)} of "
        f"{len(rollouts)} responses change; {sum(rollout.is_flip for rollout in rollouts)} responses are pushed the "
        f"other way; {gained} groups gain credit, {lost} lose it",
    ]
    if changed and num_shown:
        lines.append("a response's total is its weighted mean advantage, sum of w A over sum of w")
    changed.sort(key=_size, reverse=True)
    for group in changed[:num_shown]:
        lines += ["", *_group_lines(group)]
    if len(changed) > num_shown:
        lines += ["", f"… and {len(changed) - num_shown} more groups (--show N, or --json FILE for all)"]
    return "\n".join(lines)


def lint_table(results: Sequence[Lint]) -> str:
    """Table of every trick with its score; those that pay are marked."""
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
    moved = sum(abs(rollout.total_after - rollout.total_before) for rollout in group.rollouts)
    return group.had_credit != group.has_credit, moved


def _group_lines(group: GroupChange) -> list[str]:
    title = f"step {group.step}  {group.sample_id}"
    if group.had_credit != group.has_credit:
        title += "  gains credit" if group.has_credit else "  loses its credit"
    return [title, *(_rollout_line(rollout) for rollout in group.rollouts if rollout.is_changed)]


def _rollout_line(rollout: RolloutChange) -> str:
    total = (
        f"  response {rollout.response_index}: total {_signed(rollout.total_before)} -> {_signed(rollout.total_after)}"
    )
    values = ", ".join(_value_text(value) for value in rollout.values if value.is_changed)
    return total + ("  FLIP" if rollout.is_flip else "") + (f"  {values}" if values else "")


def _value_text(value: ValueChange) -> str:
    """What changed, such as ``accuracy 1.000 -> 0.000 (A +0.71 -> -0.71, 40 -> 6 tokens)``."""
    name = value.name if value.image_index < 0 else f"{value.name}[{value.image_index + 1}]"
    before, after = _value(value.before), _value(value.after)
    parts = [name] if before == after else [f"{name} {before} -> {after}"]
    inside = []
    before, after = _signed(value.advantage_before), _signed(value.advantage_after)
    if before != after:
        inside.append(f"A {before} -> {after}")
    if value.is_moved:
        inside.append(f"{value.tokens_before} -> {value.tokens_after} tokens")
    return " ".join(parts + ([f"({', '.join(inside)})"] if inside else []))


def _signed(value: float) -> str:
    """A number with its sign and two decimals; zero has no minus."""
    return f"{round(value, 2) + 0.0:+.2f}"


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of aligned columns: the first column to the left, the others to the right."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
