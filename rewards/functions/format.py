"""Do the sections stand as they should?"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.base import IMAGE_LINES, RewardCall, reads_sections


def format(call: RewardCall) -> float:
    """1.0 if the response is well formed as ``response.sections`` says, else 0.0.

    By default: observe, evidence, think and answer stand once each, closed, in order. Only whitespace may stand around
    and between sections. (The public reward also refuses whitespace in front of the first and behind the last tag;
    ``rewards.functions.upstream`` has that one.)
    """
    return float(call.parsed.is_well_formed)


@reads_sections(arguments=("names",))
def sections(call: RewardCall, names: Sequence[str]) -> float:
    """1.0 if the named sections, and no others, stand once each, closed, in the order given, else 0.0.

    For prompts that ask for some of the declared sections only. Only whitespace may stand around and between them.

    Args:
        call: the response to judge, with its sample.
        names: the names of the sections, in order.

    Example:
        ``names=["evidence", "answer"]``: ``<evidence>e</evidence> <answer>a</answer>`` gives 1.0, and 0.0 with a
        think section in it.
    """
    wanted = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    text = f"<{call.parsed.opened}>{call.text}" if call.parsed.opened else call.text
    if any(text.count(tag) != (tag in wanted) for tag in call.parsed.format.tags):
        return 0.0
    edge = 0
    for tag in wanted:
        start = text.find(tag, edge)
        if start < 0 or (tag[1] != "/" and text[edge:start].strip()):
            return 0.0
        edge = start + len(tag)
    return float(not text[edge:].strip())


@reads_sections(IMAGE_LINES)
def line_per_image(call: RewardCall) -> list[float]:
    """Does the section with one line per image have one for every image? For the scope ``evidence_line``.

    It needs no labels. Rewards for the answer alone let a policy save the lines about images that do not help, and a
    line that is not there cannot be judged by what it says. What a line says counts for nothing here.

    Returns:
        One value for each image: 1.0 where exactly one line is labelled with it and says something, else 0.0.

    Example:
        Of four images, ``[1]: red seven``, ``[2]:``, ``[3]: no relevant information``, ``[3]: red nine`` gives
        [1.0, 0.0, 0.0, 0.0].
    """
    texts: dict[int, list[str]] = {}
    for line in call.parsed.evidence_lines:
        texts.setdefault(line.image_index, []).append(line.text)
    found = [texts.get(image_index, []) for image_index in range(len(call.sample.images))]
    return [float(len(said) == 1 and bool(said[0])) for said in found]
