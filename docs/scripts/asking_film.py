"""Make the film of the README: ``python -m docs.scripts.asking_film --run RUN --index INDEX --question TEXT``.

First the terminal: what ``rsgrpo ask`` prints, piece by piece as it came. Then the page of ``rsgrpo serve`` in
Chromium: a question is typed and answered, an evidence line is clicked. Both are asked of one engine. What is shown is
what came; waits are cut short, the engine's start is left out, and the command is shown with the paths that a user
would have. The result is an animated PNG, ``docs/images/asking.png``.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from recipes.asking.engine_choice import engine_settings
from recipes.asking.engine_server import EngineServer
from recipes.asking.model_choice import choose_model

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURE = REPOSITORY / "docs" / "images" / "asking.png"

_PROGRAM = [sys.executable, "-m", "recipes.commands.program"]
_KEY_VARIABLE = "ASKING_FILM_KEY"
_WIDTH, _HEIGHT = 880, 560
_COLUMNS, _ROWS, _LINE_HEIGHT, _FONT_SIZE = 100, 28, 19, 14
_MARGIN = 14
_COLOURS = 96
_LONGEST_PIECE_SECONDS = 0.3

Frame = tuple[Image.Image, int]
"""A picture, and for how many milliseconds it stands."""


def terminal_frames(command: Sequence[str], shown: str, environment: dict[str, str]) -> list[Frame]:
    """Run a command in a terminal, and draw what the terminal shows as it comes.

    Args:
        command: the command.
        shown: the command line as it is shown.
        environment: the variables of the command.
    """
    text = f"\x1b[32m$\x1b[0m {shown}\r\n"
    frames = [(_terminal(text), 1200)]
    for piece, seconds in _pieces(command, environment):
        text += piece
        frames[-1] = (frames[-1][0], max(frames[-1][1], round(1000 * seconds)))
        frames.append((_terminal(text), 60))
    frames[-1] = (frames[-1][0], 3500)
    return frames


def _pieces(command: Sequence[str], environment: dict[str, str]) -> list[tuple[str, float]]:
    """What a command writes to its terminal, and how long each piece was waited for."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    process = subprocess.Popen(
        command, stdout=theirs, stderr=subprocess.DEVNULL, env={**environment, "TERM": "xterm-256color"}
    )
    os.close(theirs)
    found: list[tuple[str, float]] = []
    last: float | None = None
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other side is closed
            data = b""
        if not data:
            break
        now = time.monotonic()
        waited = 0.0 if last is None else min(now - last, _LONGEST_PIECE_SECONDS)
        found.append((data.decode(errors="replace"), waited))
        last = now
    os.close(ours)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return found


def _terminal(text: str) -> Image.Image:
    from matplotlib import get_data_path
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    fonts = Path(get_data_path()) / "fonts" / "ttf"
    plain = ImageFont.truetype(str(fonts / "DejaVuSansMono.ttf"), _FONT_SIZE)
    bold = ImageFont.truetype(str(fonts / "DejaVuSansMono-Bold.ttf"), _FONT_SIZE)
    console = Console(width=_COLUMNS, color_system="truecolor", force_terminal=True)
    lines = Text.from_ansi(re.sub(r"\x1b\[\??[0-9;]*[A-KSTfhl]", "", text.replace("\r", ""))).wrap(console, _COLUMNS)
    image = Image.new("RGB", (_WIDTH, _HEIGHT), (20, 22, 26))
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines[-_ROWS:]):
        x = float(_MARGIN)
        for segment in line.render(console):
            style = segment.style
            font = bold if style is not None and style.bold else plain
            colour = (216, 218, 222)
            if style is not None and style.color is not None:
                colour = style.color.get_truecolor(MONOKAI)
            if style is not None and style.dim:
                colour = (150, 152, 156)
            draw.text((x, _MARGIN + row * _LINE_HEIGHT), segment.text.rstrip("\n"), font=font, fill=colour)
            x += draw.textlength(segment.text.rstrip("\n"), font=font)
    return image


def page_frames(address: str, question: str) -> list[Frame]:
    """Ask on the page in Chromium, and photograph it meanwhile.

    Args:
        address: the address of the page.
        question: what is asked.
    """
    import io

    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no chromium is installed; apt-get install chromium")
    frames: list[Frame] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page: Any = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
        page.set_default_timeout(120_000)

        def take(milliseconds: int) -> None:
            picture = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
            if frames and frames[-1][0].tobytes() == picture.tobytes():
                frames[-1] = (picture, min(frames[-1][1] + milliseconds, 2000))
            else:
                frames.append((picture, milliseconds))

        page.goto(address)
        page.locator("#documents li").first.wait_for()
        page.select_option("#num-pages", "3")
        take(900)
        for word in question.split(" "):
            page.locator("#question").press_sequentially(word + " ")
            take(90)
        page.keyboard.press("Enter")
        end = time.monotonic() + 120
        while page.locator(".evidence button").count() == 0 and time.monotonic() < end:
            take(120)
        page.wait_for_timeout(500)
        take(2500)
        page.locator(".evidence button").first.click()
        page.locator("#viewer-title").wait_for()
        page.wait_for_function("document.querySelector('#viewer-image').complete")
        page.wait_for_timeout(500)
        take(4000)
        browser.close()
    return frames


def write_film(frames: Sequence[Frame], file: Path) -> None:
    """Write an animated PNG of few colours.

    Args:
        frames: the pictures.
        file: the file.
    """
    # One palette for all: an animated PNG has only one, and as true colours it is twenty times as large.
    sheet = Image.new("RGB", (_WIDTH, _HEIGHT * 4))
    chosen = [frames[0], frames[len(frames) // 3], frames[len(frames) * 2 // 3], frames[-1]]
    for place, (picture, _) in enumerate(chosen):
        sheet.paste(picture, (0, _HEIGHT * place))
    palette = sheet.quantize(_COLOURS, dither=Image.Dither.NONE)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture, _ in frames]
    pictures[0].save(
        file,
        format="PNG",
        save_all=True,
        append_images=pictures[1:],
        duration=[milliseconds for _, milliseconds in frames],
        loop=0,
    )


def main() -> None:
    """Make the film."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="the run folder of the model")
    parser.add_argument("--index", required=True, help="the index that is asked")
    parser.add_argument("--embedder", default="", help="where the index's embedder lies, where it has been moved")
    parser.add_argument("--question", required=True)
    parser.add_argument("--shown-run", default="runs/tickets", help="the run as the film shows it")
    parser.add_argument("--shown-index", default="tickets.index", help="the index as the film shows it")
    parser.add_argument("--state", required=True, help="a folder for the history of the served page")
    args = parser.parse_args()
    with ExitStack() as stack:
        engine = stack.enter_context(EngineServer(engine_settings(choose_model(args.run))))
        address = engine.address
        environment = {**os.environ, _KEY_VARIABLE: address.key}
        model = ["--model", address.url, "--model-name", address.model, "--settings", args.run]
        model += ["--api-key-variable", _KEY_VARIABLE, "--index", args.index]
        model += ["--embedder", args.embedder] if args.embedder else []
        shown = f'rsgrpo ask "{args.question}" --pages 3 --index {args.shown_index} --model {args.shown_run}'
        frames = terminal_frames([*_PROGRAM, "ask", args.question, "--pages", "3", *model], shown, environment)
        server = subprocess.Popen(
            [*_PROGRAM, "serve", *model, "--port", "0", "--state", args.state],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        stack.callback(server.kill)  # of no effect where it has ended
        assert server.stdout is not None
        found = re.match(r"(http://\S+)", server.stdout.readline())
        if found is None:
            raise SystemExit("the server does not start")
        frames += page_frames(found[1], args.question)
        server.terminate()
        server.wait(60)
    write_film(frames, PICTURE)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e6:.2f} MB, {len(frames)} pictures")


if __name__ == "__main__":
    main()
