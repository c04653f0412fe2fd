"""Ask a model about each page by itself, and read off one token how probable it finds "yes"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rollout.engine import TokenJudge
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.prompts.relevance import RelevancePrompts
from rsgrpo.retrieval.filtering.page_filter import PagesOfQuestion, ScoredPages
from rsgrpo.retrieval.filtering.relevance import yes_no_probability
from rsgrpo.types import ImageRef

_PROMPTS_A_CALL = 2048  # their texts are held at once; their pages are not


class YesNoScorer:
    """A ``PageScorer``: ``sigmoid(z_yes - z_no)`` behind a question about one page.

    Args:
        judge: who says how probable the two answers are: an engine, or a plain forward pass.
        prompts: builds the question about a page.
        tokens: the ids of the two answers, yes first.
        max_pixels: the area in pixels that larger pages are scaled down to while they are judged.
        image_tokens: counts the tokens of a page at that size.
    """

    def __init__(
        self,
        judge: TokenJudge,
        prompts: RelevancePrompts,
        tokens: tuple[int, int],
        *,
        max_pixels: int,
        image_tokens: ImageTokens,
    ) -> None:
        self._judge = judge
        self._prompts = prompts
        self._tokens = tokens
        self._max_pixels = max_pixels
        self._image_tokens = image_tokens

    def score(self, question: str, pages: Sequence[ImageRef]) -> NDArray[np.float64]:
        """See :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer`."""
        (found,) = self.score_all([PagesOfQuestion(question=question, pages=tuple(pages))])
        return np.asarray(found.probabilities, dtype=np.float64)

    def score_all(self, asked: Sequence[PagesOfQuestion]) -> list[ScoredPages]:
        """See :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer`."""
        prompted = [
            self._prompts.build(f"{number}/{place}", item.question, page)
            for number, item in enumerate(asked)
            for place, page in enumerate(item.pages)
        ]
        answers = []
        for start in range(0, len(prompted), _PROMPTS_A_CALL):
            chunk = prompted[start : start + _PROMPTS_A_CALL]
            answers += self._judge.named_logprobs(chunk, self._tokens, max_pixels=self._max_pixels)
        waiting = iter(answers)
        found = []
        for item in asked:
            own = [next(waiting) for _ in item.pages]
            image_tokens = sum(map(self._image_tokens.count, item.pages))
            found.append(
                ScoredPages(
                    probabilities=tuple(yes_no_probability(*answer.logprobs) for answer in own),
                    image_tokens=image_tokens,
                    text_tokens=sum(answer.num_prompt_tokens for answer in own) - image_tokens,
                )
            )
        return found
