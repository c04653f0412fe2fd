"""One answer of several, each given from one page alone: VisRAG-Gen's `weighted_selection` (arXiv:2410.10594, §3.3).

With cosines ``s_i`` of the kept pages and the mean log-probability ``l_i`` of the tokens of the answer from page ``i``:

    lambda_i = exp(s_i) / sum_j exp(s_j),      P_i = exp(l_i),      answer = argmax_i lambda_i · P_i

which is ``argmax_i (s_i + l_i)``. The original takes ``l_i`` from a beam search with a repetition penalty; here it is
that of the answer that the engine gave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerChoice:
    """Which answer was chosen, and why.

    Attributes:
        index: the 0-based place of the chosen answer; of equal ones the first.
        page_weights: [answers], lambda_i; they sum to 1.
        confidences: [answers], lambda_i · P_i.
    """

    index: int
    page_weights: tuple[float, ...]
    confidences: tuple[float, ...]


def choose_answer(page_scores: Sequence[float], mean_logprobs: Sequence[float]) -> AnswerChoice:
    """Choose among answers from single pages.

    Args:
        page_scores: [answers], the score of each answer's page for the question, such as its cosine.
        mean_logprobs: [answers], the mean log-probability of each answer's tokens, in nats.

    Returns:
        The choice.

    Raises:
        ValueError: there is no answer, the numbers of scores and answers differ, or a number is not finite.

    Example:
        ``choose_answer([0.5, 0.7], [-0.1, -0.2]).index == 1``: 0.45 · 0.905 against 0.55 · 0.819.
    """
    if not page_scores or len(page_scores) != len(mean_logprobs):
        raise ValueError(
            f"got {len(page_scores)} scores of pages and {len(mean_logprobs)} answers; give one score for each answer"
        )
    if not all(math.isfinite(number) for number in (*page_scores, *mean_logprobs)):
        raise ValueError(f"scores {list(page_scores)} or log-probabilities {list(mean_logprobs)} are not finite")
    highest = max(page_scores)
    parts = [math.exp(score - highest) for score in page_scores]
    total = math.fsum(parts)
    weights = tuple(part / total for part in parts)
    confidences = tuple(weight * math.exp(logprob) for weight, logprob in zip(weights, mean_logprobs, strict=True))
    # The sums rank as the products do, and do not vanish where an answer is very unlikely.
    ranks = [score + logprob for score, logprob in zip(page_scores, mean_logprobs, strict=True)]
    return AnswerChoice(index=ranks.index(max(ranks)), page_weights=weights, confidences=confidences)
