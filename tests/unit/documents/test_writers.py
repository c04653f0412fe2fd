"""Page stores with real processes: killed, interrupted or stopped ones, two writers, and a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.page_store import PageStore
from rsgrpo.documents.records import IngestProgress, StoreError
from rsgrpo.documents.render_worker import RenderWorker
from rsgrpo.documents.rendering import RenderPool
from tests.unit.documents.handmade_pdfs import PdfPage, make_pdf, text_pages
from tests.unit.documents.in_process_pool import in_process

REPOSITORY = Path(__file__).resolve().parents[3]
NUM_DOCUMENTS, NUM_PAGES = 40, 30
ADD = """
import resource, sys
from pathlib import Path
from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.page_store import PageStore
from rsgrpo.errors import RsgrpoError
files, folder, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    print(PageStore.open(Path(folder), RenderSettings(workers=2, on_bad_document="skip")).add([Path(files)]))
except RsgrpoError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(NUM_DOCUMENTS):
        words = [f"document {number} page {page}" for page in range(NUM_PAGES)]
        (folder / f"{number}.pdf").write_bytes(make_pdf(text_pages(*words)))
    return folder


@contextmanager
def adding(files: Path, folder: Path, *, limit: int = 0) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", ADD, str(files), str(folder), str(limit)],
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_documents(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(list((folder / "pages.parquet").glob("*.parquet"))) < number:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)


def workers_of(folder: Path) -> list[int]:
    """Find the ids of the processes that render into a store."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                words = (place / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"rsgrpo.documents.render_worker" in words and os.fsencode(folder) in words:
                found.append(int(place.name))
    return found


def check_half(folder: Path) -> int:
    """Check that every document in a store has all its pages, and return the number of documents."""
    store = PageStore.open(folder)
    names = store.documents()
    pages = list(store.pages())
    assert len(pages) == NUM_PAGES * len(names)
    assert all(page.image_path.exists() for page in pages)
    return len(names)


def test_a_killed_run_shows_whole_documents_and_goes_on(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with adding(files, folder) as process:
        wait_for_documents(folder, 3, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = check_half(folder)
    assert 3 <= done < NUM_DOCUMENTS
    report = in_process(PageStore.open(folder, RenderSettings())).add([files])
    assert (report.unchanged, report.added) == (done, NUM_DOCUMENTS - done)
    assert check_half(folder) == NUM_DOCUMENTS
    pages = list(PageStore.open(folder).pages())
    assert {page.image_path for page in pages} == {path for path in (folder / "images").rglob("*") if path.is_file()}
    deadline = time.monotonic() + 30
    while workers_of(folder):  # they end when nobody listens any more
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_ends_workers_at_once_and_leaves_whole_documents(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with adding(files, folder) as process:
        wait_for_documents(folder, 2, process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert workers_of(folder) == []
    done = check_half(folder)
    assert in_process(PageStore.open(folder, RenderSettings())).add([files]).unchanged == done


def test_a_second_writer_is_refused_while_readers_read(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with adding(files, folder) as process:
        wait_for_documents(folder, 1, process)
        with pytest.raises(StoreError, match=f"another process writes to .* \\(process {process.pid} on "):
            in_process(PageStore.open(folder, RenderSettings())).add([files])
        assert check_half(folder) >= 1
        said, wrong = process.communicate(timeout=240)
        assert f"added={NUM_DOCUMENTS}" in said, wrong


def test_a_disk_that_takes_no_more_is_named_and_the_run_goes_on_later(tmp_path: Path) -> None:
    files, folder = tmp_path / "files", tmp_path / "store"
    files.mkdir()
    (files / "1.pdf").write_bytes(make_pdf(text_pages("small")))
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    with adding(files, folder, limit=100_000) as process:  # bytes a file, as if the disk were full there
        process.communicate(timeout=120)
    Image.fromarray(noise).save(files / "2.png")  # 480 kB
    with adding(files, folder, limit=100_000) as process:
        _, wrong = process.communicate(timeout=120)
    assert process.returncode == 1
    assert wrong.startswith(f"error: {folder} cannot be written (File too large)") and "make room" in wrong
    assert PageStore.open(folder).documents() == ["1.pdf"]
    report = in_process(PageStore.open(folder, RenderSettings())).add([files])
    assert (report.unchanged, report.added) == (1, 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_what_a_lost_worker_was_doing_is_done_again(files: Path, tmp_path: Path, number: int) -> None:
    folder = tmp_path / "store"
    rendering = RenderSettings(workers=2, page_seconds=5.0 if number == signal.SIGSTOP else 120.0)
    pools: list[RenderPool] = []

    def make_pool(store: Path, settings: RenderSettings) -> RenderPool:
        pools.append(RenderPool(store, settings))
        return pools[0]

    def lose_one(progress: IngestProgress) -> None:
        if progress.documents >= 2 and len(pools) == 1:
            pools.append(pools[0])
            os.kill(workers_of(folder)[0], number)

    PageStore.open(folder, rendering)
    report = PageStore(folder, rendering, make_pool).add([files], lose_one)
    assert (report.added, report.pages, report.refused) == (NUM_DOCUMENTS, NUM_DOCUMENTS * NUM_PAGES, ())
    assert check_half(folder) == NUM_DOCUMENTS
    assert len(pools) == 2


def test_twenty_thousand_pages_are_rendered_in_order(tmp_path: Path) -> None:
    pages = [PdfPage(width=8, height=4, drawing="0 g 0 0 4 4 re f" if number % 3 else "") for number in range(20_000)]
    outline = [(1 + 1000 * chapter, f"Chapter {chapter}") for chapter in range(20)]
    (tmp_path / "long.pdf").write_bytes(make_pdf(pages, outline=outline))
    store = PageStore.open(tmp_path / "store", RenderSettings(workers=2))
    report = store.add([tmp_path / "long.pdf"])
    assert (report.pages, report.duplicate_pages) == (20_000, 19_998)  # a black half and none
    assert len(report.blank_pages) == 6_667  # 0, 3, …, 19998
    for number, page in enumerate(store.pages(), 1):
        assert (page.page_number, page.title) == (number, f"Chapter {(number - 1) // 1000}")
        assert page.blank == (number % 3 == 1)
    assert number == 20_000


def test_a_worker_whose_parent_died_before_it_was_ready_ends_without_a_word(tmp_path: Path) -> None:
    ours, parents = Pipe()
    parents.close()
    RenderWorker(ours, tmp_path, RenderSettings()).serve()
