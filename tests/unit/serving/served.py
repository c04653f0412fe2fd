"""A server whose engine is a fake: its parts, a client of it, and answers that a test can tell by."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from recipes.serving.access import AccessRules
from recipes.serving.answers import Answers
from recipes.serving.application import ServerParts, make_application
from recipes.serving.fair_queue import FairQueue, QueueBounds
from recipes.serving.history import History
from recipes.serving.library import Library
from recipes.serving.refusals import PathHider
from recipes.serving.search_thread import SearchThread
from recipes.serving.uploads import UploadBounds, UploadDesk
from rsgrpo.answering.records import Answered, AnswerEvent, AskRequest, PageEvidence, PagesChosen, SectionText, Spent
from rsgrpo.config.documents import RenderSettings
from rsgrpo.config.index import IndexConfig
from rsgrpo.documents.page_store import PageStore
from rsgrpo.errors import RsgrpoError
from rsgrpo.retrieval.embedders.embedder import PageImage
from rsgrpo.types import FloatArray, ImageRef
from tests.unit.documents.handmade_pdfs import make_pdf, text_pages
from tests.unit.documents.in_process_pool import in_process
from tests.unit.retrieval.index_pages import SignEmbedder, sign_vectors

ADDRESS = "http://127.0.0.1"
OWN = {"X-Rsgrpo": "1"}
TOKEN = "a-token-of-a-test-1234"

INVOICE = make_pdf(text_pages("Invoice number 4711 from Ada", "Total amount 4210 EUR"))
LETTER = make_pdf(text_pages("Dear Grace, the ship sails in May"))


class FileEmbedder(SignEmbedder):
    """Gives every image file some vector, and every question the same one."""

    def embed_queries(self, queries: Sequence[str]) -> FloatArray:
        return sign_vectors([0] * len(queries))

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        paths = [page.path for page in pages if isinstance(page, ImageRef)]
        return sign_vectors([zlib.crc32(path.encode()) % 16 for path in paths])


class FakeAsker:
    """Answers every question by repeating it, with evidence of the first page that it is shown."""

    def __init__(self) -> None:
        self.requests: list[AskRequest] = []
        self.num_closed = 0
        self.pause = asyncio.Event()
        self.pause.set()
        self.is_insufficient = False
        self.failure = ""
        self.evidence = "It says Total amount 4210 EUR."

    async def ask(self, request: AskRequest) -> AsyncGenerator[AnswerEvent]:
        self.requests.append(request)
        try:
            if self.failure:
                raise RsgrpoError(self.failure)
            yield PagesChosen(pages=request.pages, seconds=0.0)
            yield SectionText(section="evidence", text="[1]: ")
            yield SectionText(section="evidence", text=self.evidence)
            await self.pause.wait()
            yield SectionText(section="answer", text="You asked: ")
            yield SectionText(section="answer", text=request.question)
            yield self.answered(request)
        finally:
            self.num_closed += 1

    def answered(self, request: AskRequest) -> Answered:
        answer = f"You asked: {request.question}"
        evidence = f"[1]: {self.evidence}"
        return Answered(
            question=request.question,
            answer=answer,
            response=f"<evidence>{evidence}</evidence><answer>{answer}</answer>",
            sections={"evidence": evidence, "answer": answer},
            evidence=(PageEvidence(number=1, text=self.evidence, is_relevant=True),),
            pages=request.pages,
            is_insufficient=self.is_insufficient,
            is_cut=False,
            spent=Spent(
                prompt_tokens=100,
                cached_tokens=40,
                response_tokens=7,
                choose_seconds=0.0,
                first_token_seconds=0.1,
                total_seconds=0.2,
            ),
        )


@dataclasses.dataclass(kw_only=True)
class Served:
    """A server and what it is made of."""

    client: TestClient
    asker: FakeAsker
    parts: ServerParts
    index: Path
    state: Path

    def visitor(self) -> TestClient:
        """Another browser, with a cookie of its own."""
        client = self.program()
        client.get("/")
        return client

    def program(self) -> TestClient:
        """A client without a cookie."""
        client = TestClient(self.client.app, base_url=ADDRESS, headers=OWN)
        client.portal = self.client.portal  # the same event loop: a server has one
        return client

    def bring(self, name: str = "invoice.pdf", content: bytes = INVOICE, client: TestClient | None = None) -> str:
        """Bring a document, and wait until it is over; returns what is said of it."""
        client = client or self.client
        reply = client.post("/api/documents", params={"name": name}, content=content)
        assert reply.status_code == 202, reply.text
        told = client.get(f"/api/documents/{reply.json()['key']}/progress").text
        *_, last = events(told)
        assert last[1]["state"] == "done", last
        return str(last[1]["message"])

    def ask(self, question: str, client: TestClient | None = None, **fields: Any) -> dict[str, list[dict[str, Any]]]:
        """Ask, and sort the events by their names."""
        reply = (client or self.client).post("/api/ask", json={"question": question, **fields})
        assert reply.status_code == 200, reply.text
        found: dict[str, list[dict[str, Any]]] = {}
        for name, document in events(reply.text):
            found.setdefault(name, []).append(document)
        return found


def events(text: str) -> list[tuple[str, Any]]:
    """Read server-sent events, comments left out."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in block.split("\n") if line and not line.startswith(":"))
        if lines:
            found.append((lines.get("event", ""), json.loads(lines["data"])))
    return found


def make_parts(
    folder: Path,
    *,
    token: str = "",
    has_sessions: bool = False,
    bounds: UploadBounds | None = None,
    queue: QueueBounds | None = None,
    asker: FakeAsker | None = None,
    open_store: Callable[[Path, RenderSettings], PageStore] = lambda path, rendering: in_process(
        PageStore.open(path, rendering)
    ),
) -> ServerParts:
    """Make the parts of a server over an index that need not be there."""
    index, state = folder / "my.index", folder / "my.index.served"
    embedder = FileEmbedder()
    library = Library(
        index,
        IndexConfig(),
        RenderSettings(on_bad_document="skip_page", workers=1),
        lambda: embedder,
        has_sessions=has_sessions,
        open_store=open_store,
    )
    hide = PathHider([index, state])
    answers = Answers(
        library=library,
        asker=asker or FakeAsker(),
        searcher=SearchThread(library),
        queue=FairQueue(queue or QueueBounds()),
        hide=hide,
    )
    return ServerParts(
        answers=answers,
        desk=UploadDesk(library, state, bounds or UploadBounds(), hide),
        history=History(state),
        rules=AccessRules(secret=b"s" * 32, token=token),
        state_folder=state,
        model="small",
    )


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Served]:
    """Serve an index in a folder, which need not be there."""
    asker = FakeAsker()
    parts = make_parts(folder, asker=asker, **options)
    with TestClient(make_application(parts), base_url=ADDRESS, headers=OWN) as client:
        client.get("/")
        yield Served(
            client=client, asker=asker, parts=parts, index=folder / "my.index", state=folder / "my.index.served"
        )


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.01)
