"""The four benchmarks in their own layouts, a few invented questions each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_image(file: Path, seed: int, size: tuple[int, int] = (28, 28)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def _write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def write_evisrag(root: Path) -> None:
    """Two questions over four pages; only the first three are shown."""
    folder = root / "EVisRAG-Test-ChartQA"
    images = [f"imgs/{index}.png" for index in range(4)]
    for index, image in enumerate(images):
        write_image(folder / image, index)
    rows = [
        {"qid": "q0", "query": "Which quarter?", "answer": ["Q3"], "image": images, "is_sufficient": True},
        {"qid": "q1", "query": "Which year?", "answer": ["1999"], "image": images[:2], "is_sufficient": False},
    ]
    (folder / "top3_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_milebench(root: Path, name: str = "ActionSequence") -> None:
    """Two multiple-choice questions, the second one over three images."""
    folder = root / "MileBench" / name
    data = []
    for sample_id, count in enumerate((2, 3)):
        files = [f"{sample_id}-{index}.jpg" for index in range(count)]
        for index, file in enumerate(files):
            write_image(folder / "images" / file, 10 * sample_id + index)
        marks = "".join(f"{{image#{index + 1}}}" for index in range(count))
        data.append(
            {
                "sample_id": sample_id,
                "task_instruction_id": 0,
                "image_quantity_level": "Few",
                "response": "open the door",
                "task_instance": {
                    "context": f"{marks} What happens next?",
                    "images_path": files,
                    "choice_list": ["open the door", "sit"],
                },
            }
        )
    meta = {"task_instruction": ["Pick one option."], "question_type": "multi-choice", "num_sample": 2}
    _write(folder / f"{name}.json", {"meta_data": meta, "data": data})


def write_haystacks(root: Path, *, sizes: tuple[int, ...] = (2, 3), count: int = 2) -> None:
    """Single-needle questions, gold yes and no in turn."""
    for size in sizes:
        rows = []
        for index in range(count):
            images = [f"val2017/{size}-{index}-{place}.jpg" for place in range(size)]
            for place, image in enumerate(images):
                write_image(root / "coco" / image, 100 * size + 10 * index + place)
            rows.append(
                {
                    "conversations": [
                        {"from": "human", "value": f"For the image with a truck, is there dog {index}?"},
                        {"from": "gpt", "value": "no" if index % 2 else "yes"},
                    ],
                    "pos_image": images[:1],
                    "neg_image": images[1:],
                }
            )
        _write(root / "single_needle" / "VHs_large" / f"visual_haystack_{size}.json", rows)


def write_mig_bench(root: Path) -> None:
    """Two grounding questions, of two tasks."""
    rows = []
    for index, task in enumerate(("diff", "region")):
        images = [f"./MIG-Bench/images/{task}/{place}.png" for place in range(2)]
        for place, image in enumerate(images):
            write_image(root / image, 7 * index + place, (56, 28))
        rows.append(
            {
                "task": task,
                "images": images,
                "question": "Find it in the 2th image. ",
                "answer": [0.1, 0.2, 0.5, 0.6],
                "additional_info": "",
                "need_format": True,
            }
        )
    _write(root / "MIG-Bench" / "MIG_data.json", rows)
