"""Images and videos of a conversation: a video becomes the images that its frames are, in the order of the markers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rsgrpo.data.images.sources import ImageError, image_bytes
from rsgrpo.data.inline_media import media_suffix
from rsgrpo.data.readers.fields import media_field
from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.data.readers.media import PLACE_KEYS, MediaFinder
from rsgrpo.data.readers.options import ReaderOptions
from rsgrpo.data.video import FrameChoice, VideoError, video_frames
from rsgrpo.errors import shown
from rsgrpo.io.natural_order import natural_key
from rsgrpo.types import IMAGE_MARKER, ImageRef, Turn

VIDEO_MARKER = "<video>"
AUDIO_MARKER = "<audio>"
_FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif")
_IMAGE_KEYS, _VIDEO_KEYS, _AUDIO_KEYS = ("image", "images"), ("video", "videos"), ("audio", "audios")
_LONGEST_NAME = 200  # characters of what an image is called
_LONGEST_FOLDER = 4096  # characters of a path; text in base64 is longer


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownMedia:
    """What a conversation shows.

    Attributes:
        images: all images, frames included, in the order of the markers in ``turns``.
        turns: the conversation with an image marker for each.
    """

    images: tuple[ImageRef, ...]
    turns: list[Turn]


def shown_media(
    record: Mapping[str, Any], name: str, turns: Sequence[Turn], media: MediaFinder, options: ReaderOptions
) -> ShownMedia:
    """The images and videos of a record, and its conversation with an image marker for each image and each frame.

    Args:
        record: a record with ``image`` or ``images``, ``video`` or ``videos``; each one value or a list.
        name: the name of the record, for people.
        turns: the turns, with an ``<image>`` marker an image and a ``<video>`` marker a video; where there are videos
            but no images, ``<image>`` may stand for them.
        media: the finder that looks for images and videos.
        options: how many frames a video gives.

    Raises:
        BadRecordError: a file is missing, cannot be decoded, is sound, or markers and media do not match.

    Example:
        ``"<image>Was it <video>?"`` with a video of two frames becomes ``"<image>Was it <image><image>?"``.
    """
    refuse_sound(record, turns)
    images = media.find_all(media_field(record, *_IMAGE_KEYS), name)
    videos = media_field(record, *_VIDEO_KEYS)
    asked = [turn.text for turn in turns if turn.role != "assistant"]
    num_markers = sum(text.count(VIDEO_MARKER) for text in asked)
    if not videos:
        if num_markers:
            raise BadRecordError(
                "markers", f"its questions have {num_markers} {VIDEO_MARKER} markers, but it lists no videos"
            )
        return ShownMedia(images=images, turns=list(turns))
    marker = VIDEO_MARKER
    if not num_markers and not images:
        marker, num_markers = IMAGE_MARKER, sum(text.count(IMAGE_MARKER) for text in asked)
    if num_markers != len(videos):
        raise BadRecordError(
            "markers", f"it lists {len(videos)} videos, but its questions have {num_markers} {marker} markers for them"
        )
    if any(VIDEO_MARKER in turn.text for turn in turns if turn.role == "assistant"):
        raise BadRecordError("markers", f"an answer holds {VIDEO_MARKER}; only questions show videos")
    frames = [_frames(video, f"{name} video {n}", media, options) for n, video in enumerate(videos)]
    return _in_order(turns, images, frames, marker)


def refuse_sound(record: Mapping[str, Any], turns: Sequence[Turn]) -> None:
    """Refuse a record with audio.

    Raises:
        BadRecordError: the record lists audio, or a question has its marker.
    """
    if media_field(record, *_AUDIO_KEYS):
        raise BadRecordError("audio", "it lists audio, which the models here cannot hear; leave the record out")
    if any(AUDIO_MARKER in turn.text for turn in turns if turn.role != "assistant"):
        raise BadRecordError("audio", f"a question has an {AUDIO_MARKER} marker, but the models here cannot hear audio")


def _in_order(
    turns: Sequence[Turn], images: Sequence[ImageRef], frames: Sequence[tuple[ImageRef, ...]], video_marker: str
) -> ShownMedia:
    """Images and frames in the order of their markers; an image marker too many or too few shows later."""
    ordered: list[ImageRef] = []
    waiting_images, waiting_videos = list(reversed(images)), list(reversed(frames))
    shown_turns: list[Turn] = []
    for turn in turns:
        if turn.role == "assistant":
            shown_turns.append(turn)
            continue
        pieces: list[str] = []
        for number, text in enumerate(turn.text.split(video_marker)):
            if number:
                video = waiting_videos.pop()
                ordered += video
                pieces.append(IMAGE_MARKER * len(video))
            for _ in range(text.count(IMAGE_MARKER)):
                ordered += [waiting_images.pop()] if waiting_images else []
            pieces.append(text)
        shown_turns.append(Turn(role=turn.role, text="".join(pieces)))
    return ShownMedia(images=(*ordered, *reversed(waiting_images)), turns=shown_turns)


def _frames(video: object, label: str, media: MediaFinder, options: ReaderOptions) -> tuple[ImageRef, ...]:
    """The frames of a video that are shown, as images."""
    if isinstance(video, Mapping):  # such as {"type": "video", "video": …}
        video = next((video[key] for key in PLACE_KEYS if isinstance(video.get(key), str | list)), video)
    if isinstance(video, list):
        if not video:
            raise BadRecordError("video", f"{label} is an empty list of frames")
        return media.find_all(_spread(video, options.max_frames), label)
    if isinstance(video, str):
        written, folder = _frame_folder(video, media)
        if folder:
            return _taken_apart(written, folder, options)
    place = media.find_video(video, label)
    file, title = place.file, shown(place.path, _LONGEST_NAME - 30)
    try:
        if not file:
            data = image_bytes(place)
            file = media.store.keep(data, media_suffix(data))
        choice = FrameChoice(
            frames_per_second=options.frames_per_second, min_frames=options.min_frames, max_frames=options.max_frames
        )
        return tuple(
            ImageRef(path=f"{title} at {frame.seconds:.3f}".rstrip("0").rstrip(".") + " s", file=frame.file)
            for frame in video_frames(file, choice, media.store)
        )
    except VideoError as error:
        raise BadRecordError("video", f"video {title!r} {error}") from error
    except ImageError as error:
        raise BadRecordError("video", str(error)) from error
    except OSError as error:
        raise BadRecordError("video", f"video {title!r} cannot be read: {error.strerror}; make it readable") from error


def _frame_folder(video: str, media: MediaFinder) -> tuple[str, str]:
    """The folder that a video was taken apart into, as written and where it is; both empty if there is none.

    It lies under the video's path or, unless that is a file, under its path without suffix.
    """
    written = video.strip()
    if not written or len(written) > _LONGEST_FOLDER:
        return "", ""
    folder = media.folder(written)
    if folder or media.has_file(video):
        return written, folder
    stem = os.path.splitext(written)[0]  # noqa: PTH122 - may be a URL
    return stem, media.folder(stem)


def _taken_apart(written: str, folder: str, options: ReaderOptions) -> tuple[ImageRef, ...]:
    """The frames that lie in a folder, in natural order."""
    names = sorted(
        (
            file.name
            for file in Path(folder).iterdir()
            if file.suffix.lower() in _FRAME_SUFFIXES and not file.name.startswith(".")
        ),
        key=natural_key,
    )
    if not names:
        raise BadRecordError(
            "video", f"the folder {shown(written, 120)!r} holds no frames ({', '.join(_FRAME_SUFFIXES)})"
        )
    return tuple(
        ImageRef(path=shown(f"{written.rstrip('/')}/{name}"), file=f"{folder}/{name}")
        for name in _spread(names, options.max_frames)
    )


_One = TypeVar("_One")


def _spread(frames: Sequence[_One], max_frames: int) -> list[_One]:
    """All items, or as many as are allowed, evenly spread, first and last included."""
    count = min(len(frames), max_frames)
    return [frames[round(step * (len(frames) - 1) / max(1, count - 1))] for step in range(count)]
