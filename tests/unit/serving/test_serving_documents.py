"""Documents that visitors bring: kind by content, bounds, names that are no paths, sessions."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from recipes.serving.uploads import UploadBounds, safe_name
from tests.unit.documents.handmade_pdfs import make_pdf, text_pages
from tests.unit.serving.served import INVOICE, LETTER, Served, serving


def _names(served: Served, client=None) -> list[str]:
    return [found["name"] for found in (client or served.client).get("/api/documents").json()["documents"]]


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_document_that_is_brought_is_found_and_shown_and_can_be_taken_out(served: Served) -> None:
    assert served.bring() == "invoice.pdf: 2 pages"
    (entry,) = served.client.get("/api/documents").json()["documents"]
    assert (entry["name"], entry["num_pages"], entry["can_remove"]) == ("invoice.pdf", 2, True)
    found = served.client.post("/v1/search", json={"query": "total amount", "by": "text"}).json()["data"]
    assert [(page["document"], page["page_number"]) for page in found] == [("invoice.pdf", 2)]
    whole = served.client.get(found[0]["image"])
    small = served.client.get(found[0]["image"], params={"size": "small"})
    assert whole.headers["content-type"] == "image/png" and Image.open(io.BytesIO(whole.content)).width > 320
    assert small.headers["content-type"] == "image/jpeg" and max(Image.open(io.BytesIO(small.content)).size) == 320
    assert served.client.delete("/api/documents", params={"name": "invoice.pdf"}).status_code == 200
    assert _names(served) == [] and _files(served.state / "uploads") == []
    assert served.client.get(found[0]["image"]).status_code == 404


def test_the_same_file_is_taken_once_and_another_of_its_name_gets_a_number(served: Served) -> None:
    assert served.bring("a.pdf") == "a.pdf: 2 pages"
    assert served.bring("a.pdf") == "a.pdf is there already"
    assert served.bring("a.pdf", LETTER) == "a (2).pdf: 1 pages"
    assert _names(served) == ["a.pdf", "a (2).pdf"]


def test_what_a_file_is_its_content_says_not_its_name(served: Served) -> None:
    output = io.BytesIO()
    Image.linear_gradient("L").save(output, "PNG")
    Image.new("RGB", (300, 200), "red").save(picture := io.BytesIO(), "PNG")
    assert served.bring("scan.pdf", output.getvalue()) == "scan.pdf.png: 1 pages"
    assert served.bring("photo.png", INVOICE) == "photo.png.pdf: 2 pages"
    for content, what in [
        (b"<html><script>alert(1)</script>", "web page"),
        (b"PK\x03\x04 a zip", "ZIP"),
        (b"", "empty"),
        (picture.getvalue()[:0] + b"MZ\x90 a program", "bring a PDF"),
    ]:
        reply = served.client.post("/api/documents", params={"name": "a.pdf"}, content=content)
        assert reply.status_code == 415 and what in reply.json()["error"]["message"], reply.text
    cut = served.client.post("/api/documents", params={"name": "a.pdf"}, content=INVOICE[:200])
    assert cut.status_code == 422 and "cut off" in cut.json()["error"]["message"]
    assert _files(served.state / "receiving") == []


def test_a_file_beyond_the_bounds_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with serving(tmp_path, bounds=UploadBounds(most_bytes=len(LETTER) + 10, most_pages=2)) as served:
        large = served.client.post("/api/documents", content=LETTER + b" " * 11)
        assert large.status_code == 413

        def pieces():  # without a length that could be believed
            yield LETTER
            yield b" " * 11

        assert served.client.post("/api/documents", content=pieces()).status_code == 413
        assert served.bring("letter.pdf", LETTER)
    with serving(tmp_path / "pages", bounds=UploadBounds(most_pages=2)) as served:
        long = served.client.post("/api/documents", content=make_pdf(text_pages("a", "b", "c")))
        assert long.status_code == 413 and "3 pages, more than 2" in long.json()["error"]["message"]
        assert _files(served.state / "receiving") == [] and _names(served) == []


NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\boot.ini",
    "a\0b.pdf",
    ".",
    "..",
    "",
    "~/x",
    "x" * 5000,
    "字" * 100 + ".pdf",
    "\ud800.pdf",
]


@pytest.mark.parametrize("name", NAMES, ids=[f"name-{number}" for number in range(len(NAMES))])
def test_no_path_comes_from_a_name(name: str, tmp_path: Path) -> None:
    made = safe_name(name, ".pdf")
    assert Path(made).name == made and made.endswith(".pdf") and not made.startswith((".", "~")) and "\0" not in made


@given(st.text(max_size=300))
@example("字" * 100 + ".pdf")
@example("a" + "\U0001f600" * 90)
def test_a_name_of_any_text_is_one_part_of_a_path_and_printable(name: str) -> None:
    made = safe_name(name, ".pdf")
    assert Path("/served", made).parent == Path("/served") and made.isprintable()
    assert made.endswith(".pdf") and len(made.encode()) + len(" (12)") <= 240 and safe_name(made, ".pdf") == made


def test_hostile_names_stay_within_the_folder(served: Served, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert served.bring("../../../evil.pdf") == "evil.pdf: 2 pages"
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(served.index) or path.is_relative_to(served.state) for path in new)


def test_with_sessions_nobody_sees_the_documents_of_another(tmp_path: Path) -> None:
    with serving(tmp_path, has_sessions=True) as served:
        ada, grace = served.visitor(), served.visitor()
        served.bring("ours.pdf", INVOICE, ada)
        served.bring("ours.pdf", LETTER, grace)
        assert _names(served, ada) == ["ours.pdf"] == _names(served, grace)
        # ada's two pages are all that she can find, whatever she asks for
        found = ada.post("/v1/search", json={"query": "anything", "num_pages": 50}).json()["data"]
        assert len(found) == 2 and all(page["document"] == "ours.pdf" for page in found)
        other = grace.post("/v1/search", json={"query": "ship", "by": "text"}).json()["data"]
        assert len(other) == 1 and ada.post("/v1/search", json={"query": "ship", "by": "text"}).json()["data"] == []
        assert grace.get(found[0]["image"]).status_code == 404 and ada.get(found[0]["image"]).status_code == 200
        assert ada.post(f"/api/pages/{other[0]['key']}/marks", json={"text": "ship"}).status_code == 404
        stolen = ada.post("/api/ask", json={"question": "?", "pages": [other[0]["key"]]})
        assert "there is no such page" in stolen.text and served.asker.requests == []
        assert grace.delete("/api/documents", params={"name": "ours.pdf"}).status_code == 200
        assert _names(served, ada) == ["ours.pdf"] and _names(served, grace) == []
        key = ada.post("/api/documents", params={"name": "b.pdf"}, content=LETTER).json()["key"]
        assert grace.get(f"/api/documents/{key}/progress").status_code == 404
        nobody = served.program()
        assert nobody.post("/api/documents", content=LETTER).status_code == 403
        assert nobody.post("/v1/search", json={"query": "ship"}).status_code == 409


def test_documents_of_all_are_everybodys_and_no_session_can_remove_them(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.bring("shared.pdf")
    with serving(tmp_path, has_sessions=True) as served:
        ada = served.visitor()
        assert _names(served, ada) == ["shared.pdf"]
        reply = ada.delete("/api/documents", params={"name": "shared.pdf"})
        assert reply.status_code == 403 and "belongs to all" in reply.json()["error"]["message"]
