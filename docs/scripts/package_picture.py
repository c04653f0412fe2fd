"""Draw the packages and their imports: ``python -m docs.scripts.package_picture``.

Reads every ``import`` statement of the four packages and writes ``docs/images/packages.svg`` and the table in
``docs/packages.md``. A package stands above all that it imports, so that all arrows point down. An arrow that
follows from others is left out of the picture (recipes -> trainer -> model says that recipes may reach model); the
table has them all.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from html import escape
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURE = REPOSITORY / "docs" / "images" / "packages.svg"
PAGE = REPOSITORY / "docs" / "packages.md"

_ROOTS = ("recipes", "rewards", "rollout", "rsgrpo")
_BOX_WIDTH, _BOX_HEIGHT, _GAP, _BEND_WIDTH, _ROW = 132, 40, 24, 26, 84
_MARGIN = 28
_SWEEPS = 24  # over the rows, up and down; the order no longer changes after a few

Imports = Mapping[str, frozenset[str]]
"""By package: the packages that its modules import."""


def package_of(module: str) -> str:
    """The package that a module belongs to in the picture: a part of ``rsgrpo``, or one of the other roots.

    Example:
        ``rsgrpo.algorithm.losses`` belongs to ``rsgrpo.algorithm``, ``rewards.lab.lint`` to ``rewards``.
    """
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "rsgrpo" else parts[0]


def module_name(file: Path) -> str:
    """Dotted name of a file of the repository."""
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, module: str) -> set[str]:
    """Our own modules that a source imports, at its top or inside functions.

    Args:
        source: the Python source of the module.
        module: the dotted name of the module; our modules use no relative imports.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from rsgrpo import types` names a module, `from rsgrpo.types import Sample` does not
            found |= {f"rsgrpo.{alias.name}" for alias in node.names} if node.module == "rsgrpo" else {node.module}
    return {name for name in found if name.partition(".")[0] in _ROOTS and name != module}


@functools.cache
def package_imports() -> dict[str, frozenset[str]]:
    """Which package imports which, from the sources."""
    found: dict[str, set[str]] = {}
    for root in _ROOTS:
        for file in sorted((REPOSITORY / root).rglob("*.py")):
            module = module_name(file)
            if module == "rsgrpo":
                continue
            package = package_of(module)
            targets = {package_of(name) for name in imported_modules(file.read_text(), module)}
            found.setdefault(package, set()).update(targets - {package, "rsgrpo"})
    # What is no package is a name that rsgrpo itself defines, such as its version.
    return {package: frozenset(targets & found.keys()) for package, targets in found.items()}


def levels(imports: Imports) -> dict[str, int]:
    """Height of every package: 0 imports none of the others, else one more than the highest that it imports.

    Raises:
        ValueError: packages import each other in a circle; the message names them.
    """
    found: dict[str, int] = {}
    while len(found) < len(imports):
        ready = [name for name, targets in imports.items() if name not in found and targets <= found.keys()]
        if not ready:
            circle = sorted(imports.keys() - found.keys())
            raise ValueError(f"these packages import each other in a circle, or stand on one: {', '.join(circle)}")
        found |= {name: 1 + max((found[target] for target in imports[name]), default=-1) for name in ready}
    return found


def direct(imports: Imports) -> dict[str, list[str]]:
    """The imports that do not follow from others, sorted by name."""
    height = levels(imports)
    below: dict[str, set[str]] = {}
    for name in sorted(imports, key=lambda name: height[name]):
        below[name] = set(imports[name]).union(*(below[target] for target in imports[name]))
    return {
        name: sorted(
            target for target in targets if not any(target in below[other] for other in targets if other != target)
        )
        for name, targets in imports.items()
    }


def routes(imports: Imports) -> list[tuple[str, ...]]:
    """The arrows, each as the points that it passes: a package, one bend in every row between, a package."""
    height = levels(imports)
    return [
        (name, *(f"{name}>{target}@{row}" for row in range(height[name] - 1, height[target], -1)), target)
        for name, targets in sorted(direct(imports).items())
        for target in targets
    ]


def places(imports: Imports) -> dict[str, tuple[float, float]]:
    """Centre of every box and bend: rows by height, the highest first, ordered so that arrows cross seldom."""
    height, arrows = levels(imports), routes(imports)
    rows: list[list[str]] = [[name for name in sorted(imports) if height[name] == level] for level in _rows(imports)]
    for arrow in arrows:
        for step, point in enumerate(arrow[1:-1], start=1):
            rows[height[arrow[0]] - step].append(point)
    joined: dict[str, list[str]] = {point: [] for row in rows for point in row}
    for arrow in arrows:
        for upper, lower in pairwise(arrow):
            joined[upper].append(lower)
            joined[lower].append(upper)
    x = {point: float(index * _BOX_WIDTH) for row in rows for index, point in enumerate(row)}
    for turn in range(_SWEEPS):
        for row in rows if turn % 2 else rows[::-1]:
            wanted = {point: sum(x[other] for other in joined[point]) / max(1, len(joined[point])) for point in row}
            row.sort(key=lambda point: (wanted[point], point))
            x.update(zip(row, _apart([wanted[point] for point in row], [_width(point) for point in row]), strict=True))
    left = min(value - _width(point) / 2 for point, value in x.items())
    return {
        point: (x[point] - left + _MARGIN, _MARGIN + _BOX_HEIGHT / 2 + (len(rows) - 1 - level) * _ROW)
        for level, row in enumerate(rows)
        for point in row
    }


def _rows(imports: Imports) -> range:
    return range(max(levels(imports).values()) + 1)


def _width(point: str) -> float:
    return _BEND_WIDTH if "@" in point else _BOX_WIDTH + _GAP


def _apart(wanted: list[float], widths: list[float]) -> list[float]:
    """Places in the given order, as near to the wanted ones as widths allow (least squares, pooled neighbours)."""
    offsets = [sum(widths[:index]) + width / 2 for index, width in enumerate(widths)]
    pools: list[tuple[float, int]] = []  # mean of wanted minus offset, how many
    for value, offset in zip(wanted, offsets, strict=True):
        mean, count = value - offset, 1
        while pools and pools[-1][0] >= mean:
            other, many = pools.pop()
            mean, count = (other * many + mean * count) / (many + count), many + count
        pools.append((mean, count))
    means = [mean for mean, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def picture(imports: Imports) -> str:
    """The picture of the packages, as SVG."""
    centre = places(imports)
    width = max(centre[name][0] for name in centre) + _BOX_WIDTH / 2 + _MARGIN
    height = max(y for _, y in centre.values()) + _BOX_HEIGHT / 2 + _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="14">',
        "<title>Packages and their imports; all arrows point down</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#5c6b7a"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
    ]
    for arrow in routes(imports):
        (x, y), *others = [centre[point] for point in arrow]
        y += _BOX_HEIGHT / 2
        path = f"M{x:.0f} {y:.0f}"
        for index, (next_x, next_y) in enumerate(others):
            # A bend is a straight piece as high as a box, so that the line passes between boxes, not over them.
            stop, bend = next_y - _BOX_HEIGHT / 2, (next_y - _BOX_HEIGHT / 2 - y) / 2
            path += f"C{x:.0f} {y + bend:.0f} {next_x:.0f} {stop - bend:.0f} {next_x:.0f} {stop:.0f}"
            x, y = next_x, next_y + _BOX_HEIGHT / 2
            path += f"V{y:.0f}" if index < len(others) - 1 else ""
        lines.append(f'<path d="{path}" fill="none" stroke="#5c6b7a" stroke-width="1.3" marker-end="url(#tip)"/>')
    for name in sorted(imports):
        x, y = centre[name]
        fill = "#dbe7f3" if name.startswith("rsgrpo.") else "#f6e3c5"
        lines.append(
            f'<rect x="{x - _BOX_WIDTH / 2:.0f}" y="{y - _BOX_HEIGHT / 2:.0f}" width="{_BOX_WIDTH}" '
            f'height="{_BOX_HEIGHT}" rx="6" fill="{fill}" stroke="#43536a"/>'
        )
        label = escape(name.removeprefix("rsgrpo."))
        lines.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" fill="#1d2733">{label}</text>')
    return "\n".join([*lines, "</svg>", ""])


def summary_line(package: str) -> str:
    """First line of the docstring of a package, or of a module that stands for one."""
    path = REPOSITORY.joinpath(*package.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def page(imports: Imports) -> str:
    """The page with the picture and the table of all imports."""
    height = levels(imports)
    lines = [
        "# Packages and their imports",
        "",
        "<!-- Written by `python -m docs.scripts.package_picture` from the import statements. -->",
        "",
        "![Packages and their imports; all arrows point down](images/packages.svg)",
        "",
        "Blue boxes are parts of `rsgrpo`, the others are packages of their own. A package stands above everything "
        "that it imports, so all arrows point down. An arrow that follows from others is left out: where `a` imports "
        "`b` and `b` imports `c`, there is no arrow from `a` to `c`. The table has every import. `lint-imports` checks "
        "the directions (`pyproject.toml`, `tool.importlinter`).",
        "",
        "| package | what it is | imports |",
        "|---|---|---|",
    ]
    for name in sorted(imports, key=lambda name: (-height[name], name)):
        folder = name.replace(".", "/")
        folder += "/" if (REPOSITORY / folder).is_dir() else ".py"
        targets = ", ".join(f"`{target.removeprefix('rsgrpo.')}`" for target in sorted(imports[name]))
        summary = summary_line(name).replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{folder}` | {summary} | {targets} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the picture and the page."""
    imports = package_imports()
    PICTURE.write_text(picture(imports))
    PAGE.write_text(page(imports))


if __name__ == "__main__":
    main()
