"""Compare the time of rendering documents with that of pypdfium2 alone, and measure the memory for a long document.

Each page is by turns rendered by pypdfium2 alone, to RGB pixels (``page.render(…, rev_byteorder=True).to_numpy()``),
and as a page store does it, in one process. ``pixels`` is the way to RGB pixels, ``text`` that and the text layer,
``png`` and ``jpeg`` those and the encoded, hashed and written image file. A ratio is pypdfium2's processor time over
ours, so 1 is as fast, more is faster; ``ratio_low`` and ``ratio_high`` are the quartiles of single pages. ``encoders``
compares ways to write the same pixels.

With ``--pages N`` a PDF of N pages is added to a store by the usual workers instead: pages per second of all of them,
the most memory that a worker took, and the least and the most of this process meanwhile, for N pages and for a tenth.

Prints one JSON line.

    python benchmarks/documents.py
    python benchmarks/documents.py --pdf manual.pdf
    python benchmarks/documents.py --pages 5000
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pypdfium2
from json_line import report
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.backends.backend_pdf import PdfPages

from rsgrpo.config.documents import ImageFormat, RenderSettings
from rsgrpo.documents.page_store import PageStore
from rsgrpo.documents.pdf import PdfDocument
from rsgrpo.documents.records import IngestProgress
from rsgrpo.documents.stored_images import Pixels, encode_image, store_image

_LOOK_SECONDS = 0.5
_A4_INCHES = (8.27, 11.69)
_LINE = "Revenue of the third quarter grew by 12.4 % to 3.4 million, as the figure on page {page} shows; line {line}."


def written_pdf(path: Path, num_pages: int) -> None:
    """Write a PDF of A4 pages full of text, every fourth with a plot; the numbers on each page are different."""
    rng = np.random.default_rng(0)
    with PdfPages(path) as pdf:
        for page in range(num_pages):
            figure = plt.figure(figsize=_A4_INCHES)
            has_plot = page % 4 == 3
            for line in range(24 if has_plot else 52):
                figure.text(0.08, 0.95 - 0.0175 * line, _LINE.format(page=page, line=line), fontsize=9)
            if has_plot:
                axes = figure.add_axes((0.1, 0.08, 0.8, 0.4))
                axes.plot(rng.normal(size=(200, 3)).cumsum(axis=0))
            pdf.savefig(figure)
            plt.close(figure)


def repeated_pdf(path: Path, num_pages: int) -> None:
    """Write a long PDF that repeats forty pages; each copy is a separate object in the file."""
    with tempfile.TemporaryDirectory() as place:
        short = Path(place) / "short.pdf"
        written_pdf(short, min(40, num_pages))
        source, long = pypdfium2.PdfDocument(short), pypdfium2.PdfDocument.new()
        while len(long) < num_pages:
            long.import_pages(source, list(range(min(len(source), num_pages - len(long)))))
        long.save(path)


def compared(pdf: Path, num_pages: int, store: Path) -> dict[str, object]:
    """Measure the processor time of each way to render, on the same pages in turn, in milliseconds."""
    settings = RenderSettings()
    alone = pypdfium2.PdfDocument(pdf)
    ours = PdfDocument(pdf, settings)
    numbers = [int(number) for number in np.linspace(1, ours.num_pages, min(num_pages, ours.num_pages)).round()]
    for name in ("writing", "images"):
        (store / name).mkdir()
    rendered: list[Pixels] = []

    def as_alone(number: int) -> None:
        page = alone[number - 1]
        width, height = page.get_size()
        scale = min(settings.most_dpi / 72, (settings.max_pixels / (width * height)) ** 0.5)
        page.render(scale=scale, rev_byteorder=True).to_numpy()
        page.close()

    def written(image_format: ImageFormat) -> Callable[[int], None]:
        def write(number: int) -> None:
            page = ours.page(number)
            store_image(store, *encode_image(page.pixels, image_format))

        return write

    ways: dict[str, Callable[[int], object]] = {
        "pixels": lambda number: ours.page(number, with_text=False),
        "text": ours.page,
        "png": written("png"),
        "jpeg": written("jpeg"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("alone", *ways)}
    for number in numbers:
        as_alone(number)  # what both sides parse once is parsed
        ours.page(number)
        for name, way in {"alone": as_alone, **ways}.items():
            begin = time.process_time()
            way(number)
            seconds[name].append(time.process_time() - begin)
        rendered.append(ours.page(number).pixels)
    found: dict[str, object] = {"pages": len(numbers), "alone_ms": _ms(seconds["alone"])}
    for name in ways:
        ratios = sorted(theirs / max(own, 1e-9) for theirs, own in zip(seconds["alone"], seconds[name], strict=True))
        found[name] = {
            "ms": _ms(seconds[name]),
            "ratio": round(sum(seconds["alone"]) / sum(seconds[name]), 2),
            "ratio_low": round(ratios[len(ratios) // 4], 2),
            "ratio_high": round(ratios[3 * len(ratios) // 4], 2),
        }
    return {**found, "encoders": encoders(rendered)}


def _ms(seconds: list[float]) -> float:
    return round(statistics.mean(seconds) * 1000, 2)


def encoders(rendered: list[Pixels]) -> dict[str, dict[str, float]]:
    """Measure the processor time in milliseconds and the file size in KiB of each way to encode the same pages."""
    images = [Image.fromarray(pixels) for pixels in rendered]

    def ours(image_format: ImageFormat) -> Callable[[int], bytes]:
        return lambda index: encode_image(rendered[index], image_format)[0]

    def pillow(**options: Any) -> Callable[[int], bytes]:
        def write(index: int) -> bytes:
            file = io.BytesIO()
            images[index].save(file, **options)
            return file.getvalue()

        return write

    ways: dict[str, Callable[[int], bytes]] = {
        "png, ours": ours("png"),
        "png, Pillow, level 1": pillow(format="PNG", compress_level=1),
        "png, Pillow, level 6": pillow(format="PNG"),
        "jpeg, ours": ours("jpeg"),
        "webp, lossless": pillow(format="WEBP", lossless=True, method=0, quality=0),
    }
    found = {}
    for name, way in ways.items():
        begin = time.process_time()
        num_bytes = sum(len(way(index)) for index in range(len(images)))
        found[name] = {
            "ms": round((time.process_time() - begin) / len(images) * 1000, 2),
            "kib": round(num_bytes / len(images) / 1024, 1),
        }
    return found


def memory_mib(process: str, kind: str = "VmRSS") -> float:
    """Read the resident memory of a process in MiB, or with ``VmHWM`` the most that it ever had."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.split(f"{kind}:")[1].split()[0]) / 1024


def added(num_pages: int, workers: int, image_format: ImageFormat) -> dict[str, object]:
    """Add a long PDF to a new store, and measure the speed and the memory."""
    most: dict[str, float] = {}
    own: list[float] = []
    next_look = 0.0

    def look(_: IngestProgress) -> None:
        nonlocal next_look
        if time.monotonic() < next_look:
            return
        next_look = time.monotonic() + _LOOK_SECONDS
        own.append(memory_mib("self"))
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                try:
                    if b"rsgrpo.documents.render_worker" in (place / "cmdline").read_bytes():
                        most[place.name] = memory_mib(place.name, "VmHWM")
                except (OSError, IndexError):
                    continue  # it has ended

    with tempfile.TemporaryDirectory() as place:
        pdf = Path(place) / "long.pdf"
        repeated_pdf(pdf, num_pages)
        settings = RenderSettings(workers=workers, image_format=image_format)
        found = PageStore.open(Path(place) / "store", settings).add([pdf], look)
    return {
        "pages": found.pages,
        "workers": settings.num_workers,
        "seconds": round(found.seconds, 1),
        "pages_per_second": round(found.pages / found.seconds, 1),
        "duplicate_pages": found.duplicate_pages,
        "worker_mib": round(max(most.values(), default=0.0), 1),
        "this_process_mib": [round(extreme(own), 1) for extreme in (min, max)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pdf", type=Path, help="measure on this file instead of a written one")
    parser.add_argument("--sample", type=int, default=60, help="pages to measure, evenly spread")
    parser.add_argument("--pages", type=int, default=0, help="add a PDF of so many pages instead")
    parser.add_argument("--workers", type=int, default=0, help="processes that render; 0: one for each core")
    parser.add_argument("--image-format", choices=("png", "jpeg"), default="png", help="of stored pages")
    arguments = parser.parse_args()
    if arguments.pages:
        long = (max(1, arguments.pages // 10), arguments.pages)
        runs = [added(number, arguments.workers, arguments.image_format) for number in long]
        report("documents", {"adding": runs})
        return
    with tempfile.TemporaryDirectory() as place:
        pdf = arguments.pdf or Path(place) / "written.pdf"
        if arguments.pdf is None:
            written_pdf(pdf, min(40, arguments.sample))
        store = Path(place) / "store"
        store.mkdir()
        report("documents", compared(pdf, arguments.sample, store))


if __name__ == "__main__":
    main()
