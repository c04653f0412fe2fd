"""An index in a folder: vectors that are mapped from a file, a table of pages, and a header that says what made it.

    manuals.index/
      index.json            what made it, and which files belong to it; written last
      vectors-000003.faiss  one row for each page; mapped, not read (of a multi-vector embedder vectors-000003.npy, with
                            offsets-000003.npy and means-000003.npy)
      pages-000003.parquet  id, document, page number, folder, date, title of each row
      lists-000003.faiss    inverted lists, above a million pages
      .lock                 held by the one process that writes

What is added and removed stays in memory until :meth:`FlatIndex.save`, which writes new files, then the header, then
takes the old files away: after a crash at any point the index is the one before or the new one. Readers need no lock
and keep what they opened. Every search is exact, but for one over inverted lists or over candidates.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rsgrpo import __version__
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.index import IndexConfig
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import shown_error
from rsgrpo.io.manifest import digest
from rsgrpo.io.writer_lock import LockHeldError, WriterLock
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity, ItemVectors, checked_items
from rsgrpo.retrieval.index.index_header import (
    ANEW,
    HEADER_FILE,
    IndexHeader,
    check_digest,
    check_sizes,
    own_files,
    read_header,
    write_header,
)
from rsgrpo.retrieval.index.page_index import (
    ALL_PAGES,
    FoundPage,
    IndexedPage,
    PageFilter,
    PageIndexError,
    check_ids,
    check_k,
    not_there,
    ranked,
)
from rsgrpo.retrieval.index.page_table import PageTable, PageTableError
from rsgrpo.retrieval.index.stored_rows import RowFiles, check_searchable, empty_rows, map_rows, write_rows
from rsgrpo.retrieval.index.vector_file import VectorFileError
from rsgrpo.types import BoolArray, FloatArray

_LOCK_FILE = ".lock"
_READ_ATTEMPTS = 3  # a writer may take files away between our reading the header and opening them


class FlatIndex:
    """A page index in a folder; use :func:`create_index` or :func:`open_index` to get one.

    Args:
        folder: the folder that the index lies in.
        config: the settings by which the index is kept and searched.
        identity: the identity of the embedder whose vectors the index holds.
        embedder: the settings of that embedder; None: vectors were brought from elsewhere.
        lock: the lock that a writer holds; None: the index was opened for reading.
    """

    def __init__(
        self,
        folder: Path,
        config: IndexConfig,
        identity: EmbedderIdentity,
        embedder: EmbedderConfig | None,
        lock: WriterLock | None,
    ) -> None:
        check_searchable(identity, config)
        self._folder = folder
        self._config = config
        self._identity = identity
        self._embedder = embedder
        self._lock = lock
        self._header: IndexHeader | None = None
        # Rows are numbered through: first those of the file, then those that were added since.
        self._saved = empty_rows(identity)
        self._added = empty_rows(identity)
        self._table = PageTable()
        self._is_kept: BoolArray = np.zeros(0, dtype=np.bool_)
        self._row_of: dict[str, int] | None = None

    @property
    def identity(self) -> EmbedderIdentity:
        """The identity of the embedder whose vectors the index holds."""
        return self._identity

    @property
    def embedder(self) -> EmbedderConfig | None:
        """The settings of that embedder; None: vectors were brought from elsewhere."""
        return self._embedder

    @property
    def name(self) -> str:
        """The name that messages call the index by."""
        return f"the index {shown(self._folder)}"

    def __len__(self) -> int:
        return int(np.count_nonzero(self._is_kept))

    def __enter__(self) -> FlatIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the index, so that other processes may write; what was not saved is lost."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def add(self, pages: Sequence[IndexedPage], vectors: ItemVectors) -> None:
        """Add pages; see :class:`~rsgrpo.retrieval.index.page_index.PageIndex`."""
        self._check_writable()
        check_ids(pages)
        found = checked_items(vectors, [page.page_id for page in pages], self._identity)
        self.remove(page.page_id for page in pages)
        row_of = self._rows_by_id()
        row_of.update({page.page_id: len(self._table) + number for number, page in enumerate(pages)})
        self._added.add(found)
        self._table.add(pages)
        self._is_kept = np.concatenate([self._is_kept, np.ones(len(pages), dtype=np.bool_)])

    def remove(self, page_ids: Iterable[str]) -> int:
        """Take pages out; see :class:`~rsgrpo.retrieval.index.page_index.PageIndex`."""
        self._check_writable()
        row_of = self._rows_by_id()
        rows = [row for page_id in page_ids if (row := row_of.pop(page_id, None)) is not None]
        self._is_kept[rows] = False
        return len(rows)

    def search(self, vectors: ItemVectors, k: int, allowed: PageFilter = ALL_PAGES) -> list[list[FoundPage]]:
        """Find the best pages for each question; see :class:`~rsgrpo.retrieval.index.page_index.PageIndex`."""
        check_k(k)
        names = [f"question {number}" for number in range(1, len(vectors) + 1)]
        queries = checked_items(vectors, names, self._identity)
        if not len(queries):
            return []
        may_be_found = self._allowed(allowed)
        num_saved = len(self._saved)
        parts = [
            (rows.best(queries, k, None if of_rows.all() else of_rows), offset)
            for rows, of_rows, offset in (
                (self._saved, may_be_found[:num_saved], 0),
                (self._added, may_be_found[num_saved:], num_saved),
            )
            if len(rows)
        ]
        results = []
        for number in range(len(queries)):
            best = [(best_of_part[number], offset) for best_of_part, offset in parts]
            rows = [int(row) + offset for found, offset in best for row in found.rows]
            scores = [float(score) for found, _ in best for score in found.scores]
            results.append(ranked(zip(self._table.pages(rows), scores, strict=True), k))
        return results

    def vectors(self, page_ids: Sequence[str]) -> ItemVectors:
        """Look up the vectors of pages, as they are kept; see :class:`~rsgrpo.retrieval.index.page_index.PageIndex`."""
        row_of = self._rows_by_id()
        missing = next((page_id for page_id in page_ids if page_id not in row_of), None)
        if missing is not None:
            raise not_there(missing, self.name)
        rows = np.array([row_of[page_id] for page_id in page_ids], dtype=np.int64)
        found: dict[int, FloatArray] = {}
        num_saved = len(self._saved)
        for part, places, offset in (
            (self._saved, np.flatnonzero(rows < num_saved), 0),
            (self._added, np.flatnonzero(rows >= num_saved), num_saved),
        ):
            if len(places):
                found |= zip(places.tolist(), part.rows(rows[places] - offset), strict=True)
        in_order = [found[place] for place in range(len(rows))]
        if self._identity.is_multi_vector:
            return in_order
        return np.stack(in_order) if in_order else np.zeros((0, self._identity.dimension), np.float32)

    def pages(self, allowed: PageFilter = ALL_PAGES) -> list[IndexedPage]:
        """List pages without their vectors, in page order."""
        return sorted(self._table.pages(np.flatnonzero(self._allowed(allowed))), key=lambda page: page.order)

    def save(self) -> None:
        """Write what was added and removed, as the module's docstring describes.

        While they are written, one copy of all vectors is in memory, where each page has one.

        Raises:
            PageIndexError: the disk is full, or there is no permission; what was saved before is still there.
        """
        self._check_writable()
        number = self._header.save_number + 1 if self._header else 1
        rows = np.flatnonzero(self._is_kept)
        with _named_disk(self._folder):
            try:
                header = self._write_files(number, rows)
                write_header(self._folder, header)
            finally:
                self._take_away_others()  # of a save that failed the new files, else the old ones
        self._header = header
        self._load(header)

    def verify(self) -> None:
        """Read every file of the last save, and compare it with its checksum.

        Raises:
            PageIndexError: a file differs; the message names it.
        """
        for expected in self._header.files if self._header else ():
            with _named_disk(self._folder):
                check_digest(self._folder, expected)

    def _write_files(self, number: int, rows: NDArray[np.int64]) -> IndexHeader:
        num_saved = len(self._saved)
        sources = ((self._saved, rows[rows < num_saved]), (self._added, rows[rows >= num_saved] - num_saved))
        files = write_rows(self._folder, number, sources, self._identity, self._config)
        self._table.write(self._folder / f"pages-{number:06d}.parquet", rows)
        return IndexHeader(
            made_by=__version__,
            identity=self._identity,
            embedder=self._embedder,
            num_pages=len(rows),
            save_number=number,
            vectors=files.vectors,
            pages=digest(self._folder, f"pages-{number:06d}.parquet"),
            lists=files.lists,
            offsets=files.offsets,
            means=files.means,
        )

    def _take_away_others(self) -> None:
        """Delete the files of all saves but the one that the header on the disk names."""
        has_header = (self._folder / HEADER_FILE).exists()
        names = {saved.name for saved in read_header(self._folder).files} if has_header else set()
        for file in own_files(self._folder):
            if file.name not in names:
                file.unlink(missing_ok=True)

    def _load(self, header: IndexHeader) -> None:
        """Map and read the files of a save, which take the place of everything in memory.

        Raises:
            FileNotFoundError: a file is missing.
            PageIndexError: a file is damaged.
        """
        check_sizes(self._folder, header)
        check_digest(self._folder, header.pages)
        files = RowFiles(vectors=header.vectors, lists=header.lists, offsets=header.offsets, means=header.means)
        try:
            saved = map_rows(self._folder, files, self._config)
            table = PageTable.read(self._folder / header.pages.name)
        except (VectorFileError, PageTableError) as error:
            raise PageIndexError(f"{self.name} is damaged: {error}; copy the folder again, or {ANEW}") from error
        found = (len(saved), len(table), saved.dimension)
        expected = (header.num_pages, header.num_pages, header.identity.dimension)
        if found != expected:
            raise PageIndexError(
                f"{self.name} is damaged: {found[0]} vectors, {found[1]} pages and dimension {found[2]}, its header "
                f"says {expected[0]}, {expected[1]} and {expected[2]}; {ANEW}"
            )
        self._header, self._saved, self._table = header, saved, table
        self._added = empty_rows(header.identity)
        self._is_kept = np.ones(len(table), dtype=np.bool_)
        self._row_of = None

    def _allowed(self, wanted: PageFilter) -> BoolArray:
        return self._is_kept if wanted.is_empty else self._is_kept & self._table.meets(wanted)

    def _rows_by_id(self) -> dict[str, int]:
        """Number the rows by page id, once; searches do not need it."""
        if self._row_of is None:
            self._row_of = {page_id: row for row, page_id in enumerate(self._table.ids())}
        return self._row_of

    def _check_writable(self) -> None:
        if self._lock is None:
            raise PageIndexError(f"{self.name} was opened for reading; open it with is_writable=True")


def create_index(
    folder: Path, identity: EmbedderIdentity, config: IndexConfig | None = None, embedder: EmbedderConfig | None = None
) -> FlatIndex:
    """Create an index, empty and open for writing; nothing but the lock is on the disk before its first save.

    Args:
        folder: the folder that the index will lie in; made if need be.
        identity: the identity of the embedder whose vectors the index will hold.
        config: the settings by which the index is kept and searched; None: the defaults.
        embedder: the settings of that embedder; None: vectors are brought from elsewhere.

    Returns:
        The index; closing it frees the lock.

    Raises:
        PageIndexError: there is an index already, another process is writing one there, or the folder cannot be
            written.

    Example:
        ``with create_index(Path("manuals.index"), embedder.identity) as index: add_pages(index, embedder, pages)``
    """
    lock = _locked(folder)
    try:
        if (folder / HEADER_FILE).exists():
            raise PageIndexError(
                f"{shown(folder)} holds an index already; open it to add to it, or choose another folder"
            )
        index = FlatIndex(folder, config or IndexConfig(), identity, embedder, lock)
        with _named_disk(folder):
            index._take_away_others()
    except BaseException:
        lock.close()
        raise
    return index


def open_index(folder: Path, config: IndexConfig | None = None, *, is_writable: bool = False) -> FlatIndex:
    """Open an index. Its vectors are mapped: only what a search touches is read, and all processes share it.

    Args:
        folder: the folder that the index lies in.
        config: the settings by which the index is kept and searched; None: the defaults.
        is_writable: whether pages will be added or removed; if not, another process may write at the same time.

    Returns:
        The index as its last save left it.

    Raises:
        PageIndexError: the folder holds no index, something else, an index of another version, or one that is half
            written or damaged; or another process is writing it. Before anything is added every byte is compared with
            its checksum.
    """
    if is_writable:
        read_header(folder)  # before a lock is left in a folder that holds something else
    lock = _locked(folder) if is_writable else None
    try:
        for attempt in range(1, _READ_ATTEMPTS + 1):
            header = read_header(folder)
            index = FlatIndex(folder, config or IndexConfig(), header.identity, header.embedder, lock)
            try:
                with _named_disk(folder):
                    index._load(header)
                if is_writable:
                    index.verify()  # the next save would write what is damaged anew, and give it a checksum that fits
                return index
            except FileNotFoundError as error:
                if attempt == _READ_ATTEMPTS or read_header(folder) == header:
                    raise PageIndexError(
                        f"the index {shown(folder)} lacks {Path(str(error.filename)).name}; copy the folder again, or "
                        f"{ANEW}"
                    ) from error
    except BaseException:
        if lock is not None:
            lock.close()
        raise
    raise AssertionError("every attempt returns or raises")


def _locked(folder: Path) -> WriterLock:
    """Take the writer's lock."""
    if folder.exists() and not folder.is_dir():
        raise PageIndexError(f"{shown(folder)} is a file, and an index is a folder; choose another path")
    try:
        with _named_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            return WriterLock(folder / _LOCK_FILE)
    except LockHeldError as error:
        raise PageIndexError(
            f"another process is writing the index {shown(folder)} ({shown(error.holder)}); wait until it has ended, "
            "or choose another folder"
        ) from None


@contextmanager
def _named_disk(folder: Path) -> Iterator[None]:
    """Raise what the disk refuses in the block as an error that names the index and the way out."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PageIndexError(
                f"the disk of the index {shown(folder)} is full; free some space (a save needs room for the old and "
                "the new files), then index again: what was saved before is still there"
            ) from error
        raise PageIndexError(
            f"the index {shown(folder)} cannot be read or written ({shown_error(error)}); check the path and its "
            "permissions"
        ) from error
