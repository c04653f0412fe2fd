"""Which pages a question is asked about: those that the user names, or those that a search finds, filtered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from recipes.asking.cores import leave_cores
from recipes.asking.page_filter import filtered_pages
from recipes.filtering.given_pages import given_pages
from recipes.indexing.places import make_any_embedder, open_any_index
from recipes.indexing.searching import Question, SearchBy, search
from rsgrpo.answering.records import AskRequest, LookedAtPage, PagesChosen
from rsgrpo.config.documents import RenderSettings
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.config.index import IndexConfig
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.types import ImageRef

if TYPE_CHECKING:  # they take long to import, which a slip in the call need not wait for
    from rsgrpo.retrieval.embedders.embedder import AnyEmbedder
    from rsgrpo.retrieval.filtering.page_filter import FilterStage
    from rsgrpo.retrieval.index.page_index import PageIndex

_SHOWN_NAME = 120
_MAX_NUM_PAGES = 10_000


class PageChoiceError(RsgrpoError):
    """There is no page to ask about; the message says why and what to do."""


class PageChooser(Protocol):
    """Chooses the pages of a question; called from several threads."""

    def choose(self, request: AskRequest, max_images: int) -> PagesChosen:
        """Choose pages.

        Args:
            request: the question.
            max_images: the most pages that the model takes; at most so many are shown to it.

        Returns:
            The pages with their numbers, and how long it took.

        Raises:
            RsgrpoError: no page is found, or the index cannot be searched.
        """


def named_pages(names: Sequence[str], folder: Path, rules: ImageRules) -> tuple[LookedAtPage, ...]:
    """Find the pages that a user names.

    Args:
        names: image files, documents, pages of documents such as ``report.pdf#3`` or ``report.pdf#2-5``.
        folder: a folder for the images of rendered pages.
        rules: how images are read.

    Returns:
        The pages, numbered from 1 in the order of the names.

    Raises:
        PageChoiceError: a page cannot be read; the message names it and says why.
    """
    found = given_pages(names, folder, RenderSettings(), rules)
    for given in found:
        if given.page is None:
            raise PageChoiceError(
                f"{shown(given.name, _SHOWN_NAME)} cannot be asked about: {given.problem or 'it has no page'}"
            )
    return tuple(
        LookedAtPage(
            number=given.number,
            page_id=given.name,
            document=given.document or given.name,
            page_number=given.page_number,
            image=given.page,
        )
        for given in found
        if given.page is not None
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexPlace:
    """Where pages are searched.

    Attributes:
        folder: the folder of the index.
        settings: where and how it is kept.
        embedder: gives the embedder's settings where the index says the given ones of its own; raises where none are
            known.
    """

    folder: Path
    settings: IndexConfig
    embedder: Callable[[EmbedderConfig | None], EmbedderConfig]


class IndexPages:
    """A :class:`PageChooser` that searches an index, and lets a filter look at what was found.

    The index is opened again when it has changed, so that pages which are added meanwhile are found; the embedder is
    loaded once, when the first search by vectors needs it.

    Args:
        place: where the pages are.
        make_filter: makes the passes of the filter; None: all pages that are found are shown.
        make_embedder: makes the embedder from its settings; tests make one that needs no model.
    """

    def __init__(
        self,
        place: IndexPlace,
        make_filter: Callable[[], Sequence[FilterStage]] | None = None,
        make_embedder: Callable[[EmbedderConfig], AnyEmbedder] = make_any_embedder,
    ) -> None:
        self._place = place
        self._make_filter = make_filter
        self._make_embedder = make_embedder
        self._stages: Sequence[FilterStage] = ()
        self._index: PageIndex | None = None
        self._stamp: tuple[int, int] | None = None
        self._embedder: AnyEmbedder | None = None
        # Embedders and indexes are not made for several threads; a search takes milliseconds.
        self._turn = threading.Lock()

    def choose(self, request: AskRequest, max_images: int) -> PagesChosen:
        """See :class:`PageChooser`."""
        begin = time.perf_counter()
        with self._turn:
            chosen = self._found(request, max_images)
        return replace(chosen, seconds=time.perf_counter() - begin)

    def prepare(self, by: SearchBy | None = None) -> None:
        """Load what searches need before the first one.

        Args:
            by: what will be searched; no embedder is loaded for ``text``.

        Raises:
            RsgrpoError: there is no index, or its embedder cannot be loaded.
        """
        with self._turn:
            index = self._opened()
            if by != "text":
                index.identity.check(self._loaded(index).identity, index.name)

    def _found(self, request: AskRequest, max_images: int) -> PagesChosen:
        from rsgrpo.retrieval.index.page_index import PageFilter

        if not 1 <= request.num_pages <= _MAX_NUM_PAGES:
            raise PageChoiceError(
                f"{request.num_pages} is no number of pages; give one from 1 to {_MAX_NUM_PAGES:,} (--pages)"
            )
        index = self._opened()
        if not len(index):
            raise PageChoiceError(f"{index.name} holds no page; add documents with rsgrpo index")
        remarks: list[str] = []
        num_pages = request.num_pages
        if self._make_filter is None and num_pages > max_images:
            remarks.append(f"the model takes at most {max_images} pages, so {max_images} are looked for")
            num_pages = max_images
        question = Question(text=request.question, k=num_pages, allowed=PageFilter(documents=request.documents))
        found = search(index, self._place.folder, question, request.by, "", lambda: self._loaded(index))
        remarks += found.remarks
        if not found.pages:
            told = f"of {shown(', '.join(request.documents), _SHOWN_NAME)} " if request.documents else ""
            raise PageChoiceError(
                f"no page {told}in {index.name} was found for the question; ask in other words, or search other "
                "documents"
            )
        pages = tuple(
            LookedAtPage(
                number=hit.rank,
                page_id=hit.page.page_id,
                document=hit.page.document,
                page_number=hit.page.page_number,
                image=ImageRef(path=hit.page.page_id, file=_image_path(hit.page.image_path, hit.page.page_id)),
                title=hit.page.title,
                score=hit.score,
            )
            for hit in found.pages
        )
        return PagesChosen(
            pages=self._filtered(request.question, pages, max_images), seconds=0.0, remarks=tuple(remarks)
        )

    def _filtered(self, question: str, pages: tuple[LookedAtPage, ...], max_images: int) -> tuple[LookedAtPage, ...]:
        if self._make_filter is None:
            return pages
        self._stages = self._stages or self._make_filter()
        return filtered_pages(question, pages, self._stages, max_images)

    def _opened(self) -> PageIndex:
        stamp = self._header_stamp()
        if self._index is None or stamp != self._stamp:
            if self._index is not None:
                self._index.close()
            self._index = open_any_index(self._place.folder, self._place.settings)
            self._stamp = stamp
        return self._index

    def _header_stamp(self) -> tuple[int, int] | None:
        """What changes when an index in a folder does; of one on a server nothing needs to be read again."""
        from rsgrpo.retrieval.index.index_header import HEADER_FILE

        try:
            status = (self._place.folder / HEADER_FILE).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _loaded(self, index: PageIndex) -> AnyEmbedder:
        if self._embedder is None:
            self._embedder = self._make_embedder(self._place.embedder(index.embedder))
            leave_cores()
        return self._embedder


def _image_path(path: str, page_id: str) -> str:
    if not path:
        raise PageChoiceError(
            f"the index keeps no image of {shown(page_id, _SHOWN_NAME)}, so the model cannot look at it; index the "
            "document again with rsgrpo index"
        )
    return path
