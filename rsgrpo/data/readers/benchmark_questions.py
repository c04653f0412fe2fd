"""MileBench, Visual Haystacks and MIG-Bench: records of the benchmarks as samples, nothing that a scorer needs lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsgrpo.data.files import DataError
from rsgrpo.data.media_store import MediaStore
from rsgrpo.data.readers.fields import (
    id_field,
    needed_media_field,
    text_field,
    text_or_number_field,
    texts_field,
    whole_field,
)
from rsgrpo.data.readers.findings import BadRecordError, Remark
from rsgrpo.data.readers.media import MediaFinder
from rsgrpo.data.readers.options import Convert, ReaderOptions
from rsgrpo.data.readers.records import object_member
from rsgrpo.errors import shown
from rsgrpo.types import Box, Sample

_QUESTION_TYPES = ("open-ended", "multi-choice")
_BOX_NUMBERS = 4
_FAR_AWAY = 1e300  # no place in an image, and a whole number of more digits is no float


def milebench(file: Path, options: ReaderOptions) -> Convert:
    """MileBench: ``{"meta_data": …, "data": [{sample_id, task_instance: {context, images_path, …}, response}]}``.

    ``question`` is the context as written, with its ``{image#1}`` placeholders; ``answers`` holds the response;
    ``metadata`` holds ``dataset`` (the folder's name), ``task_instruction`` (the text), ``task_instruction_id``,
    ``question_type``, ``image_quantity_level`` (as stored), ``num_images`` (of ``images_path``, which the image
    level goes by) and ``images_path`` (JSON list). With ``combined_images=N`` the images are those of
    ``combined_N_images``, else of ``images_path``; both relative to their folder beside the file.
    """
    meta = _meta_data(file)
    instructions, question_type = meta["task_instruction"], meta["question_type"]
    dataset = file.parent.name
    combined = f"combined_{options.combined_images}_images" if options.combined_images else ""
    root = Path(options.media_root) if options.media_root else file.parent / (combined or "images")
    media = MediaFinder((root,), must_exist=options.check_media, store=MediaStore(options.media_cache))

    def convert(index: int, record: dict[str, Any], remark: Remark) -> Sample:
        instance = record.get("task_instance")
        if not isinstance(instance, dict):
            raise BadRecordError("wrong type", f"task_instance must be an object, got {instance!r:.80}")
        paths = needed_media_field(instance, "images_path")
        instruction = whole_field(record, "task_instruction_id")
        if not 0 <= instruction < len(instructions):
            raise BadRecordError(
                "unknown id", f"task_instruction_id={instruction}, but meta_data has {len(instructions)} instructions"
            )
        question, answer = text_field(instance, "context"), text_or_number_field(record, "response")
        choices = tuple(texts_field(instance, "choice_list")) if instance.get("choice_list") is not None else ()
        if question_type == "multi-choice" and answer not in choices:
            remark("gold is no option", f"the response {answer!r:.60} is none of the {len(choices)} options")
        return Sample(
            sample_id=id_field(record, "sample_id", str(index)),
            question=question,
            images=media.find_all(needed_media_field(instance, combined) if combined else paths, f"record {index}"),
            answers=(answer,),
            choices=choices,
            task=f"milebench/{dataset}",
            metadata={
                "dataset": dataset,
                "task_instruction": instructions[instruction],
                "task_instruction_id": str(instruction),
                "question_type": question_type,
                "image_quantity_level": str(record.get("image_quantity_level", "")),
                "num_images": str(len(paths)),
                "images_path": json.dumps([shown(path) for path in paths], ensure_ascii=False),
            },
        )

    return convert


def _meta_data(file: Path) -> Mapping[str, Any]:
    """The header of a MileBench file, which may also stand behind the data."""
    meta = object_member(file, "meta_data")
    if not isinstance(meta, dict):
        raise DataError(f"{file} has no object meta_data; expected MileBench's {{'meta_data': …, 'data': […]}}")
    instructions, question_type = meta.get("task_instruction"), meta.get("question_type")
    if not isinstance(instructions, list) or not all(isinstance(instruction, str) for instruction in instructions):
        raise DataError(f"{file}: meta_data.task_instruction must be a list of texts, got {instructions!r:.80}")
    if question_type not in _QUESTION_TYPES:
        raise DataError(
            f"{file}: meta_data.question_type={question_type!r} is not known; expected {' or '.join(_QUESTION_TYPES)}"
        )
    return meta


def visual_haystacks(file: Path, options: ReaderOptions) -> Convert:
    """Visual Haystacks: ``{"conversations": […], "pos_image": […], "neg_image": […]}``, one question per record.

    ``sample_id`` is the record's number as the originals name their output, ``007``; ``images`` are the needles,
    then the distractors; ``positive_images`` counts the needles; ``answers`` holds the gold as written;
    ``metadata.file`` is the file's stem.
    """
    root = Path(options.media_root) if options.media_root else file.parent
    media = MediaFinder((root,), must_exist=options.check_media, store=MediaStore(options.media_cache))

    def convert(index: int, record: dict[str, Any], remark: Remark) -> Sample:
        turns = record.get("conversations")
        if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns):
            raise BadRecordError("wrong type", f"conversations must hold question and answer, got {turns!r:.80}")
        answer = text_field(turns[1], "value")
        if answer not in ("yes", "no"):
            remark("gold is not yes or no", f"the answer is {answer!r:.40}: the official scorer counts it as missed")
        needles = needed_media_field(record, "pos_image")
        if not needles:
            raise BadRecordError("no needle", "pos_image is empty; the answer lies in none of the images")
        return Sample(
            sample_id=f"{index:03d}",
            question=text_field(turns[0], "value"),
            images=media.find_all((*needles, *needed_media_field(record, "neg_image")), f"record {index}"),
            answers=(answer,),
            positive_images=tuple(range(len(needles))),
            task="vhs",
            metadata={"file": file.stem},
        )

    return convert


def mig_bench(file: Path, options: ReaderOptions) -> Convert:
    """MIG-Bench: ``{"task", "images", "question", "answer": [x1, y1, x2, y2], "additional_info", "need_format"}``.

    ``sample_id`` is the record's number; ``boxes`` holds the gold as written, also where it is inverted or
    reaches beyond the image (the public file has seven such, which count in the official scores: kept, with a
    remark); ``metadata`` holds ``additional_info`` and ``need_format`` (``true`` or ``false``).
    """
    roots = (Path(options.media_root),) if options.media_root else (file.parent, file.parent.parent)
    media = MediaFinder(roots, must_exist=options.check_media, store=MediaStore(options.media_cache))

    def convert(index: int, record: dict[str, Any], remark: Remark) -> Sample:
        answer = record.get("answer")
        if (
            not isinstance(answer, list)
            or len(answer) != _BOX_NUMBERS
            or not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in answer)
            or not all(abs(number) < _FAR_AWAY for number in answer)  # NaN is not
        ):
            raise BadRecordError("wrong type", f"answer must be four finite numbers, got {answer!r:.80}")
        left, top, right, bottom = map(float, answer)
        if right <= left or bottom <= top:
            remark("box inverted", f"{answer} has no area: its IoU is 0 for every prediction")
        if min(answer) < 0 or max(answer) > 1:
            remark("box out of range", f"{answer} reaches beyond 0 to 1")
        images = needed_media_field(record, "images")
        if not images:
            raise BadRecordError("no images", "images is empty")
        return Sample(
            sample_id=str(index),
            question=text_field(record, "question"),
            images=media.find_all(images, f"record {index}"),
            boxes=(Box(left=left, top=top, right=right, bottom=bottom),),
            task=f"mig_bench/{text_field(record, 'task')}",
            metadata={
                "additional_info": str(record.get("additional_info", "")),
                "need_format": "true" if record.get("need_format") else "false",
            },
        )

    return convert
