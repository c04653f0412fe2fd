"""Videos as images: which frames of a file are shown, decoded once and kept in the media store.

Which frames, for a rate of r frames a second: those that a player shows 0, 1/r, 2/r, … seconds behind the first
frame, as long as the video lasts. If these are more than ``max_frames`` or fewer than ``min_frames``, that many
instants are spread evenly between the first frame's and the last frame's. A frame that several of the instants
meet counts once, so that a slow video gives each of its frames.

Frames lie as a player shows them: turned by the display matrix that phones write, and with square pixels.
Codecs that keep colour as YUV (all that cameras use) lose more than a JPEG of quality 95 without chroma subsampling
does, which takes a fifth of a PNG's space; those that keep RGB or transparency (GIF, lossless screen recordings) are
kept exactly, as PNG.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from rsgrpo.data.media_store import MediaStore
from rsgrpo.errors import RsgrpoError, shown

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

_VERSION = 1  # of the choice of frames and their encoding: part of the store's key
_LENIENT_AV = 19
_JPEG_QUALITY = 95
_SEEK_SECONDS = 8.0  # instants further apart are sought: codecs have a whole picture every few seconds
_MISSING_FRAC, _MISSING_SECONDS = 0.05, 0.5  # of the declared length; headers are that imprecise
_INSTANT_TOLERANCE_FRAMES = 0.1  # times are rounded to the file's clock
_WIDEST_PIXEL = 4.0  # width of a pixel by its height; what lies beyond is a broken header
_GIF_END, _GIF_TAIL_BYTES = b";", 64  # some writers leave zeros behind the end mark

_YUV = ("yuv", "nv", "p0", "p2", "p4", "gray")  # how the names of pixel formats begin that keep no RGB
_MATRIX = struct.Struct("=9i")

_TURNS: dict[tuple[int, ...], Image.Transpose] = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""How a picture is turned for each display matrix (signs of a, b, c, d: x' = ax + cy, y' = bx + dy, y downwards)."""


class VideoError(RsgrpoError, ValueError):
    """A video cannot be read; the message is a phrase about it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameChoice:
    """Which frames of a video are shown.

    Attributes:
        frames_per_second: how many frames of each second are shown.
        min_frames: the fewest frames of a short video, as far as it has them.
        max_frames: the most frames of a long video; counts where it is lower than ``min_frames``.
    """

    frames_per_second: float = 2.0
    min_frames: int = 4
    max_frames: int = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFrame:
    """One frame of a video.

    Attributes:
        file: the absolute path of the image in the media store.
        seconds: how many seconds the frame comes after the video's first frame.
    """

    file: str
    seconds: float


def video_frames(file: str, choice: FrameChoice, store: MediaStore) -> tuple[StoredFrame, ...]:
    """The frames of a video file, in order; decoded if the store does not hold them yet.

    Args:
        file: the absolute path of the video.
        choice: the rule that says which frames are taken.
        store: where they are kept. A file whose size or time changed is decoded anew.

    Raises:
        VideoError: the file is empty, broken off, no video, has no picture, or a codec that is not known.
        MediaStoreError: the store cannot be written.
    """
    try:
        state = Path(file).stat()
    except OSError as error:
        raise VideoError(f"cannot be read: {error.strerror}; make it readable") from error
    if not state.st_size:
        raise VideoError("is empty (0 bytes); copy it again")
    key = f"video {_VERSION} {choice} {state.st_size} {state.st_mtime_ns} {file}"
    known = _known_frames(store.note(key))
    if known:
        return known
    frames = tuple(_decoded_frames(file, choice, store))
    store.keep_note(key, [[frame.file, frame.seconds] for frame in frames])
    return frames


def _known_frames(note: Any) -> tuple[StoredFrame, ...]:
    """The frames that were stored before; none if any of their files is gone."""
    if not isinstance(note, list):
        return ()
    frames = tuple(StoredFrame(file=frame, seconds=seconds) for frame, seconds in note)
    return frames if all(Path(frame.file).is_file() for frame in frames) else ()


def _decoded_frames(file: str, choice: FrameChoice, store: MediaStore) -> Iterator[StoredFrame]:
    import av  # here, because data sets of images never need it

    # A stream, not a name: a playlist or a name like "concat:…" must not make the library open anything else.
    with _readable(file) as stream:
        try:
            extent = _extent(stream)
            instants = _instants(extent, choice)
            for frame, seconds, pixel_width in _shown_frames(stream, instants, extent.is_timed):
                data, suffix = _encoded(frame, pixel_width)
                yield StoredFrame(file=store.keep(data, suffix), seconds=round(seconds, 6))
        except (av.error.FFmpegError, av.codec.codec.UnknownCodecError, OSError, EOFError) as error:
            words = getattr(error, "strerror", None) or str(error)
            raise VideoError(
                f"cannot be decoded ({shown(words, 80)}): it is damaged, broken off or no video"
            ) from error


def _readable(file: str) -> BinaryIO:
    try:
        return Path(file).open("rb")
    except OSError as error:
        raise VideoError(f"cannot be read: {error.strerror}; make it readable") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Extent:
    """When first and last frame begin, when the last one ends (seconds of the file's clock), and how many there are.

    ``is_timed`` says whether frames have times; else they are numbered and come at an even rate.
    """

    first: float
    last: float
    end: float
    num_frames: int
    is_timed: bool


def _open(stream: Any) -> tuple[InputContainer, VideoStream]:
    import av
    from av.stream import Disposition

    stream.seek(0)
    # Titles that are no UTF-8: version 19 replaces what it cannot read, earlier ones have to be told.
    lenient: dict[str, Any] = (
        {} if int(av.__version__.partition(".")[0]) >= _LENIENT_AV else {"metadata_errors": "replace"}
    )
    container = av.open(stream, mode="r", **lenient)
    pictures = [track for track in container.streams.video if not track.disposition & Disposition.attached_pic]
    if not pictures:
        kinds = ", ".join(sorted({str(track.type) for track in container.streams})) or "none"
        container.close()
        raise VideoError(f"has no video stream (its streams: {kinds})")
    if pictures[0].codec_context is None:
        container.close()
        raise VideoError("has a codec that is not known, or a damaged header; convert it to H.264, or copy it again")
    pictures[0].thread_type = "AUTO"
    # Else damage is painted over, with what stood there before or grey, and nobody hears of it.
    pictures[0].codec_context.options = {"err_detect": "explode"}
    return container, pictures[0]


def _extent(stream: Any) -> _Extent:
    """How far a video reaches, from its packets alone; compared with what its header says."""
    container, picture = _open(stream)
    with container:
        spans: list[tuple[float, float]] = []  # start and duration of each picture
        end_of_all = 0.0
        # AVI does not say when a frame is shown, only in which order frames are decoded.
        is_timed = not (container.format.name == "avi" and picture.codec_context.has_b_frames)
        for packet in container.demux():
            if not packet.size or packet.is_discard or packet.time_base is None:
                continue
            time = packet.pts if packet.pts is not None else packet.dts
            start, duration = float((time or 0) * packet.time_base), float((packet.duration or 0) * packet.time_base)
            end_of_all = max(end_of_all, start + duration)
            if packet.stream_index == picture.index:
                is_timed = is_timed and packet.pts is not None
                spans.append((start, duration))
        if not spans:
            raise VideoError("holds no frames: it is broken off or empty")
        if is_timed:
            _check_length(container, end_of_all)
        _check_whole(stream, container.format.name, picture.frames, len(spans))
        rate = _rate(picture)
        if not is_timed:
            spans = [(number / rate, 1 / rate) for number in range(len(spans))]
        spans.sort()
        last, duration = spans[-1]
        if not duration:  # as long as the one before: some formats do not say it
            duration = last - spans[-2][0] if len(spans) > 1 else 1 / rate
        return _Extent(first=spans[0][0], last=last, end=last + duration, num_frames=len(spans), is_timed=is_timed)


def _rate(picture: VideoStream) -> float:
    """How many frames there are in a second, where the times of the frames do not say it."""
    return float(picture.average_rate or picture.guessed_rate or 25)


def _check_length(container: InputContainer, end: float) -> None:
    """Refuse a file that ends long before its header says it does."""
    declared = (container.duration or 0) / 1e6
    # Some formats declare how long it lasts, others when it ends.
    reached = max(end, end - (container.start_time or 0) / 1e6)
    tolerance = max(_MISSING_SECONDS, _MISSING_FRAC * declared)
    if declared - reached > tolerance:
        raise VideoError(f"breaks off after {max(0.0, reached):.1f} of {declared:.1f} s; copy it again")


def _check_whole(stream: Any, format_name: str, num_declared: int, num_frames: int) -> None:
    """Refuse a file with fewer frames than its header says, or without the mark at its end."""
    if num_frames < (1 - _MISSING_FRAC) * num_declared - 1:
        raise VideoError(f"breaks off after {num_frames} of {num_declared} frames; copy it again")
    if format_name == "gif":
        stream.seek(max(0, stream.seek(0, io.SEEK_END) - _GIF_TAIL_BYTES))
        if not stream.read().rstrip(b"\0").endswith(_GIF_END):
            raise VideoError("breaks off: the end mark of a GIF is missing; copy it again")


def _instants(extent: _Extent, choice: FrameChoice) -> list[float]:
    """The instants at which frames are shown, in seconds of the file's clock; see the module's docstring."""
    seconds = extent.end - extent.first
    # A tenth of a frame of tolerance: 3.0 s may be written as 2.9997 or 3.0003.
    num_regular = max(1, int(seconds * choice.frames_per_second - 0.1) + 1)
    most = max(1, choice.max_frames)
    fewest = min(choice.min_frames, most, extent.num_frames)
    count = min(max(num_regular, fewest), most)
    if count == num_regular:
        return [extent.first + number / choice.frames_per_second for number in range(count)]
    step = (extent.last - extent.first) / max(1, count - 1)
    return [extent.first + number * step for number in range(count)]


def _shown_frames(stream: Any, instants: list[float], is_timed: bool) -> Iterator[tuple[VideoFrame, float, float]]:
    """The frame on display at each instant, each once; its seconds behind the first instant; its pixels' width."""
    container, picture = _open(stream)
    tolerance = _INSTANT_TOLERANCE_FRAMES / _rate(picture)
    pixel_width = float(picture.sample_aspect_ratio or 1)
    previous = None
    with container:
        chosen: Iterable[tuple[VideoFrame, float]] | None = None
        if is_timed and len(instants) > 1 and instants[1] - instants[0] > _SEEK_SECONDS:
            chosen = _sought(container, picture, instants, tolerance)
            if chosen is None:
                container.seek(0)
        if chosen is None:
            chosen = _passed(_timed(container, picture, is_timed), instants, tolerance)
        for frame, time in chosen:
            if previous is None or time > previous:
                if frame.is_corrupt:
                    raise VideoError(f"is damaged at {time - instants[0]:.1f} s; copy it again")
                yield frame, max(0.0, time - instants[0]), pixel_width
                previous = time


def _timed(container: InputContainer, picture: VideoStream, is_timed: bool) -> Iterator[tuple[VideoFrame, float]]:
    """All frames with their times; by their number where the file does not say."""
    rate = _rate(picture)
    for number, frame in enumerate(container.decode(picture)):
        yield frame, frame.time if is_timed and frame.pts is not None else number / rate


def _passed(
    frames: Iterator[tuple[VideoFrame, float]], instants: list[float], tolerance: float
) -> Iterator[tuple[VideoFrame, float]]:
    """The last frame that began by each instant, of frames in order."""
    waiting = list(reversed(instants))
    held = None
    for frame, time in frames:
        while waiting and held is not None and time > waiting[-1] + tolerance:
            yield held
            waiting.pop()
        if not waiting:
            return
        held = frame, time
    if held is None:
        raise VideoError("holds no frame that can be decoded: it is damaged or broken off")
    yield held


def _sought(
    container: InputContainer, picture: VideoStream, instants: list[float], tolerance: float
) -> list[tuple[VideoFrame, float]] | None:
    """The frames of :func:`_passed`, found by jumping to each instant; None where the file cannot be sought exactly."""
    chosen = []
    for instant in instants:
        container.seek(int(instant / float(picture.time_base or 1)), stream=picture, backward=True)
        found = None
        for frame in container.decode(picture):
            if frame.pts is None:
                return None
            if frame.time > instant + tolerance:
                break
            found = frame, frame.time
        if found is None:
            return None
        chosen.append(found)
    return chosen


def _encoded(frame: VideoFrame, pixel_width: float) -> tuple[bytes, str]:
    """A frame as the bytes of an image file, turned as a player shows it, and the file's suffix."""
    has_alpha = any(component.is_alpha for component in frame.format.components)
    image = Image.fromarray(frame.to_ndarray(format="rgba" if has_alpha else "rgb24"))
    if pixel_width != 1 and 1 / _WIDEST_PIXEL <= pixel_width <= _WIDEST_PIXEL:
        image = image.resize((max(1, round(image.width * pixel_width)), image.height), Image.Resampling.BICUBIC)
    turn = _turn(frame)
    if turn is not None:
        image = image.transpose(turn)
    buffer = io.BytesIO()
    if frame.format.name.startswith(_YUV) and not has_alpha:
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return buffer.getvalue(), ".jpg"
    image.save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def _turn(frame: VideoFrame) -> Image.Transpose | None:
    """How the frame's display matrix turns it; None for not at all, and for what is no quarter turn or flip."""
    from av.sidedata.sidedata import Type

    extras: Any = frame.side_data
    found = extras.get(Type.DISPLAYMATRIX)
    matrix = b"" if found is None else bytes(found)
    if len(matrix) != _MATRIX.size:
        return None
    a, b, _, c, d, *_ = _MATRIX.unpack(matrix)
    signs = tuple((number > 0) - (number < 0) for number in (a, b, c, d))
    return _TURNS.get(signs)
