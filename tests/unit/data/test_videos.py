"""Videos become the images that a player shows at known seconds, in the order of their markers."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rsgrpo.config import DataConfig, SourceConfig, VideoConfig
from rsgrpo.data.images.sources import image_bytes
from rsgrpo.data.media_store import MediaStore
from rsgrpo.data.mixture import Mixture
from rsgrpo.data.readers import ReaderOptions, read_samples
from rsgrpo.data.readers.indexed import IndexedSamples
from rsgrpo.data.video import FrameChoice, VideoError, video_frames
from rsgrpo.types import ImageRef

CODECS = {".mp4": "libx264", ".avi": "mpeg4", ".mov": "mpeg4", ".mkv": "libx264", ".webm": "libvpx-vp9", ".gif": "gif"}
STEP = 8  # of grey from one frame to the next


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/rsgrpo/media"


def film(
    file: Path,
    *,
    num_frames: int = 30,
    rate: int = 10,
    times: Sequence[int] | None = None,
    rotation: int = 0,
    size: tuple[int, int] = (64, 48),
    start: int = 0,
    codec: str = "",
    is_live: bool = False,
    **options: str,
) -> Path:
    """A video whose frame n is grey of ``STEP * n % 256``, its upper left quarter white."""
    file.parent.mkdir(parents=True, exist_ok=True)
    codec = codec or CODECS[file.suffix]
    with av.open(str(file), "w", container_options={"live": "1"} if is_live else {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.bit_rate = 4_000_000
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            pixels = np.full((size[1], size[0], 3), STEP * number % 256, np.uint8)
            pixels[: size[1] // 2, : size[0] // 2] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = start + (number if times is None else times[number])
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def greys(frames: Sequence[Any]) -> list[int]:
    """Number of each frame, by its grey."""
    values = [Image.open(frame.file).convert("RGB").getpixel((-5 + 64, -5 + 48)) for frame in frames]
    return [round(value[0] / STEP) for value in values if isinstance(value, tuple)]


def read(file: Path, tmp_path: Path, **choice: Any) -> tuple[Any, ...]:
    return video_frames(str(file), FrameChoice(**choice), MediaStore(str(tmp_path / "store")))


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_is_shown_twice_a_second(tmp_path: Path, suffix: str):
    # 30 frames at 10 a second: the frames 0, 5, … 25 begin at 0, 0.5, … 2.5 s; 3.0 s is behind the end
    frames = read(film(tmp_path / f"v{suffix}"), tmp_path)
    assert [frame.seconds for frame in frames] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    if suffix != ".gif":  # its 256 colours are too few greys
        assert greys(frames) == [0, 5, 10, 15, 20, 25]


@pytest.mark.parametrize(
    ("choice", "numbers"),
    [
        ({"frames_per_second": 1.0, "min_frames": 1}, [0, 10, 20]),
        ({"frames_per_second": 5.0}, list(range(0, 30, 2))),
        ({"frames_per_second": 50.0, "max_frames": 1000}, list(range(30))),  # no frame twice
        # evenly from the first to the last frame: 2.9 s / 3 = 0.967 s, so that 0, 0.967, 1.933, 2.9 show 0, 9, 19, 29
        ({"max_frames": 4}, [0, 9, 19, 29]),
        ({"max_frames": 1}, [0]),
        ({"frames_per_second": 0.1, "min_frames": 4}, [0, 9, 19, 29]),
        ({"frames_per_second": 0.1, "min_frames": 100, "max_frames": 3}, [0, 14, 29]),
    ],
)
def test_rate_and_bounds(tmp_path: Path, choice: dict[str, Any], numbers: list[int]):
    assert greys(read(film(tmp_path / "v.mp4"), tmp_path, **choice)) == numbers


def test_a_single_frame_is_a_video(tmp_path: Path):
    assert greys(read(film(tmp_path / "v.mp4", num_frames=1), tmp_path)) == [0]


def test_a_variable_rate_goes_by_time(tmp_path: Path):
    # Frames 0 to 4 begin at 0, 0.1, 0.2, 2.0 and 2.1 s; a frame stays until the next one begins.
    file = film(tmp_path / "v.mkv", num_frames=5, times=[0, 1, 2, 20, 21], bf="0")
    frames = read(file, tmp_path, frames_per_second=1.0, min_frames=1)
    assert greys(frames) == [0, 2, 3]
    assert [frame.seconds for frame in frames] == pytest.approx([0.0, 0.2, 2.0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("live.webm", {"is_live": True}),  # no length in the header
        ("live.mkv", {"is_live": True}),
        ("b_frames.avi", {"codec": "libx264"}),  # frames without times
        ("divx.avi", {"codec": "mpeg4", "bf": "2"}),
    ],
)
def test_what_the_file_does_not_say_is_not_needed(tmp_path: Path, name: str, options: dict[str, Any]):
    assert greys(read(film(tmp_path / name, **options), tmp_path)) == [0, 5, 10, 15, 20, 25]


def test_a_clock_that_does_not_start_at_zero(tmp_path: Path):
    file = film(tmp_path / "v.mkv", start=500, bf="0")
    assert greys(read(file, tmp_path)) == [0, 5, 10, 15, 20, 25]


def test_seeking_in_a_long_video_finds_the_same_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = film(tmp_path / "v.mp4", num_frames=31, rate=1, g="7")
    monkeypatch.setattr("rsgrpo.data.video._SEEK_SECONDS", 1e9)
    passed = read(file, tmp_path, max_frames=6)
    monkeypatch.setattr("rsgrpo.data.video._SEEK_SECONDS", 0.0)
    sought = video_frames(str(file), FrameChoice(max_frames=6), MediaStore(str(tmp_path / "other")))
    assert greys(sought) == greys(passed) == [0, 6, 12, 18, 24, 30]


@pytest.mark.parametrize(("rotation", "corner"), [(90, (0, -1)), (180, (-1, -1)), (-90, (-1, 0))])
def test_a_phone_s_video_stands_upright(tmp_path: Path, rotation: int, corner: tuple[int, int]):
    # The white quarter of the stored picture is the upper left; FFmpeg's angle turns against the clock.
    (frame, *_) = read(film(tmp_path / "v.mp4", rotation=rotation), tmp_path)
    image = Image.open(frame.file).convert("L")
    assert image.size == ((48, 64) if rotation % 180 else (64, 48))
    pixels = np.asarray(image)
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    assert [at for at in corners if pixels[at[1], at[0]] > 200] == [corner]


def test_a_mirrored_video_is_mirrored_back(tmp_path: Path):
    data = bytearray(film(tmp_path / "v.mp4").read_bytes())
    matrix = data.find(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", -(1 << 16), 0, 0, 0, 1 << 16, 0, 64 << 16, 0, 1 << 30)
    (tmp_path / "m.mp4").write_bytes(data)
    (frame, *_) = read(tmp_path / "m.mp4", tmp_path)
    pixels = np.asarray(Image.open(frame.file).convert("L"))
    assert pixels[0, 63] > 200 > pixels[0, 0]


def sound(file: Path) -> Path:
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000)
        frame: Any = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.8])
def test_a_cut_video_is_named(tmp_path: Path, suffix: str, share: float):
    data = film(tmp_path / f"v{suffix}").read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoError, match=r"empty|broken off|breaks off|damaged"):
        read(cut, tmp_path)


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_hole_in_a_video_is_named(tmp_path: Path, suffix: str, share: float):
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    file = tmp_path / f"v{suffix}"
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream(CODECS[suffix], rate=10, options={"g": "15"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 160, 120, "yuv420p", 800_000
        for number in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, 3 * number, 1), format="rgb24")))
        container.mux(stream.encode())
    assert len(read(file, tmp_path)) == 8
    data = bytearray(file.read_bytes())
    start = int(share * len(data))
    data[start : start + 3000] = bytes(3000)
    file.write_bytes(data)
    with pytest.raises(VideoError, match="damaged"):
        read(file, tmp_path)


def test_what_is_no_video_is_named(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{film(tmp_path / 'v.mp4')}\n")
    for file, words in (
        ("text.mp4", "no video"),
        ("list.mp4", "no video|cannot be decoded"),
        ("a.wav", "no video stream .*audio"),
    ):
        sound(tmp_path / "a.wav")
        with pytest.raises(VideoError, match=words):
            read(tmp_path / file, tmp_path)


def test_an_unknown_codec_is_named(tmp_path: Path):
    data = film(tmp_path / "v.avi").read_bytes()
    assert b"FMP4" in data
    (tmp_path / "x.avi").write_bytes(data.replace(b"FMP4", b"zzzz"))
    with pytest.raises(VideoError, match="codec that is not known"):
        read(tmp_path / "x.avi", tmp_path)


def test_a_video_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = film(tmp_path / "v.mp4")
    first = read(file, tmp_path)
    with monkeypatch.context() as closed:
        closed.setattr("rsgrpo.data.video._decoded_frames", None)  # calling it would raise
        assert read(file, tmp_path) == first
    Path(first[1].file).unlink()
    assert read(file, tmp_path) == first  # a frame that was lost is made anew
    film(file, num_frames=10)
    assert len(read(file, tmp_path, min_frames=1)) == 2  # as is a video that was changed


def talk(question: str, answer: str = "A", **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **columns}


def conversation(question: str, answer: str = "A", **columns: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **columns}


def write(file: Path, records: Sequence[Any]) -> Path:
    file.write_text(json.dumps(records))
    return file


FEW = ReaderOptions(frames_per_second=1.0, min_frames=1)  # three frames of three seconds
SKIP = ReaderOptions(on_bad_record="skip", max_skipped_frac=1.0)


def names(images: Sequence[ImageRef]) -> list[str]:
    return [image.path for image in images]


def test_sharegpt_s_videos_and_images_come_in_the_order_of_their_markers(tmp_path: Path):
    film(tmp_path / "clips/a.mp4")
    film(tmp_path / "clips/b.mp4", num_frames=10)
    Image.new("RGB", (40, 40)).save(tmp_path / "i.png")
    file = write(
        tmp_path / "d.json",
        [talk("<video>Is <image> in <video>?", images=["i.png"], videos=["clips/a.mp4", "clips/b.mp4"])],
    )
    ((sample,), _) = read_samples("sharegpt", file, options=FEW)
    assert sample.turns[0].text == "<image><image><image>Is <image> in <image>?"
    assert names(sample.images) == [
        *(f"clips/a.mp4 at {second} s" for second in (0, 1, 2)),
        "i.png",
        "clips/b.mp4 at 0 s",
    ]
    assert all(image_bytes(image) for image in sample.images)


def test_frames_without_a_video_file_come_in_natural_order(tmp_path: Path):
    (tmp_path / "clip").mkdir()
    for number in range(1, 13):
        Image.new("RGB", (40, 40)).save(tmp_path / "clip" / f"{number}.jpg")
    (tmp_path / "clip/._1.jpg").write_bytes(b"a Mac's")
    file = write(tmp_path / "d.json", [conversation("<video>\nQ", video="clip.mp4")])
    ((sample,), _) = read_samples("llava", file)
    assert names(sample.images) == [f"clip/{number}.jpg" for number in range(1, 13)]
    ((sample,), _) = read_samples("llava", file, options=ReaderOptions(max_frames=4))
    # evenly: places 0, 3.67, 7.33, 11 of twelve, rounded
    assert names(sample.images) == [f"clip/{number}.jpg" for number in (1, 5, 8, 12)]


def test_a_list_of_frames_is_a_video(tmp_path: Path):
    for number in range(5):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{number}.png")
    file = write(tmp_path / "d.json", [talk("<video>Q", videos=[[f"{number}.png" for number in (4, 3, 2, 1, 0)]])])
    ((sample,), _) = read_samples("sharegpt", file, options=ReaderOptions(max_frames=3))
    assert names(sample.images) == ["4.png", "2.png", "0.png"]


@pytest.mark.parametrize("kind", ["data URI", "object", "parquet"])
def test_a_video_may_stand_in_its_record(tmp_path: Path, kind: str):
    data = film(tmp_path / "v.mp4").read_bytes()
    text = base64.b64encode(data).decode()
    if kind == "parquet":
        file = tmp_path / "d.parquet"
        pq.write_table(
            pa.table(
                {name: [value] for name, value in talk("<video>Q", videos=[{"bytes": data, "path": "v.mp4"}]).items()}
            ),
            file,
        )
    else:
        video: object = f"data:video/mp4;base64,{text}" if kind == "data URI" else {"bytes": text}
        file = write(tmp_path / "d.json", [talk("<video>Q", videos=[video])])
    ((sample,), _) = read_samples("sharegpt", file, options=FEW)
    assert len(sample.images) == 3
    assert max(len(name) for name in names(sample.images)) <= 200
    assert names(sample.images)[1].endswith(" at 1 s")


@pytest.mark.parametrize(
    ("record", "reason", "words"),
    [
        (talk("Q", videos=["v.mp4"]), "markers", "lists 1 videos, but its questions have 0"),
        (talk("<video><video>Q", videos=["v.mp4"]), "markers", "have 2 <video> markers"),
        (talk("<video>Q"), "markers", "1 <video> markers, but it lists no videos"),
        (talk("<video>Q", videos=[]), "markers", "lists no videos"),
        (talk("<image>Q", images=["i.png"], videos=["v.mp4"]), "markers", "0 <video> markers"),
        (talk("<video>Q", "a <video>", videos=["v.mp4"]), "markers", "an answer holds <video>"),
        (talk("<video>Q", videos=["gone.mp4"]), "video", "does not exist"),
        (talk("<video>Q", videos=["V.mp4"]), "video", "exists as 'v.mp4': write it so"),
        (talk("<video>Q", videos=["https://example.org/v.mp4"]), "address", "download the file"),
        (talk("<video>Q", videos=["cut.mp4"]), "video", "'cut.mp4' cannot be decoded"),
        (talk("<video>Q", videos=["empty.mp4"]), "video", "is empty"),
        (talk("<video>Q", videos=["a.wav"]), "video", "no video stream"),
        (talk("<video>Q", videos=["none"]), "video", "holds no frames"),
        (talk("<video>Q", videos=[None]), "wrong type", "video 0 is None"),
        (talk("<video>Q", videos=[[]]), "video", "empty list of frames"),
        (talk("<video>Q", videos=[""]), "missing media", "empty path"),
        (talk("<audio>Q", audios=["a.wav"]), "audio", "cannot hear"),
        (talk("Q", audio="a.wav"), "audio", "cannot hear"),
        (talk("<audio>Q"), "audio", "cannot hear"),
        (talk("<image>Q", image="i.png", images=["j.png"]), "media", "both image and images"),
    ],
)
def test_media_that_cannot_be_shown_are_named(tmp_path: Path, record: dict[str, Any], reason: str, words: str):
    data = film(tmp_path / "v.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "none").mkdir()
    sound(tmp_path / "a.wav")
    Image.new("RGB", (40, 40)).save(tmp_path / "i.png")
    samples, report = read_samples("sharegpt", write(tmp_path / "d.json", [record, talk("Q")]), options=SKIP)
    assert len(samples) == 1
    assert report.counts() == {reason: 1}
    assert words in report.text()
    assert len(report.skipped[0].examples[0]) <= 500


def test_absent_media_are_no_media(tmp_path: Path):
    file = write(tmp_path / "d.json", [talk("Q", "no <video> here", images=[], videos=None, audios=[], image=None)])
    ((sample,), _) = read_samples("sharegpt", file)
    assert sample.images == ()


def test_mirage_and_questions_refuse_videos_by_name(tmp_path: Path):
    film(tmp_path / "v.mp4")
    file = write(tmp_path / "d.json", [conversation("<video>Q", video="v.mp4")])
    assert read_samples("mirage", file, options=SKIP)[1].counts() == {"video": 1}
    Image.new("RGB", (40, 40)).save(tmp_path / "i.png")
    asked = {"query": "<video>Q", "answer": "A", "image": ["i.png"]}
    file = write(tmp_path / "e.json", [asked, asked | {"query": "Q", "videos": ["v.mp4"]}, asked | {"query": "Q"}])
    samples, report = read_samples("evisrag", file, options=SKIP)
    assert (len(samples), report.counts()) == (1, {"video": 2})


def test_a_mixture_shows_videos_by_the_run_s_settings(tmp_path: Path):
    film(tmp_path / "v.mp4")
    file = write(tmp_path / "d.json", [talk("<video>Q", videos=["v.mp4"]) for _ in range(2)])
    data = DataConfig(media_cache=str(tmp_path / "mine"), video=VideoConfig(frames_per_second=5.0, max_frames=7))
    mixture = Mixture(
        [SourceConfig(format="sharegpt", path=str(file))],
        seed=0,
        num_held_out=0,
        on_bad_record="error",
        check_media=True,
        media_cache=data.media_cache,
        video=data.video,
    )
    images = mixture.sample(int(mixture.order(0)[0])).images
    assert len(images) == 7
    assert all(image.file.startswith(str(tmp_path / "mine")) for image in images)


def test_what_is_read_again_is_what_was_read_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    film(tmp_path / "v.mp4")
    file = write(tmp_path / "d.json", [talk("<video>Q", videos=["v.mp4"])])
    samples = IndexedSamples("sharegpt", str(file), FEW)
    monkeypatch.setattr("rsgrpo.data.video._decoded_frames", None)
    assert names(samples.sample(0).images) == [f"v.mp4 at {second} s" for second in (0, 1, 2)]


def test_a_transparent_frame_keeps_its_transparency(tmp_path: Path):
    buffer = io.BytesIO()
    pictures = [Image.new("RGBA", (40, 40), (255 * (number % 2), 0, 0, 0)) for number in range(2)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=500, disposal=2)
    (tmp_path / "v.gif").write_bytes(buffer.getvalue())
    frames = read(tmp_path / "v.gif", tmp_path)
    # What stands for nothing is for the reader of images to decide, as with any page.
    assert Image.open(frames[0].file).mode == "RGBA"
    assert Image.open(frames[0].file).getchannel("A").getextrema() == (0, 0)


def test_a_video_that_cannot_be_opened_is_named(tmp_path: Path):
    store = MediaStore(str(tmp_path / "media"))
    for file in (tmp_path / "gone.mp4", tmp_path):
        with pytest.raises(VideoError, match="cannot be read"):
            video_frames(str(file), FrameChoice(), store)
