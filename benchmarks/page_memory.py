"""How much memory a rank's pixels take in a step, and how long its rows wait for them, without a model.

A step of ``--prompts`` questions over ``--ranks`` ranks, each on ``--pages`` pages of 1.57 million pixels, is planned
as the trainer plans it; the rows are then built as the trainer builds them, and instead of a model something counts
their pixels. ``before`` is how pixels came until now: all of them, by one thread, before the first row; it is timed on
``--before-prompts`` questions, and its ``peak_gb`` is what the whole step would hold. ``speedup`` compares seconds a
page. Groups that do not fit one row (``--response-tokens 1500``) stand in rows far apart, and their pages are read for
each of these unless they still fit (``pages_read``). Live bytes are counted at every page, with the row under
construction; ``rss_gb`` is how far the process grew. Prints one JSON line.

    python benchmarks/page_memory.py --threads 2
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from image_reading import photograph, written_image
from json_line import report
from torch import Tensor
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.model.micro_batches import GroupSize, plan_micro_batches
from rsgrpo.model.vlm import ProcessedImage, PromptEncoder
from rsgrpo.types import ImageRef

RULES = ImageRules(min_pixels=3136, max_pixels=1568000)
SIZE = (1250, 1700)  # of the files; the rule brings it to 1073 × 1460 = 1.57 million pixels
_FILES = 12  # different ones; each stands for many pages, which are read one by one all the same
_NUMBERS = 1176  # of a patch
_SAMPLING_SECONDS = 0.02
_GB = 1e9


class LiveBytes:
    """Bytes of tensors that are alive, and the most that were at any time."""

    def __init__(self) -> None:
        self.now = self.peak = self.num_images = 0
        self._lock = threading.Lock()

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor until it is gone."""
        with self._lock:
            self.now += tensor.nbytes
            self.peak = max(self.peak, self.now)
            self.num_images += 1
        weakref.finalize(tensor, self._gone, tensor.nbytes)
        return tensor

    def _gone(self, num_bytes: int) -> None:
        with self._lock:
            self.now -= num_bytes


class Growth:
    """How far the process grew beyond what it had at the start, looked at every 20 ms."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._start = _resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Growth:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLING_SECONDS):
            self.num_bytes = max(self.num_bytes, _resident_bytes() - self._start)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def write_images(folder: Path) -> list[Path]:
    """Scans and photographs, PNG and JPEG by turns."""
    files = []
    for number in range(_FILES):
        image = written_image(*SIZE) if number % 2 else photograph(*SIZE)
        files.append(folder / f"{number}.{'png' if number % 4 == 1 else 'jpg'}")
        image.save(files[-1], quality=90)
    return files


def before(refs: list[ImageRef], processor: Qwen2VLImageProcessor) -> tuple[float, int]:
    """Seconds, and bytes at the end, of the way that it was done: in calls of 64, one thread, all kept."""
    start = time.perf_counter()
    kept: list[Tensor] = []
    for first in range(0, len(refs), 64):
        features = processor(images=[load_image(ref, RULES) for ref in refs[first : first + 64]], return_tensors="pt")
        lengths = features["image_grid_thw"].prod(dim=1).tolist()
        kept += [image_pixels.to(torch.float32).clone() for image_pixels in features["pixel_values"].split(lengths)]
    return time.perf_counter() - start, sum(image_pixels.nbytes for image_pixels in kept)


class CountedEncoder(PromptEncoder):
    """The trainer's encoder; its pixels are counted."""

    live: LiveBytes

    def _process(self, ref: ImageRef) -> Tensor:
        return self.live.add(super()._process(ref))


def now(
    encoder: CountedEncoder, rows: list[list[ProcessedImage]], compute: Callable[[Tensor], None]
) -> tuple[float, float]:
    """Seconds in all, and those of them in which the rows waited for pixels."""
    start, waited = time.perf_counter(), 0.0
    with closing(encoder.pixel_feed(rows)) as feed:
        for shown_images in rows:
            begun = time.perf_counter()
            pixels = next(feed)
            waited += time.perf_counter() - begun
            lengths = [len(pixels[image.ref]) for image in shown_images]
            row = encoder.live.add(torch.empty(sum(lengths), _NUMBERS))
            for part, image in zip(row.split(lengths), shown_images, strict=True):
                part.copy_(encoder.live.add(encoder.unpacked(pixels[image.ref])))
            encoder.live.num_images -= 1 + len(shown_images)
            del pixels, part
            compute(row)
            del row
    return time.perf_counter() - start, waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512, help="of the whole step")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--pages", type=int, default=5, help="of a prompt")
    parser.add_argument("--responses", type=int, default=8, help="of a prompt")
    parser.add_argument("--response-tokens", type=int, default=500, help="half as many to half as many again")
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=2, help="that read pages")
    parser.add_argument("--row-seconds", type=float, default=0.0, help="that a model would take for a row")
    parser.add_argument("--before-prompts", type=int, default=8, help="how much of the step the old way is timed on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12845056})
    num_prompts = arguments.prompts // arguments.ranks
    with tempfile.TemporaryDirectory() as name:
        files = write_images(Path(name))
        refs = [
            [
                ImageRef(path=f"{prompt}/{index}", file=str(files[(prompt * arguments.pages + index) % _FILES]))
                for index in range(arguments.pages)
            ]
            for prompt in range(num_prompts)
        ]
        encoder = CountedEncoder(
            cast(Qwen2_5_VLProcessor, SimpleNamespace(image_processor=images, image_token_id=0)),
            rules=RULES,
            max_prompt_tokens=10**9,
            num_threads=arguments.threads,
        )
        encoder.live = LiveBytes()
        start = time.perf_counter()
        shown = [list(encoder.images(prompt).values()) for prompt in refs]
        header_seconds = time.perf_counter() - start
        half = arguments.response_tokens // 2
        lengths = np.random.default_rng(0).integers(half, 3 * half + 1, (num_prompts, arguments.responses))
        plan = plan_micro_batches(
            [
                GroupSize(
                    sample_id=str(number),
                    num_prompt_tokens=100 + sum(image.num_tokens for image in shown_images),
                    response_lengths=tuple(lengths[number].tolist()),
                )
                for number, shown_images in enumerate(shown)
            ],
            budget=arguments.micro_batch_tokens,
            share_prefix=True,
        )
        rows = [
            list({image.ref: image for segment in segments for image in shown[segment.group]}.values())
            for segments in plan
        ]
        with Growth() as growth:
            seconds, waited = now(encoder, rows, lambda row: time.sleep(arguments.row_seconds))
        few = [ref for prompt in refs[: arguments.before_prompts] for ref in prompt]
        before_seconds, before_bytes = before(few, images)
    num_images = num_prompts * arguments.pages
    report(
        "page_memory",
        {
            "pages": num_images,
            "rows": len(rows),
            "threads": arguments.threads,
            "page_mb": round(before_bytes / len(few) / 1e6, 1),
            "peak_gb": round(encoder.live.peak / _GB, 3),
            "rss_gb": round(growth.num_bytes / _GB, 3),
            "pages_read": encoder.live.num_images,
            "header_seconds": round(header_seconds, 2),
            "seconds": round(seconds, 1),
            "waited_seconds": round(waited, 1),
            "ms_a_page": round(1e3 * (seconds - len(rows) * arguments.row_seconds) / encoder.live.num_images, 1),
            "before": {
                "peak_gb": round(before_bytes / len(few) * num_images / _GB, 2),
                "ms_a_page": round(1e3 * before_seconds / len(few), 1),
            },
            "speedup": round(before_seconds / len(few) / (seconds / encoder.live.num_images), 2),
        },
    )


if __name__ == "__main__":
    main()
