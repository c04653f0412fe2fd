"""The chat message that the public RL code makes of a training row, for comparison with other trainers.

rsgrpo's own prompts check more: markers against images (``rsgrpo.data.evisrag_files``), control tokens
(``rsgrpo.prompts.template``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Template

from rsgrpo.data.evisrag_files import split_markers


def reference_messages(
    row: Mapping[str, Any], *, format_prompt: str = "", image_key: str = "image", video_key: str = "video"
) -> list[dict[str, Any]]:
    """One user turn.

    Args:
        row: with ``prompt``, and under ``image_key`` or ``video_key`` what its markers stand for; an image column
            goes before a video column, and markers are never counted against it.
        format_prompt: Jinja template around the prompt, with the variable ``content``; blanks at its ends go.
        image_key: name of the image column, looked up exactly.
        video_key: name of the video column.

    Returns:
        Text as it stands between ``<image>`` (or ``<video>``) markers; a plain string for a row without media.

    Example:
        ``{"prompt": "<image>Q?", "image": ["a.png"]}`` gives
        ``[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q?"}]}]``.
    """
    text = row["prompt"]
    if format_prompt:
        text = Template(format_prompt.strip()).render(content=text)
    for key, kind in ((image_key, "image"), (video_key, "video")):
        if key in row:
            parts = split_markers(text, f"<{kind}>")
            content = [{"type": kind} if part is None else {"type": "text", "text": part} for part in parts]
            return [{"role": "user", "content": content}]
    return [{"role": "user", "content": text}]
