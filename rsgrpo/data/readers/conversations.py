"""Conversations with images: LLaVA / MAmmoTH-VL, LLaMA-Factory ShareGPT, MIRAGE and MGrounding-630k."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsgrpo.data.media_store import MediaStore
from rsgrpo.data.readers.chat import chat
from rsgrpo.data.readers.fields import id_field, media_field
from rsgrpo.data.readers.findings import BadRecordError, Remark
from rsgrpo.data.readers.media import MediaFinder
from rsgrpo.data.readers.options import Convert, ReaderOptions
from rsgrpo.data.readers.videos import refuse_sound, shown_media
from rsgrpo.errors import shown as shortened
from rsgrpo.text.coordinates import PER_MILLE
from rsgrpo.types import IMAGE_MARKER, Box, ImageRef, Sample, Turn

_BOX = re.compile(r"<\|box_start\|>(.*?)<\|box_end\|>", re.DOTALL)
_PATH_IN_TEXT = re.compile(r"<img>[^<>\n]{1,500}</img>")
_CORNERS = re.compile(r"\((-?\d+),\s*(-?\d+)\),\s*\((-?\d+),\s*(-?\d+)\)")


def llava(file: Path, options: ReaderOptions) -> Convert:
    """LLaVA / MAmmoTH-VL: ``{"id", "image": str | list, "video": str, "conversations": [{"from", "value"}]}``.

    As LLaVA-NeXT does, a turn's only marker moves to its front, and a first turn that is not the user's goes.
    Images and videos: see ``rsgrpo.data.readers.videos``.
    """
    media = _media(file, options)

    def convert(index: int, record: Mapping[str, Any], remark: Remark) -> Sample:
        turns, record = chat(record, remark)
        for number, turn in enumerate(turns):
            text = turn.text
            if not text.startswith(IMAGE_MARKER) and text.count(IMAGE_MARKER) == 1:
                turns[number] = Turn(role=turn.role, text=f"{IMAGE_MARKER}\n{text.replace(IMAGE_MARKER, '').strip()}")
        shown = shown_media(record, f"record {index}", turns, media, options)
        return _sample(index, record, shown.turns, shown.images)

    return convert


def sharegpt(file: Path, options: ReaderOptions) -> Convert:
    """LLaMA-Factory: ``{"conversations" | "messages": […], "images": […], "videos": […], "system": str}``."""
    media = _media(file, options)

    def convert(index: int, record: Mapping[str, Any], remark: Remark) -> Sample:
        turns, record = chat(record, remark)
        system = record.get("system")
        if isinstance(system, str) and system and turns[0].role != "system":
            turns = [Turn(role="system", text=system), *turns]
        shown = shown_media(record, f"record {index}", turns, media, options)
        return _sample(index, record, shown.turns, shown.images)

    return convert


def mirage(file: Path, options: ReaderOptions) -> Convert:
    """MIRAGE: as LLaVA, and ``relevant_images``: 1 or 0 for each image.

    Markers that stand in the first question give way to one for each image in front of it. ``positive_images``
    holds the relevant ones, at least one; without labels all are.
    """
    media = _media(file, options)

    def convert(index: int, record: Mapping[str, Any], remark: Remark) -> Sample:
        turns, record = chat(record, remark)
        refuse_sound(record, turns)
        if media_field(record, "video", "videos"):
            raise BadRecordError("video", "it lists a video, which a record with relevance labels cannot have")
        images = media.find_all(media_field(record, "image", "images"), f"record {index}")
        relevant = record.get("relevant_images")
        relevant = [1] * len(images) if relevant is None else relevant
        if (
            not isinstance(relevant, list)
            or len(relevant) != len(images)
            or any(label not in (0, 1) for label in relevant)
        ):
            raise BadRecordError(
                "relevance", f"relevant_images must be 0 or 1 for each of {len(images)} images, got {relevant!r:.80}"
            )
        if images and not any(relevant):
            raise BadRecordError("relevance", f"relevant_images calls none of its {len(images)} images relevant")
        turns = images_in_front(turns, len(images))
        positive = tuple(number for number, label in enumerate(relevant) if label)
        return _sample(index, record, turns, images, positive_images=positive)

    return convert


def mgrounding(file: Path, options: ReaderOptions) -> Convert:
    """MGrounding-630k: ``{"id", "images", "conversations", "type"}`` with Qwen box tokens, whole numbers 0 to 1000.

    Text stays as it is; ``boxes`` holds those of the answers as shares of width and height, in order.
    """
    roots = (Path(options.media_root),) if options.media_root else (file.parent, file.parent.parent)
    media = MediaFinder(roots, must_exist=options.check_media, store=MediaStore(options.media_cache))

    def convert(index: int, record: Mapping[str, Any], remark: Remark) -> Sample:
        turns, record = chat(record, remark)
        boxes = tuple(box for turn in turns for box in _boxes(turn.text) if turn.role == "assistant")
        shown = shown_media(record, f"record {index}", turns, media, options)
        return _sample(index, record, shown.turns, shown.images, boxes=boxes)

    return convert


def images_in_front(turns: Sequence[Turn], num_images: int) -> list[Turn]:
    """The conversation with the markers of its first question replaced by one per image in front of it.

    Args:
        turns: the turns of the conversation.
        num_images: how many images the conversation has.

    Example:
        The question ``What is <image> here?`` and 2 images give ``<image><image>\\nWhat is  here?``.
    """
    first = next(index for index, turn in enumerate(turns) if turn.role == "user")
    text = turns[first].text.replace(IMAGE_MARKER, "").strip()
    if num_images:
        text = f"{IMAGE_MARKER * num_images}\n{text}"
    return [*turns[:first], Turn(role="user", text=text), *turns[first + 1 :]]


def _media(file: Path, options: ReaderOptions) -> MediaFinder:
    root = Path(options.media_root) if options.media_root else file.parent
    return MediaFinder((root,), must_exist=options.check_media, store=MediaStore(options.media_cache))


def _boxes(text: str) -> list[Box]:
    """The boxes of a text in Qwen's notation."""
    if "<|box_start|>" not in text:
        return []
    contents = _BOX.findall(text)
    corners = [_CORNERS.findall(content) for content in contents]
    if len(contents) != text.count("<|box_start|>") or not all(corners):
        raise BadRecordError("box malformed", f"expected <|box_start|>(x1,y1),(x2,y2)<|box_end|> in {text!r:.120}")
    boxes = []
    for left, top, right, bottom in (tuple(map(int, box)) for found in corners for box in found):
        shown = f"({left},{top}),({right},{bottom})"
        if min(left, top, right, bottom) < 0 or max(left, top, right, bottom) > PER_MILLE:
            raise BadRecordError("box out of range", f"{shown} reaches beyond 0 to {PER_MILLE}")
        if right <= left or bottom <= top:
            raise BadRecordError("box inverted", f"{shown} has no area")
        boxes.append(
            Box(left=left / PER_MILLE, top=top / PER_MILLE, right=right / PER_MILLE, bottom=bottom / PER_MILLE)
        )
    return boxes


def _sample(
    index: int,
    record: Mapping[str, Any],
    turns: list[Turn],
    images: tuple[ImageRef, ...],
    *,
    positive_images: tuple[int, ...] = (),
    boxes: tuple[Box, ...] = (),
) -> Sample:
    num_markers = 0
    for turn in turns:
        text = turn.text
        if turn.role != "assistant":
            num_markers += text.count(IMAGE_MARKER)
            written = _PATH_IN_TEXT.search(text)
            if written is not None:
                raise BadRecordError(
                    "markers",
                    f"a question names an image in its text, {shortened(written[0], 80)!r}, as Qwen-VL does; "
                    f"write {IMAGE_MARKER} there and the path into 'images'",
                )
        elif not text or text.isspace():
            raise BadRecordError("empty answer", "an answer is empty; there is nothing to learn from it")
        elif IMAGE_MARKER in text:
            raise BadRecordError("markers", f"an answer holds {IMAGE_MARKER}; only questions show images")
    if num_markers != len(images):
        raise BadRecordError(
            "markers", f"its questions have {num_markers} {IMAGE_MARKER} markers, but it lists {len(images)} images"
        )
    kind = record.get("type")
    return Sample(
        sample_id=id_field(record, "id", str(index)),
        images=images,
        turns=tuple(turns),
        positive_images=positive_images,
        boxes=boxes,
        task=kind if isinstance(kind, str) else "",
    )
