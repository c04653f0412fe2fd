"""Ask a server about each page: the log-probabilities of yes and no among those that it gives with its one token."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.evaluation.answering import Answer
from recipes.evaluation.endpoint import EndpointAnswerer, EndpointError
from rsgrpo.config import DataConfig, EndpointConfig, SamplingConfig
from rsgrpo.data.images.loading import image_size
from rsgrpo.evaluation.prompts.turns import user_prompt
from rsgrpo.retrieval.filtering.page_filter import PagesOfQuestion, ScoredPages
from rsgrpo.retrieval.filtering.relevance import yes_no_probability
from rsgrpo.text.coordinates import smart_resize
from rsgrpo.types import ImageRef

_TOP_LOGPROBS = 20  # the most that servers give


class EndpointYesNoScorer:
    """A ``PageScorer`` over an OpenAI-compatible server that gives log-probabilities.

    A server lists its likeliest tokens only. Where one of the two answers is not among them, it is at most as likely as
    the last one of the list, which is what it counts as: the probability is then a bound, near 0 or 1.

    Args:
        endpoint: the settings of the server.
        data: how images are read.
        word: words the question about a page.
        answers: the two answers, yes first.
        max_pixels: the area in pixels that larger pages are scaled down to before they are sent.
        key: the key of the server; empty: the one that ``eval.endpoint.api_key_variable`` names.

    Raises:
        EndpointError: the environment variable of the key is not set.
    """

    def __init__(
        self,
        endpoint: EndpointConfig,
        data: DataConfig,
        word: Callable[[str], str],
        answers: tuple[str, str],
        *,
        max_pixels: int,
        key: str = "",
    ) -> None:
        self._endpoint = endpoint
        low = data.image_rules.scaled_down(max_pixels)
        self._rules = low
        self._word = word
        self._answerer = EndpointAnswerer(
            endpoint,
            replace(data, max_pixels=low.max_pixels or max_pixels, min_pixels=low.min_pixels or 1),
            0,
            extra={"logprobs": True, "top_logprobs": _TOP_LOGPROBS},
            read=lambda reply: read_logprobs(reply, answers),
            key=key,
        )

    def score(self, question: str, pages: Sequence[ImageRef]) -> NDArray[np.float64]:
        """See :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer`."""
        (found,) = self.score_all([PagesOfQuestion(question=question, pages=tuple(pages))])
        return np.asarray(found.probabilities, dtype=np.float64)

    def score_all(self, asked: Sequence[PagesOfQuestion]) -> list[ScoredPages]:
        """See :class:`~rsgrpo.retrieval.filtering.page_filter.PageScorer`.

        Raises:
            EndpointError: the server refuses, gives no log-probabilities, or a page is not answered.
        """
        prompts = [
            user_prompt(f"{number}/{place}", (page, self._word(item.question)), system="You are a helpful assistant.")
            for number, item in enumerate(asked)
            for place, page in enumerate(item.pages)
        ]
        answers: dict[str, Answer] = {}

        def take(found: Sequence[Answer]) -> None:
            answers.update((answer.prompt_id, answer) for answer in found)

        self._answerer.answer(prompts, SamplingConfig(temperature=0.0, max_response_tokens=1), take)
        failed = [answer for answer in answers.values() if answer.failure]
        if failed:
            raise EndpointError(
                f"{len(failed)} of {len(prompts)} pages were not judged by eval.endpoint.url={self._endpoint.url!r}, "
                f"one because of: {failed[0].failure}; see that the server gives logprobs, or give --policy a folder"
            )
        return [self._scored(number, item, answers) for number, item in enumerate(asked)]

    def _scored(self, number: int, item: PagesOfQuestion, answers: dict[str, Answer]) -> ScoredPages:
        told = [json.loads(answers[f"{number}/{place}"].text) for place in range(len(item.pages))]
        image_tokens = sum(map(self._tokens, item.pages))
        return ScoredPages(
            probabilities=tuple(yes_no_probability(one["yes"], one["no"]) for one in told),
            image_tokens=image_tokens,
            text_tokens=max(0, sum(one["prompt_tokens"] for one in told) - image_tokens),
        )

    def _tokens(self, page: ImageRef) -> int:
        """Tokens of a page on the server, by what the settings say of its image processor."""
        factor = self._endpoint.processor_factor
        width, height = smart_resize(
            *image_size(page, self._rules),
            factor=factor,
            min_pixels=self._endpoint.processor_min_pixels,
            max_pixels=self._endpoint.processor_max_pixels,
        )
        return width * height // factor**2


def read_logprobs(reply: Any, answers: tuple[str, str]) -> tuple[str, str]:
    """Read the log-probabilities of the two answers off a chat completion.

    Args:
        reply: the completion.
        answers: the two answers, yes first.

    Returns:
        A JSON object with ``yes``, ``no`` and ``prompt_tokens``, and the finish reason.

    Raises:
        ValueError: the reply has no log-probabilities, or neither answer is among the likeliest tokens.
    """
    choice = reply["choices"][0]
    content = (choice.get("logprobs") or {}).get("content") or []
    if not content or not content[0].get("top_logprobs"):
        raise ValueError("the server gives no logprobs, which yes and no are read off")
    likeliest = {str(entry["token"]): float(entry["logprob"]) for entry in reversed(content[0]["top_logprobs"])}
    if not any(answer in likeliest for answer in answers):
        raise ValueError(f"neither {answers[0]!r} nor {answers[1]!r} is among the {len(likeliest)} likeliest tokens")
    least = min(likeliest.values())
    found = {name: likeliest.get(answer, least) for name, answer in zip(("yes", "no"), answers, strict=True)}
    tokens = int((reply.get("usage") or {}).get("prompt_tokens") or 0)
    return json.dumps({**found, "prompt_tokens": tokens}), str(choice.get("finish_reason") or "")
