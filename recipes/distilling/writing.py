"""Write what was distilled: rows, pages, counts, and a page to look at.

OUT/pairs.jsonl    training rows of a retriever; pages are named relative to OUT
OUT/images/        the pages, each content once
OUT/counts.json    what was counted
OUT/sample.html    some questions with their pages and what was decided
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from recipes.distilling.judging import DistillError, judge_groups
from recipes.distilling.pairs import Distilled, PageStore, make_pairs
from recipes.distilling.sample_page import sample_page
from rsgrpo.config import Config
from rsgrpo.config.distill import DistillConfig
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import write_json, write_text
from rsgrpo.io.jsonl import write_rows
from rsgrpo.io.writer_lock import LockHeldError, WriterLock
from rsgrpo.run.recorder import RecordedGroup

PAIRS_FILE = "pairs.jsonl"
_NAMED_PROBLEMS = 3


@contextmanager
def held_folder(out: Path) -> Iterator[None]:
    """Make the folder, and hold it for this process: two that sampled into it would mix their responses.

    Args:
        out: the folder to write.

    Raises:
        DistillError: another process writes there, it cannot be written, or it holds pairs that did not come from here.
    """
    lock_file = out / "writer.lock"
    if (out / PAIRS_FILE).exists() and not lock_file.exists():  # the lock's file stays where pairs were distilled
        raise DistillError(
            f"{shown(out / PAIRS_FILE)} was not written by rsgrpo distill-relevance and would be lost; choose another "
            "--out, or move it away"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(lock_file)
    except LockHeldError as error:
        raise DistillError(
            f"another call writes to {shown(out)} ({error.holder}); wait for it, or choose another --out"
        ) from error
    except OSError as error:
        raise DistillError(f"{shown(out)} cannot be written ({error.strerror}); choose another --out") from error
    with lock:
        yield


def write_distilled(
    groups: Sequence[RecordedGroup], config: Config, settings: DistillConfig, out: Path, run_folder: Path
) -> Distilled:
    """Judge groups and write everything.

    Args:
        groups: the recorded groups.
        config: the settings of the run that they come from.
        settings: how evidence becomes pairs.
        out: the folder to write, which is held (:func:`held_folder`); rows of an earlier call are replaced.
        run_folder: where moved images are looked for.

    Returns:
        What was written.

    Raises:
        DistillError: no row came of it; the page to look at is written all the same.
    """
    questions = list(judge_groups(groups, settings, config.response.format))
    with closing(PageStore(out, config.data.image_rules)) as store:
        distilled = make_pairs(questions, settings, store)
    for problem in store.problems[:_NAMED_PROBLEMS]:
        print(f"note: {problem}", file=sys.stderr)
    write_rows(out / PAIRS_FILE, distilled.rows)
    write_json(out / "counts.json", distilled.counts(), indent=1)
    write_text(out / "sample.html", sample_page(questions, distilled, settings, config, run_folder))
    if not distilled.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in distilled.left_out_questions.items())
        raise DistillError(
            f"none of {len(questions)} questions gives a pair ({reasons or 'there are none'}); "
            f"{shown(out / 'sample.html')} shows what was decided, and distill.* sets the bounds"
        )
    return distilled
