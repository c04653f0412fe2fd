"""What all formats can be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rsgrpo.config import BOX_COORDINATES, DataConfig
from rsgrpo.config.checks import at_least, check_share, more_than, one_of
from rsgrpo.data.readers.findings import Remark
from rsgrpo.types import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderOptions:
    """How a data set is read.

    Attributes:
        media_root: the folder that image paths are relative to; empty: where the format keeps them.
        check_media: whether records are refused whose images do not exist.
        on_bad_record: what to do about a bad record: ``error``: stop and name it. ``skip``: leave it out, counted by
            reason.
        max_skipped_frac: the share of the records that ``skip`` may leave out without stopping; one record may always
            be.
        sampling: which records of each file are read: ``all``, ``first:N``, ``end:N`` or ``random:N``; N may be
            ``10%``.
        seed: the seed of the sampling ``random``.
        combined_images: MileBench: whether to use the variant whose pages are combined, and to how many canvases at
            most; 0: single pages.
        frames_per_second: how many images each second of a video gives; see ``rsgrpo.data.video``.
        min_frames: how many images a short video gives at least, as far as it has them.
        max_frames: how many images a video, or the folder of its frames, gives at most.
        media_cache: the folder for media that lie in no file of their own; empty: ``~/.cache/rsgrpo/media``.
        box_coordinates: what numbers of gold boxes count: ``shares``, ``permille`` or ``pixels`` of the image as it is
            stored; empty: what ``columns.box_coordinates`` says. Formats that fix it themselves do not ask.
        columns: EVisRAG: the names of its columns, and how many images a question may have.
        is_training: EVisRAG: whether more images are a defect, since the gold response speaks of all; else those ranked
            lowest are left out.
    """

    media_root: str = ""
    check_media: bool = True
    on_bad_record: str = "error"
    max_skipped_frac: float = 0.01
    sampling: str = "all"
    seed: int = 0
    combined_images: int = 0
    frames_per_second: float = 2.0
    min_frames: int = 4
    max_frames: int = 32
    box_coordinates: str = ""
    media_cache: str = ""
    columns: DataConfig = field(default_factory=DataConfig)
    is_training: bool = False

    def __post_init__(self) -> None:
        one_of("box_coordinates", self.box_coordinates, ("", *BOX_COORDINATES))
        one_of("on_bad_record", self.on_bad_record, ("error", "skip"))
        check_share("max_skipped_frac", self.max_skipped_frac)
        at_least("combined_images", self.combined_images, 0)
        more_than("frames_per_second", self.frames_per_second, 0.0)
        at_least("min_frames", self.min_frames, 1)
        at_least("max_frames", self.max_frames, 1)


Convert = Callable[[int, dict[str, Any], Remark], Sample]
"""A function that makes a sample of record number i; it raises BadRecordError, or remarks on an oddity and goes on."""
