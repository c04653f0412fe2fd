"""Draw ``docs/images/results.svg`` from the tables of BENCHMARKS.md: ``python -m docs.scripts.results_picture``."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURE = REPOSITORY / "docs" / "images" / "results.svg"

INK, GREY = "#1d2733", "#5c6b7a"
_COLOURS = {"before SFT": "#c3ccd6", "after SFT": "#7fa3c7", "after RL": "#d98b2b"}
_CURVES = {"causal_rs_grpo": ("causal scopes", "#d98b2b"), "grpo": ("GRPO", "#43536a")}
_GROUP_SIZES = {
    8: ("", 1),
    4: (' stroke-dasharray="6 4"', 9),
}  # how the line is drawn, and how much lower its name stands
_BOTTOM, _TOP, _STEPS = 270.0, 60.0, 120.0


def row(text: str, beginning: str) -> list[str]:
    """Cells of the first table row whose first cell begins like this, the first cell left out.

    Raises:
        ValueError: there is no such row.
    """
    for line in text.splitlines():
        cells = [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[0].startswith(beginning):
            return cells[1:]
    raise ValueError(f"BENCHMARKS.md has no row that begins with {beginning!r}")


def height(percent: float) -> float:
    """Vertical place of a share, in per cent."""
    return _BOTTOM - (_BOTTOM - _TOP) * percent / 100


def label(x: float, y: float, text: str, size: int = 12, anchor: str = "middle", fill: str = GREY) -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">{text}</text>'


def _bars(benchmarks: str) -> list[str]:
    """Accuracy of the three seeds and their mean, at three points of a run."""
    rows = {point: row(benchmarks, f"accuracy {point}, %") for point in _COLOURS}
    lines = [label(24, 30, "Accuracy of the quickstart, 512 held-out questions, %", 15, "start", INK)]
    for group, name in enumerate(("seed 0", "seed 1", "seed 2", "mean")):
        left = 60 + group * 110
        for index, (point, cells) in enumerate(rows.items()):
            value, x = float(cells[group]), left + index * 29
            y = height(value)
            lines.append(f'<rect x="{x}" y="{y:.1f}" width="27" height="{_BOTTOM - y:.1f}" fill="{_COLOURS[point]}"/>')
            lines.append(label(x + 13.5, y - 4, cells[group], 11, fill=INK))
        lines.append(label(left + 43, _BOTTOM + 18, name, 13, fill=INK))
    for index, (point, colour) in enumerate(_COLOURS.items()):
        x = 70 + index * 120
        lines.append(f'<rect x="{x}" y="{_BOTTOM + 32:.0f}" width="12" height="12" fill="{colour}"/>')
        lines.append(label(x + 18, _BOTTOM + 42, point, 12, "start"))
    return lines


def _curves(benchmarks: str) -> list[str]:
    """Causal scopes and GRPO over the steps, mean of five seeds; the range of 50 to 80 per cent fills the height."""
    steps = [0, 20, 40, 60, 80, 100, 120]
    lines = [label(530, 30, "Causal scopes against GRPO, groups of 8 and 4 (dashed), 5 seeds, %", 15, "start", INK)]

    def place(step: float, percent: float) -> tuple[float, float]:
        return 600 + 340 * step / _STEPS, height((percent - 50) * 100 / 30)

    for percent in (50, 60, 70, 80):
        _, y = place(0, percent)
        lines.append(f'<path d="M600 {y:.1f}H940" stroke="#dde3e9"/>')
        lines.append(label(590, y + 4, str(percent), 11, "end"))
    for step in steps:
        lines.append(label(place(step, 50)[0], _BOTTOM + 18, str(step), 11))
    lines.append(label(770, _BOTTOM + 42, "RL step", 12))
    for size, (dashes, lower) in _GROUP_SIZES.items():
        for arm, (name, colour) in _CURVES.items():
            values = row(benchmarks, f"groups of {size}: {arm}")[: len(steps)]
            points = [place(step, float(value)) for step, value in zip(steps, values, strict=True)]
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            lines.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5"{dashes}/>')
            lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
            x, y = points[-1]
            lines.append(label(x + 8, y + lower, f"{name}, {size}", 11, "start", colour))
    return lines


def picture() -> str:
    """The picture of the results, as SVG."""
    benchmarks = (REPOSITORY / "BENCHMARKS.md").read_text()
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1040 330" width="1040" height="330" '
        'font-family="sans-serif">',
        "<title>Accuracy of the quickstart, and causal scopes against GRPO in groups of 4 and of 8</title>",
        '<rect width="1040" height="330" fill="#ffffff"/>',
        *_bars(benchmarks),
        *_curves(benchmarks),
        "</svg>",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(picture())


if __name__ == "__main__":
    main()
