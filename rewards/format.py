"""Do the four sections stand as they should?"""

from __future__ import annotations

from rewards.base import RewardCall


def format(call: RewardCall) -> float:
    """1.0 if observe, evidence, think and answer stand once each, closed, in order, else 0.0.

    Only whitespace may stand around and between them. (The public reward also refuses whitespace in
    front of the first and behind the last tag; ``rewards.reference`` has that one.)
    """
    return float(call.parsed.is_well_formed)
