"""What a page costs where its features are stored, and where they are not.

A vision tower of Qwen2.5-VL-3B's shape with random weights, cut to ``--layers`` of its 32 blocks; noise pages. Prints
one JSON line: medians in milliseconds of a page that is known (hit: its bytes hashed, features read and checked) and of
one that is not (miss: decoded, processed, run through the tower, written), and of the tower alone.

    python benchmarks/vision_cache.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from json_line import report
from PIL import Image
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.model.vision_cache import FeatureStore, ImageFeatures
from rsgrpo.types import ImageRef

MAX_PIXELS = 10**7


def write_image(folder: Path, index: int, side: int) -> ImageRef:
    pixels = np.random.default_rng(index).integers(0, 255, (side, side, 3), dtype=np.uint8)
    file = folder / f"{index}.png"
    Image.fromarray(pixels).save(file)
    return ImageRef(path=file.name, file=str(file))


class Bench:
    """A tower with its store, and pages shown to it as the trainer does."""

    def __init__(self, folder: Path, num_layers: int, device: torch.device) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        config = Qwen2_5_VLVisionConfig(depth=num_layers, out_hidden_size=2048, fullatt_block_indexes=[num_layers - 1])
        torch.manual_seed(0)
        self.tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(config, attn_implementation="sdpa").to(dtype)
        self.processor = Qwen2VLImageProcessor()
        self.device = device
        self.features = self.opened(folder)

    def opened(self, folder: Path) -> ImageFeatures:
        """The store as a later run finds it."""
        return ImageFeatures(self.tower, FeatureStore(folder, 2**34), processing="", device=self.device)

    def process(self, image: ImageRef) -> dict[str, torch.Tensor]:
        """A page decoded and cut into patches."""
        return dict(
            self.processor(
                images=[load_image(image, ImageRules(min_pixels=1, max_pixels=MAX_PIXELS))], return_tensors="pt"
            )
        )

    def pixels(self, image: ImageRef) -> torch.Tensor:
        """Its patches."""
        return self.process(image)["pixel_values"].float()

    def show(self, image: ImageRef) -> torch.Tensor:
        """What the trainer does with a page."""
        grid = self.features.grid(image)
        if grid is None:
            frames, rows, columns = self.process(image)["image_grid_thw"][0].tolist()
            grid = (int(frames), int(rows), int(columns))
        found = self.features.features(image, grid, partial(self.pixels, image))
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return found


def milliseconds(seconds: list[float]) -> float:
    return round(1000 * statistics.median(seconds), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=5)
    parser.add_argument("--side", type=int, default=784, help="pixels; 784 are 784 tokens")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(folder / "features", options.layers, torch.device(options.device))
        images = [write_image(folder, index, options.side) for index in range(options.pages + 1)]
        bench.show(images[-1])  # first call of everything
        miss, hit, tower = [], [], []
        computed = []
        for image in images[:-1]:
            start = time.perf_counter()
            computed.append(bench.show(image))
            miss.append(time.perf_counter() - start)
        bench.features = bench.opened(folder / "features")  # as a later run: nothing hashed yet
        for image, expected in zip(images, computed, strict=False):
            start = time.perf_counter()
            found = bench.show(image)
            hit.append(time.perf_counter() - start)
            assert torch.equal(found, expected)
        for image in images[:-1]:
            inputs = bench.process(image)
            patches = inputs["pixel_values"].to(bench.device, bench.tower.dtype)
            grid = inputs["image_grid_thw"].to(bench.device)
            start = time.perf_counter()
            with torch.no_grad():
                bench.tower(patches, grid_thw=grid).pooler_output.cpu()
            tower.append(time.perf_counter() - start)
        report(
            "vision_cache",
            {
                "tokens_per_page": len(computed[0]),
                "mb_per_page": round(computed[0].nbytes / 1e6, 1),
                "tower_layers": options.layers,
                "device": options.device,
                "threads": torch.get_num_threads(),
                "miss_ms": milliseconds(miss),
                "hit_ms": milliseconds(hit),
                "tower_ms": milliseconds(tower),
            },
        )


if __name__ == "__main__":
    main()
