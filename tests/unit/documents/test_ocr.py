"""Pages without a text layer are read by OCR: each image once, with its origin, and never at the cost of the page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents import ocr
from rsgrpo.documents.ocr import OcrError, check_ocr, ocr_name
from rsgrpo.documents.page_store import PageStore
from rsgrpo.documents.parts import part_path
from rsgrpo.documents.stored_images import Pixels
from tests.unit.documents.handmade_pdfs import PdfPage, make_pdf, text_pages
from tests.unit.documents.in_process_pool import InProcessPool
from tests.unit.documents.stores import check_whole

READING = RenderSettings(ocr="rapidocr")


def square(size: int) -> PdfPage:
    """Make a page without a text layer; the fake OCR tells squares apart by their ink."""
    return PdfPage(drawing=f"0 0 {size} {size} re f")


class FakeOcr:
    """Reads how many per cent of a page are black, and remembers what it read; cannot read what is black all over."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, pixels: Pixels) -> str:
        share = round(100 * float((pixels == 0).mean()))
        if share > 40:
            raise RuntimeError("no such operator")
        self.read.append(f"{share} per cent\x00")
        return self.read[-1]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeOcr:
    fake = FakeOcr()
    monkeypatch.setattr(ocr, "rapid_ocr", lambda: fake)
    return fake


def reading(store: PageStore) -> PageStore:
    return PageStore(store.folder, READING, InProcessPool)


def described(store: PageStore) -> list[tuple[str, str, str]]:
    return [(page.page_id, page.text, page.text_origin) for page in store.pages()]


def test_only_pages_without_a_text_layer_are_read(store: PageStore, files: Path, engine: FakeOcr) -> None:
    (files / "a.pdf").write_bytes(make_pdf([*text_pages("layer"), square(40), PdfPage()]))
    report = reading(store).add([files])
    assert (report.ocr_pages, report.unread_pages, len(report.blank_pages)) == (1, (), 1)
    # 40 x 40 of 200 x 100 points are 8 per cent; control characters are taken out as of text layers
    assert described(store) == [
        ("a.pdf#1", "layer", "text_layer"),
        ("a.pdf#2", "8 per cent", "ocr"),
        ("a.pdf#3", "", "none"),  # nothing stands on a blank page
    ]
    assert dict(store.texts()) == {"a.pdf#1": "layer", "a.pdf#2": "8 per cent", "a.pdf#3": ""}
    check_whole(store)


def test_documents_that_are_there_already_are_read_when_it_is_asked(
    store: PageStore, files: Path, engine: FakeOcr
) -> None:
    (files / "scan.pdf").write_bytes(make_pdf([square(40)]))
    (files / "text.pdf").write_bytes(make_pdf(text_pages("layer")))
    store.add([files])
    assert described(store)[0] == ("scan.pdf#1", "", "none")
    digest = store.text_digest()
    images = {page.sha256 for page in store.pages()}
    report = reading(store).add([files])
    assert (report.replaced, report.unchanged, report.ocr_pages) == (1, 1, 1)  # text.pdf has nothing to read
    assert described(store)[0] == ("scan.pdf#1", "8 per cent", "ocr")
    assert store.text_digest() != digest
    assert {page.sha256 for page in store.pages()} == images  # so that nothing is embedded again

    for again in (reading(store), store):  # without OCR its texts stay, too
        assert again.add([files]).unchanged == 2
        (files / "scan.pdf").touch()
    assert store.add([files]).unchanged == 2
    assert described(store)[0] == ("scan.pdf#1", "8 per cent", "ocr")
    assert len(engine.read) == 1


def test_the_same_image_is_read_once_and_its_text_goes_with_it(store: PageStore, files: Path, engine: FakeOcr) -> None:
    (files / "a.pdf").write_bytes(make_pdf([square(40), square(50), square(40)]))
    (files / "b.pdf").write_bytes(make_pdf([square(50), *text_pages("more")]))
    (files / "c.pdf").write_bytes((files / "b.pdf").read_bytes())
    reading(store).add([files])
    assert sorted(engine.read) == ["13 per cent\x00", "8 per cent\x00"]
    assert [text for _, text, _ in described(store)] == ["8 per cent", "13 per cent", "8 per cent"] + [
        "13 per cent", "more"
    ] * 2  # fmt: skip
    store.remove("a.pdf")
    assert len(list((store.folder / "ocr").glob("*/*.txt"))) == 1
    store.remove("b.pdf", "c.pdf")
    assert not list((store.folder / "ocr").glob("*/*.txt"))
    check_whole(store)


def test_a_page_that_cannot_be_read_is_named_and_stays(store: PageStore, files: Path, engine: FakeOcr) -> None:
    (files / "a.pdf").write_bytes(make_pdf([PdfPage(drawing="0 0 199 100 re f"), square(40)]))
    report = reading(store).add([files])
    assert [(remark.name, remark.reason) for remark in report.unread_pages] == [
        ("a.pdf#1", "OCR failed (no such operator)")
    ]
    assert report.ocr_pages == 1 and not report.refused
    assert described(store) == [("a.pdf#1", "", "ocr"), ("a.pdf#2", "8 per cent", "ocr")]
    assert reading(store).add([files]).unchanged == 1


def test_a_killed_run_goes_on_at_the_page_where_it_was(store: PageStore, files: Path, engine: FakeOcr) -> None:
    class Killed(InProcessPool):
        killers = frozenset({3})

    (files / "a.pdf").write_bytes(make_pdf([square(size) for size in (20, 30, 40)]))
    PageStore(store.folder, dataclasses.replace(READING, on_bad_document="skip"), Killed).add([files])
    assert not list(store.pages())
    read_before = len(engine.read)
    reading(store).add([files])
    assert len(described(store)) == 3 and len(engine.read) == read_before  # page 3 too: it died behind the reading


def test_a_store_from_before_ocr_is_read(store: PageStore, files: Path, engine: FakeOcr) -> None:
    (files / "a.pdf").write_bytes(make_pdf([*text_pages("layer"), square(40)]))
    store.add([files])
    part = part_path(store.folder, "a.pdf")
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["text_origin"]), part)
    assert described(store) == [("a.pdf#1", "layer", "text_layer"), ("a.pdf#2", "", "none")]
    assert store.add([files]).unchanged == 1
    assert reading(store).add([files]).replaced == 1
    assert described(store)[1] == ("a.pdf#2", "8 per cent", "ocr")


def test_a_missing_package_is_named_with_the_way_out(
    store: PageStore, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ocr, "find_spec", lambda name: None if name == "rapidocr" else object())
    with pytest.raises(OcrError, match=r"ocr=rapidocr needs rapidocr; install it with uv sync --extra ocr"):
        reading(store).add([files])
    check_ocr("none")
    assert ocr_name("none") == "" and ocr_name("rapidocr").startswith("rapidocr")
