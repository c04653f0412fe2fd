"""Small images, and where tests put them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "noise"}]


def encoded(format: str = "PNG", side: int = 24) -> bytes:
    buffer = io.BytesIO()
    image = Image.linear_gradient("L").resize((side, side)).convert("P" if format == "GIF" else "RGB")
    image.save(buffer, format)
    return buffer.getvalue()


PNG = encoded()


BARE = base64.b64encode(PNG).decode()


def put(file: Path, data: bytes = PNG) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


FORMATS: dict[str, Callable[[object], dict[str, Any]]] = {
    "llava": lambda image: {"image": image, "conversations": TALK},
    "sharegpt": lambda image: {"images": [image], "conversations": TALK},
    "mirage": lambda image: {"image": [image], "conversations": TALK},
    "mgrounding": lambda image: {"images": [image], "conversations": TALK},
    "mig_bench": lambda image: {"task": "diff", "images": [image], "question": "q", "answer": [0, 0, 1, 1]},
    "vhs": lambda image: {
        "conversations": [{"value": "q"}, {"value": "yes"}],
        "pos_image": [image],
        "neg_image": [],
    },
    "evisrag": lambda image: {"qid": 1, "query": "q", "answer": ["a"], "image": [image]},
}
