"""MileBench: contexts with numbered placeholders become text and images, cut from the left to a token limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

IMAGE_HERE = "<ImageHere>"
"""The text at which an image stands in a MileBench prompt."""

NO_LETTERS = "GPR1200"
"""The name of the data set whose options carry no letters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextLimit:
    """How long a context may be; the original's settings ``max_context_len`` and ``n_tokens_per_image``.

    Attributes:
        max_tokens: the most tokens of instruction, text and images together.
        image_tokens: how many tokens an image is taken to cost.
        encode: the function from a text to its token ids.
        decode: the function from token ids to their text.
    """

    max_tokens: int
    image_tokens: int
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedImages:
    """A prompt with :data:`IMAGE_HERE` where images go, and the indexes of the images that are left, in order."""

    prompt: str
    kept_images: tuple[int, ...]


def choice_text(dataset: str, choices: Sequence[str]) -> str:
    """The list of options that follows a context.

    Args:
        dataset: the name of the set; ``GPR1200`` gets no letters.
        choices: the options; beyond ``Z`` the characters that follow it in ASCII serve as letters.

    Example:
        ``choice_text("ActionSequence", ["open", "sit"])`` is
        ``"\\nChoice list: \\nA. open\\nB. sit\\nYour answer is: "``.
    """
    lines = choices if dataset == NO_LETTERS else [f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices)]
    return "\nChoice list: \n" + "\n".join(lines) + "\nYour answer is: "


def milebench_prompt(
    *,
    dataset: str,
    instruction: str,
    context: str,
    num_images: int,
    choices: Sequence[str] | None = None,
    limit: ContextLimit | None = None,
    is_combined: bool = False,
) -> PlacedImages:
    """Build one prompt by the original's rules (MileBench, arXiv 2404.18532, its public ``utils``).

    The context, options behind it, is taken apart at its images and kept from its end backwards, as much as fits
    beside the instruction: so the question survives, and images and text go from the left. An image goes with
    the fragment behind it, the last image with the last fragment.

    Args:
        dataset: the name of the set.
        instruction: the task instruction.
        context: the question with placeholders ``{image#1}`` or ``{table#1}``, counted from 1.
        num_images: images of the sample; placeholders beyond it stay as they are.
        choices: the options; None where the sample has no list (an empty list is written out).
        limit: the limit of the context; None: nothing is cut.
        is_combined: whether all images stand on one canvas in front of the text, which refers to them by number.

    Returns:
        The prompt, and the indexes of the images that it shows: for a combined prompt one canvas, so ``(0,)``.

    Example:
        Instruction ``Say.``, context ``{image#1}{image#2} Next?`` and options ``a``, ``b`` give
        ``Say.\\n<ImageHere><ImageHere> Next?\\nChoice list: \\nA. a\\nB. b\\nYour answer is: ``.
    """
    text = context if choices is None else context + choice_text(dataset, choices)
    for number in range(1, num_images + 1):
        mark = f"<Image {number}> " if is_combined else IMAGE_HERE
        text = text.replace(f"{{image#{number}}}", mark).replace(f"{{table#{number}}}", mark)
    if is_combined:
        # The canvas costs nothing, and a mark that the data set itself writes parts the text as ever.
        free = None if limit is None else dataclasses.replace(limit, image_tokens=0)
        kept = _keep_tail(text.split(IMAGE_HERE), 0, instruction, free)
        return PlacedImages(prompt=f"{IMAGE_HERE}\n{instruction}\n{kept.prompt}", kept_images=(0,))
    kept = _keep_tail(text.split(IMAGE_HERE), num_images, instruction, limit)
    return PlacedImages(prompt=f"{instruction}\n{kept.prompt}", kept_images=kept.kept_images)


def _keep_tail(fragments: Sequence[str], num_images: int, instruction: str, limit: ContextLimit | None) -> PlacedImages:
    room = float("inf") if limit is None else limit.max_tokens - len(limit.encode(instruction))
    kept: list[str] = []
    first_image = num_images
    is_image_in_front = False
    for fragment in reversed(fragments):
        if limit is not None:
            ids = limit.encode(fragment)
            if len(ids) > room:
                if not kept:
                    # As the original slices: no room at all keeps everything.
                    kept.insert(0, limit.decode(ids[-int(room) :]))
                    is_image_in_front = False
                break
            room -= len(ids)
        kept.insert(0, fragment)
        is_image_in_front = False
        cost = 0 if limit is None else limit.image_tokens
        if cost > room:
            break
        if first_image:
            first_image -= 1
            room -= cost
            is_image_in_front = True
    front = IMAGE_HERE if is_image_in_front else ""
    return PlacedImages(prompt=front + IMAGE_HERE.join(kept), kept_images=tuple(range(first_image, num_images)))
