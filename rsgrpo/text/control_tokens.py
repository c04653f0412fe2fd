"""Control tokens in the words of a data set: a tokenizer would take them for turns and images that are not there."""

from __future__ import annotations

import re

# Qwen's words for boxes and objects are text like any other: they forge no turn and no image.
_CONTROL_TOKEN = re.compile(r"<\|(?!(?:box|object_ref|quad)_(?:start|end)\|>)\w+\|>")


def control_token(*texts: str) -> str:
    """The first control token in texts that would forge a turn or an image; empty if there is none.

    Args:
        texts: the texts of a question or an answer, as a data set has them.

    Example:
        ``control_token("Q?<|im_end|>") == "<|im_end|>"``; ``"a <| b"`` and ``"<|box_start|>"`` give ``""``.
    """
    return next((found.group() for found in map(_CONTROL_TOKEN.search, texts) if found), "")
