"""rapidocr itself, with the models of its wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.ocr import TextReader
from rsgrpo.documents.pdf import PdfDocument
from tests.unit.documents.handmade_pdfs import PdfPage, make_pdf

PAGE = PdfPage(drawing="BT /F 12 Tf 10 70 Td (Quarterly revenue 2024) Tj 0 -40 Td (Staff by office) Tj ET")


def test_rapidocr_reads_what_a_page_says_from_top_to_bottom(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    (tmp_path / "writing").mkdir()
    file = tmp_path / "a.pdf"
    file.write_bytes(make_pdf([PAGE]))
    pixels = PdfDocument(file, RenderSettings()).page(1).pixels
    reader = TextReader(tmp_path)
    expected = "Quarterly revenue 2024\nStaff by office"
    assert reader.read(pixels, "ab" * 32).text == expected
    assert reader.read(pixels[:, :5], "cd" * 32).text == ""  # too narrow for any script
    shutil.rmtree(tmp_path / "writing")  # what was read before needs no place to write
    assert TextReader(tmp_path, lambda: pytest.fail("loaded")).read(pixels, "ab" * 32).text == expected
