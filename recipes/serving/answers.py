"""From a visitor's question to the events of its answer: search, queue, engine; asked again where the engine was lost.

question ─► place in the queue ─► search (one thread) ─► pages shown ─► place is called ─► (filter ─►) engine ─► answer
                                                                           ▲                  │
                                                                           └── engine lost ◄──┘
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from recipes.indexing.searching import Findings, SearchBy
from recipes.serving.access import Visitor
from recipes.serving.fair_queue import FairQueue, Ticket
from recipes.serving.filter_thread import FilterThread
from recipes.serving.library import Library
from recipes.serving.refusals import PathHider, RefusedError
from recipes.serving.search_thread import LibrarySearch, SearchThread
from recipes.serving.visible_documents import shown_document
from rsgrpo.answering.records import (
    Answered,
    AnswerEvent,
    Asker,
    AskRequest,
    EarlierTurn,
    LookedAtPage,
    PagesChosen,
)
from rsgrpo.retrieval.index.page_index import IndexedPage
from rsgrpo.types import ImageRef

MOST_CHARACTERS = 8000
"""The longest question, in characters."""
MOST_RESPONSE_CHARACTERS = 100_000
"""The longest response of an earlier turn, in characters: more than models write."""
MOST_PAGES = 50
"""The most pages that a question may be answered from."""

_MOST_SEARCHED_BEFORE = 1000  # characters of the question before: enough to say what a follow-up is about
_WAITING_SECONDS = 1.0  # between words to those who wait


@dataclass(frozen=True, kw_only=True, slots=True)
class VisitorQuestion:
    """A question as a visitor asks it.

    Attributes:
        text: the text of the question.
        num_pages: how many pages the search shall find.
        documents: the names of the documents that are searched, as the visitor knows them; empty: all.
        by: what is searched; None: as the index is tuned.
        page_ids: the ids of the pages to look at, where nothing is to be searched for.
        given: pages that the visitor brings along.
        earlier: the turns of the conversation so far, oldest first.
    """

    text: str
    num_pages: int = 5
    documents: tuple[str, ...] = ()
    by: SearchBy | None = None
    page_ids: tuple[str, ...] = ()
    given: tuple[LookedAtPage, ...] = ()
    earlier: tuple[EarlierTurn, ...] = ()

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise RefusedError("the question is empty; ask something")
        if len(self.text) > MOST_CHARACTERS:
            raise RefusedError(f"the question has {len(self.text):,} characters, the most are {MOST_CHARACTERS:,}", 413)
        if not 1 <= self.num_pages <= MOST_PAGES:
            raise RefusedError(f"num_pages={self.num_pages} is not between 1 and {MOST_PAGES}")
        if len(self.page_ids) + len(self.given) > MOST_PAGES:
            raise RefusedError(f"a question is answered from {MOST_PAGES} pages at most; give fewer")
        for turn in self.earlier:
            for what, text, most in (
                ("an earlier question", turn.question, MOST_CHARACTERS),
                ("the answer to an earlier question", turn.response, MOST_RESPONSE_CHARACTERS),
            ):
                if len(text) > most:
                    raise RefusedError(
                        f"{what} has {len(text):,} characters, the most are {most:,}; begin a new conversation", 413
                    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """The question waits.

    Attributes:
        ahead: how many questions are before it.
    """

    ahead: int


VisitorEvent = AnswerEvent | Waiting
"""What streams back to a visitor. :class:`PagesChosen` may come twice: as found, and as the model will see them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """All that answers visitors.

    Attributes:
        library: the documents.
        asker: the engine, with the prompt in front of it.
        searcher: the one thread that searches the library.
        queue: the queue in front of it.
        hide: takes paths out of messages.
        most_pages: the most pages that the model takes.
        filter: looks at the pages that a search finds, more than the model takes perhaps; None: all are shown.
        clock: tells the time, in seconds.
    """

    library: Library
    asker: Asker
    searcher: SearchThread
    queue: FairQueue
    hide: PathHider
    most_pages: int = MOST_PAGES
    filter: FilterThread | None = None
    clock: Callable[[], float] = time.monotonic

    async def search(self, visitor: Visitor, question: VisitorQuestion) -> Findings:
        """Find the pages that answer a question.

        Args:
            visitor: who asks.
            question: the question.

        Returns:
            The pages, best first, of documents that the visitor sees.

        Raises:
            RsgrpoError: the question cannot be searched for; the message says why.
        """
        documents = self.library.chosen(visitor, question.documents)
        before = question.earlier[-1].question[:_MOST_SEARCHED_BEFORE] if question.earlier else ""
        found = await self.searcher.search(
            LibrarySearch(
                text=question.text, num_pages=question.num_pages, documents=documents, by=question.by, before=before
            )
        )
        return dataclasses.replace(found, remarks=tuple(map(self.hide, found.remarks)))

    async def ask(self, visitor: Visitor, question: VisitorQuestion) -> AsyncGenerator[VisitorEvent]:
        """Answer a question.

        Args:
            visitor: who asks.
            question: the question.

        Yields:
            What comes of it; closing the generator takes the question back.

        Raises:
            RsgrpoError: the question cannot be answered; the message says why.
        """
        begin = self.clock()
        ticket = self.queue.enter(visitor.name)
        try:
            chosen = await self._chosen(visitor, question, begin)
            yield chosen
            if not chosen.pages:
                raise RefusedError("no page was found; ask in other words, or of other documents", 404)
            async with aclosing(self._waits(ticket)) as waiting:
                async for event in waiting:
                    yield event
            pages = chosen.pages
            if self.filter is not None and not (question.given or question.page_ids):
                pages = await self.filter.filtered(question.text, pages)
            request = AskRequest(question=question.text, pages=pages, earlier=question.earlier)
            # An asker is an async generator; the protocol promises no more than that it can be closed.
            answered = cast("AsyncGenerator[AnswerEvent]", self.asker.ask(request))
            async with aclosing(answered) as events:
                async for answer_event in events:
                    yield self._completed(answer_event, chosen, begin)
        finally:
            self.queue.leave(ticket)

    async def _chosen(self, visitor: Visitor, question: VisitorQuestion, begin: float) -> PagesChosen:
        if question.given or question.page_ids:
            pages = [self.library.page(visitor, page_id) for page_id in question.page_ids]
            named = [looked_at(page, number) for number, page in enumerate(pages, start=1)]
            given = [
                dataclasses.replace(page, number=number) for number, page in enumerate(question.given, len(named) + 1)
            ]
            return PagesChosen(pages=(*named, *given), seconds=self.clock() - begin)
        remarks: tuple[str, ...] = ()
        if self.filter is None and question.num_pages > self.most_pages:
            remarks = (f"the model takes at most {self.most_pages} pages, so that many are looked for",)
            question = dataclasses.replace(question, num_pages=self.most_pages)
        found = await self.search(visitor, question)
        return PagesChosen(
            pages=tuple(looked_at(hit.page, hit.rank, hit.score) for hit in found.pages),
            seconds=self.clock() - begin,
            remarks=(*found.remarks, *remarks),
        )

    async def _waits(self, ticket: Ticket) -> AsyncGenerator[Waiting]:
        told = -1
        while not ticket.called.is_set():
            ahead = self.queue.ahead(ticket)
            if ahead != told:
                told = ahead
                yield Waiting(ahead=ahead)
            try:
                await asyncio.wait_for(ticket.called.wait(), _WAITING_SECONDS)
            except TimeoutError:
                continue

    def _completed(self, event: AnswerEvent, chosen: PagesChosen, begin: float) -> AnswerEvent:
        """Add what the asker does not know: the search's remarks and time, and the time in the queue."""
        if isinstance(event, PagesChosen):
            remarks = tuple(map(self.hide, event.remarks))
            return dataclasses.replace(
                event, seconds=event.seconds + chosen.seconds, remarks=(*chosen.remarks, *remarks)
            )
        if isinstance(event, Answered):
            spent = dataclasses.replace(
                event.spent,
                choose_seconds=event.spent.choose_seconds + chosen.seconds,
                total_seconds=self.clock() - begin,
            )
            return dataclasses.replace(event, spent=spent)
        return event


def looked_at(page: IndexedPage, number: int, score: float | None = None) -> LookedAtPage:
    """Make of an index's page one that a question is answered from.

    Args:
        page: the page.
        number: the number by which question and answer call it.
        score: the score of the search; None: it was not searched for.
    """
    return LookedAtPage(
        number=number,
        page_id=page.page_id,
        document=shown_document(page.document),
        page_number=page.page_number,
        image=ImageRef(path=page.page_id, file=page.image_path),
        title=page.title,
        score=score,
    )
