"""Documents that cannot be read, files that change, lost images and damaged parts: named, and the rest goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rsgrpo.config.documents import OnBadDocument
from rsgrpo.documents import ingest
from rsgrpo.documents.page_store import PageStore
from rsgrpo.documents.records import DocumentError, IngestProgress, StoreError
from tests.unit.documents.handmade_pdfs import PdfPage, make_pdf, text_pages
from tests.unit.documents.in_process_pool import InProcessPool
from tests.unit.documents.stores import check_whole, image_files, skipping, texts


def bad_documents(files: Path) -> None:
    good = make_pdf(text_pages("good"))
    (files / "encrypted.pdf").write_bytes(make_pdf(text_pages("secret"), password="x"))
    (files / "truncated.pdf").write_bytes(good[:-100])
    (files / "zero.pdf").write_bytes(make_pdf([]))
    (files / "strip.pdf").write_bytes(make_pdf([PdfPage(text="a"), PdfPage(width=14400, height=10)]))
    (files / "letter.docx").write_bytes(b"PK\x03\x04")
    (files / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    os.mkfifo(files / "pipe.pdf")
    (files / "gone.pdf").symlink_to(files / "nothing.pdf")
    (files / "good.pdf").write_bytes(good)


def test_bad_documents_are_named_and_the_rest_goes_on(
    store: PageStore, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(files))  # no LibreOffice there
    bad_documents(files)
    report = skipping(store).add([files])
    reasons = {remark.name: remark.reason for remark in report.refused}
    assert {name: reasons[name].split(",")[0][:32] for name in reasons} == {
        "pipe.pdf": "it is a pipe",
        "gone.pdf": reasons["gone.pdf"].split(",")[0][:32],
        "encrypted.pdf": "it is encrypted and asks for a p",
        "truncated.pdf": "it is cut off or damaged: no %%E",
        "zero.pdf": "it has no pages",
        "strip.pdf": "page 2 of 2: it is a strip of 14",
        "letter.docx": "it is an office file (.docx)",
        "cut.png": reasons["cut.png"].split(",")[0][:32],
    }
    assert "does not exist" in reasons["gone.pdf"] and "LibreOffice is not installed" in reasons["letter.docx"]
    assert "on_bad" not in reasons["cut.png"] and "data." not in reasons["cut.png"]
    assert texts(store) == {"good.pdf": ["good"]}
    check_whole(store)


def test_single_pages_can_be_left_out(store: PageStore, files: Path) -> None:
    (files / "a.pdf").write_bytes(make_pdf([PdfPage(text="a"), PdfPage(width=14400, height=10), PdfPage(text="b")]))
    report = skipping(store, "skip_page").add([files])
    assert (report.added, report.pages, report.refused) == (1, 2, ())
    assert [remark.name for remark in report.left_out_pages] == ["a.pdf#2"]
    assert [page.page_id for page in store.pages()] == ["a.pdf#1", "a.pdf#3"]
    with pytest.raises(StoreError, match="no page 2"):
        store.page("a.pdf#2")


def test_a_document_without_a_single_page_left_is_refused(store: PageStore, files: Path) -> None:
    (files / "a.pdf").write_bytes(make_pdf([PdfPage(width=14400, height=10)]))
    report = skipping(store, "skip_page").add([files])
    assert report.added == 0 and "none of its 1 pages" in report.refused[0].reason


def test_the_default_stops_at_a_bad_document_and_keeps_the_others(store: PageStore, files: Path) -> None:
    (files / "1.pdf").write_bytes(make_pdf(text_pages("a")))
    (files / "2.pdf").write_bytes(b"nothing")
    with pytest.raises(DocumentError, match=r"2\.pdf: .*on_bad_document=skip"):
        store.add([files])
    assert texts(store) == {"1.pdf": ["a"]}
    (files / "2.pdf").write_bytes(make_pdf(text_pages("b")))
    report = store.add([files])
    assert (report.added, report.unchanged) == (1, 1)
    check_whole(store)


def test_a_document_that_became_unreadable_keeps_its_former_pages(store: PageStore, files: Path) -> None:
    path = files / "a.pdf"
    path.write_bytes(make_pdf(text_pages("old")))
    store.add([files])
    path.write_bytes(b"%PDF-1.5 cut")
    report = skipping(store).add([files])
    assert "former pages stay" in report.refused[0].reason
    assert texts(store) == {"a.pdf": ["old"]}


class DyingPool(InProcessPool):
    killers = frozenset({18})


@pytest.mark.parametrize("how", ["skip", "skip_page"])
def test_a_page_that_kills_its_worker_is_tried_twice_and_named(
    store: PageStore, files: Path, how: OnBadDocument
) -> None:
    (files / "a.pdf").write_bytes(make_pdf(text_pages(*map(str, range(1, 41)))))
    report = skipping(store, how, DyingPool).add([files])
    if how == "skip":
        assert report.refused[0].name == "a.pdf" and report.added == 0
        assert report.refused[0].reason.startswith("page 18 of 40: it cannot be rendered: the process that had it died")
        assert image_files(store) == set()
    else:
        assert [remark.name for remark in report.left_out_pages] == ["a.pdf#18"]
        assert texts(store)["a.pdf"] == [str(number) for number in range(1, 41) if number != 18]
        assert [page.page_number for page in store.pages()] == [number for number in range(1, 41) if number != 18]


class RewritingPool(InProcessPool):
    """A pool that appends a line to the document whenever a task is done."""

    path: Path
    times: int

    def answers(self):
        yield from super().answers()
        if type(self).times:
            type(self).times -= 1
            with self.path.open("ab") as file:
                file.write(b"\n")


@pytest.mark.parametrize(("times", "added"), [(1, 1), (10, 0)])
def test_a_file_that_changes_while_it_is_read_is_read_once_more_or_refused(
    store: PageStore, files: Path, times: int, added: int
) -> None:
    RewritingPool.path, RewritingPool.times = files / "a.pdf", times
    RewritingPool.path.write_bytes(make_pdf(text_pages("a")))
    report = skipping(store, "skip", RewritingPool).add([files])
    assert report.added == added
    assert [remark.reason for remark in report.refused] == ([] if added else [ingest._CHANGED])
    check_whole(store)


def test_two_files_of_one_name_do_not_replace_one_another(store: PageStore, files: Path) -> None:
    for folder in ("x", "y"):
        (files / folder).mkdir()
        (files / folder / "a.pdf").write_bytes(make_pdf(text_pages(folder)))
    report = skipping(store).add([files / "x" / "a.pdf", files / "y" / "a.pdf"])
    assert report.added == 1 and "same name" in report.refused[0].reason
    report = skipping(store).add([files / "y"])
    assert report.replaced == 0 and "same name" in report.refused[0].reason
    assert texts(store) == {"a.pdf": ["x"]}
    (files / "x" / "a.pdf").unlink()  # it was moved away: the name is free
    assert skipping(store).add([files / "y"]).replaced == 1
    assert texts(store) == {"a.pdf": ["y"]}


def test_a_moved_folder_is_the_same(store: PageStore, files: Path) -> None:
    (files / "a.pdf").write_bytes(make_pdf(text_pages("a")))
    store.add([files])
    moved = files.rename(files.with_name("moved"))
    assert store.add([moved]).unchanged == 1


def test_progress_ends_at_the_whole(store: PageStore, files: Path) -> None:
    for number in range(3):
        (files / f"{number}.pdf").write_bytes(make_pdf(text_pages(*(f"{number} {page}" for page in range(20)))))
    seen: list[IngestProgress] = []
    store.add([files], seen.append)
    assert [progress.share for progress in seen] == sorted(progress.share for progress in seen)
    assert (seen[-1].share, seen[-1].pages, seen[-1].documents, seen[-1].documents_total) == (1.0, 60, 3, 3)
    assert IngestProgress(documents=1, documents_total=4, pages=10, share=0.25, seconds=5.0).seconds_left == 15.0


def test_lost_and_short_images_are_made_again(store: PageStore, files: Path) -> None:
    (files / "a.pdf").write_bytes(make_pdf(text_pages("a", "b")))
    store.add([files])
    first, second = store.pages()
    first.image_path.unlink()
    second.image_path.write_bytes(second.image_path.read_bytes()[:-5])
    with pytest.raises(StoreError, match="is missing"):
        store.read_image(first)
    with pytest.raises(StoreError, match="other bytes"):
        store.read_image(second)
    assert store.add([files]).replaced == 1
    assert [store.read_image(page).size for page in store.pages()] == [(555, 277)] * 2
    check_whole(store)


def test_a_damaged_part_is_named_and_made_again(store: PageStore, files: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        (files / name).write_bytes(make_pdf(text_pages(name)))
    store.add([files])
    part = store.folder / "pages.parquet" / "a.pdf.parquet"
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(StoreError, match=r"a\.pdf\.parquet is damaged"):
        list(store.pages())
    report = store.add([files / "b.pdf"])
    assert [remark.name for remark in report.damaged] == ["a.pdf"]
    report = store.add([files])
    assert (report.added, report.unchanged, report.damaged) == (1, 1, ())
    assert texts(store) == {"a.pdf": ["a.pdf"], "b.pdf": ["b.pdf"]}
