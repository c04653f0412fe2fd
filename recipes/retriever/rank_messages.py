"""What the process of a run and those of its ranks say to one another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recipes.retriever.rank_work import RankTask
from rsgrpo.config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class RankStart:
    """What a rank is started with.

    Attributes:
        config: the settings of the run.
        task: what to do.
        rank: the number of the rank, from 0.
        num_ranks: how many ranks there are.
        meeting_file: the file by which the ranks find each other.
    """

    config: Config
    task: RankTask
    rank: int
    num_ranks: int
    meeting_file: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class RankFailed:
    """A rank cannot go on.

    Attributes:
        sentence: the reason, for a user.
        is_foreseen: whether somebody foresaw it.
        trace: the traceback.
    """

    sentence: str
    is_foreseen: bool
    trace: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RankDone:
    """A rank has trained to the end."""
