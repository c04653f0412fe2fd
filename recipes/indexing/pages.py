"""Adding documents to a page store from a terminal: progress with an end time, and a table of what was done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.ingest import OnProgress
from rsgrpo.documents.page_store import PageStore
from rsgrpo.documents.records import IngestProgress, IngestReport, Remark
from rsgrpo.errors import shown
from rsgrpo.run.progress import end_time, readable_seconds

_LINE_SECONDS = 10.0  # between lines where there is no terminal
_BAR_SECONDS = 0.25
_MAX_NAMED = 20  # of a kind; the report record has all
_MAX_REASON_CHARACTERS = 300


def add_documents(
    paths: Iterable[Path], store_folder: Path, settings: RenderSettings, console: Console
) -> IngestReport:
    """Add documents to a page store, and print the progress and a report.

    Args:
        paths: the files to add, and folders whose documents are added with those of their subfolders.
        store_folder: the folder that the page store lies in; the store is made if it does not exist.
        settings: how pages are rendered, and what to do about documents that cannot be read.
        console: the console to print on: with a live bar on a terminal, with a line every ten seconds elsewhere.

    Returns:
        How many documents and pages were added, and which documents could not be read and why.

    Raises:
        DocumentError: a path does not exist, or a document cannot be read and the settings do not skip it.
        OcrError: pages shall be read by OCR, and its package is not installed.
        StoreError: the folder holds something else, another process writes to it, or the disk is full.
    """
    store = PageStore.open(store_folder, settings)
    with _shown_progress(console) as on_progress:
        report = store.add(paths, on_progress)
    print_report(report, console)
    return report


def progress_line(progress: IngestProgress, now: datetime) -> str:
    """Write the progress as one line: how much is done, at which speed, and when the rest will be done.

    Args:
        progress: how far adding documents has come.
        now: the current local time, from which the time of the end is calculated.

    Example:
        ``3/12 documents, 310 pages, 52.1 pages/s, ends 14:03 (in 1 min 20 s)``
    """
    parts = [
        f"{progress.documents:,}/{progress.documents_total:,} documents",
        f"{progress.pages:,} pages",
        f"{progress.pages_per_second:.1f} pages/s",
    ]
    left = progress.seconds_left
    if left is not None:
        parts.append(end_time(left, now))
    return ", ".join(parts)


@contextmanager
def _shown_progress(console: Console) -> Iterator[OnProgress]:
    if not console.is_terminal:
        next_line = time.monotonic() + _LINE_SECONDS

        def print_line(progress: IngestProgress) -> None:
            nonlocal next_line
            if time.monotonic() >= next_line:
                next_line = time.monotonic() + _LINE_SECONDS
                console.print(progress_line(progress, datetime.now()), markup=False, highlight=False, soft_wrap=True)

        yield print_line
        return
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        console=console,
        transient=True,
        refresh_per_second=4,
    )
    with bar:
        task = bar.add_task("documents are looked for", total=1.0)
        shown_at = 0.0

        def update(progress: IngestProgress) -> None:
            nonlocal shown_at
            if time.monotonic() >= shown_at + _BAR_SECONDS:
                shown_at = time.monotonic()
                bar.update(task, completed=progress.share, description=progress_line(progress, datetime.now()))

        yield update


def print_report(report: IngestReport, console: Console) -> None:
    """Print a report as a table of numbers, and below it the documents and pages that a user should know of.

    Args:
        report: the report of a store about what was added.
        console: the console to print on.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "documents added": report.added,
        "documents unchanged": report.unchanged,
        "documents replaced": report.replaced,
        "documents removed": report.removed,
        "documents refused": len(report.refused),
        "documents with the bytes of another": len(report.duplicate_documents),
        "damaged in the store": len(report.damaged),
        "pages": report.pages,
        "pages stored before": report.duplicate_pages,
        "blank pages": len(report.blank_pages),
        "pages left out": len(report.left_out_pages),
        "pages read by OCR": report.ocr_pages,
        "pages that OCR could not read": len(report.unread_pages),
    }
    always = ("documents added", "documents unchanged", "documents refused", "pages")
    for name, count in rows.items():
        if count or name in always:
            table.add_row(name, f"{count:,}")
    table.add_row("time", readable_seconds(report.seconds))
    console.print(table)
    _print_named("refused", report.refused, console)
    _print_named("damaged in the store", report.damaged, console)
    _print_named("left out", report.left_out_pages, console)
    _print_named("not read", report.unread_pages, console)
    _print_named("duplicate", report.duplicate_documents, console)
    _print_named("blank", [Remark(name=name, reason="") for name in report.blank_pages], console)


def _print_named(what: str, remarks: Sequence[Remark], console: Console) -> None:
    for remark in remarks[:_MAX_NAMED]:
        reason = f": {shown(remark.reason, _MAX_REASON_CHARACTERS)}" if remark.reason else ""
        console.print(f"{what}: {shown(remark.name, 120)}{reason}", markup=False, highlight=False, soft_wrap=True)
    if len(remarks) > _MAX_NAMED:
        console.print(f"{what}: {len(remarks) - _MAX_NAMED:,} more", markup=False, highlight=False)
