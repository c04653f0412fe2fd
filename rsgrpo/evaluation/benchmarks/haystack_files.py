"""Visual Haystacks' output: one JSON file a question, named by its number in the data file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import Answered, BenchmarkError, Columns, PredictionFile
from rsgrpo.evaluation.benchmarks.prediction_files import RowReader
from rsgrpo.evaluation.benchmarks.prediction_text import read_json
from rsgrpo.io.atomic_files import write_json
from rsgrpo.io.ids import plain_id
from rsgrpo.io.natural_order import visible_files

_MOST_POSITIONS = 10
_LONGEST_NUMBER = 19  # digits; no data set has a record of such a number


def write_folder(answered: Sequence[Answered], folder: Path, *, is_positional: bool) -> Path:
    """Write ``<folder>/<N>_images/<id>.json``; a question's positional replies go into one file.

    Returns:
        The folder with the folders of all sizes; with one size only, the folder of that size.

    Raises:
        BenchmarkError: two questions of one size share an id.
    """
    records: dict[tuple[str, str], list[Answered]] = {}
    for answer in answered:
        records.setdefault((_size_folder(answer), answer.sample.sample_id), []).append(answer)
    for (size, sample_id), replies in records.items():
        if len(replies) > 1 and not is_positional:
            raise BenchmarkError(f"sample '{sample_id}' has {len(replies)} predictions; write one of them")
        ordered = sorted(replies, key=lambda reply: reply.needle_position)
        write_json(folder / size / f"{sample_id}.json", _record(ordered, is_positional), indent=2)
    sizes = {size for size, _ in records}
    return folder / sizes.pop() if len(sizes) == 1 else folder


def needle_positions(num_images: int) -> tuple[int, ...]:
    """Where the positional experiment puts the needle: every tenth of the heap.

    Example:
        20 images: 0, 2, …, 18; 25 images: 0, 2, …, 24, which are thirteen.
    """
    return tuple(range(0, num_images, max(num_images // _MOST_POSITIONS, 1)))


def record_id(name: str) -> str:
    """The id of a record's number as the original names its file; any other name stays.

    Example:
        ``record_id("7") == record_id("0007") == "007"``.
    """
    return f"{int(name):03d}" if name.isdecimal() and len(name) < _LONGEST_NUMBER else name


def read_folder(folder: Path) -> PredictionFile:
    """Every ``<number>.json`` of a folder, or of its ``<N>_images`` if it holds just one of them.

    Raises:
        BenchmarkError: there is no such file, or there are several sizes, whose numbers would clash.
    """
    files = visible_files(folder, "*.json")
    if not files:
        sizes = sorted(path for path in folder.glob("*_images") if path.is_dir())
        if len(sizes) != 1:
            raise BenchmarkError(
                f"{shown(folder)} holds no <number>.json and {len(sizes)} folders <N>_images; "
                "name the folder of one size"
            )
        folder = sizes[0]
        files = visible_files(folder, "*.json")
    reader = RowReader(folder, Columns())
    for file in files:
        try:
            _take(reader, file.name, record_id(plain_id(file.stem) or file.stem), read_json(file))
        except BenchmarkError as error:
            reader.add_problem(file.name, shown(error))
    return reader.file()


def _size_folder(answer: Answered) -> str:
    num_images = len(answer.sample.images)
    return "oracle_images" if num_images == len(answer.sample.positive_images) else f"{num_images}_images"


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
            "response": [reply.text for reply in replies],
            "needle_positions": [reply.needle_position for reply in replies],
        }
    reply = replies[0]
    result: dict[str, object] = {
        "image_paths": [image.path for image in sample.images],
        "response": reply.text,
        "log": None,
    }
    if reply.retrieved:
        result |= {"retrieval_output": list(reply.retrieved), "retrieval_ground_truth": list(reply.relevant)}
    return record | {"result": result}


def _take(reader: RowReader, place: str, sample_id: str, record: object) -> None:
    """Add a record's reply, or its replies by needle position."""
    if not isinstance(record, Mapping):
        reader.add_problem(place, f"got {'null' if record is None else type(record).__name__}, expected an object")
        return
    replies, result = record.get("response"), record.get("result")
    if isinstance(replies, list):
        positions = record.get("needle_positions")
        if not isinstance(positions, list) or len(positions) != len(replies):
            # The original does not say where the needle stood; it steps as needle_positions() does.
            shapes = [record.get(name) for name in ("pos_image", "neg_image")]
            num_images = sum(len(images) for images in shapes if isinstance(images, list))
            positions = list(needle_positions(num_images)) if num_images else []
        if len(positions) < len(replies):
            reader.add_problem(place, f"{len(replies)} replies for {len(positions)} needle positions")
            return
        for number, (reply, position) in enumerate(zip(replies, positions, strict=False)):
            reader.add(f"{place}, reply {number}", sample_id, reply, position=position)
    elif isinstance(result, Mapping) and "response" in result:
        reader.add(
            place,
            sample_id,
            result["response"],
            retrieved=result.get("retrieval_output"),
            relevant=result.get("retrieval_ground_truth"),
        )
    else:
        reader.add_problem(place, "no result.response and no list response")
