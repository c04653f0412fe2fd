"""Seconds from a call with many pages until vLLM has its first request, and memory while all of them are queued.

512 prompts with 5 pages of 1.57 million pixels each go through the real engine's own way: queue, pages read and
processed in a thread, requests handed to vLLM. Only vLLM's queue is a counter, which takes every request and answers
none, so that nothing but the way to it is timed. ``before`` is how pages came before: all of a call's pages decoded
first (timed on ``--before-prompts`` of them).

    uv run python benchmarks/first_request.py
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from image_reading import photograph, written_image
from json_line import report
from page_memory import RULES, SIZE
from quickstart_setup import quickstart_config

from recipes.setup.preparation import prepare
from rollout.requests import RolloutRequest, requests_for
from rsgrpo.cluster.environments import engine_environment
from rsgrpo.config import SamplingConfig
from rsgrpo.data.images.loading import load_image
from rsgrpo.run.folder import RunFolder
from rsgrpo.run.progress import Progress
from rsgrpo.types import ChatPrompt, ImageRef, PromptedSample, Sample


def prompts(folder: Path, num_prompts: int, num_images: int, marker: str) -> list[PromptedSample]:
    """Prompts with pages of their own: links to few contents, which are read again for each of them."""
    contents = [folder / "written.png", folder / "photograph.jpg"]
    written_image(*SIZE).save(contents[0])
    photograph(*SIZE).save(contents[1])
    found = []
    for prompt in range(num_prompts):
        images = []
        for index in range(num_images):
            source = contents[(prompt + index) % len(contents)]
            link = folder / f"{prompt}-{index}{source.suffix}"
            os.link(source, link)
            images.append(ImageRef(path=link.name, file=str(link)))
        sample = Sample(sample_id=f"q{prompt}", images=tuple(images))
        text = marker * num_images + "?"
        found.append(
            PromptedSample(sample=sample, prompt=ChatPrompt(sample_id=f"q{prompt}", text=text, images=tuple(images)))
        )
    return found


class CountingQueue:
    """Stands in for vLLM's engine: notes when requests come.

    Args:
        renderer: the real one, which makes requests of prompts and pages.
    """

    def __init__(self, renderer: Any) -> None:
        self.renderer = renderer
        self.seconds: list[float] = []

    def add_request(self, number: str, prompt: Any, parameters: Any) -> None:
        """Take a request, and forget it."""
        self.seconds.append(time.perf_counter())

    def get_num_unfinished_requests(self) -> int:
        """None: there is always room for another."""
        return 0


def memory_gb() -> float:
    """The most memory that this process ever held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(engine: Any, asked: Sequence[RolloutRequest], num_before: int) -> dict[str, object]:
    real = engine._llm.llm_engine
    queue = CountingQueue(real.renderer)
    engine._llm.llm_engine = queue
    held = memory_gb()
    begin = time.perf_counter()
    engine._renderer.put(asked)
    while len(engine._renderer):
        engine._admit()
    seconds = [at - begin for at in queue.seconds]
    grown = memory_gb() - held
    engine._llm.llm_engine = real
    begin = time.perf_counter()
    for request in asked[:num_before]:
        for image in request.prompted.prompt.images:
            load_image(image, RULES)
    before = (time.perf_counter() - begin) * len(asked) / num_before
    return {
        "prompts": len(asked),
        "pages": len(asked[0].prompted.prompt.images),
        "first_request_seconds": round(seconds[0], 2),
        "all_requests_seconds": round(seconds[-1], 1),
        "grown_gb": round(grown, 2),
        "before_first_request_seconds_at_least": round(before, 1),
        "target_seconds": 2.0,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--pages", type=int, default=5)
    parser.add_argument("--before-prompts", type=int, default=16)
    options = parser.parse_args(arguments)
    config = quickstart_config(
        [
            "stage=eval",
            f"data.max_images={options.pages}",
            f"data.min_pixels={RULES.min_pixels}",
            f"data.max_pixels={RULES.max_pixels}",
            "rollout.max_model_tokens=16384",
            "rollout.max_batched_tokens=16384",
        ]
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(engine_environment(config, "cpu", os.cpu_count() or 1))
        # The quickstart's model was made for shorter prompts; here it computes nothing.
        os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
        prepared = prepare(config, RunFolder(root=folder / "run"), Progress(False))
        from rollout.vllm_engine import EngineSpec, VllmEngine

        engine = VllmEngine(EngineSpec(config=config, model_folder=prepared.base_model, device="cpu"))
        marker = "<|vision_start|><|image_pad|><|vision_end|>"
        asked = requests_for(
            prompts(folder, options.prompts, options.pages, marker),
            num_samples=8,
            sampling=SamplingConfig(max_response_tokens=64),
            seed=0,
        )
        report("first_request", measure(engine, asked, options.before_prompts))


if __name__ == "__main__":
    main()
