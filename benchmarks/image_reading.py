"""What it costs to read plain RGB pages through the one way in for images, against Pillow alone.

Plain pages need none of what it does for others. Each is read by turns as rsgrpo reads it
(``rsgrpo.data.images.loading.load_image``) and as it used to (open, load, resize with Pillow), and the medians are
compared: ``ratio`` is the old way's time over ours, so 1 is as fast, more is faster; ``cpu_ratio`` is the same of
processor time, which other programs on the machine disturb less. ``check_ms`` is what the look at a page before a run
costs. Prints one JSON line.

    python benchmarks/image_reading.py
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from json_line import report
from PIL import Image, ImageDraw

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import check_image, load_image, resized_size
from rsgrpo.types import ImageRef

RULES = ImageRules(min_pixels=3136, max_pixels=1568000)


def written_image(width: int, height: int) -> Image.Image:
    """A page of text over a faint texture."""
    rng = np.random.default_rng(0)
    texture = rng.integers(225, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(texture).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for top in range(40, height - 40, 22):
        draw.text((60, top), "Revenue of the third quarter grew by 12.4 % to 3.4 million " * 4, fill="black")
    return image


def photograph(width: int, height: int) -> Image.Image:
    """Smooth shapes with some grain."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (height // 60 + 1, width // 60 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.normal(0, 5, smooth.shape).astype(np.int16)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def as_before(ref: ImageRef) -> Image.Image:
    """Read an image as it was read before: without its orientation, and without checks."""
    with Image.open(io.BytesIO(Path(ref.file).read_bytes())) as image:
        image.load()
        assert RULES.min_pixels is not None
        size = resized_size(image.width, image.height, RULES.min_pixels, RULES.max_pixels)
        resized = image if size == image.size else image.resize(size)
        return (resized if resized.mode == "RGB" else resized.convert("RGB")).copy()


def seconds(read: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    start, cpu_start = time.perf_counter(), time.process_time()
    read()
    return time.perf_counter() - start, time.process_time() - cpu_start


def measure(ref: ImageRef, num_rounds: int) -> dict[str, float]:
    """Medians of reads by turns, so that a busy moment of the machine meets both."""
    ways: dict[str, Callable[[], object]] = {
        "before": lambda: as_before(ref),
        "now": lambda: load_image(ref, RULES),
        "check": lambda: check_image(ref, RULES),
    }
    assert np.array_equal(np.asarray(as_before(ref)), np.asarray(load_image(ref, RULES))), "the pixels must be the same"
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(num_rounds):
        for name, read in ways.items():
            taken[name].append(seconds(read))
    median = {name: statistics.median(wall for wall, _ in times) for name, times in taken.items()}
    cpu = {name: statistics.median(used for _, used in times) for name, times in taken.items()}
    return {
        **{f"{name}_ms": round(1000 * value, 2) for name, value in median.items()},
        "ratio": round(median["before"] / median["now"], 3),
        "cpu_ratio": round(cpu["before"] / cpu["now"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    images = {
        "page_150_dpi": written_image(1240, 1754),
        "page_300_dpi": written_image(2480, 3508),
        "photograph": photograph(1600, 1200),
        "thumbnail": photograph(320, 240),
    }
    settings: dict[str, dict[str, object]] = {"PNG": {"compress_level": 6}, "JPEG": {"quality": 90}}
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, image in images.items():
            for kind, how in settings.items():
                file = Path(folder) / f"{name}.{kind.lower()}"
                image.save(file, kind, **how)
                found[f"{name} {kind}"] = measure(ImageRef(path=file.name, file=str(file)), options.rounds)
    worst = min(found, key=lambda name: found[name]["ratio"])
    report(
        "image_reading",
        {"pages": found, "worst": worst, "worst_ratio": found[worst]["ratio"], "rounds": options.rounds},
    )


if __name__ == "__main__":
    main()
