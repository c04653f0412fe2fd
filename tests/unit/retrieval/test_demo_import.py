"""The files of VisRAG's demo become pages and vectors, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from rsgrpo.retrieval.index.demo_import import read_demo
from rsgrpo.retrieval.index.flat_index import create_index, open_index
from tests.unit.retrieval.index_pages import unit_vectors

NAMES = ["report.pdf_0.png", "report.pdf_1.png", "a_b.pdf_12.png", "cover.png"]


def write_demo(folder: Path, vectors: np.ndarray, names: list[str]) -> Path:
    np.save(folder / "reps.npy", vectors)
    (folder / "index2img_filename.txt").write_text("\n".join(names))
    return folder


def test_rows_become_pages_that_are_found_again(tmp_path: Path) -> None:
    vectors = unit_vectors(4, 12)
    (tmp_path / NAMES[1]).write_bytes(b"png")
    demo = read_demo(write_demo(tmp_path, vectors, NAMES))
    assert [(page.document, page.page_number) for page in demo.pages] == [
        ("report.pdf", 1),
        ("report.pdf", 2),
        ("a_b.pdf", 13),
        ("cover.png", 1),
    ]
    assert [bool(page.image_path) for page in demo.pages] == [False, True, False, False]
    identity = demo.identity(model="openbmb/VisRAG-Ret", revision="main", max_pixels=1000)
    with create_index(tmp_path / "i", identity) as index:
        index.add(demo.pages, demo.vectors)
        index.save()
    found = open_index(tmp_path / "i").search(vectors, 1)
    assert [hits[0].page.page_id for hits in found] == NAMES
    assert identity.query_instruction.startswith("Represent this query") and identity.pooling == "weightedmean"


@pytest.mark.parametrize(
    ("vectors", "names", "message"),
    [
        (unit_vectors(3, 12), NAMES, r"holds float32 \[3, 12\], expected floats of \[4, dimension\]"),
        (np.arange(4), NAMES, r"holds int64 \[4\], expected floats"),
        (np.array([object()] * 4), NAMES, r"holds no index of VisRAG's demo"),
        (unit_vectors(4, 12), [*NAMES[:3], NAMES[0]], r"names 'report.pdf_0.png' twice"),
        (unit_vectors(4, 12), [*NAMES[:2], "", NAMES[2]], r"names 'nothing' in a line"),
        (2 * unit_vectors(4, 12), NAMES, r"the vector of report.pdf_0.png \(and of 3 more\) has length 2"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, vectors, names, message: str) -> None:
    write_demo(tmp_path, vectors, names)
    with pytest.raises(EmbeddingError, match=message):
        read_demo(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"it needs reps.npy and index2img_filename.txt"):
        read_demo(tmp_path)
