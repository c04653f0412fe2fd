"""Do the sections stand as they should?"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.base import RewardCall, reads_sections


def format(call: RewardCall) -> float:
    """1.0 if the response is well formed as ``response.sections`` says, else 0.0.

    By default: observe, evidence, think and answer stand once each, closed, in order. Only whitespace may stand around
    and between sections. (The public reward also refuses whitespace in front of the first and behind the last tag;
    ``rewards.functions.upstream`` has that one.)
    """
    return float(call.parsed.is_well_formed)


@reads_sections(arguments=("names",))
def sections(call: RewardCall, names: Sequence[str]) -> float:
    """1.0 if the named sections, and no others, stand once each, closed, in the order given, else 0.0.

    For prompts that ask for some of the declared sections only. Only whitespace may stand around and between them.

    Args:
        call: the response to judge, with its sample.
        names: the names of the sections, in order.

    Example:
        ``names=["evidence", "answer"]``: ``<evidence>e</evidence> <answer>a</answer>`` gives 1.0, and 0.0 with a
        think section in it.
    """
    wanted = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    text = f"<{call.parsed.opened}>{call.text}" if call.parsed.opened else call.text
    if any(text.count(tag) != (tag in wanted) for tag in call.parsed.format.tags):
        return 0.0
    edge = 0
    for tag in wanted:
        start = text.find(tag, edge)
        if start < 0 or (tag[1] != "/" and text[edge:start].strip()):
            return 0.0
        edge = start + len(tag)
    return float(not text[edge:].strip())
