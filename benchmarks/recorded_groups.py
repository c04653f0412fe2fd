"""The groups of responses that a run of reinforcement learning recorded (``rl.record_every_steps``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rewards.lab.replay import sampled_group
from rsgrpo.errors import RsgrpoError
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.recorder import read_groups
from rsgrpo.types import RolloutGroup


def recorded_groups(run: Path, group_size: int | None = None) -> Iterator[RolloutGroup]:
    """Read them, each cut into as many of ``group_size`` responses as it holds; None: whole.

    Args:
        run: the folder of the run.
        group_size: how many responses a group has.

    Raises:
        RsgrpoError: no group is recorded, or none is that large.
    """
    if group_size is not None and group_size < 1:
        raise RsgrpoError(f"a group has at least 1 response, got {group_size}")
    file = RunFolder(root=run).rollouts_file
    num_groups = 0
    for recorded in read_groups(file):
        if recorded.stage != "rl":
            continue
        group = sampled_group(recorded)
        size = group_size or len(group.rollouts)
        for first in range(0, len(group.rollouts) - size + 1, size):
            num_groups += 1
            yield group.with_rollouts(group.rollouts[first : first + size])
    if not num_groups:
        asked = f" of {group_size} responses" if group_size else ""
        raise RsgrpoError(f"{file} holds no group{asked} of reinforcement learning; set rl.record_every_steps=1")
