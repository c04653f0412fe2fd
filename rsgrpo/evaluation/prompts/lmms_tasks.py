"""Our benchmarks inside lmms-eval: what the task files of ``recipes.evaluation.lmms_tasks`` call."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import read_image
from rsgrpo.evaluation.benchmarks import find_benchmark
from rsgrpo.evaluation.benchmarks.base import ANSWER_SECTION, MODES, Answered, BenchmarkResult, Mode
from rsgrpo.evaluation.prompts.turns import TaskPrompt
from rsgrpo.types import Box, ImageRef, Sample


def document(
    task: str, prompt: TaskPrompt, sample: Sample, needle_position: int, answer_section: str = ANSWER_SECTION
) -> dict[str, Any]:
    """A question as a row of a JSON-lines data set; nested values are JSON texts, so that every row has one schema.

    Args:
        task: the benchmark's name.
        prompt: the prompt that is asked.
        sample: the sample, with its gold.
        needle_position: the position of the needle in positional haystacks; else -1.
        answer_section: the section of a response that holds the answer.
    """
    turns = [
        {
            "role": turn.role,
            "parts": [dataclasses.asdict(part) if isinstance(part, ImageRef) else part for part in turn.parts],
        }
        for turn in prompt.turns
        if any(turn.parts)
    ]
    return {
        "task": task,
        "prompt_id": prompt.prompt_id,
        "turns": json.dumps(turns, ensure_ascii=False),
        "sample": json.dumps(dataclasses.asdict(sample), ensure_ascii=False),
        "needle_position": needle_position,
        "answer_section": answer_section,
    }


def doc_to_messages(doc: Mapping[str, Any], lmms_eval_specific_kwargs: object = None) -> list[dict[str, Any]]:
    """lmms-eval's chat messages of a row; an image is its path, or itself where it lies in a table."""
    return [
        {"role": turn["role"], "content": [_content(part) for part in turn["parts"]]}
        for turn in json.loads(doc["turns"])
    ]


def _content(part: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "url": part["file"] or read_image(ImageRef(**part), ImageRules())}


def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    """A row's images, for adapters of the simple kind.

    Raises:
        ImageError: an image cannot be read.
    """
    parts = [part for turn in json.loads(doc["turns"]) for part in turn["parts"]]
    return [read_image(ImageRef(**part), ImageRules()) for part in parts if not isinstance(part, str)]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: object = None) -> str:
    """The words of a row, for adapters of the simple kind."""
    return "".join(part for turn in json.loads(doc["turns"]) for part in turn["parts"] if isinstance(part, str))


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """The accepted answers of a row, or its gold box."""
    sample = _sample(doc)
    return " | ".join(sample.answers) or ", ".join(str(dataclasses.astuple(box)[:4]) for box in sample.boxes)


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Row and response for both modes' aggregation: our scorers judge a task as a whole."""
    return {mode: {"doc": dict(doc), "response": results[0]} for mode in MODES}


def aggregate_official(items: Sequence[Mapping[str, Any]]) -> float:
    """The main metric by the original's rules."""
    return _score(items, "official").main.value


def aggregate_strict(items: Sequence[Mapping[str, Any]]) -> float:
    """The main metric with the original's defects fixed."""
    return _score(items, "strict").main.value


def _score(items: Sequence[Mapping[str, Any]], mode: Mode) -> BenchmarkResult:
    answered = [
        Answered(sample=_sample(item["doc"]), text=item["response"], needle_position=item["doc"]["needle_position"])
        for item in items
    ]
    first = items[0]["doc"]
    section = first.get("answer_section", ANSWER_SECTION)  # files of earlier versions do not say it
    return find_benchmark(first["task"]).score(answered, mode, answer_section=section)


def _sample(doc: Mapping[str, Any]) -> Sample:
    """The sample of a row; raises KeyError or TypeError for a row that :func:`document` did not write."""
    fields: dict[str, Any] = json.loads(doc["sample"])
    fields |= {
        "images": tuple(ImageRef(**image) for image in fields["images"]),
        "boxes": tuple(Box(**box) for box in fields["boxes"]),
        "turns": (),
        "answers": tuple(fields["answers"]),
        "choices": tuple(fields["choices"]),
        "positive_images": tuple(fields["positive_images"]),
    }
    return Sample(**fields)
