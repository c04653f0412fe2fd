"""The trained head of a filter: how it is loaded and trained, asked in the words that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rsgrpo.config import FilterStageConfig, PromptConfig, QueryFilterConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.prompts.template import PromptWriter
from rsgrpo.retrieval.filtering.page_filter import PageScorer
from rsgrpo.types import Sample


def worded(path: str) -> Callable[[str], str]:
    """Make a function that words a question about a page.

    Args:
        path: the path of the Jinja template.

    Raises:
        PromptTemplateError: the template is missing, is no Jinja, or does not use ``question``.
    """
    writer = PromptWriter(PromptConfig(path=path))

    def word(question: str) -> str:
        (text,) = writer.parts(Sample(sample_id="", question=question))
        return str(text)

    return word


def head_scorer(settings: QueryFilterConfig, rules: ImageRules) -> Callable[[FilterStageConfig], PageScorer]:
    """Make a function that loads the head for a pass.

    Args:
        settings: the settings of the filter, which name the head.
        rules: how pages are read.
    """

    def make(stage: FilterStageConfig) -> PageScorer:
        from rsgrpo.retrieval.filtering.page_head import WORDING_FILE, HeadScorer  # here: it takes long to import

        folder = Path(settings.head)
        wording = folder / WORDING_FILE
        word = worded(str(wording) if wording.exists() else settings.prompt)
        return HeadScorer(folder, word, rules.scaled_down(stage.max_pixels))

    return make
