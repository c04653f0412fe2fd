"""MIG-Bench: a box is asked for in 0-1000 coordinates; what a model answers in pixels is converted first."""

from __future__ import annotations

import re

from rsgrpo.evaluation.benchmarks.mig_bench import STRICT_PATTERN

_BOX_FORMAT = "Format:<|box_start|>(x1,y1),(x2,y2)<|box_start|>. Don't generate addtional words."
"""The original's hint for Qwen2-VL and Migician, its two slips kept: they are part of what a model was asked."""

_NUMBER = r"\d+(?:\.\d+)?"
_WRITTEN_BOX = re.compile(
    rf"\({_NUMBER},\s*{_NUMBER}\),\s*\({_NUMBER},\s*{_NUMBER}\)|"
    rf"[(\[]{_NUMBER},\s*{_NUMBER},\s*{_NUMBER},\s*{_NUMBER}[)\]]|"
    rf"<box>\s*{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}\s*</box>|"
    rf"(?P<other>{STRICT_PATTERN.pattern})"
)
"""The texts that the official scorer takes for a box, and those that only strict mode does."""
_ANY_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)")
_LARGEST_SHARE = 0.9999999  # the official scorer takes 1.0 for one thousandth
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_NAMED_IMAGE = re.compile(
    r"\b(?:(\d+)(?:st|nd|rd|th)|(" + "|".join(_ORDINALS) + r"))\s+image\b|\bimage[\s-]*(\d+)", re.IGNORECASE
)


def grounding_text(question: str) -> str:
    """Question and format hint, which the original puts behind every question alike."""
    return question + _BOX_FORMAT


def target_image(question: str, num_images: int) -> int:
    """Which image a question asks for, by its own words; the data name it nowhere else.

    Args:
        question: the question, such as ``… in the 3th image``; of several mentions the last one counts.
        num_images: how many images the question has.

    Returns:
        The 0-based index of the image; -1 where no image is named, or one that is not there.

    Example:
        ``target_image("Find it in the 3th image.", 4)`` is 2; ``target_image("Find it.", 4)`` is -1.
    """
    found = -1
    for number, word, plain in _NAMED_IMAGE.findall(question):
        index = _ORDINALS.index(word.lower()) if word else int(number or plain) - 1
        if 0 <= index < num_images:
            found = index
    return found


def shares_from_pixels(response: str, width: int, height: int) -> str:
    """Rewrite every box of a response from pixels to shares of width and height, with seven decimals.

    Qwen2.5-VL speaks in pixels of the image as it sees it; MIG-Bench's scorer reads 0-1000 or shares. Thousandths
    would round a small box on a large page too much.

    Args:
        response: a response with boxes in any of the forms that either mode of the scorer reads.
        width: the width of the image as the model saw it, in pixels.
        height: the height of the image as the model saw it, in pixels.

    Returns:
        The response with its boxes as ``[x1, y1, x2, y2]``, cut at the image's far edges; other text stays as it is,
        and also four numbers of at most 1 with a fraction among them, which are shares already.

    Example:
        ``shares_from_pixels("at (28,56),(140,560)", 560, 560)`` is
        ``"at [0.0500000, 0.1000000, 0.2500000, 0.9999999]"``.
    """

    def rewrite(match: re.Match[str]) -> str:
        written = _ANY_NUMBER.findall(match.group())
        numbers = [float(number) for number in written]
        if max(numbers) <= 1 and any("." in number for number in written):
            return match.group()
        pairs = zip(numbers, (width, height, width, height), strict=True)
        shares = [f"{min(_LARGEST_SHARE, number / side):.7f}" for number, side in pairs]
        if match["other"] is None:
            return f"[{', '.join(shares)}]"
        # The official scorer does not take these for a box: only the numbers change.
        waiting = iter(shares)
        return _ANY_NUMBER.sub(lambda _: next(waiting), match.group())

    return _WRITTEN_BOX.sub(rewrite, response)
