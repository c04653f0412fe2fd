"""``prompt``: the text around a question."""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.config.checks import Literal, check_choices, not_empty

ImageOrder = Literal["text_first", "images_first", "markers"]


@dataclass(kw_only=True, slots=True)
class PromptConfig:
    """How a question becomes a prompt."""

    path: str = "configs/prompt/evidence.jinja"
    """Jinja template with the variables ``question``, ``num_images``, ``choices`` and ``page_numbers`` (empty unless a
    filter left pages out)."""
    image_order: ImageOrder = "text_first"
    """``text_first``, ``images_first``, or ``markers`` (where the data set's ready prompt says)."""
    system: str = "You are a helpful assistant."
    """System turn; the default is the Qwen chat template's own."""

    def __post_init__(self) -> None:
        not_empty("prompt.path", self.path)
        check_choices(self, "prompt.")
