"""What passes between whoever answers a question and whoever shows the answer: pages, events, the finished answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from rsgrpo.types import ImageRef


@dataclass(frozen=True, kw_only=True, slots=True)
class LookedAtPage:
    """A page that was found or given, and whether the model saw it.

    Attributes:
        number: the number by which question and answer call the page (``[3]``), from 1.
        page_id: the id of the page in its index; of a file given by the user its path, with ``#page`` for a document.
        document: the name of the document that the page is of, as its user knows it.
        page_number: the page's number in the document, from 1.
        image: where the image of the page lies.
        title: the outline's title of the page; empty: the document has none.
        score: the score of the search; None: the page was given, not found.
        relevance: the probability that the filter gave; None: no filter looked at it.
        is_shown: whether the model saw the page; False: the filter left it out.
    """

    number: int
    page_id: str
    document: str
    page_number: int
    image: ImageRef
    title: str = ""
    score: float | None = None
    relevance: float | None = None
    is_shown: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class PagesChosen:
    """The first event of an answer: the pages, before the model says a word.

    Attributes:
        pages: the pages, in the order of their numbers.
        seconds: the time that searching, filtering and loading took, in seconds.
        remarks: what the user should know of the search, such as pages that have no text.
    """

    pages: tuple[LookedAtPage, ...]
    seconds: float
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SectionText:
    """Text of the response, as it comes. A tag is never part of the text, also where it comes in pieces.

    Attributes:
        section: the name of the section that the text stands in; empty: outside of all sections.
        text: the text, which goes on from the last of the same section.
    """

    section: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PageEvidence:
    """What the answer says of one page.

    Attributes:
        number: the number of the page, as in :class:`LookedAtPage`; 0: the response names a page that there is not.
        text: what the response says of it.
        is_relevant: whether it says anything but that the page holds no relevant information.
    """

    number: int
    text: str
    is_relevant: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What an answer cost.

    Attributes:
        prompt_tokens: the tokens of the prompt, images included.
        cached_tokens: those of them that the engine had already; None: the engine does not say.
        response_tokens: the tokens of the response.
        choose_seconds: the time for searching, filtering and loading pages, in seconds.
        first_token_seconds: from the request to the engine until its first token, in seconds.
        total_seconds: from the question to the end of the answer, in seconds.
    """

    prompt_tokens: int
    cached_tokens: int | None
    response_tokens: int
    choose_seconds: float
    first_token_seconds: float
    total_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The last event of an answer: all of it.

    Attributes:
        question: the text of the question.
        answer: the text of the answer section; where there is none, the whole response.
        response: the whole response, with its tags.
        sections: the text of each section that the response closes, by name, as it came in the stream: without tags
            and without the text of sections that lie in it.
        evidence: the evidence, in the order of the response.
        pages: the pages, in the order of their numbers.
        is_insufficient: whether the answer is that the pages do not say it.
        is_cut: whether the response ended at its largest number of tokens.
        spent: what the answer cost.
        problems: what keeps the response from being well formed, as phrases for people; empty: nothing does.
    """

    question: str
    answer: str
    response: str
    sections: Mapping[str, str]
    evidence: tuple[PageEvidence, ...]
    pages: tuple[LookedAtPage, ...]
    is_insufficient: bool
    is_cut: bool
    spent: Spent
    problems: tuple[str, ...] = ()


AnswerEvent = PagesChosen | SectionText | Answered
"""What streams back for a question: the pages once, text piece by piece, the finished answer once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierTurn:
    """A question of the same conversation that was answered before.

    Attributes:
        question: the text of the question.
        response: the whole response, with its tags.
        pages: the ids of the pages that the model saw, by their numbers; None: those that the next question gives,
            where it gives some.
    """

    question: str
    response: str
    pages: Mapping[int, str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AskRequest:
    """A question.

    Attributes:
        question: the text of the question.
        pages: the pages to look at, in this order; empty: the ones that the search finds.
        num_pages: how many pages the search shall find, at least 1.
        documents: the names of the documents that are searched; empty: all.
        by: what is searched; None: as the index is tuned.
        earlier: the turns of the conversation so far, oldest first.
    """

    question: str
    pages: tuple[LookedAtPage, ...] = ()
    num_pages: int = 5
    documents: tuple[str, ...] = ()
    by: Literal["vector", "text", "hybrid"] | None = None
    earlier: Sequence[EarlierTurn] = field(default=())


class Asker(Protocol):
    """Answers questions, many at once."""

    def ask(self, request: AskRequest) -> AsyncIterator[AnswerEvent]:
        """Answer a question.

        Args:
            request: the question.

        Yields:
            :class:`PagesChosen` once, then :class:`SectionText` as the model writes, then :class:`Answered` once. A
            caller that stops reading closes the iterator, and the engine stops working on the question.

        Raises:
            RsgrpoError: the question cannot be answered; the message says why and what to do.
        """
        ...
