"""Follow-ups: which pages the model sees in which turn, what is searched for, and searches that fail together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from recipes.asking.asker import ModelAsker
from recipes.indexing.searching import Findings
from recipes.serving.application import make_application
from recipes.serving.library import Library
from recipes.serving.search_thread import LibrarySearch, SearchThread
from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from tests.fake_server import FakeServer
from tests.unit.asking.stream_server import RESPONSE, answering, remote, texts_of
from tests.unit.asking.test_asker import settings_of
from tests.unit.serving.served import ADDRESS, LETTER, OWN, Served, make_parts, serving
from tests.unit.serving.test_serving_programs import png_url


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[tuple[Served, Callable[[], list[tuple[str, list[str]]]]]]:
    """A server whose asker writes the messages of a model; and what the model got last."""
    with closing(FakeServer()) as model:
        answering(model)
        asker: Any = ModelAsker(settings_of(tmp_path), remote(model))
        parts = make_parts(tmp_path, asker=asker)
        with TestClient(make_application(parts), base_url=ADDRESS, headers=OWN) as client:
            client.get("/")
            served = Served(
                client=client,
                asker=asker,
                parts=parts,
                index=tmp_path / "my.index",
                state=tmp_path / "my.index.served",
            )
            yield served, lambda: texts_of(model.bodies[-1])[1:]
            assert client.portal is not None
            client.portal.call(asker.close)


def test_a_new_search_shows_its_pages_in_its_own_turn_and_same_pages_stay_where_they_were(asked: Any) -> None:
    served, seen = asked
    served.bring("invoice.pdf")
    served.bring("letter.pdf", LETTER)
    first = served.ask("total?", documents=["invoice.pdf"], num_pages=2)
    conversation = first["turn"][0]["conversation"]
    second = served.ask("and the ship?", documents=["letter.pdf"], conversation=conversation, num_pages=1)
    assert seen() == [("user", ["total?"]), ("assistant", ["two"]), ("user", ["image", "Look. and the ship?"])]
    served.ask("when?", conversation=conversation, pages=[page["key"] for page in second["pages"][0]["pages"]])
    assert seen() == [
        ("user", ["total?"]),
        ("assistant", ["two"]),
        ("user", ["image", "Look. and the ship?"]),
        ("assistant", [RESPONSE]),
        ("user", ["when?"]),
    ]


def test_images_of_a_chat_completion_stand_in_its_last_turn(asked: Any) -> None:
    served, seen = asked
    image = {"type": "image_url", "image_url": {"url": png_url("red")}}
    before = [{"role": "user", "content": "first?"}, {"role": "assistant", "content": [{"type": "text", "text": "so"}]}]
    last = {"role": "user", "content": [image, {"type": "text", "text": "and this?"}]}
    reply = served.client.post("/v1/chat/completions", json={"messages": [*before, last]})
    assert reply.status_code == 200, reply.text
    assert seen() == [("user", ["first?"]), ("assistant", ["so"]), ("user", ["image", "Look. and this?"])]


class OddError(BaseException):
    """What nobody expects."""


class FakeLibrary:
    """Finds nothing; the first search waits until others do, and a ``bad`` one fails."""

    def __init__(self, failure: BaseException | None = None, most: int = 40) -> None:
        self.failure = failure
        self.most = most
        self.go_on = threading.Event()
        self.searched: list[str] = []

    def embed_ahead(self, texts: Sequence[str]) -> None:
        if self.failure is not None:
            raise self.failure

    def search(self, text: str, *_: object) -> Findings:
        assert self.go_on.wait(20)
        if text == "bad" and self.failure is not None:
            raise self.failure
        if len(text) > self.most:
            raise EmbeddingError(f"it has {len(text)} characters; ask more briefly")
        self.searched.append(text)
        return Findings(pages=[], by="vector", remarks=())


@contextmanager
def searching(library: FakeLibrary) -> Iterator[SearchThread]:
    thread = SearchThread(cast("Library", library))
    yield thread
    thread.close()


def _search(text: str, before: str = "") -> LibrarySearch:
    return LibrarySearch(text=text, num_pages=1, documents=(), by=None, before=before)


@pytest.mark.parametrize("failure", [EmbeddingError("no"), UnicodeError("no"), OddError("no")])
def test_searches_that_fail_together_are_answered_one_by_one(failure: BaseException) -> None:
    library = FakeLibrary(failure)

    async def work(thread: SearchThread) -> list[object]:
        tasks = [asyncio.ensure_future(thread.search(_search(text))) for text in ("first", "good", "bad", "fine")]
        await asyncio.sleep(0)
        library.go_on.set()
        _, waiting = await asyncio.wait(tasks, timeout=20)
        assert not waiting
        return [task.exception() for task in tasks]

    with searching(library) as thread:
        told = asyncio.run(work(thread))
    assert [error is None for error in told] == [True, True, False, True]
    assert library.searched == ["first", "good", "fine"]


@pytest.mark.parametrize(
    ("before", "text", "searched"),
    [("total?", "and the ship?", "total? and the ship?"), ("b" * 39, "short?", "short?"), ("", "alone?", "alone?")],
    ids=["both", "too long together", "first"],
)
def test_a_follow_up_that_fits_is_searched_for_however_long_the_question_before(
    before: str, text: str, searched: str
) -> None:
    library = FakeLibrary()
    library.go_on.set()
    with searching(library) as thread:
        asyncio.run(thread.search(_search(text, before)))
        assert library.searched == [searched]
        with pytest.raises(EmbeddingError, match="41 characters; ask more briefly"):
            asyncio.run(thread.search(_search("c" * 41, before)))


def test_the_question_before_is_searched_for_in_part_where_it_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as served:
        served.bring()
        conversation = served.ask("a" * 8000)["turn"][0]["conversation"]
        searched: list[str] = []
        search = served.parts.answers.library.search

        def noted(text: str, *others: Any) -> Findings:
            searched.append(text)
            return search(text, *others)

        monkeypatch.setattr(served.parts.answers.library, "search", noted)
        served.ask("and?", conversation=conversation)
        assert searched == ["a" * 1000 + " and?"]
