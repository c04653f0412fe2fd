"""How many images were looked at, of which kinds, and what reading changes about them: for ``data_report.json``."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.headers import ImageFacts
from rsgrpo.data.images.loading import check_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.io.atomic_files import write_json
from rsgrpo.types import ImageRef

REPORT_FILE = "data_report.json"

_SCREEN_COLUMNS = 110  # longer lines are cut on the screen, and the last counts would be lost
_CHECK_THREADS = 8  # reading pages waits for the disk


@dataclass(kw_only=True, slots=True)
class ImageCounts:
    """Images by what happens to them; one may count in several places.

    Attributes:
        read: how many images were looked at.
        oriented: how many are turned or mirrored as their EXIF orientation says.
        composed: how many have transparency, and are put on ``data.background``.
        depth_scaled: how many have more than 8 bits a sample, or floats, and are scaled down to 8 bits.
        converted: how many have single bits, a palette, or colours other than RGB and grey, and are converted.
        first_frame_only: how many have further pictures, which are not read.
        kinds: how many there are of each format and mode, such as ``PNG RGBA``.
    """

    read: int = 0
    oriented: int = 0
    composed: int = 0
    depth_scaled: int = 0
    converted: int = 0
    first_frame_only: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, facts: ImageFacts) -> None:
        """Count an image."""
        self.read += 1
        self.oriented += facts.orientation != 1
        self.composed += facts.has_transparency
        self.depth_scaled += facts.bits > 8
        self.converted += facts.mode not in ("L", "LA", "RGB", "RGBA") and not facts.mode.startswith(("I", "F"))
        self.first_frame_only += facts.num_frames > 1
        self.kinds[f"{facts.format} {facts.mode}"] += 1

    @classmethod
    def total(cls, parts: Iterable[ImageCounts]) -> ImageCounts:
        """The sum of several counts."""
        found = cls()
        for part in parts:
            for count in dataclasses.fields(cls):
                setattr(found, count.name, getattr(found, count.name) + getattr(part, count.name))
        return found

    def document(self) -> dict[str, object]:
        """The counts as they stand in the report."""
        return {**dataclasses.asdict(self), "kinds": dict(sorted(self.kinds.items()))}

    def lines(self) -> list[str]:
        """Lines for people, each short enough for a screen, that say what was changed; none where nothing was."""
        words = {
            "oriented": "turned upright",
            "composed": "with transparency put on data.background",
            "depth_scaled": "brought down to 8 bits",
            "converted": "converted to RGB",
            "first_frame_only": "with further pictures, of which only the first is read",
        }
        said = [f"{getattr(self, name)} {what}" for name, what in words.items() if getattr(self, name)]
        text = f"{self.read} images: {', '.join(said)}"
        return textwrap.wrap(text, _SCREEN_COLUMNS, subsequent_indent="  ") if said else []


def look_at_images(refs: Iterable[ImageRef], rules: ImageRules) -> tuple[dict[ImageRef, str], ImageCounts]:
    """Check pages, several at a time.

    Args:
        refs: the images; one may stand there more than once, and is looked at once.
        rules: how they will be read.

    Returns:
        What is wrong with each page that cannot be read, and the counts of the others.
    """
    unique = list(dict.fromkeys(refs))

    def look(ref: ImageRef) -> ImageFacts | str:
        try:
            return check_image(ref, rules)
        except ImageError as error:
            return str(error)

    broken: dict[ImageRef, str] = {}
    counts = ImageCounts()
    with ThreadPoolExecutor(_CHECK_THREADS) as threads:
        for ref, found in zip(unique, threads.map(look, unique), strict=True):
            if isinstance(found, str):
                broken[ref] = found
            else:
                counts.add(found)
    return broken, counts


def update_report(folder: Path, sections: Mapping[str, object]) -> None:
    """Write sections of ``data_report.json``; those that are there already stay.

    Args:
        folder: the folder of the run.
        sections: the sections to write by their names, such as ``images`` or ``phases``.
    """
    file = folder / REPORT_FILE
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    content = {**(before if isinstance(before, dict) else {}), **sections}
    write_json(file, content, indent=2)
