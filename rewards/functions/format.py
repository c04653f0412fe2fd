"""Do the four sections stand as they should?"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.base import RewardCall
from rsgrpo.text.sections import TAGS


def format(call: RewardCall) -> float:
    """1.0 if observe, evidence, think and answer stand once each, closed, in order, else 0.0.

    Only whitespace may stand around and between them. (The public reward also refuses whitespace in
    front of the first and behind the last tag; ``rewards.functions.upstream`` has that one.)
    """
    return float(call.parsed.is_well_formed)


def sections(call: RewardCall, names: Sequence[str]) -> float:
    """1.0 if the named sections, and no others, stand once each, closed, in the order given, else 0.0.

    For prompts that ask for some of the four only. Only whitespace may stand around and between them.

    Example:
        ``names=["evidence", "answer"]``: ``<evidence>e</evidence> <answer>a</answer>`` gives 1.0, and 0.0 with a
        think section in it.
    """
    wanted = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    if any(call.text.count(tag) != (tag in wanted) for tag in TAGS):
        return 0.0
    edge = 0
    for tag in wanted:
        start = call.text.find(tag, edge)
        if start < 0 or (tag[1] != "/" and call.text[edge:start].strip()):
            return 0.0
        edge = start + len(tag)
    return float(not call.text[edge:].strip())
