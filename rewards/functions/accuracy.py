"""Is the answer right?"""

from __future__ import annotations

from rewards.base import RewardCall, needs_gold, reads_sections
from rewards.gold import gold_answers
from rsgrpo.text.normalise import normalize_keeping_numbers, set_f1


@reads_sections(arguments=("section",))
@needs_gold(answer_in="section")
def accuracy(call: RewardCall, section: str | None = None) -> float:
    """Set-F1 of the normalised words of the answer section and the best accepted answer, in [0, 1].

    The accepted answer is the gold response's answer section, else the best of ``Sample.answers``, else
    (unanswerable) the best of the three refusals. Unlike the public reward, decimal points and signs
    count (3.5 is not 35, -3 is not 3), and a section that is closed before it is opened is none.
    Listing every candidate loses precision, so it does not pay; word order is not judged.

    Args:
        call: the response to judge, with its sample.
        section: the section that holds the answer; None: ``response.answer_section``.

    Example:
        ``<answer>3 percent</answer>`` against gold ``3%``: precision 1/2, recall 1, so 2/3.
    """
    answer = call.answer(section)
    if answer is None:
        return 0.0
    words = normalize_keeping_numbers(answer).split()
    accepted = gold_answers(call.sample, call.parsed.format, section)
    return max((set_f1(words, normalize_keeping_numbers(gold).split()) for gold in accepted), default=0.0)
