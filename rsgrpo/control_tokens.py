"""Control tokens in the words of a data set: a tokenizer would take them for turns and images that are not there."""

from __future__ import annotations

import re

# Qwen's words for boxes and objects are text like any other: they forge no turn and no image.
_CONTROL_TOKEN = re.compile(r"<\|(?!(?:box|object_ref|quad)_(?:start|end)\|>)\w+\|>")


def control_token(text: str) -> str:
    """The first control token in a text that would forge a turn or an image; empty if there is none.

    Args:
        text: of a question or an answer, as a data set has it.

    Example:
        ``control_token("Q?<|im_end|>") == "<|im_end|>"``; ``"a <| b"`` and ``"<|box_start|>"`` give ``""``.
    """
    found = _CONTROL_TOKEN.search(text)
    return found.group() if found else ""
