"""Does a reward pay the exact answer? Tried on gold before a run starts, where a reward can write that answer."""

from __future__ import annotations

from dataclasses import replace
from numbers import Real
from typing import Any

from rewards.base import RewardCall, RewardError
from rewards.plugins import LoadedReward
from rewards.running import run_plain
from rsgrpo.errors import RsgrpoError
from rsgrpo.text.sections import parse_response

_LEAST = 0.99  # exact answers are written with twelve decimals; a convention that is not the reward's earns far less


def exact_answer_problem(reward: LoadedReward, blank: RewardCall) -> str:
    """Why the exact answer to a sample does not earn 1; empty if it does, or the reward does not write it.

    Args:
        reward: asynchronous and batch rewards are not tried.
        blank: a call on the sample, without a response.

    Returns:
        The reason as a phrase about the sample; empty if there is none.
    """
    exact_answer = reward.exact_answer
    if exact_answer is None or reward.is_async or reward.is_batch:
        return ""

    def try_it(call: RewardCall, **kwargs: Any) -> tuple[str, Any]:
        text = exact_answer(call, **kwargs)
        parsed = parse_response(text, call.parsed.format, page_numbers=call.sample.page_numbers)
        return text, reward.function(replace(call, text=text, parsed=parsed), **kwargs)

    try:
        ((text, value),) = run_plain(replace(reward, function=try_it), [blank])
    except RewardError as error:
        # What the reward itself says of the sample needs no word about the function.
        return str(error.__cause__ if isinstance(error.__cause__, RsgrpoError) else error)
    earned = float(value) if isinstance(value, Real) else None
    if value is None or (earned is not None and earned >= _LEAST):
        return ""
    shown = f"{value!r:.40}" if earned is None else f"{earned:.3f}"
    return f"its gold itself, written as rewards.{reward.name}.kwargs say ({text:.60}), earns {shown} instead of 1"
