"""The documents behind the server: one index and its store of pages; many read while one thread changes them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from recipes.indexing.places import PAGES_FOLDER, create_any_index, is_there, open_any_index
from recipes.indexing.searching import Findings, Question, SearchBy, search
from recipes.indexing.updating import IndexReport, update_index
from recipes.serving.access import Visitor
from recipes.serving.refusals import RefusedError
from recipes.serving.shared_embedder import SharedEmbedder
from recipes.serving.visible_documents import is_own, is_visible, shown_document
from rsgrpo.config.documents import RenderSettings
from rsgrpo.config.index import IndexConfig
from rsgrpo.documents.ingest import OnProgress
from rsgrpo.documents.known_documents import known_documents
from rsgrpo.documents.page_store import PageStore
from rsgrpo.documents.parts import StoredDocument
from rsgrpo.documents.records import IngestReport
from rsgrpo.documents.sources import FileStamp
from rsgrpo.documents.stored_images import STORE_FILE
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.retrieval.embedders.embedder import AnyEmbedder
from rsgrpo.retrieval.index.page_index import IndexedPage, PageFilter, PageIndex


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryDocument:
    """A document of the library.

    Attributes:
        document: its name in the index.
        num_pages: how many of its pages can be found.
        date: the day of its file, as ``YYYY-MM-DD``; empty: it is not known.
        is_own: whether it is the visitor's own.
    """

    document: str
    num_pages: int
    date: str
    is_own: bool


class Library:
    """An index of pages that is searched while documents are added to it.

    Searches run in the thread that calls :meth:`search`, changes in the one that calls :meth:`add` and :meth:`remove`.

    Args:
        folder: the folder of the index; there may be none yet.
        settings: where and how the index is kept.
        rendering: how documents are rendered.
        embedder: gives the embedder, loaded at the first call; the calls may come from several threads.
        has_sessions: whether visitors have documents of their own.
        open_store: opens the store of pages; tests give one that renders in this process.

    Raises:
        PageIndexError: the index cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        settings: IndexConfig,
        rendering: RenderSettings,
        embedder: Callable[[], AnyEmbedder],
        *,
        has_sessions: bool = False,
        open_store: Callable[[Path, RenderSettings], PageStore] = PageStore.open,
    ) -> None:
        self.folder = folder.absolute()
        self.has_sessions = has_sessions
        self._settings = settings
        self._rendering = rendering
        self._embedder = embedder
        self._open_store = open_store
        self._changing = threading.Lock()
        self._index: PageIndex | None = None
        self._documents: Mapping[str, tuple[int, str]] = {}
        self._load()

    @property
    def num_pages(self) -> int:
        """How many pages can be found."""
        return len(self._index) if self._index is not None else 0

    def has(self, document: str) -> bool:
        """Whether pages of a document can be found.

        Args:
            document: the name of the document in the index.
        """
        return document in self._documents

    def documents(self, visitor: Visitor) -> list[LibraryDocument]:
        """List the documents that a visitor sees, in page order.

        Args:
            visitor: the visitor.
        """
        return [
            LibraryDocument(document=name, num_pages=num_pages, date=date, is_own=is_own(name, visitor))
            for name, (num_pages, date) in self._documents.items()
            if is_visible(name, visitor, has_sessions=self.has_sessions)
        ]

    def chosen(self, visitor: Visitor, names: Sequence[str]) -> tuple[str, ...]:
        """Say which documents are searched.

        Args:
            visitor: who asks.
            names: the names of documents, as the visitor knows them; empty: all that the visitor sees.

        Returns:
            The names in the index; empty: all documents that there are.

        Raises:
            RefusedError: there is no such document, or none at all.
        """
        seen = self.documents(visitor)
        if not seen:
            raise RefusedError("there is no document yet; add one, then ask", 409)
        if not names:
            return tuple(entry.document for entry in seen) if self.has_sessions else ()
        known: dict[str, list[str]] = {}
        for entry in seen:
            known.setdefault(shown_document(entry.document), []).append(entry.document)
        missing = next((name for name in names if name not in known), None)
        if missing is not None:
            raise RefusedError(f"there is no document {shown(missing, 80)!r}; GET /api/documents lists them", 404)
        return tuple(found for name in names for found in known[name])

    def page(self, visitor: Visitor, page_id: str) -> IndexedPage:
        """Look up a page.

        Args:
            visitor: who asks.
            page_id: the id of the page.

        Raises:
            RefusedError: there is no such page, or the visitor does not see it.
        """
        document = page_id.rpartition("#")[0]
        index = self._index
        if index is not None and is_visible(document, visitor, has_sessions=self.has_sessions):
            for page in index.pages(PageFilter(documents=(document,))) if document in self._documents else ():
                if page.page_id == page_id:
                    return page
        raise RefusedError("there is no such page; its document may have been removed", 404)

    def source_file(self, document: str) -> Path | None:
        """Find the PDF file that a document was made of.

        Args:
            document: the name of the document in the index.

        Returns:
            The path of the file; None: it is gone, has changed, or is no PDF.
        """
        known = self._known().get(document)
        if known is None or not known.path.lower().endswith(".pdf"):
            return None
        try:
            stamp = FileStamp.of(Path(known.path))
        except OSError:
            return None
        return Path(known.path) if (stamp.num_bytes, stamp.mtime_ns) == (known.num_bytes, known.mtime_ns) else None

    def source_path(self, document: str) -> Path | None:
        """Say where the file was that a document was made of; None: there is no such document.

        Args:
            document: the name of the document in the index.
        """
        known = self._known().get(document)
        return None if known is None else Path(known.path)

    def search(self, text: str, k: int, documents: Sequence[str], by: SearchBy | None) -> Findings:
        """Find the pages that answer a question.

        Args:
            text: the text of the question.
            k: the largest number of pages.
            documents: the documents that are searched, as :meth:`chosen` gives them; empty: all.
            by: what is searched; None: as the index is tuned.

        Returns:
            The pages, best first.

        Raises:
            RsgrpoError: the question cannot be searched for; the message says why.
        """
        if self._index is None:
            raise RefusedError("there is no document yet; add one, then ask", 409)
        question = Question(text=text, k=k, allowed=PageFilter(documents=tuple(documents)))
        return search(self._index, self.folder, question, by, self._settings.language, self._embedder)

    def embed_ahead(self, texts: Sequence[str]) -> None:
        """Embed questions together that will be searched for one by one, where the embedder can.

        Args:
            texts: the texts of the questions.

        Raises:
            RsgrpoError: one of them cannot be embedded.
        """
        embedder = self._embedder()
        if isinstance(embedder, SharedEmbedder):
            embedder.embed_ahead(texts)

    def add(
        self, folder: Path, on_rendering: OnProgress, on_embedding: Callable[[int, int], None]
    ) -> tuple[IngestReport, IndexReport]:
        """Add the documents of a folder; those of which no page can be found, such as blank ones, are not kept.

        Args:
            folder: the folder; documents are named by their place in it.
            on_rendering: is called with the progress of rendering.
            on_embedding: is called with the number of pages embedded so far, and of those to embed in all.

        Returns:
            What was rendered, and what was embedded.

        Raises:
            RsgrpoError: the documents cannot be added; the message says why.
        """
        with self._change() as (index, embedder, store):
            before = set(store.documents())
            try:
                rendered = store.add([folder], on_rendering)
                embedded = update_index(index, embedder, store, dates=store.dates(), on_progress=on_embedding)
            except BaseException:  # its visitor is told that it failed: it must not turn up later
                if new := set(store.documents()) - before:
                    store.remove(*new)
                    index.remove([page.page_id for page in index.pages(PageFilter(documents=tuple(new)))])
                    index.save()
                raise
            new = set(store.documents()) - before
            # A document without a page that can be found is listed nowhere, so that nobody could remove it.
            if empty := [name for name in new if not index.pages(PageFilter(documents=(name,)))]:
                store.remove(*empty)
        return rendered, embedded

    @property
    def is_behind(self) -> bool:
        """Whether documents were rendered that cannot be found; those of blank pages alone count as well."""
        return bool(self._index is not None and set(self._known()) - set(self._documents))

    def catch_up(self) -> None:
        """Embed what was rendered and cannot be found.

        Raises:
            RsgrpoError: it cannot be embedded; the message says why.
        """
        with self._change() as (index, embedder, store):
            update_index(index, embedder, store, dates=store.dates())

    def remove(self, document: str) -> None:
        """Take a document out.

        Args:
            document: the name of the document in the index.

        Raises:
            RsgrpoError: it cannot be taken out; the message says why.
        """
        with self._change() as (index, embedder, store):
            store.remove(document)
            update_index(index, embedder, store, dates=store.dates())

    def stored_name(self, wanted: str, sha256: str) -> tuple[str, bool]:
        """Choose the name of a new document.

        Args:
            wanted: the name that it would have, such as ``manual.pdf``.
            sha256: the SHA-256 of its file.

        Returns:
            The name, such as ``manual (2).pdf`` where there is another document of that name; and whether the library
            has this document under it already.
        """
        known = self._known()
        stem, dot, suffix = wanted.rpartition(".")
        name, number = wanted, 1
        while name in known:
            if known[name].sha256 == sha256 and name in self._documents:
                return name, True
            number += 1
            name = f"{stem} ({number}){dot}{suffix}"
        return name, False

    def _known(self) -> Mapping[str, StoredDocument]:
        store = self.folder / PAGES_FOLDER
        return known_documents(store)[0] if (store / STORE_FILE).exists() else {}

    @contextmanager
    def _change(self) -> Iterator[tuple[PageIndex, AnyEmbedder, PageStore]]:
        """Index, embedder and store for one change; afterwards searches see it, unless it has failed."""
        with self._changing:
            embedder = self._embedder()
            store = self._store()
            with closing(self._writable(embedder)) as index:
                self._check_store(index)
                yield index, embedder, store
            self._load()

    def _store(self) -> PageStore:
        return self._open_store(self.folder / PAGES_FOLDER, self._rendering)

    def _writable(self, embedder: AnyEmbedder) -> PageIndex:
        if is_there(self.folder, self._settings):
            index = open_any_index(self.folder, self._settings, is_writable=True)
            index.identity.check(embedder.identity, index.name)
            return index
        return create_any_index(self.folder, self._settings, embedder.identity, embedder.settings)

    def _check_store(self, index: PageIndex) -> None:
        """Refuse to change an index whose store of pages is gone: all its pages would be taken out.

        Raises:
            RsgrpoError: there is no store of pages, or an empty one.
        """
        if len(index) and not self._store().documents():
            raise RsgrpoError(
                f"{index.name} holds {len(index)} pages, and their images are not in its folder {PAGES_FOLDER}; put "
                "that folder back, or serve another index"
            )

    def _load(self) -> None:
        """Open the index anew; searches that are on their way go on with the one before."""
        if not is_there(self.folder, self._settings):
            return
        index = open_any_index(self.folder, self._settings)
        pages = index.pages()
        counts = Counter(page.document for page in pages)
        dates = {page.document: page.date for page in pages}
        self._documents = {name: (count, dates[name]) for name, count in counts.items()}
        self._index = index
