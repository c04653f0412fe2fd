"""``rsgrpo search --by`` and ``rsgrpo tune-search`` over pages with a text layer; vectors are a fake embedder's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from recipes.indexing.search_command import main as search_index
from recipes.indexing.searching import Question, SearchBy, search, search_all
from recipes.indexing.tune_command import main as tune_search
from recipes.indexing.updating import update_index
from rsgrpo.config.documents import RenderSettings
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.documents.page_store import PageStore
from rsgrpo.retrieval.embedders.embedder import PageImage
from rsgrpo.retrieval.index.flat_index import create_index, open_index
from rsgrpo.retrieval.index.page_index import ALL_PAGES
from rsgrpo.retrieval.text.hybrid import read_tuned
from rsgrpo.types import FloatArray
from tests.unit.documents.handmade_pdfs import PdfPage, make_pdf, text_pages
from tests.unit.documents.in_process_pool import in_process
from tests.unit.retrieval.index_pages import IDENTITY, SignEmbedder, sign_vectors

NUM_PAGES = 16
PICTURE = PdfPage(drawing="0 0 50 50 re f")


class OrderEmbedder(SignEmbedder):
    """Gives the pages that it sees the vectors 0, 1, 2, …; a question is the vector of its last number."""

    seen = 0

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        first, self.seen = self.seen, self.seen + len(pages)
        return sign_vectors([number % NUM_PAGES for number in range(first, self.seen)])


def no_embedder(config: EmbedderConfig) -> SignEmbedder:
    raise AssertionError("an embedder was loaded")


def embedder(config: EmbedderConfig) -> SignEmbedder:
    return SignEmbedder()


def make_index(folder: Path, *texts: str, name: str = "a.pdf") -> None:
    """Make or change an index whose only document has a page for each text, and a picture at the end."""
    file = folder.parent / name
    file.write_bytes(make_pdf([*text_pages(*texts), PICTURE]))
    store = in_process(PageStore.open(folder / "pages", RenderSettings()))
    store.add([file])
    has_index = (folder / "index.json").exists()
    config = EmbedderConfig(model="m")
    with (
        open_index(folder, is_writable=True) if has_index else create_index(folder, IDENTITY, embedder=config) as index
    ):
        update_index(index, OrderEmbedder(), store, dates={name: "2026-01-31"})


def write_queries(folder: Path, *queries: tuple[str, int]) -> Path:
    """Write judged questions, each with the page of ``a.pdf`` that answers it."""
    folder.mkdir(exist_ok=True)
    rows = [{"query-id": f"q{number}", "query": text} for number, (text, _) in enumerate(queries)]
    judged = [
        {"query-id": f"q{number}", "corpus-id": f"a.pdf#{page}", "score": 1} for number, (_, page) in enumerate(queries)
    ]
    for name, lines in (("queries", rows), ("qrels", judged)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_index(tmp_path / "i", *(f"word{number} common" for number in range(NUM_PAGES - 1)))
    return tmp_path / "i"


def found_pages(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    """The page numbers of the table, and what was said beside it."""
    said = capsys.readouterr()
    return [line.split()[3] for line in said.out.splitlines()[1:]], " ".join(said.err.split())


def test_a_search_by_text_loads_no_embedder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search_index([str(folder), "Where is WORD3?", "--by", "text"], no_embedder) == 0
    pages, said = found_pages(capsys)
    assert pages == ["4"]
    assert "1 of 16 pages have no text and cannot be found by it; rsgrpo index with documents.ocr=rapidocr" in said
    assert search_index([str(folder), "common", "--by", "text", "-k", "3"], no_embedder) == 0
    assert found_pages(capsys)[0] == ["1", "2", "3"]  # equally good: page order
    assert len(list(folder.glob("text-*.bm25"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["of the ?!", "--by", "text"], "the question has no word to search for, but stop words or signs alone; ask"),
        (["", "--by", "text"], "the question is empty; ask something"),
        (["𓀀𓀁", "--by", "text"], "none of the 16 pages of the index {i} has a word of the question; ask in other"),
        (["word3", "--by", "text", "--since", "2026-02-01"],
         "none of the 16 pages of the index {i} meets --since 2026-02-01 and has a word of the question; widen it"),
        (["word3", "--by", "hybrid"], "has no weight for the text; find one on judged questions: rsgrpo tune-search"),
        (["word3", "--by", "text", "index.language=klingon"], "the language 'klingon' is not known; choose one of"),
        (["word3", "--by", "sound"], "argument --by: invalid choice: 'sound'"),
    ],
)  # fmt: skip
def test_questions_that_text_cannot_answer_are_answered_in_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert search_index([str(folder), *arguments], no_embedder) > 0
    error = " ".join(capsys.readouterr().err.split())
    assert message.format(i=folder) in error and "Traceback" not in error


def test_an_index_whose_pages_are_gone_has_no_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pages").rename(folder.parent / "elsewhere")
    assert search_index([str(folder), "word3", "--by", "text"], no_embedder) > 0
    assert "there is no store of pages; put that folder back, or search --by vector" in found_pages(capsys)[1]


def tune(folder: Path, queries: Path, *more: str) -> int:
    return tune_search([str(folder), "--queries", str(queries), "--dev-frac", "0.5", *more], embedder)


def test_a_tuned_weight_is_used_until_the_index_changes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Text finds the pages of odd questions by their word; vectors those of even ones, by the number at the end.
    asked = [f"word{number} {number + 1}" if number % 2 else f"nothing {number}" for number in range(14)]
    queries = write_queries(tmp_path / "judged", *((text, number + 1) for number, text in enumerate(asked)))
    assert tune(folder, queries) == 0
    out = " ".join(capsys.readouterr().out.split())
    tuned = read_tuned(folder)
    assert tuned is not None and 0.5 < tuned.weight < 1 and tuned.measures["hybrid"]["mrr@10"] == 1.0
    assert tuned.measures["text"]["mrr@10"] < 1 and tuned.measures["vectors"]["mrr@10"] < 1
    assert f"the text counts {tuned.weight:g}" in out and f"tuned on {tuned.num_dev_queries} questions" in out

    assert search_index([str(folder), "word3 7", "-k", "2"], embedder) == 0  # hybrid is the default now
    pages, said = found_pages(capsys)
    assert pages == ["4", "8"] and "tuned for another state" not in said
    assert search_index([str(folder), "word3 7", "-k", "1", "--by", "vector"], embedder) == 0
    assert found_pages(capsys) == (["8"], "")
    assert search_index([str(folder), "? 7", "-k", "1"], embedder) == 0

    make_index(folder, *(f"other{number} common" for number in range(4)))
    assert search_index([str(folder), "other3 9"], embedder) == 0
    assert (
        "was tuned for another state of the index: pages or their texts have changed (16 pages then, 5 now)"
        in (found_pages(capsys)[1])
    )


def test_many_questions_find_what_each_of_them_finds_alone(folder: Path, tmp_path: Path) -> None:
    asked = [f"word{number} {number + 1}" if number % 2 else f"nothing {number}" for number in range(14)]
    questions = [*asked, "common 3", "? 7"]  # the last has no word to search for
    index = open_index(folder)

    def alone(text: str, by: SearchBy | None) -> list[str]:
        question = Question(text=text, k=3, allowed=ALL_PAGES)
        found = search(index, folder, question, by, "", SignEmbedder).pages
        return [hit.page.page_id for hit in found]

    def together(by: SearchBy | None) -> list[list[str]]:
        found = search_all(index, folder, questions, 3, by, SignEmbedder)
        return [[hit.page.page_id for hit in pages] for pages in found]

    assert together(None) == together("vector") == [alone(text, None) for text in questions]
    assert together("text") == [*(alone(text, "text") for text in questions[:-1]), []]
    queries = write_queries(tmp_path / "judged", *((text, number + 1) for number, text in enumerate(asked)))
    assert tune(folder, queries) == 0
    assert together(None) == together("hybrid") == [alone(text, None) for text in questions]
    assert together(None) != together("vector")


def test_where_the_text_finds_everything_no_embedder_is_loaded_any_more(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = write_queries(tmp_path / "judged", *((f"word{number} {number + 1}", number + 1) for number in range(14)))
    assert tune(folder, queries) == 0
    assert "no mixture found more than the text alone, beyond chance" in capsys.readouterr().out
    assert search_index([str(folder), "word3 7"], no_embedder) == 0
    assert found_pages(capsys)[0] == ["4"]


def test_a_question_without_words_is_answered_by_vectors(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = write_queries(tmp_path / "judged", *((f"word{number} {number + 1}", number + 1) for number in range(14)))
    assert tune(folder, queries) == 0
    capsys.readouterr()
    monkeypatch.setattr(SignEmbedder, "embed_queries", lambda self, queries: sign_vectors([7]))
    assert search_index([str(folder), "of the", "-k", "1"], embedder) == 0
    pages, said = found_pages(capsys)
    assert pages == ["8"] and "so vectors alone find pages" in said


@pytest.mark.parametrize(
    ("queries", "more", "message"),
    [
        ((("word1 1", 2), ("word2 2", 99)), (), "qrels: 1 page ids are not in the index {i}: 'a.pdf#99'"),
        ((("word1 1", 2), ("  ", 3)), (), "the query 'q1' is empty; write its text, or leave it out with its qrels"),
        ((("word1 1", 2),), (), "of 1 queries"),
        ((("word1 1", 2),), ("--dev-frac", "1"), "--dev-frac 1 leaves a part empty"),
        ((), (), "qrels.jsonl is empty (0 bytes)"),
    ],
)
def test_questions_that_cannot_be_tuned_on_are_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    queries: tuple[tuple[str, int], ...],
    more: tuple[str, ...],
    message: str,
) -> None:
    assert tune(folder, write_queries(tmp_path / "judged", *queries), *more) > 0
    error = " ".join(capsys.readouterr().err.split())
    assert message.format(i=folder) in error and "Traceback" not in error
    assert read_tuned(folder) is None
