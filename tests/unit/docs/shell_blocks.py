"""The commands that README and docs show: read out of their shell blocks and of inline code."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]

GENERATED = {"settings.md", "packages.md"}
"""Pages that a script writes from the sources; their own tests compare them."""

DOCUMENTS = (
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "BENCHMARKS.md")),
    *sorted(file for file in (REPOSITORY / "docs").glob("*.md") if file.name not in GENERATED),
)

MARKERS = ("needs a GPU", "needs a network", "needs a server", "needs your data")
"""What the title of a shell block may say: why no test runs it."""

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^`\n]*)$")
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_COMMAND = re.compile(r"^(?:\w+=\S* )*(?:uvx? |python3? |pip |make |rsgrpo |train\.py )")


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A fenced block of a page.

    Attributes:
        file: the page.
        line: of its first line of text, from 1.
        language: behind the fence, such as ``bash``; empty where there is none.
        title: of ``title="…"``; empty where there is none.
        text: what stands in it.
    """

    file: Path
    line: int
    language: str
    title: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command that a page shows.

    Attributes:
        file: the page.
        line: where it begins, from 1.
        text: as a shell would read it, on one line.
        marker: the title of its block; empty where there is none, and for inline code.
        is_inline: whether it stands in a sentence.
    """

    file: Path
    line: int
    text: str
    marker: str = ""
    is_inline: bool = False

    @property
    def place(self) -> str:
        """Where it stands, for the name of a test."""
        return f"{self.file.relative_to(REPOSITORY)}:{self.line}"

    @property
    def words(self) -> list[str]:
        """As a shell cuts it; comments and variables in front are left out, and so is an ellipsis."""
        words = shlex.split(self.text, comments=not self.is_inline)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        return [word for word in words if word not in ("…", "...")]


def split_page(file: Path) -> tuple[list[Block], list[tuple[int, str]]]:
    """The fenced blocks of a page, and its other lines with their numbers."""
    blocks: list[Block] = []
    prose: list[tuple[int, str]] = []
    opened: re.Match[str] | None = None
    begin, held = 0, list[str]()
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, begin, held = fence, number + 1, []
        elif opened is not None and fence and fence["fence"] == opened["fence"] and not fence["info"].strip():
            language, _, rest = opened["info"].strip().partition(" ")
            title = re.search(r'title="([^"]*)"', rest)
            text = "\n".join(held)
            blocks.append(Block(file=file, line=begin, language=language, title=title[1] if title else "", text=text))
            opened = None
        elif opened is not None:
            held.append(line.removeprefix(opened["indent"]))
        else:
            prose.append((number, line))
    assert opened is None, f"{file.name}: the block that line {begin} begins is never closed"
    return blocks, prose


def block_commands(block: Block) -> list[Command]:
    """The commands of a ``bash`` block, or those behind ``$`` of a ``console`` block."""
    if block.language not in ("bash", "console"):
        return []
    found: list[Command] = []
    begun, begin = "", 0
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        if not begun:
            if block.language == "console" and not line.startswith("$ "):
                continue
            line, begin = line.removeprefix("$ "), number
        begun += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        if begun.split("#")[0].strip():
            found.append(Command(file=block.file, line=begin, text=begun.strip(), marker=block.title))
        begun = ""
    return found


def inline_code(file: Path) -> list[tuple[int, str]]:
    """What stands between single backticks outside blocks, with line numbers; it may go on over a line's end."""
    _, prose = split_page(file)
    found: list[tuple[int, str]] = []
    numbers = [number for number, _ in prose]
    text = "\n".join(line for _, line in prose)
    for match in _INLINE.finditer(text):
        line = numbers[text.count("\n", 0, match.start())]
        found.append((line, " ".join(match[1].split())))
    return found


def commands() -> list[Command]:
    """Every command of every page."""
    found: list[Command] = []
    for file in DOCUMENTS:
        blocks, _ = split_page(file)
        for block in blocks:
            found += block_commands(block)
        for line, code in inline_code(file):
            if _COMMAND.match(code):
                found.append(Command(file=file, line=line, text=code, is_inline=True))
    return found
