"""Draw ``docs/images/scopes.svg`` from the tables of BENCHMARKS.md: ``python -m docs.scripts.scopes_picture``."""

from __future__ import annotations

import math
import re

from docs.scripts.results_picture import GREY, INK, REPOSITORY, label, row

PICTURE = REPOSITORY / "docs" / "images" / "scopes.svg"

_ROWS = {
    "RS-GRPO, the paper's scopes": ("the paper's scopes", "#b0413e"),
    "every reward normalised by itself": ("each reward on the whole response", "#7fa3c7"),
    "the paper's scopes, half": ("the paper's scopes, half of the credit outside", "#43536a"),
    "causal scopes**": ("causal scopes", "#d98b2b"),
}
"""The rows of the table that are drawn, by how they begin: their name in the picture and their colour."""
_SIZES = (2, 4, 8, 16)
_TICKS = (0.25, 0.5, 1.0, 2.0)
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 470.0, 56.0, 276.0


def place(size: float, ratio: float) -> tuple[float, float]:
    """Where a number of samples over GRPO's stands; both axes are logarithmic, the upper one from 0.25 to 2.4."""
    x = _LEFT + 20 + (_RIGHT - _LEFT - 40) * math.log2(size / 2) / 3
    y = _BOTTOM - (_BOTTOM - _TOP) * math.log(ratio / 0.25) / math.log(2.4 / 0.25)
    return x, y


def numbers(cell: str) -> tuple[float, float, float]:
    """A ratio and the ends of its interval.

    Raises:
        ValueError: the cell is not ``0.51 [0.42, 0.61]``.
    """
    found = re.fullmatch(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", cell)
    if found is None:
        raise ValueError(f"a cell is {cell!r}; expected such as 0.51 [0.42, 0.61]")
    value, low, high = map(float, found.groups())
    return value, low, high


def _axes() -> list[str]:
    lines = [label(24, 30, "Samples for a step as good as GRPO's, over GRPO's", 15, "start", INK)]
    for ratio in _TICKS:
        _, y = place(2, ratio)
        stroke = GREY if ratio == 1 else "#dde3e9"
        lines.append(f'<path d="M{_LEFT:.0f} {y:.1f}H{_RIGHT:.0f}" stroke="{stroke}"/>')
        lines.append(label(_LEFT - 10, y + 4, f"{ratio:g}", 12, "end"))
    lines.append(label(_RIGHT + 8, place(2, 1)[1] + 4, "GRPO", 13, "start", GREY))
    for size in _SIZES:
        lines.append(label(place(size, 1)[0], _BOTTOM + 20, str(size), 12))
    return [*lines, label((_LEFT + _RIGHT) / 2, _BOTTOM + 42, "responses in a group", 12)]


def picture() -> str:
    """The picture of the scopes, as SVG."""
    benchmarks = (REPOSITORY / "BENCHMARKS.md").read_text()
    lines = _axes()
    for index, (beginning, (name, colour)) in enumerate(_ROWS.items()):
        cells = [numbers(cell.replace("*", "")) for cell in row(benchmarks, beginning)[: len(_SIZES)]]
        shift = 4.0 * (index - 1.5)
        points = []
        for size, (value, low, high) in zip(_SIZES, cells, strict=True):
            x, y = place(size, value)
            ends = [place(size, end)[1] for end in (low, high)]
            lines.append(f'<path d="M{x + shift:.1f} {ends[0]:.1f}V{ends[1]:.1f}" stroke="{colour}"/>')
            lines.append(f'<circle cx="{x + shift:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
            points.append(f"{x + shift:.1f} {y:.1f}")
        lines.append(f'<path d="M{"L".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<circle cx="{_RIGHT + 66:.0f}" cy="{96 + 26 * index}" r="5" fill="{colour}"/>')
        lines.append(label(_RIGHT + 78, 100 + 26 * index, name, 13, "start", INK))
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 790 336" width="790" height="336" '
        'font-family="sans-serif">'
    )
    title = "<title>How many samples each scope needs, over GRPO's, by group size</title>"
    return "\n".join([head, title, '<rect width="790" height="336" fill="#ffffff"/>', *lines, "</svg>", ""])


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(picture())


if __name__ == "__main__":
    main()
