"""Two rewards of one's own. A reward is a function of the call; what it needs besides are keyword arguments.

It returns a number, or None where it does not apply to a response. What goes wrong in it stops the run by name, and
never becomes a reward.
"""

from __future__ import annotations

from rewards.base import RewardCall, needs_gold
from rewards.functions.accuracy import accuracy


def short_thinking(call: RewardCall, max_words: int = 40) -> float | None:
    """1 if the thinking section has at most ``max_words`` words, else 0.

    Args:
        call: the response, its sections, and the sample with its gold.
        max_words: how many words are free of cost; ``kwargs`` of the settings sets it.
    """
    thought = call.parsed.content("think")
    if thought is None:
        return None  # not applicable: no credit, and not counted
    return float(len(thought.split()) <= max_words)


@needs_gold("answer")  # a data set without answers is refused before training
def short_and_right(call: RewardCall, max_words: int = 40) -> float | None:
    """As ``short_thinking`` where the answer is right; 0 where it is wrong, however short the thinking.

    Args:
        call: the response, its sections, and the sample with its gold.
        max_words: how many words are free of cost; ``kwargs`` of the settings sets it.
    """
    is_short = short_thinking(call, max_words)
    return None if is_short is None else is_short * accuracy(call)
