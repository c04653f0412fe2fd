"""``rsgrpo index`` and ``rsgrpo search`` with a store of pages and an embedder that need no files and no model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from recipes.indexing.embedding_lines import embedding_line
from recipes.indexing.index_command import Changes
from recipes.indexing.index_command import main as index_documents
from recipes.indexing.search_command import main as search_index
from recipes.indexing.settings import embedder_settings, index_settings, split_settings
from recipes.indexing.updating import IndexReport, update_index
from rsgrpo.config.checks import ConfigError
from rsgrpo.config.documents import RenderSettings
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.documents.page_store import PageStore
from rsgrpo.retrieval.embedders.embedder import EmbedderMismatchError, EmbeddingError, PageImage
from rsgrpo.retrieval.index.flat_index import FlatIndex, create_index, open_index
from rsgrpo.types import FloatArray, ImageRef
from tests.unit.retrieval.index_pages import IDENTITY, SignEmbedder

pytestmark = pytest.mark.filterwarnings(
    "ignore:Payload indexes have no effect:UserWarning", "ignore:Local mode performs exact:UserWarning"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakePage:
    """A page of a store; the sign embedder reads its vector off the end of the image's path."""

    document: str
    page_number: int
    sha256: str = "0"
    title: str | None = None
    blank: bool = False

    @property
    def page_id(self) -> str:
        return f"{self.document}#{self.page_number}"

    @property
    def image_path(self) -> Path:
        return Path(f"store/image {self.page_number}")


class FakeStore:
    """A store of pages that a test writes down."""

    def __init__(self, *pages: FakePage) -> None:
        self._pages = pages

    def dates(self) -> dict[str, str]:
        return {}

    def pages(self) -> Iterator[FakePage]:
        yield from self._pages


class CountingEmbedder(SignEmbedder):
    """Remembers what it embedded; cannot read page 13."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        paths = [page.path for page in pages if isinstance(page, ImageRef)]
        if "store/image 13" in paths:
            raise EmbeddingError("page 13 cannot be read")
        self.seen += paths
        return super().embed_pages(pages)


PAGES = [
    FakePage(document="a/plot.pdf", page_number=1, title="[bold] axes"),
    FakePage(document="a/plot.pdf", page_number=2),
    FakePage(document="b/list.pdf", page_number=3, blank=True),
    FakePage(document="b/list.pdf", page_number=4),
]


def report(**counts: int) -> IndexReport:
    zeros = dict.fromkeys(("num_embedded", "num_unchanged", "num_removed", "num_blank"), 0)
    return IndexReport(**(zeros | counts), seconds=0.0)


def test_an_update_embeds_what_is_new_or_changed_and_takes_out_what_is_gone(tmp_path: Path) -> None:
    embedder = CountingEmbedder()
    with create_index(tmp_path / "i", IDENTITY) as index:

        def update(*pages: FakePage, dates: dict[str, str] | None = None) -> IndexReport:
            embedder.seen.clear()
            found = update_index(index, embedder, FakeStore(*pages), dates=dates)
            return dataclasses.replace(found, seconds=0.0)

        assert update(*PAGES) == report(num_embedded=3, num_blank=1)
        assert update(*PAGES) == report(num_unchanged=3, num_blank=1) and embedder.seen == []
        changed = dataclasses.replace(PAGES[1], sha256="1")
        assert update(PAGES[0], changed) == report(num_embedded=1, num_unchanged=1, num_removed=1)
        assert embedder.seen == ["store/image 2"]
        became_blank = dataclasses.replace(changed, blank=True)
        assert update(PAGES[0], became_blank) == report(num_unchanged=1, num_removed=1, num_blank=1)
        assert update(PAGES[0], dates={"a/plot.pdf": "2026-01-31"}) == report(num_unchanged=1)
        assert embedder.seen == []  # the same image has the same vector
        assert index.search(embedder.embed_queries(["1"]), 1)[0][0].score == 1.0
        assert update(PAGES[0]) == report(num_unchanged=1)  # the date stays
    (page,) = open_index(tmp_path / "i").pages()
    assert (page.folder, page.date, page.title) == ("a", "2026-01-31", "[bold] axes")


def test_what_was_embedded_before_a_page_that_fails_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.indexing.updating._PAGES_AT_ONCE", 2)
    pages = [FakePage(document="a.pdf", page_number=number) for number in (1, 2, 13, 4)]
    with create_index(tmp_path / "i", IDENTITY) as index, pytest.raises(EmbeddingError, match="page 13"):
        update_index(index, CountingEmbedder(), FakeStore(*pages))
    assert [page.page_number for page in open_index(tmp_path / "i").pages()] == [1, 2]


def test_an_interruption_loses_few_pages(tmp_path: Path) -> None:
    class Interrupted(CountingEmbedder):
        def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
            if "store/image 40" in [page.path for page in pages if isinstance(page, ImageRef)]:
                raise KeyboardInterrupt
            return SignEmbedder.embed_pages(self, pages)

    pages = [FakePage(document="a.pdf", page_number=number) for number in range(1, 100)]
    with create_index(tmp_path / "i", IDENTITY) as index, pytest.raises(KeyboardInterrupt):
        update_index(index, Interrupted(), FakeStore(*pages))
    assert len(open_index(tmp_path / "i")) >= 16  # the first call's


def test_saving_takes_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that only work moves: 10 s for a call of the embedder, 3 s for a save. The first save comes after more
    # than 30 s, that is 4 calls; the next ones after more than 3 s / 0.02 = 150 s, that is 16 calls. Of 40 calls: saves
    # after 4, 20 and 36; the last save closes the update.
    seconds = 0.0
    saved_after = []

    class Slow(CountingEmbedder):
        def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
            nonlocal seconds
            seconds += 10.0
            return super().embed_pages(pages)

    class SlowToSave(FlatIndex):
        def save(self) -> None:
            nonlocal seconds
            saved_after.append(len(self))
            super().save()
            seconds += 3.0

    monkeypatch.setattr("recipes.indexing.updating.time.monotonic", lambda: seconds)
    monkeypatch.setattr("recipes.indexing.updating._FIRST_PAGES", 1)
    monkeypatch.setattr("recipes.indexing.updating._PAGES_AT_ONCE", 1)
    monkeypatch.setattr("rsgrpo.retrieval.index.flat_index.FlatIndex", SlowToSave)
    pages = [FakePage(document="a.pdf", page_number=number) for number in range(101, 141)]
    told = []
    with create_index(tmp_path / "i", IDENTITY) as index:
        update_index(index, Slow(), FakeStore(*pages), on_progress=lambda *numbers: told.append(numbers))
    assert saved_after == [4, 20, 36, 40]
    assert told == [(number, 40) for number in range(1, 41)]


def test_progress_says_when_the_rest_is_done() -> None:
    # 310 pages in 62 s are 5 a second; 930 more take 186 s
    line = embedding_line(310, 1240, 62.0, datetime(2026, 11, 20, 14, 0))
    assert line == "310/1,240 pages embedded, 5.0 pages/s, ends 14:03 (in 3 min 06 s)"


def test_slips_are_refused_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def load(config: EmbedderConfig) -> SignEmbedder:
        raise AssertionError("a model was loaded")

    out = str(tmp_path / "i")
    assert index_documents([str(tmp_path / "no.pdf"), "--out", out, "--embedder", "m"], make_embedder=load) == 1
    assert "no.pdf" in capsys.readouterr().err
    assert run_index("a", "--out", out, "--embedder", "m") == 0
    PageStore.open(tmp_path / "i" / "pages", RenderSettings())
    assert index_documents(["--out", out, "--remove", "no.pdf"], make_embedder=load) == 1
    assert "there is no document no.pdf" in capsys.readouterr().err.replace("'", "")


def test_another_embedder_changes_nothing(tmp_path: Path) -> None:
    other = SignEmbedder(dataclasses.replace(IDENTITY, revision="other"))
    with create_index(tmp_path / "i", IDENTITY) as index, pytest.raises(EmbedderMismatchError, match="revision"):
        update_index(index, other, FakeStore(*PAGES))


def run_index(*arguments: str, pages: Sequence[FakePage] = PAGES) -> int:
    def make_source(changes: Changes, folder: Path, rendering: RenderSettings) -> FakeStore:
        return FakeStore(*pages)

    return index_documents(arguments, make_source, lambda config: CountingEmbedder())


def test_a_question_finds_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "i")
    assert run_index("a", "b", "--out", folder, "--embedder", "m", "embedder.preset=visrag") == 0
    assert "3 pages; 3 embedded, 0 unchanged, 0 removed, 1 blank ones left out" in capsys.readouterr().out
    assert open_index(Path(folder)).embedder == EmbedderConfig(model="m", preset="visrag")
    assert run_index("a", "b", "--out", folder) == 0  # the embedder stands in the index
    assert "0 embedded, 3 unchanged" in capsys.readouterr().out

    def embedder(config: EmbedderConfig) -> SignEmbedder:
        assert config == EmbedderConfig(model="m", preset="visrag")
        return SignEmbedder()

    assert search_index([folder, "where is 2", "-k", "2"], embedder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["rank", "score", "document", "page", "title"],
        ["1", "1.0000", "a/plot.pdf", "2"],
        # 1 = 0001 and 2 = 0010 differ in two of four signs, 4 = 0100 likewise: both score 0, page order decides
        ["2", "0.0000", "a/plot.pdf", "1", "[bold]", "axes"],
    ]
    assert search_index([folder, "where is 2", "--folder", "b"], embedder) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["document", "b/list.pdf"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{i}", " "], "the question is empty"),
        (["{i}", "1", "-k", "0"], "-k 0 asks for no number of pages"),
        (["{i}", "1", "--document", "a/plot.pdf", "--since", "2099-01-01"],
         "none of the 3 pages of the index {i} meets --document a/plot.pdf and --since 2099-01-01; widen it"),
        # Beside a document that is there one that is not would be passed over without a word.
        (["{i}", "1", "--document", "a/plot.pdf", "--document", "a/plots.pdf"],
         "the index {i} has no document 'a/plots.pdf'; the nearest are 'a/plot.pdf' and 'b/list.pdf'; check the name"),
        (["{i}", "1", "--document", ""], "the index {i} has no document ''; check the name"),
        (["{i}", "1", "--folder", "c"], "the index {i} has no page in a folder 'c'; check the name"),
        (["", "1"], "argument INDEX: the path is empty; name a file or folder, . for the current one"),
        (["{i}", "1", "--since", "January"], "the filter's first date is 'January', which is no date"),
        (["{i}", "what", "is", "1"], "unrecognized arguments: is 1"),
        (["{i}x", "1"], "there is no index {i}x"),
        (["{e}", "1"], "holds no page; add documents with rsgrpo index"),
        (["{i}", "1", "index.probes=3"], "there is no setting index.probes; the nearest are index.num_probes"),
        (["{i}", "1", "index.num_probes=many"], "index.num_probes=many does not fit"),
        (["{i}", "1", "index.num_probes=0"], "index.num_probes=0 is too small"),
        (["{i}", "1", "embedders.dpi=3"], "there is no setting embedders.dpi; the nearest are embedder.dpi and"),
        (["{i}", "1", "documents.workers=3"], "documents.workers says how documents are rendered, and a search"),
    ],
)  # fmt: skip
def test_searches_that_cannot_be_made_are_answered_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"i": str(tmp_path / "i"), "e": str(tmp_path / "empty")}
    run_index("a", "--out", places["i"], "--embedder", "m")
    run_index("a", "--out", places["e"], "--embedder", "m", pages=[])
    capsys.readouterr()
    assert search_index([argument.format(**places) for argument in arguments], lambda config: SignEmbedder()) > 0
    error = " ".join(capsys.readouterr().err.split())
    assert message.format(**places) in error and "Traceback" not in error


def test_indexing_without_an_embedder_or_by_another_one_is_refused_before_anything_is_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(changes: Changes, folder: Path, rendering: RenderSettings) -> FakeStore:
        raise AssertionError("rendered")

    folder = str(tmp_path / "i")
    assert index_documents(["a", "--out", folder], never, lambda config: SignEmbedder()) > 0
    assert "no embedder is named; add --embedder MODEL" in capsys.readouterr().err
    run_index("a", "--out", folder, "--embedder", "m")
    other = SignEmbedder(dataclasses.replace(IDENTITY, revision="other"))
    assert index_documents(["a", "--out", folder], never, lambda config: other) > 0
    assert "is another one (revision: 'sha256:00', not 'other')" in " ".join(capsys.readouterr().err.split())


def test_nothing_is_taken_out_of_an_index_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_index("--out", str(tmp_path / "i"), "--remove", "a.pdf", "--embedder", "m") > 0
    assert f"there is no index {tmp_path / 'i'} to take documents out of" in capsys.readouterr().err
    assert not (tmp_path / "i").exists()


def test_pages_stay_in_an_index_whose_store_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "i")
    run_index("a", "--out", folder, "--embedder", "m")
    (tmp_path / "new.pdf").write_bytes(b"%PDF-")
    # A new store would hold this document alone, and the three pages would be taken out.
    assert index_documents([str(tmp_path / "new.pdf"), "--out", folder], None, lambda config: SignEmbedder()) > 0
    error = capsys.readouterr().err
    assert "holds 3 pages, and their images are not in" in error and "put that folder back" in error
    assert len(open_index(Path(folder))) == 3


def test_control_characters_of_names_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "i")
    page = FakePage(document="new\nline.pdf", page_number=1, title="\x1b[2Jtitle")
    run_index("a", "--out", folder, "--embedder", "m", pages=[page])
    capsys.readouterr()
    assert search_index([folder, "1"], lambda config: SignEmbedder()) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["1", "1.0000", "new", "line.pdf", "1", "[2Jtitle"]


def test_ctrl_c_says_how_indexing_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(config: EmbedderConfig) -> SignEmbedder:
        raise KeyboardInterrupt

    (tmp_path / "a.png").touch()
    call = [str(tmp_path / "a.png"), "--out", str(tmp_path / "i"), "--embedder", "m"]
    assert index_documents(call, None, interrupted) == 130
    assert capsys.readouterr().err == "interrupted; what is done stays, and the same command goes on\n"


def test_settings_on_the_command_line() -> None:
    rest, given = split_settings(["a=b.pdf", "embedder.dpi=150", "index.precision=float16", "embedder.dpi=100", "x"])
    assert rest == ["a=b.pdf", "x"]
    saved = EmbedderConfig(model="m", max_pixels=1000)
    assert embedder_settings(given, "", saved) == dataclasses.replace(saved, dpi=100.0)
    assert embedder_settings(given, "n", saved).model == "n"
    assert index_settings(given).precision == "float16"
    _, given = split_settings(["embedder.query_instruction=Find: "])
    assert embedder_settings(given, "m").query_instruction == "Find: "
    _, given = split_settings(["embedder.query_instruction=null"])
    assert embedder_settings(given, "m").query_instruction is None


def test_an_index_on_a_server_takes_the_same_two_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = QdrantClient(":memory:")
    monkeypatch.setattr(client, "close", lambda: None)
    monkeypatch.setattr("rsgrpo.retrieval.index.qdrant_index.connect", lambda settings: client)
    place = ["index.url=http://localhost:6333", "index.collection=manuals"]
    for embedded in (3, 0):
        assert run_index("a", "--out", str(tmp_path), "--embedder", "m", *place) == 0
        told = f"the index 'manuals' on http://localhost:6333: 3 pages; {embedded} embedded"
        assert told in capsys.readouterr().out
    assert search_index([str(tmp_path), "where is 4", *place], lambda config: SignEmbedder()) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["1", "1.0000", "b/list.pdf", "4"]


def test_a_server_without_its_client_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    monkeypatch.delitem(sys.modules, "rsgrpo.retrieval.index.qdrant_index", raising=False)
    monkeypatch.delattr("rsgrpo.retrieval.index.qdrant_index", raising=False)
    assert search_index(["x", "q", "index.url=http://localhost:6333"], lambda config: SignEmbedder()) > 0
    assert "install it with uv sync --extra qdrant" in " ".join(capsys.readouterr().err.split())


def test_without_a_name_the_embedder_is_the_one_that_the_quickstart_trained_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    _, given = split_settings([])
    with pytest.raises(ConfigError, match=r"no embedder is named; .* recipe=retriever_quickstart` writes runs"):
        embedder_settings(given, "")
    folder = tmp_path / "runs" / "retriever_quickstart" / "models" / "retriever"
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text("[]")
    assert embedder_settings(given, "").model == "runs/retriever_quickstart/models/retriever"
    assert embedder_settings(given, "n").model == "n"
