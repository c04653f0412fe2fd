"""What is printed while documents are added: lines or a bar, the time of the end, and a report with names."""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path

from rich.console import Console

from recipes.indexing.pages import add_documents, print_report, progress_line
from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.records import IngestProgress, IngestReport, Remark
from tests.unit.documents.handmade_pdfs import PdfPage, make_pdf


def console(*, is_terminal: bool = False) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=is_terminal, width=200, color_system=None), file


def progress(share: float, seconds: float) -> IngestProgress:
    return IngestProgress(documents=3, documents_total=12, pages=310, share=share, seconds=seconds)


def test_the_line_says_speed_and_end() -> None:
    # A quarter took 20 s, so the rest takes 60: 14:02:30 + 1 min = 14:03
    now = datetime(2026, 11, 28, 14, 2, 30)
    line = progress_line(progress(0.25, 20.0), now)
    assert line == "3/12 documents, 310 pages, 15.5 pages/s, ends 14:03 (in 1 min 00 s)"
    # 1 % in an hour: 99 hours
    assert "ends 2026-12-02 17:02 (in 99 h 00 min)" in progress_line(progress(0.01, 3600.0), now)
    assert progress_line(progress(0.0, 0.0), now) == "3/12 documents, 310 pages, 0.0 pages/s"


def test_documents_are_added_and_reported(tmp_path: Path) -> None:
    (tmp_path / "good.pdf").write_bytes(make_pdf([PdfPage(text="a"), PdfPage()]))
    (tmp_path / "bad.pdf").write_bytes(make_pdf([PdfPage(text="a")], password="x"))
    settings = RenderSettings(workers=1, on_bad_document="skip")
    for is_terminal in (False, True):
        screen, file = console(is_terminal=is_terminal)
        report = add_documents([tmp_path], tmp_path / f"store {is_terminal}", settings, screen)
        assert (report.added, report.pages, len(report.refused)) == (1, 2, 1)
        said = file.getvalue()
        assert "documents added" in said and "blank: good.pdf#2" in said
        assert "refused: bad.pdf: it is encrypted and asks for a password" in said
        assert ("pages/s" in said) == is_terminal  # a run of a second needs no line


def test_long_lists_are_cut_in_the_report_on_the_screen() -> None:
    screen, file = console()
    refused = tuple(Remark(name=f"[{number}].pdf", reason="it has no pages") for number in range(25))
    print_report(IngestReport(refused=refused, seconds=7384.0), screen)
    lines = file.getvalue().splitlines()
    assert sum(line.startswith("refused: [") for line in lines) == 20
    assert "refused: 5 more" in lines
    assert any(line.split() == ["time", "2", "h", "03", "min"] for line in lines)
    assert not any(line.startswith("blank pages") for line in lines)
