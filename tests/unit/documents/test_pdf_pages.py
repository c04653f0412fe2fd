"""Pages of PDF files: their size, rotation, text and outline, and the files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rsgrpo.config.checks import ConfigError
from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.pdf import PdfDocument, page_size, plain_text
from rsgrpo.documents.records import DocumentError
from tests.unit.documents.handmade_pdfs import PdfPage, make_pdf, text_pages

SETTINGS = RenderSettings()


def opened(path: Path, content: bytes) -> PdfDocument:
    path.write_bytes(content)
    return PdfDocument(path, SETTINGS)


def test_a4_takes_the_whole_budget_and_a_small_page_200_dpi() -> None:
    # sqrt(1568000 / (595 * 842)) = 1.76912 pixels a point: 1052.6 × 1489.6
    assert page_size(595, 842, SETTINGS) == (1052, 1489)
    # 200 / 72 * 200 = 555.6, 200 / 72 * 100 = 277.8
    assert page_size(200, 100, SETTINGS) == (555, 277)
    assert page_size(612, 792, RenderSettings(dpi=100)) == (850, 1100)
    assert page_size(14400, 14400, SETTINGS) == (1252, 1252)  # 5 metres: floor of sqrt(1568000)


@given(st.floats(0.1, 20_000), st.floats(0.1, 20_000), st.sampled_from([None, 36, 300]))
def test_a_page_never_exceeds_the_budget_and_keeps_its_proportions(
    width: float, height: float, dpi: float | None
) -> None:
    settings = RenderSettings(dpi=dpi)
    try:
        across, down = page_size(width, height, settings)
    except DocumentError as error:
        assert "strip" in str(error) or "left of it" in str(error)
        return
    assert 1 <= across * down <= settings.max_pixels
    scale = max(across / width, down / height)
    assert abs(width * scale - across) <= 1.0 + 200 / min(across, down) or min(across, down) < 4
    assert max(across, down) <= 200 * min(across, down)


def test_a_page_is_rendered_as_pypdfium2_does(tmp_path: Path) -> None:
    content = make_pdf([PdfPage(text="Ink", width=72, height=36, drawing="1 0 0 rg 0 0 36 18 re f")])
    page = opened(tmp_path / "a.pdf", content).page(1)
    theirs = pypdfium2.PdfDocument(content)[0].render(scale=200 / 72).to_pil().convert("RGB")
    assert page.pixels.shape == (100, 200, 3)
    assert np.array_equal(page.pixels, np.asarray(theirs))
    assert page.pixels[75, 50].tolist() == [255, 0, 0]  # lower left quarter; RGB, not BGR
    assert page.text == "Ink"


def test_a_rotated_page_stands_upright(tmp_path: Path) -> None:
    red_corner = "1 0 0 rg 0 0 20 20 re f"  # lower left, where a quarter clockwise makes it upper left
    pages = [PdfPage(rotate=turn, drawing=red_corner, width=144, height=72) for turn in (0, 90, 180, 270)]
    document = opened(tmp_path / "a.pdf", make_pdf(pages))
    images = [Image.fromarray(document.page(number).pixels) for number in (1, 2, 3, 4)]
    assert [image.size for image in images] == [(400, 200), (200, 400), (400, 200), (200, 400)]
    corners = [(5, 195), (5, 5), (395, 5), (195, 395)]
    assert [image.getpixel(corner) for image, corner in zip(images, corners, strict=True)] == [(255, 0, 0)] * 4


def test_what_was_filled_into_a_form_is_on_the_page(tmp_path: Path) -> None:
    pages = [PdfPage(text="Name", more="/Annots [6 0 R]")]
    empty, filled = (
        opened(tmp_path / "a.pdf", make_pdf(pages, field=written)).page(1).pixels for written in ("", "Ada Lovelace")
    )
    num_dark = [int(np.all(pixels[-60:] < 64, axis=2).sum()) for pixels in (empty, filled)]
    assert num_dark[0] == 0 and num_dark[1] > 200  # twelve letters at the lower edge


def test_outline_entries_come_in_the_order_of_pages(tmp_path: Path) -> None:
    outline = [(3, "Methods"), (1, "Introduction"), (3, "Data")]
    document = opened(tmp_path / "a.pdf", make_pdf(text_pages("a", "b", "c", "d"), outline=outline))
    assert document.outline() == ((1, "Introduction"), (3, "Methods"), (3, "Data"))


def test_an_outline_that_leads_in_a_circle_ends(tmp_path: Path) -> None:
    content = make_pdf(text_pages("a"), outline=[(1, "One"), (1, "Two")])
    circle = content.replace(b"/Next 8 0 R", b"/Next 7 0 R")
    assert circle != content
    assert opened(tmp_path / "a.pdf", circle).outline() == ((1, "One"),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (make_pdf(text_pages("secret"), password="x"), "asks for a password"),
        (make_pdf(text_pages("a", "b"))[:-60], "cut off or damaged"),
        (make_pdf(text_pages("a", "b"))[:300], "cut off or damaged"),
        (make_pdf([]), "has no pages"),
        (b"<html><body>404", "web page"),
        (b"", "empty"),
        (b"%PDF-1.5\nnothing that makes sense\n%%EOF\n", "damaged"),
    ],
    ids=["encrypted", "no end", "half", "no pages", "html", "empty", "senseless"],
)
def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        opened(tmp_path / "a.pdf", content)


def test_a_file_that_only_its_owner_locked_is_read(tmp_path: Path) -> None:
    document = opened(tmp_path / "a.pdf", make_pdf(text_pages("open to all"), password=""))
    assert document.page(1).text == "open to all"


@pytest.mark.parametrize("size", [(10, 14400), (14400, 10)])
def test_a_strip_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    document = opened(tmp_path / "a.pdf", make_pdf([PdfPage(text="a", width=size[0], height=size[1])]))
    with pytest.raises(DocumentError, match="strip"):
        document.page(1)


def test_a_page_that_is_missing_in_the_file_is_refused(tmp_path: Path) -> None:
    content = make_pdf(text_pages("a", "b")).replace(b"6 0 obj\n<< /Type /Page ", b"6 0 obj\n<< /Tipe /Pogo ")
    document = opened(tmp_path / "a.pdf", content.replace(b"[4 0 R 6 0 R]", b"[4 0 R 9 0 R]"))
    assert document.page(1).text == "a"
    with pytest.raises(DocumentError, match="missing or damaged"):
        document.page(2)


def test_texts_can_be_written_as_utf_8() -> None:
    assert plain_text("a\r\nb\rc\0d\ud800e com\ufffe\nputer \U0001f600") == "a\nb\ncd\ufffde com-\nputer \U0001f600"


@pytest.mark.parametrize("wrong", [{"dpi": 0}, {"max_pixels": 10}, {"image_format": "gif"}, {"workers": -1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RenderSettings(**wrong)  # type: ignore[arg-type]


def test_words_have_their_places_on_the_page_as_it_is_rendered(tmp_path: Path) -> None:
    upright, turned = (
        list(opened(tmp_path / f"{rotate}.pdf", make_pdf([PdfPage(text="Total 42", rotate=rotate)])).words(1))
        for rotate in (0, 90)
    )
    assert [word.text for word in upright] == [word.text for word in turned] == ["Total", "42"]
    for word, other in zip(upright, turned, strict=True):
        # turned clockwise, what was at x from the left is at x from the top, and what was at y is at 1 - y
        assert other.box.top == pytest.approx(word.box.left, abs=0.001)
        assert other.box.right == pytest.approx(1 - word.box.top, abs=0.001)
    assert upright[0].box.right < upright[1].box.left


def test_a_page_without_text_has_no_words_and_a_missing_one_is_named(tmp_path: Path) -> None:
    pdf = opened(tmp_path / "a.pdf", make_pdf([PdfPage()]))
    assert list(pdf.words(1)) == []
    with pytest.raises(DocumentError, match="missing or damaged"):
        list(pdf.words(2))
