"""What a reward function receives, may return, and may declare about itself.

A reward is a plain function::

    def mentions_total(call: RewardCall, word: str = "total") -> float | None:
        return 1.0 if word in call.text else 0.0

It returns a number, or None where it has nothing to say about this response. Sections are read by the names that
``response.sections`` declares (``call.parsed.content("look")``, ``call.answer()``). A reward whose scope is
``evidence_line`` returns one such value per image. ``async def`` works as well: the calls of a step run
at once in one event loop, a new one each step, so open clients inside the function. ``batch_reward`` marks
a function that takes the list of all calls and returns the list of their values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rsgrpo.errors import RsgrpoError
from rsgrpo.text.sections import ParsedResponse, parse_response
from rsgrpo.types import Counterfactuals, IntArray, Sample

RewardCallable = Callable[..., Any]

GOLD_FIELDS = ("boxes", "choices", "positive_images")
"""The fields of a sample that a reward may need; any other name that it needs is a section of the gold response."""

IMAGE_LINES = "per_image_lines"
"""The name that stands for the section with one line per image, whatever ``response.sections`` calls it."""

FunctionT = TypeVar("FunctionT", bound=RewardCallable)


class RewardError(RsgrpoError):
    """A reward cannot be loaded, or raised, hung or returned what is no reward; nothing was scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardCall:
    """One response to judge.

    Attributes:
        sample: the question with its images and gold.
        text: the text of the response.
        parsed: the sections and the evidence lines of the response.
        token_ids: [R] int32, the sampled ids of the response.
        finish_reason: why the response ended: ``stop`` or ``length``.
        num_tokens: R, the number of tokens of the response, end of sequence included.
        response_index: 0-based index of the response among those to the same question.
        image_sizes: gives width and height in pixels at which the model saw the sample's image of a 0-based index; None
            where no model is known. Rewards ask :meth:`seen_size`.
        siblings: all responses to the same question, this one included, by their ``response_index``.
        counterfactuals: what the policy answers without single pages; None where that is not known, as in evaluations,
            and for rewards that do not declare :func:`needs_counterfactuals`.
    """

    sample: Sample
    text: str
    parsed: ParsedResponse
    token_ids: IntArray
    finish_reason: str
    num_tokens: int
    response_index: int
    image_sizes: Callable[[int], tuple[int, int]] | None = None
    siblings: tuple[ParsedResponse, ...] = ()
    counterfactuals: Counterfactuals | None = None

    def parse(self, text: str) -> ParsedResponse:
        """Take another response to the same prompt apart, such as one of ``counterfactuals``.

        Args:
            text: the text of the response.
        """
        return parse_response(text, self.parsed.format, self.parsed.opened, self.sample.page_numbers)

    def answer(self, section: str | None = None) -> str | None:
        """What the response answers; None unless both tags of the section are there, in order.

        Args:
            section: the one with the answer; None: ``response.answer_section``.

        Raises:
            ConfigError: no section of that name is declared.
        """
        return self.parsed.content(section or self.parsed.format.answer_section)

    def seen_size(self, image_index: int) -> tuple[int, int]:
        """Width and height, in pixels, at which the model saw one of the sample's images.

        Args:
            image_index: the index of the image, from 0.

        Raises:
            RewardError: no model's processor is known where this reward runs.
            ImageError: the image file is missing or no image.

        Example:
            A page of 2000 × 1500 under ``data.max_pixels=1003520`` is sent as 1156 × 867 and seen as ``(1148, 868)``.
        """
        if self.image_sizes is None:
            raise RewardError(
                f"sample {self.sample.sample_id!r:.80}: it is not known here at which size the model saw its images, "
                "so pixels mean nothing; score it in a run (train.py), or in the folder of one that kept "
                "image_view.json, or count in shares or per mille"
            )
        return self.image_sizes(image_index)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeclaredReward:
    """A reward function with what it declared; calling it calls the function.

    Attributes:
        function: the function that takes a ``RewardCall`` (a list of them if ``is_batch``) and keyword arguments.
        is_batch: whether the function judges all calls at once.
        gold_sections: the sections that the gold response must hold, and the fields that the sample must hold.
        answer_in: the keyword argument that names the section with the answer, which gold must hold; empty: there is
            none.
        sections: the sections that the function reads by name.
        section_arguments: the keyword arguments that name a section, or a list of sections.
        argument_problem: says what is wrong with the keyword arguments, see :func:`checks_itself`; None: nothing is
            checked.
        exact_answer: writes the response that must earn 1, see :func:`checks_itself`; None: the reward does not say.
        pages_in_question: says which pages are to be exchanged, see :func:`needs_counterfactuals`; None: the function
            does not read ``RewardCall.counterfactuals``.
    """

    function: RewardCallable
    is_batch: bool = False
    gold_sections: tuple[str, ...] = ()
    answer_in: str = ""
    sections: tuple[str, ...] = ()
    section_arguments: tuple[str, ...] = ()
    argument_problem: Callable[[Mapping[str, Any]], str] | None = None
    exact_answer: Callable[..., str] | None = None
    pages_in_question: Callable[..., Sequence[int]] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function.

        Raises:
            RewardError: the keyword arguments do not fit the function (``argument_problem``).
        """
        problem = self.argument_problem(kwargs) if self.argument_problem else ""
        if problem:
            raise RewardError(problem)
        return self.function(*args, **kwargs)


def batch_reward(function: RewardCallable | DeclaredReward) -> DeclaredReward:
    """Mark a function that takes the list of all calls of a step and returns one value for each.

    Example:
        >>> @batch_reward
        ... def served_judge(calls: Sequence[RewardCall]) -> list[float]:
        ...     return [float(len(call.text) > 10) for call in calls]
    """
    return replace(_declared(function), is_batch=True)


def needs_gold(*sections: str, answer_in: str = "") -> Callable[[RewardCallable | DeclaredReward], DeclaredReward]:
    """Declare sections that the gold response must hold, so that samples are checked before training.

    The section with the answer is also satisfied by ``Sample.answers`` where there is no gold response at all;
    ``IMAGE_LINES`` is the section with ``per_image_lines``, and needs at least one ``[i]:`` line. ``boxes``,
    ``choices`` and ``positive_images`` name fields of the sample that must not be empty.

    Args:
        sections: the names of sections and fields.
        answer_in: the keyword argument of the function that names the section with the answer (None:
            ``response.answer_section``), which gold must then hold.

    Example:
        ``@needs_gold("choices", answer_in="section")`` on ``def choice(call, section=None)``.
    """

    def declare(function: RewardCallable | DeclaredReward) -> DeclaredReward:
        return replace(_declared(function), gold_sections=sections, answer_in=answer_in)

    return declare


def reads_sections(
    *names: str, arguments: Sequence[str] = ()
) -> Callable[[RewardCallable | DeclaredReward], DeclaredReward]:
    """Declare which sections a reward reads: one that ``response.sections`` lacks is refused before a run starts.

    Args:
        names: the sections that the function knows by name, or ``IMAGE_LINES``.
        arguments: keyword arguments of the function that name a section, or a list of sections.

    Example:
        ``@reads_sections(arguments=("section",))`` on ``def think_copy(call, section="think")``.
    """

    def declare(function: RewardCallable | DeclaredReward) -> DeclaredReward:
        return replace(_declared(function), sections=names, section_arguments=tuple(arguments))

    return declare


def checks_itself(
    *,
    argument_problem: Callable[[Mapping[str, Any]], str] | None = None,
    exact_answer: Callable[..., str] | None = None,
) -> Callable[[RewardCallable | DeclaredReward], DeclaredReward]:
    """Declare how a plain reward can be tried before a run starts.

    Args:
        argument_problem: takes the keyword arguments of the settings, says in one phrase what is wrong with them;
            empty if nothing is.
        exact_answer: takes a call without a response and the keyword arguments, returns the response that must earn 1
            (or None, where the reward does not apply); raises where this sample has none. Every training question is
            tried with it before workers start.
    """

    def declare(function: RewardCallable | DeclaredReward) -> DeclaredReward:
        return replace(_declared(function), argument_problem=argument_problem, exact_answer=exact_answer)

    return declare


def needs_counterfactuals(
    pages_in_question: Callable[..., Sequence[int]],
) -> Callable[[RewardCallable | DeclaredReward], DeclaredReward]:
    """Declare that a reward reads ``RewardCall.counterfactuals``.

    In training the policy is then asked again without single pages; where it is not asked, as in evaluations, they are
    None.

    Args:
        pages_in_question: takes the first call of a group and the keyword arguments of the settings, returns the
            0-based images that are to be exchanged. It is called twice: without ``counterfactuals``, for whether any
            page is in question at all, then with the greedy response to all pages.

    Example:
        ``@needs_counterfactuals(lambda call, **_: range(len(call.sample.images)))`` has every page exchanged.
    """

    def declare(function: RewardCallable | DeclaredReward) -> DeclaredReward:
        return replace(_declared(function), pages_in_question=pages_in_question)

    return declare


def _declared(function: RewardCallable | DeclaredReward) -> DeclaredReward:
    return function if isinstance(function, DeclaredReward) else DeclaredReward(function=function)
