"""The filter behind a search: its passes, asked of the engine that answers, or of an embedder or a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from recipes.asking.chat_server import ChatServer
from recipes.asking.model_choice import AskSettings
from rsgrpo.answering.records import LookedAtPage
from rsgrpo.config import EndpointConfig, FilterStageConfig, QueryFilterConfig

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from rsgrpo.retrieval.filtering.page_filter import FilterStage, PageScorer


def filter_maker(
    settings: QueryFilterConfig, asked: AskSettings, find_server: Callable[[], ChatServer]
) -> Callable[[], Sequence[FilterStage]]:
    """Make a function that makes the passes of a filter.

    Args:
        settings: the settings of the filter.
        asked: how the model is asked, whose pages the filter looks at.
        find_server: gives the server of the model, which ``yes_no`` asks.

    Returns:
        The function; what it makes is used by one thread at a time.
    """

    def ask_server(stage: FilterStageConfig) -> PageScorer:
        from recipes.filtering.endpoint_scorer import EndpointYesNoScorer
        from recipes.filtering.head import worded

        address = find_server().address
        return EndpointYesNoScorer(
            EndpointConfig(url=address.url, model=address.model),
            asked.data,
            worded(settings.prompt),
            (settings.yes, settings.no),
            max_pixels=stage.max_pixels,
            key=address.key,
        )

    def make() -> Sequence[FilterStage]:
        from recipes.filtering.head import head_scorer
        from recipes.filtering.stages import make_stages
        from recipes.indexing.places import make_single_embedder

        return make_stages(settings, None, make_single_embedder, head_scorer(settings, asked.image_rules), ask_server)

    return make


def filtered_pages(
    question: str, pages: tuple[LookedAtPage, ...], stages: Sequence[FilterStage], max_images: int
) -> tuple[LookedAtPage, ...]:
    """Let a filter look at the pages of a question.

    Args:
        question: the text of the question.
        pages: the pages.
        stages: the passes of the filter.
        max_images: the most pages that the model takes.

    Returns:
        All pages in their order, each with its relevance; the best of those that the filter keeps are shown.

    Raises:
        RsgrpoError: a page cannot be read, or the filter's model cannot be asked.
    """
    from rsgrpo.retrieval.filtering.page_filter import PagesOfQuestion, filter_pages

    (kept,) = filter_pages([PagesOfQuestion(question=question, pages=tuple(page.image for page in pages))], stages)
    best = sorted(kept.kept, key=lambda place: -kept.last[place])[:max_images]
    return tuple(replace(page, relevance=kept.last[place], is_shown=place in best) for place, page in enumerate(pages))
