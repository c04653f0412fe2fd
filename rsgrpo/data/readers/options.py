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
    """How to read.

    Attributes:
        media_root: folder that image paths are relative to; empty: where the format keeps them.
        check_media: refuse records whose images lie nowhere.
        on_bad_record: ``error``: stop and name them. ``skip``: leave them out, counted by reason.
        max_skipped_frac: share of the records that ``skip`` may leave out without stopping; one record may always be.
        sampling: which records of each file: ``all``, ``first:N``, ``end:N`` or ``random:N``; N may be ``10%``.
        seed: of ``random``.
        combined_images: MileBench: use the variant whose pages are combined to at most so many canvases; 0: none.
        frames_per_second: images that each second of a video gives; see ``rsgrpo.data.video``.
        min_frames: images that a short video gives at least, as far as it has them.
        max_frames: images that a video, or the folder of its frames, gives at most.
        media_cache: folder for media that lie in no file of their own; empty: ``~/.cache/rsgrpo/media``.
        box_coordinates: what numbers of gold boxes count: ``shares``, ``permille`` or ``pixels`` of the image as it is
            stored; empty: what ``columns.box_coordinates`` says. Formats that fix it themselves do not ask.
        columns: EVisRAG: names of its columns, and how many images a question may have.
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

    def __post_init__(self) -> None:
        one_of("box_coordinates", self.box_coordinates, ("", *BOX_COORDINATES))
        one_of("on_bad_record", self.on_bad_record, ("error", "skip"))
        check_share("max_skipped_frac", self.max_skipped_frac)
        at_least("combined_images", self.combined_images, 0)
        more_than("frames_per_second", self.frames_per_second, 0.0)
        at_least("min_frames", self.min_frames, 1)
        at_least("max_frames", self.max_frames, 1)


Convert = Callable[[int, dict[str, Any], Remark], Sample]
"""Makes a sample of record number i; raises BadRecordError, or remarks on an oddity and goes on."""
