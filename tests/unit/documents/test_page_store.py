"""Adding, replacing and removing documents, compared with a dictionary; images and metadata of pages."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rsgrpo.config.documents import RenderSettings
from rsgrpo.data.images.loading import load_image
from rsgrpo.documents.page_store import PageStore
from rsgrpo.documents.pdf import PdfDocument
from rsgrpo.documents.records import DocumentError, StoreError
from rsgrpo.documents.stored_images import encode_image
from rsgrpo.types import ImageRef
from tests.unit.documents.handmade_pdfs import PdfPage, make_pdf, text_pages
from tests.unit.documents.in_process_pool import InProcessPool, in_process
from tests.unit.documents.stores import check_whole, image_files, skipping, texts


def test_pages_carry_what_is_known_about_them(store: PageStore, files: Path) -> None:
    (files / "sub").mkdir()
    content = make_pdf(text_pages("one", "two", "three"), outline=[(2, "Chapter")])
    (files / "sub" / "plot#1.pdf").write_bytes(content)
    report = store.add([files])
    assert (report.added, report.pages, report.refused) == (1, 3, ())
    pages = list(store.pages())
    assert [page.title for page in pages] == [None, "Chapter", "Chapter"]
    assert [page.text for page in pages] == ["one", "two", "three"]
    assert [page.page_number for page in pages] == [1, 2, 3]
    assert pages[1] == store.page("sub/plot#1.pdf#2")
    assert (pages[0].width, pages[0].height, pages[0].blank) == (555, 277, False)
    rendered = PdfDocument(files / "sub" / "plot#1.pdf", RenderSettings()).page(2).pixels
    assert np.array_equal(np.asarray(store.read_image(pages[1])), rendered)
    check_whole(store)


def test_other_programs_read_the_pages_as_one_table(store: PageStore, files: Path) -> None:
    (files / "b.pdf").write_bytes(make_pdf(text_pages("b")))
    (files / "a.pdf").write_bytes(make_pdf(text_pages("a1", "a2")))
    store.add([files])
    table = pq.read_table(store.folder / "pages.parquet")
    assert sorted(table.column("page_id").to_pylist()) == ["a.pdf#1", "a.pdf#2", "b.pdf#1"]
    assert all((store.folder / name).is_file() for name in table.column("image").to_pylist())


def test_documents_come_in_natural_order_and_names_of_any_length_and_kind(store: PageStore, files: Path) -> None:
    names = ["2.pdf", "10.pdf", "ü" * 110 + ".pdf", "a%2Fb.pdf", "x y.pdf", "100%.pdf"]
    for name in names:
        (files / name).write_bytes(make_pdf(text_pages(name.encode("ascii", "ignore").decode())))
    store.add([files])
    assert sorted(store.documents()) == sorted(names)
    assert [name for name in store.documents() if name[0].isdigit()] == ["2.pdf", "10.pdf", "100%.pdf"]
    assert list(texts(store)) == store.documents()
    assert store.add([files]).unchanged == len(names)


def test_a_name_that_is_no_utf_8_is_written_in_escapes(store: PageStore, files: Path) -> None:
    (files / os.fsdecode(b"odd\xff.pdf")).write_bytes(make_pdf(text_pages("a")))
    (files / os.fsdecode(b"odd\xfe.png")).write_bytes((encode_image(np.zeros((4, 4, 3), np.uint8), "png"))[0])
    assert store.add([files]).added == 2
    assert texts(store) == {"odd\\udcfe.png": [""], "odd\\udcff.pdf": ["a"]}
    assert store.add([files]).unchanged == 2


CONTENTS = [make_pdf(text_pages(*words)) for words in (["a"], ["b", "c"], ["c", "a", "a"], ["d"] * 20)]
NUM_PAGES = [1, 2, 3, 20]
NAMES = ["x.pdf", "sub/y.pdf", "z 10.pdf"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.sampled_from(NAMES), st.integers(0, len(CONTENTS) - 1)),
            st.tuples(st.just("touch"), st.sampled_from(NAMES), st.just(0)),
            st.tuples(st.just("remove"), st.sampled_from(NAMES), st.just(0)),
            st.tuples(st.just("add"), st.just(""), st.just(0)),
        ),
        max_size=12,
    )
)
@settings(max_examples=25)
def test_the_store_holds_what_a_dictionary_would(steps: list[tuple[str, str, int]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        files = Path(place) / "files"
        (files / "sub").mkdir(parents=True)
        store = in_process(PageStore.open(Path(place) / "store", RenderSettings()))
        on_disk: dict[str, int] = {}
        stored: dict[str, int] = {}
        clock = 10**18
        for kind, name, which in [*steps, ("add", "", 0)]:
            clock += 10**9
            if kind == "write":
                (files / name).write_bytes(CONTENTS[which])
                os.utime(files / name, ns=(clock, clock))
                on_disk[name] = which
            elif kind == "touch" and name in on_disk:
                os.utime(files / name, ns=(clock, clock))
            elif kind == "remove" and name in stored:
                assert store.remove(name).removed == 1
                del stored[name]
            elif kind == "add" and on_disk:
                report = store.add([files])
                new = on_disk.keys() - stored.keys()
                changed = {
                    document for document in on_disk.keys() & stored.keys() if on_disk[document] != stored[document]
                }
                assert (report.added, report.replaced) == (len(new), len(changed))
                assert report.unchanged == len(on_disk) - len(new) - len(changed)
                assert report.pages == sum(NUM_PAGES[on_disk[document]] for document in new | changed)
                stored |= on_disk
            check_whole(store)
            assert store.documents() == list(texts(store))
            assert {document: len(found) for document, found in texts(store).items()} == {
                document: NUM_PAGES[content] for document, content in stored.items()
            }


def test_an_unchanged_file_is_not_read_again(store: PageStore, files: Path) -> None:
    path = files / "a.pdf"
    path.write_bytes(make_pdf(text_pages("a")))
    store.add([files])
    path.chmod(0o000)  # root may read it all the same: so the pool must not be asked either
    store = PageStore(store.folder, store.rendering, _no_pool)
    assert store.add([files]).unchanged == 1


def _no_pool(*_: object) -> InProcessPool:
    raise AssertionError("nothing has to be rendered")


def test_equal_files_are_rendered_once_and_named(store: PageStore, files: Path) -> None:
    content = make_pdf(text_pages("a", "b"), outline=[(1, "T")])
    for name in ("a.pdf", "b.pdf", "c.pdf"):
        (files / name).write_bytes(content)
    report = store.add([files])
    assert (report.added, report.pages, report.duplicate_pages) == (3, 6, 4)
    assert {remark.name for remark in report.duplicate_documents} == {"b.pdf", "c.pdf"}
    assert "same bytes as a.pdf" in report.duplicate_documents[0].reason
    assert len(image_files(store)) == 2
    assert [page.title for page in store.pages()] == ["T"] * 6
    store.remove("a.pdf")
    check_whole(store)
    assert texts(store) == {"b.pdf": ["a", "b"], "c.pdf": ["a", "b"]}


def test_equal_pages_are_stored_once_and_blank_ones_named(store: PageStore, files: Path) -> None:
    pages = [PdfPage(), PdfPage(text="a"), PdfPage(), PdfPage(drawing="0 0 1 rg 0 0 200 100 re f")]
    (files / "a.pdf").write_bytes(make_pdf(pages))
    report = store.add([files])
    assert (report.pages, report.duplicate_pages) == (4, 1)
    assert report.blank_pages == ("a.pdf#1", "a.pdf#3", "a.pdf#4")
    assert [page.blank for page in store.pages()] == [True, False, True, True]


def test_image_files_are_read_as_everywhere(store: PageStore, files: Path) -> None:
    turned = Image.new("RGB", (60, 30), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(files / "turned.jpg", exif=exif)
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(files / "clear.png")
    Image.fromarray(np.linspace(0, 65535, 1600).reshape(40, 40).astype(np.uint16)).save(files / "deep.png")
    Image.effect_noise((3000, 1500), 90).save(files / "large.png")
    Image.new("RGB", (50, 40), "blue").save(files / "plain.png")
    report = store.add([files])
    assert (report.added, report.blank_pages) == (5, ("clear.png#1", "plain.png#1", "turned.jpg#1"))
    pages = {page.document: page for page in store.pages()}
    for name, page in pages.items():
        expected = load_image(ImageRef(path=name, file=str(files / name)), store.rendering.image_rules)
        assert (page.width, page.height) == expected.size == store.read_image(page).size
        assert np.array_equal(np.asarray(store.read_image(page)), np.asarray(expected))
    assert (pages["turned.jpg"].width, pages["turned.jpg"].height) == (30, 60)
    assert pages["plain.png"].image_path.read_bytes() == (files / "plain.png").read_bytes()  # as it is
    assert pages["large.png"].width * pages["large.png"].height <= store.rendering.max_pixels
    check_whole(store)


def test_each_picture_of_a_tiff_file_is_a_page(store: PageStore, files: Path) -> None:
    frames = [Image.new("RGB", (40 + index, 30), colour) for index, colour in enumerate(["red", "green", "blue"])]
    frames.insert(1, Image.new("1", (64, 64), 1))
    frames[0].save(files / "fax.tiff", save_all=True, append_images=frames[1:])
    store.add([files])
    pages = list(store.pages())
    assert [(page.width, page.height) for page in pages] == [frame.size for frame in frames]
    assert [store.read_image(page).getpixel((5, 5)) for page in pages] == [
        (255, 0, 0),
        (255, 255, 255),
        (0, 128, 0),
        (0, 0, 255),
    ]


def test_jpeg_is_smaller_and_nearly_the_same(tmp_path: Path, files: Path) -> None:
    (files / "a.pdf").write_bytes(make_pdf([PdfPage(text="grey", drawing="0.5 g 0 0 100 20 re f")]))
    exact = in_process(PageStore.open(tmp_path / "png", RenderSettings()))
    close = in_process(PageStore.open(tmp_path / "jpeg", RenderSettings(image_format="jpeg")))
    images = []
    for store in (exact, close):
        store.add([files])
        (page,) = store.pages()
        images.append(np.asarray(store.read_image(page), dtype=int))
    assert page.image_path.suffix == ".jpg"
    assert np.abs(images[0] - images[1]).mean() < 2.0


def test_office_files_go_through_libreoffice(
    store: PageStore, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "made.pdf").write_bytes(make_pdf(text_pages("from a letter")))
    # Stands for LibreOffice: the eighth argument is the folder, the ninth the file.
    script = f'#!/bin/sh\ncp {tmp_path}/made.pdf "$7/$(basename "$8" .docx).pdf"\n'
    (programs / "soffice").write_text(script)
    (programs / "soffice").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (files / "letter.docx").write_bytes(b"PK\x03\x04 a letter")
    assert store.add([files]).added == 1
    assert texts(store) == {"letter.docx": ["from a letter"]}
    check_whole(store)
    (programs / "soffice").write_text("#!/bin/sh\necho source file could not be loaded >&2\n")
    (files / "letter.docx").write_bytes(b"PK\x03\x04 another letter")
    report = skipping(store).add([files])
    assert "source file could not be loaded" in report.refused[0].reason


def test_a_path_that_is_not_there_is_named_before_anything_is_done(store: PageStore, files: Path) -> None:
    with pytest.raises(DocumentError, match="no file or folder"):
        store.add([files / "nothing.pdf"])
    with pytest.raises(DocumentError, match="no PDF, image or office file"):
        store.add([files])


def test_a_store_keeps_its_settings(store: PageStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="begun with dpi=None, not 100"):
        PageStore.open(store.folder, RenderSettings(dpi=100))
    assert PageStore.open(store.folder).rendering == RenderSettings()
    assert PageStore.open(store.folder, RenderSettings(workers=7)).rendering.workers == 7


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "store.json").unlink(), "half a page store"),
        (lambda folder: (folder / "store.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "store.json").write_text('{"version": 9}'), "version '9'"),
        (lambda folder: (folder / "store.json").write_text('{"version": 1}'), "does not say"),
        (lambda folder: shutil.rmtree(folder), "no page store at"),
    ],
)
def test_half_written_and_strange_stores_are_named(store: PageStore, spoil, words: str) -> None:
    spoil(store.folder)
    with pytest.raises(StoreError, match=words):
        PageStore.open(store.folder)


def test_what_is_not_there_is_named(store: PageStore, files: Path) -> None:
    for wrong in ("a.pdf#1", "a.pdf", "#1", "a.pdf#x"):
        with pytest.raises(StoreError):
            store.page(wrong)
    with pytest.raises(StoreError, match="no document"):
        store.remove("a.pdf")


def test_a_part_that_names_a_file_outside_its_store_is_refused(store: PageStore, files: Path) -> None:
    (files / "a.pdf").write_bytes(make_pdf(text_pages("a")))
    store.add([files])
    part = store.folder / "pages.parquet" / "a.pdf.parquet"
    table = pq.read_table(part)
    column = table.schema.get_field_index("image")
    pq.write_table(table.set_column(column, table.schema.field(column), [["../../secret.png"]]), part)
    with pytest.raises(StoreError, match="outside its store"):
        list(store.pages())


def test_a_store_among_the_documents_is_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(make_pdf(text_pages("a")))
    store = in_process(PageStore.open(tmp_path / "index" / "pages", RenderSettings()))
    assert (store.add([tmp_path]).added, store.add([tmp_path]).unchanged) == (1, 1)
    assert store.documents() == ["a.pdf"]


@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 2**32 - 1))
def test_png_files_hold_every_pixel(width: int, height: int, is_grey: bool, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if is_grey:
        pixels[:] = pixels[:, :, :1]
    data, suffix = encode_image(pixels, "png")
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        assert (image.mode, suffix) == ("L" if is_grey else image.mode, ".png")
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
