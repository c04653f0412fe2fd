"""Visual Haystacks' output: one JSON file a question, named by its number in the data file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rsgrpo.benchmarks.base import Answered, BenchmarkError, Prediction, PredictionFile
from rsgrpo.benchmarks.prediction_files import read_json, write_json
from rsgrpo.task_prompts.haystack import needle_positions


def write_folder(answered: Sequence[Answered], folder: Path, *, is_positional: bool) -> Path:
    """Write ``<folder>/<N>_images/<id>.json``; a question's positional replies go into one file.

    Returns:
        The folder of all sizes, or the one size's.

    Raises:
        BenchmarkError: two questions of one size share an id.
    """
    records: dict[tuple[str, str], list[Answered]] = {}
    for one in answered:
        records.setdefault((_size_folder(one), one.sample.sample_id), []).append(one)
    for (size, sample_id), replies in records.items():
        if len(replies) > 1 and not is_positional:
            raise BenchmarkError(f"sample '{sample_id}' has {len(replies)} predictions; write one of them")
        ordered = sorted(replies, key=lambda one: one.needle_position)
        write_json(folder / size / f"{sample_id}.json", _record(ordered, is_positional))
    sizes = {size for size, _ in records}
    return folder / sizes.pop() if len(sizes) == 1 else folder


def read_folder(folder: Path) -> PredictionFile:
    """Every ``<number>.json`` of a folder, or of its ``<N>_images`` if it holds just one of them.

    Raises:
        BenchmarkError: there is no such file, or there are several sizes, whose numbers would clash.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        sizes = sorted(path for path in folder.glob("*_images") if path.is_dir())
        if len(sizes) != 1:
            raise BenchmarkError(
                f"{folder} holds no <number>.json and {len(sizes)} folders <N>_images; name the folder of one size"
            )
        files = sorted(sizes[0].glob("*.json"))
    predictions: list[Prediction] = []
    problems: list[str] = []
    for file in files:
        sample_id = f"{int(file.stem):03d}" if file.stem.isdecimal() else file.stem
        try:
            found = _predictions_of(read_json(file), sample_id)
        except BenchmarkError as error:
            problems.append(str(error))
            continue
        if found:
            predictions.extend(found)
        else:
            problems.append(f"{file}: no result.response and no list response")
    return PredictionFile(predictions=tuple(predictions), problems=tuple(problems))


def _size_folder(one: Answered) -> str:
    num_images = len(one.sample.images)
    return "oracle_images" if num_images == len(one.sample.positive_images) else f"{num_images}_images"


def _record(replies: Sequence[Answered], is_positional: bool) -> dict[str, object]:
    sample = replies[0].sample
    needles = set(sample.positive_images)
    record: dict[str, object] = {
        "conversations": [
            {"from": "human", "value": sample.question},
            {"from": "gpt", "value": sample.answers[0] if sample.answers else ""},
        ],
        "pos_image": [image.path for index, image in enumerate(sample.images) if index in needles],
        "neg_image": [image.path for index, image in enumerate(sample.images) if index not in needles],
    }
    if is_positional:
        return record | {
            "response": [one.text for one in replies],
            "needle_positions": [one.needle_position for one in replies],
        }
    one = replies[0]
    result: dict[str, object] = {
        "image_paths": [image.path for image in sample.images],
        "response": one.text,
        "log": None,
    }
    if one.retrieved:
        result |= {"retrieval_output": list(one.retrieved), "retrieval_ground_truth": list(one.relevant)}
    return record | {"result": result}


def _predictions_of(record: object, sample_id: str) -> list[Prediction]:
    if not isinstance(record, Mapping):
        return []
    texts = record.get("response")
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        positions = record.get("needle_positions")
        if not isinstance(positions, list) or len(positions) != len(texts):
            # The original does not say where the needle stood; it steps as needle_positions() does.
            num_images = len(record.get("pos_image", ())) + len(record.get("neg_image", ()))
            positions = list(needle_positions(num_images))[: len(texts)]
        return [
            Prediction(sample_id=sample_id, text=text, needle_position=position)
            for text, position in zip(texts, positions, strict=False)
        ]
    result = record.get("result")
    if not isinstance(result, Mapping) or not isinstance(result.get("response"), str):
        return []
    return [
        Prediction(
            sample_id=sample_id,
            text=result["response"],
            retrieved=_flags(result.get("retrieval_output")),
            relevant=_flags(result.get("retrieval_ground_truth")),
        )
    ]


def _flags(value: object) -> tuple[int, ...]:
    return tuple(int(flag) for flag in value) if isinstance(value, list) else ()
