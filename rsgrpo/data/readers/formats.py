"""What format a record of another one looks like, for messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def likely_format(record: Mapping[str, Any], expected: str) -> str:
    """A hint that a record is of another format; empty where it looks like none that is known.

    Args:
        record: the columns of the record.
        expected: the format that it was read as, or one of the same kind.

    Example:
        ``likely_format({"instruction": "…", "output": "…"}, "evisrag")`` speaks of the Alpaca format.
    """
    keys = {str(key) for key, value in record.items() if value is not None}
    if keys & {"chosen", "rejected"}:
        return "; it looks like preference pairs (chosen, rejected), which are not trained on: keep the chosen answer"
    if "instruction" in keys and keys & {"output", "response"}:
        return "; it looks like the Alpaca format, which is not read: write it as messages (data.format=sharegpt)"
    for name, needed in (
        ("milebench", {"task_instance"}),
        ("vhs", {"pos_image", "conversations"}),
        ("mig_bench", {"need_format"}),
        ("mirage", {"relevant_images"}),
        ("sharegpt", {"messages"}),
        ("sharegpt", {"conversations", "images"}),
        ("llava", {"conversations"}),
        ("evisrag", {"query", "answer"}),
        ("evisrag", {"prompt", "answer"}),
    ):
        if needed <= keys and name != expected:
            return f"; it looks like data.format={name}"
    return ""
