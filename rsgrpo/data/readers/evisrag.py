"""EVisRAG-Train and -Test records as samples."""

from __future__ import annotations

import json
import math
import posixpath
import reprlib
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsgrpo.config import EVISRAG, DataConfig, ResponseFormat
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.gold_columns import GoldColumnError, take_boxes, take_choices
from rsgrpo.data.images.loading import image_size
from rsgrpo.data.images.sources import ImageError
from rsgrpo.data.media_store import MediaStore
from rsgrpo.data.readers.fields import id_field, media_list, written_list
from rsgrpo.data.readers.findings import BadRecordError, Remark
from rsgrpo.data.readers.formats import likely_format
from rsgrpo.data.readers.media import MediaFinder
from rsgrpo.data.readers.options import Convert, ReaderOptions
from rsgrpo.errors import shown
from rsgrpo.text.normalise import is_refusal
from rsgrpo.text.sections import ParsedResponse, parse_response
from rsgrpo.types import IMAGE_MARKER, NUMERIC_ID, Sample

_SUFFICIENT_COLUMN = "is_sufficient"
_POSITIVE_COLUMN = "posImgs"
_NUMBERS_COLUMN = "page_numbers"


def evisrag(file: Path, options: ReaderOptions) -> Convert:
    """EVisRAG (``rsgrpo.data.evisrag_files``); too many images are a defect in training, else cut."""
    root = Path(options.media_root) if options.media_root else file.parent
    media = MediaFinder((root, file.parent), must_exist=options.check_media, store=MediaStore(options.media_cache))
    columns = options.columns
    if options.box_coordinates:
        columns = replace(columns, box_coordinates=options.box_coordinates)

    def convert(index: int, record: dict[str, Any], remark: Remark) -> Sample:
        default_id = f"{file.stem}-{index + 1 if file.suffix == '.jsonl' else index}"
        sample = evisrag_sample(record, default_id, columns, media, is_training=options.is_training)
        # Where the pages do not hold the answer, the gold page was not retrieved: that is what the record says.
        if record.get(_POSITIVE_COLUMN) and sample.is_sufficient and not sample.positive_images:
            remark(
                "gold page not shown", f"{_POSITIVE_COLUMN} {record[_POSITIVE_COLUMN]!r:.80} names none of the images"
            )
        return sample

    return convert


def evisrag_sample(
    record: dict[str, Any],
    default_id: str,
    data: DataConfig,
    media: MediaFinder,
    *,
    is_training: bool,
    response_format: ResponseFormat = EVISRAG,
) -> Sample:
    """One record of EVisRAG-Train or -Test.

    Args:
        record: the columns of the record.
        default_id: the id of the sample if the record has none of its own.
        data: the settings: column names and limits.
        media: the finder that looks for the images.
        is_training: whether too many images are a defect; else the lowest ranked are left out.
        response_format: the declared sections; a text in the answer's column that is tagged with them is gold.

    Raises:
        BadRecordError: a column is missing or of the wrong type, or markers and images do not match.
    """
    columns = dict(record)
    sample_id = id_field(columns, data.id_column, default_id)
    is_numeric = isinstance(columns.pop(data.id_column, None), int | float)
    question = _text(columns, data.question_column)
    prompt = _text(columns, data.prompt_column)
    if not question and not prompt:
        found = f"it has neither {data.question_column!r} nor {data.prompt_column!r}"
        advice = likely_format(record, "evisrag") or "; set data.question_column or data.prompt_column"
        raise BadRecordError("missing column", f"{found} (it has {shown(', '.join(map(str, record)), 120)}){advice}")
    values = _images(columns, data)
    if not values:
        raise BadRecordError("image", "it has no images")
    num_markers = prompt.count(IMAGE_MARKER)
    if prompt and num_markers != len(values):
        raise BadRecordError(
            "markers",
            f"its prompt has {num_markers} {IMAGE_MARKER} markers, but it lists {len(values)} images; each needs one",
        )
    if len(values) > data.max_images and is_training:
        too_many = f"it has {len(values)} images, more than data.max_images={data.max_images}"
        raise BadRecordError("too many images", too_many)
    numbers = _page_numbers(columns.pop(_NUMBERS_COLUMN, None), len(values))[: data.max_images]
    if len(values) > data.max_images:
        values, prompt = values[: data.max_images], _with_markers(prompt, data.max_images)
    _refuse_other_media(columns, question, prompt)
    images = media.find_all(values, shown(sample_id, 60))
    paths = [value if isinstance(value, str) else ref.path for value, ref in zip(values, images, strict=True)]
    if not (prompt.replace(IMAGE_MARKER, "") if prompt else question).strip():
        name = data.prompt_column if prompt else data.question_column
        raise BadRecordError(
            "no question", f"its {name!r} is blank: nothing is asked; write the question, or leave it out"
        )
    answers, gold = _answers(columns, data, response_format)
    positive = _gold_images(columns.pop(_POSITIVE_COLUMN, None), paths)
    try:
        choices = take_choices(columns)
        rules = ImageRules(max_megapixels=math.inf)  # a size takes no memory
        boxes = take_boxes(columns, paths, data.box_coordinates, lambda index: image_size(images[index], rules))
    except GoldColumnError as error:
        raise BadRecordError("gold", str(error)) from error
    except ImageError as error:
        raise BadRecordError("image", str(error)) from error
    return Sample(
        sample_id=sample_id,
        question=question,
        prompt=prompt,
        images=images,
        answers=answers,
        gold_response=gold,
        is_sufficient=_is_sufficient(columns, answers if gold else ()),
        positive_images=positive,
        choices=choices,
        boxes=boxes,
        metadata=_metadata(columns) | ({NUMERIC_ID: "true"} if is_numeric else {}),
        page_numbers=numbers,
    )


def _metadata(columns: dict[str, Any]) -> dict[str, str]:
    """The columns that are left over, as text."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in columns.items()
    }


def _page_numbers(value: object, num_images: int) -> tuple[int, ...]:
    """The numbers that texts call the record's images by, where it says so: as many different ones as it has images."""
    if value is None:
        return ()
    numbers = written_list(value)
    if (
        not isinstance(numbers, list)
        or not all(type(number) is int and number >= 1 for number in numbers)
        or len(set(numbers)) < len(numbers)
        or len(numbers) not in (0, num_images)
    ):
        raise BadRecordError(
            "page numbers",
            f"{_NUMBERS_COLUMN} must be {num_images} different whole numbers from 1 on, one for each image, got "
            f"{value!r:.80}",
        )
    return tuple(numbers)


def _with_markers(prompt: str, count: int) -> str:
    """A ready prompt with its first markers only."""
    pieces = prompt.split(IMAGE_MARKER)
    return IMAGE_MARKER.join(pieces[: count + 1]) + "".join(pieces[count + 1 :])


def _images(columns: dict[str, Any], data: DataConfig) -> list[object]:
    """The entries of the record's column of images, which holds one image or several."""
    name = data.image_column
    if name not in columns:
        likely = next((other for other in (f"{name}s", name.removesuffix("s")) if other in columns), "")
        raise BadRecordError(
            "missing column",
            f"it has no {name!r} (it has {shown(', '.join(columns))}); set data.image_column"
            + (likely and f"={likely}"),
        )
    value = columns.pop(name)
    values = media_list(value)
    if any(isinstance(entry, bool | int | float | list) for entry in values):
        raise BadRecordError(
            "wrong type",
            f"{name} must be a list of texts (or of bytes), got {type(value).__name__} {_values.repr(value)}",
        )
    return values


_values = reprlib.Repr()


def _refuse_other_media(columns: dict[str, Any], question: str, prompt: str) -> None:
    """Refuse a question about a video or a sound, which would be asked without it."""
    for name in ("video", "audio"):
        if columns.get(f"{name}s") or f"<{name}>" in prompt or f"<{name}>" in question:
            raise BadRecordError(
                name,
                f"it asks about {name} (column {name + 's'!r} or marker <{name}>); questions have images only: "
                + ("list frames of it as images" if name == "video" else "leave it out"),
            )


def _answers(columns: dict[str, Any], data: DataConfig, response_format: ResponseFormat) -> tuple[tuple[str, ...], str]:
    """Accepted answers and the tagged gold response; a tagged text in the answer's column is both."""
    gold = _text(columns, data.gold_column)
    if isinstance(columns.get(data.answer_column), str):
        text = _text(columns, data.answer_column)
        parsed = parse_response(text, response_format)
        answer = parsed.content(response_format.answer_section)
        if not gold and (answer is not None or _is_tagged(parsed)):
            return (() if answer is None else (answer.strip(),)), text
        return (text,), gold
    return tuple(_texts(columns, data.answer_column, "data.answer_column")), gold


def _is_tagged(parsed: ParsedResponse) -> bool:
    """Whether a text has the section with a line per image, or every section that a response must have."""
    lines, required = parsed.format.lines_section, parsed.format.required
    has_lines = bool(lines) and parsed.section(lines) is not None
    return has_lines or (bool(required) and all(parsed.section(name) is not None for name in required))


def _gold_images(value: object, paths: Sequence[object]) -> tuple[int, ...]:
    """The 0-based indexes of the pages that ``posImgs`` names: a list of paths, or one; others were not retrieved."""
    if value is None:
        return ()
    value = written_list(value)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadRecordError(
            "wrong type", f"{_POSITIVE_COLUMN} must be a list of paths, got {type(value).__name__} {value!r:.80}"
        )
    wanted = {_plain_path(name) for name in names}
    return tuple(index for index, path in enumerate(paths) if isinstance(path, str) and _plain_path(path) in wanted)


def _plain_path(path: str) -> str:
    """A path as it is compared: ``./imgs/12.png`` and ``imgs//12.png`` are ``imgs/12.png``.

    Only in the way of writing: ``12.png`` and ``s/12.png`` stay two pages.
    """
    return posixpath.normpath(unicodedata.normalize("NFC", path.strip().replace("\\", "/")))


def _is_sufficient(columns: dict[str, Any], gold_answers: tuple[str, ...]) -> bool:
    """Whether the pages hold the answer, as the data set says; where it does not say, whether its gold refuses."""
    value = columns.pop(_SUFFICIENT_COLUMN, None)
    if value is None:
        return not any(is_refusal(answer) for answer in gold_answers)
    if not isinstance(value, bool):
        raise BadRecordError("wrong type", f"{_SUFFICIENT_COLUMN} must be true or false, got {value!r}")
    return value


def _text(columns: dict[str, Any], name: str) -> str:
    value = columns.pop(name, None)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecordError("wrong type", f"{name} must be text, got {type(value).__name__} {value!r:.80}")
    return value


def _texts(columns: dict[str, Any], name: str, key: str) -> list[str]:
    if name not in columns:
        raise BadRecordError("missing column", f"it has no {name!r} (it has {', '.join(columns)}); set {key}")
    value = columns.pop(name)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise BadRecordError("wrong type", f"{name} must be a list of texts, got {type(value).__name__} {value!r:.80}")
    return values
