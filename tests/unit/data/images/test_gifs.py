"""GIF files as a viewer shows them: a first picture that is smaller than its canvas lies on it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import check_image, image_size, load_image, read_image
from rsgrpo.types import ImageRef

RED, BLUE, PAPER = (255, 0, 0), (0, 0, 255), (250, 240, 230)


def gif(canvas: tuple[int, int], place: tuple[int, int], size: tuple[int, int], *, transparent: int | None) -> bytes:
    """One picture of the palette's second colour, its first pixel of the first; written by hand."""
    head = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0b10000000, 0, 0) + bytes((*RED, *BLUE))
    note = b"" if transparent is None else b"!\xf9\x04\x01\0\0" + bytes((transparent, 0))
    picture = b"," + struct.pack("<HHHHB", *place, *size, 0)
    # Nothing is packed: codes of 3 bits, the dictionary cleared (4) before each pixel, the end (5).
    codes = [code for pixel in range(size[0] * size[1]) for code in (4, int(pixel > 0))] + [5]
    bits = sum(code << (3 * position) for position, code in enumerate(codes))
    packed = bits.to_bytes(3 * len(codes) // 8 + 1, "little")
    assert len(packed) < 256
    return head + note + picture + b"\x02" + bytes((len(packed),)) + packed + b"\0;"


@pytest.mark.parametrize("transparent", [None, 0])
@pytest.mark.parametrize(
    ("place", "size"), [((2, 1), (3, 2)), ((0, 0), (8, 3)), ((5, 4), (3, 2)), ((0, 0), (8, 6)), ((0, 0), (1, 1))]
)
def test_what_the_first_picture_leaves_bare_is_background(
    place: tuple[int, int], size: tuple[int, int], transparent: int | None, tmp_path: Path
) -> None:
    (tmp_path / "a.gif").write_bytes(gif((8, 6), place, size, transparent=transparent))
    ref = ImageRef(path="a.gif", file=str(tmp_path / "a.gif"))
    rules = ImageRules(background=PAPER)
    expected = np.full((6, 8, 3), PAPER, dtype=np.uint8)
    expected[place[1] : place[1] + size[1], place[0] : place[0] + size[0]] = BLUE
    expected[place[1], place[0]] = RED if transparent is None else PAPER
    assert np.array_equal(np.asarray(load_image(ref, rules)), expected)
    assert np.array_equal(np.asarray(read_image(ref, rules)), expected)
    assert image_size(ref, rules) == (8, 6)
    is_bare = size != (8, 6)
    assert check_image(ref, rules).has_transparency == (is_bare or transparent is not None)
