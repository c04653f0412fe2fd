"""The data set of manuals: which pages and titles count, and that what is written is read back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.page_store import PageStore
from rsgrpo.errors import RsgrpoError
from rsgrpo.retrieval.measuring.relevance_files import read_retrieval_set
from tests.unit.documents.handmade_pdfs import make_pdf, text_pages
from tests.unit.documents.in_process_pool import in_process

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

import manual_set
from manual_set import Question, fetch, is_list, questions, write_set


def test_a_page_of_which_most_lines_end_in_a_page_number_is_a_list() -> None:
    contents = [f"{number}.1 Axes and scales . . . . {number + 7}" for number in range(10)]
    assert is_list("\n".join([*contents, "Contents", "iii"]))
    assert is_list("\n".join(f"plot, {number}" for number in range(12)))
    assert not is_list("\n".join(contents[:9]))  # too few to tell from a list of values
    assert not is_list("\n".join([*contents, *["A line of text, as most pages have them."] * 11]))
    assert not is_list("")


def test_questions_are_titles_that_stand_once_and_lead_into_the_corpus(tmp_path: Path) -> None:
    first, second = tmp_path / "a.pdf", tmp_path / "b.pdf"
    first.write_bytes(make_pdf(text_pages("one", "two"), outline=[(1, "Axes"), (2, "See also"), (2, "1.2")]))
    second.write_bytes(make_pdf(text_pages("three", "list"), outline=[(1, "SEE ALSO"), (1, "Colours"), (2, "Index")]))
    found = questions([first, second], ["a.pdf#1", "a.pdf#2", "b.pdf#1"])
    assert found == [Question(title="Axes", page_id="a.pdf#1"), Question(title="Colours", page_id="b.pdf#1")]


def test_the_set_is_read_back_with_texts_and_images(tmp_path: Path) -> None:
    file = tmp_path / "a.pdf"
    file.write_bytes(make_pdf(text_pages("one axis", "two")))
    store = in_process(PageStore.open(tmp_path / "pages", RenderSettings()))
    store.add([file])
    write_set(tmp_path, list(store.pages()), [Question(title="Axis", page_id="a.pdf#1")])
    data = read_retrieval_set(tmp_path)
    assert [(page.page_id, page.text) for page in data.pages] == [("a.pdf#1", "one axis"), ("a.pdf#2", "two")]
    assert all(page.image is not None and Path(page.image.file).is_file() for page in data.pages)
    assert data.relevant == {"title-0": {"a.pdf#1": 1}} and data.queries[0].text == "Axis"


def test_a_machine_without_apt_or_with_another_debian_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manual_set, "MANUALS", {"plot-doc": ("usr/plot.pdf",)})
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(RsgrpoError, match="there is no apt-get here; the manuals come from Debian's packages"):
        fetch(tmp_path)
    (tmp_path / "packages" / "plot-doc").mkdir()
    with pytest.raises(RsgrpoError, match=r"plot-doc of this Debian has no file usr/plot\.pdf"):
        fetch(tmp_path)
    (tmp_path / "pdfs" / "plot-doc.pdf").write_bytes(b"%PDF-")
    assert fetch(tmp_path) == [tmp_path / "pdfs" / "plot-doc.pdf"]
