"""Which rewards credit a section in which they say nothing: more noise than signal."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from rsgrpo.run.logger import MetricRow

_PREFIX = "signal/"
_LAST_STEPS = 30
_FEWEST_STEPS = 5
_ENOUGH = 1.0
_STANDARD_ERRORS = 2.0


def collect_alarms(rows: Sequence[MetricRow]) -> list[str]:
    """Rewards whose credit in a section was more noise than signal over the last steps, and surely so.

    Args:
        rows: the rows of ``metrics.jsonl``.

    Returns:
        A sentence for each reward and section whose ``signal/<reward>/<section>`` has a mean that lies two standard
        errors below 1 over the last 30 steps in which the reward's credit changed something there; at least five.

    Example:
        Signals of 0.2, 0.4, 0.3, 0.1 and 0.5 in five steps: 0.30 ± 0.07, an alarm.
    """
    signals: dict[str, list[float]] = defaultdict(list)
    for row in sorted((row for row in rows if row.stage == "rl"), key=lambda row: row.step):
        for name, value in row.values.items():
            if name.startswith(_PREFIX) and math.isfinite(value):
                signals[name.removeprefix(_PREFIX)].append(value)
    alarms = []
    for name, found in sorted(signals.items()):
        values = found[-_LAST_STEPS:]
        count = len(values)
        if count < _FEWEST_STEPS:
            continue
        mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(count)
        if mean + _STANDARD_ERRORS * error < _ENOUGH:
            reward, _, section = name.rpartition("/")
            alarms.append(
                f"{reward} in <{section}>: {mean:.2f} ± {error:.2f} times as much signal as noise over {count} steps. "
                f"What stands there has little to do with this reward; a scope without <{section}> "
                f"(rewards.{reward}.scope), or more responses to a question, gives a steadier gradient."
            )
    return alarms
