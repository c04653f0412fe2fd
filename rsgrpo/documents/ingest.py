"""Adding documents to a page store: which have changed, which worker does what, and which cannot be read and why.

    plan ─► survey (hash, number of pages, outline) ─► chunks of pages ─► rows in order ─► part committed
              └─► the same bytes as another document: its rows are copied

Several documents are under way at a time, and a large one keeps all workers busy: its pages are rendered out of order,
a bounded number ahead of the one that is written next.
"""

from __future__ import annotations

import bisect
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from rsgrpo.config.documents import RenderSettings
from rsgrpo.data.images.loading import decoders_fingerprint
from rsgrpo.documents.counts import Counts
from rsgrpo.documents.ocr import ocr_name
from rsgrpo.documents.office import CONVERSION_SECONDS
from rsgrpo.documents.parts import PartWriter, StoredDocument, copy_part, is_complete
from rsgrpo.documents.records import DocumentError, IngestProgress, Remark, StoreError, page_id
from rsgrpo.documents.rendering import RenderPool
from rsgrpo.documents.sources import OFFICE_SUFFIXES, FileStamp, SourceFile
from rsgrpo.documents.stored_images import WRITING, no_room, store_writes
from rsgrpo.documents.tasks import (
    Answer,
    BadDocument,
    BadPage,
    Died,
    Done,
    NoRoom,
    RenderPages,
    StoredPage,
    Survey,
    Surveyed,
    Task,
)
from rsgrpo.errors import shown

OnProgress = Callable[[IngestProgress], None]
MakePool = Callable[[Path, RenderSettings], RenderPool]

_CHUNK_PAGES = 16
_CHUNKS_AHEAD = 4  # a worker, of one document
_DOCUMENTS_AHEAD = 4  # a worker
_MAX_ATTEMPTS = 2
_SLOWEST_BYTES_PER_SECOND = 1e6  # at which a file is hashed over a network
_CHANGED = "it changed while it was read; add it again when nobody writes it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A document whose file has to be read, because it is new or may have changed.

    Attributes:
        source: the file of the document, and the name that the document has in the store.
        former: the document that the store already has under this name; None: it has none.
        is_whole: whether all page images of ``former`` are in the store, so that they can be kept for equal content.
    """

    source: SourceFile
    former: StoredDocument | None
    is_whole: bool


@dataclass(kw_only=True, slots=True)
class _Job:
    """A document that is being added; documents with the same bytes wait for it as its followers."""

    key: int
    work: Work
    attempts: int = 0
    survey: Surveyed | None = None
    writer: PartWriter | None = None
    chunks: deque[tuple[int, int]] = field(default_factory=deque)
    waiting: dict[int, StoredPage | BadPage] = field(default_factory=dict)
    next_page: int = 1
    deaths: dict[int, int] = field(default_factory=dict)
    left_out: list[Remark] = field(default_factory=list)
    duplicates: int = 0
    blank: list[str] = field(default_factory=list)
    num_read: int = 0
    unread: list[Remark] = field(default_factory=list)
    followers: list[_Job] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the document in the store."""
        return self.work.source.document

    @property
    def path(self) -> Path:
        """Path of the document's file."""
        return self.work.source.path


class Ingest:
    """One run that adds documents to a store; this process must hold the store's writer lock.

    Args:
        store: the absolute path of the folder that the store lies in.
        settings: how pages are rendered, and what to do about documents that cannot be read.
        by_sha256: the name of a stored document for the SHA-256 of its file, 64 hexadecimal digits; updated here.
        counts: the numbers of the report, which this run increases.
        on_progress: a function that is called with the progress after each round of answers; None: no function.
        make_pool: a function that makes the pool of workers from the store's folder and the settings.
    """

    def __init__(
        self,
        store: Path,
        settings: RenderSettings,
        by_sha256: dict[str, str],
        counts: Counts,
        on_progress: OnProgress | None,
        make_pool: MakePool = RenderPool,
    ) -> None:
        self._store = store
        self._settings = settings
        self._by_sha256 = by_sha256
        self._counts = counts
        self._on_progress = on_progress
        self._make_pool = make_pool
        self._libraries = f"pypdfium2 {version('pypdfium2')}/{decoders_fingerprint()}"
        self._ocr = ocr_name(settings.ocr)
        self._begin = time.monotonic()
        self._waiting: deque[_Job] = deque()
        self._active: dict[int, _Job] = {}
        self._under_way: dict[str, _Job] = {}
        self._num_keys = self._total = 0
        self.has_dropped = False
        """Whether a document was given up after some of its pages were stored, so that unused images may be left."""
        self._sizes: dict[str, int] = {}
        self._num_done = self._bytes_done = self._num_rendered = 0

    def refuse(self, remark: Remark) -> None:
        """Report a document that cannot be read, or stop there if the settings say so.

        Args:
            remark: the name of the document, and why it cannot be read.

        Raises:
            DocumentError: the settings say to stop at such a document (``on_bad_document="reject"``).
        """
        if self._settings.on_bad_document == "reject":
            raise DocumentError(
                f"{shown(remark.name)}: {remark.reason}; or leave such documents out with "
                "documents.on_bad_document=skip"
            )
        self._counts.refused.append(remark)

    def run(self, work: Sequence[Work]) -> None:
        """Read documents, render their pages and store them.

        Args:
            work: the documents to add, in the order in which they are begun.

        Raises:
            DocumentError: a document cannot be read, and the settings say to stop there.
            StoreError: the store cannot be written.
        """
        for document in work:
            self._waiting.append(_Job(key=self._new_key(), work=document))
            self._sizes[document.source.document] = max(1, _size(document.source.path))
        self._total = sum(self._sizes.values())
        with self._make_pool(self._store, self._settings) as pool:
            try:
                while self._waiting or self._active:
                    self._step(pool)
                    self._tell()
            finally:
                for job in self._active.values():
                    if job.writer is not None:
                        job.writer.discard()

    def _step(self, pool: RenderPool) -> None:
        """Give tasks to idle workers, wait for answers, and act on them."""
        pool.grow(len(self._waiting) + sum(len(job.chunks) for job in self._active.values()))
        while pool.has_idle and (task := self._next_task()) is not None:
            pool.give(task)
        for task, answer in pool.answers():
            if task.key in self._active:
                with store_writes(self._store):
                    self._heed(self._active[task.key], task, answer)

    def _new_key(self) -> int:
        self._num_keys += 1
        return self._num_keys

    def _next_task(self) -> Task | None:
        """Choose the next task: pages before surveys, so that documents already begun are finished first."""
        ahead = _CHUNKS_AHEAD * self._settings.num_workers * _CHUNK_PAGES
        for job in self._active.values():
            if job.chunks and job.survey is not None and job.chunks[0][0] < job.next_page + ahead:
                first, last = job.chunks.popleft()
                return RenderPages(key=job.key, path=job.survey.path, kind=job.survey.kind, first=first, last=last)
        if self._waiting and len(self._active) < _DOCUMENTS_AHEAD * self._settings.num_workers:
            job = self._waiting.popleft()
            self._active[job.key] = job
            return self._survey(job)
        return None

    def _survey(self, job: _Job) -> Survey:
        former = job.work.former
        conversion = CONVERSION_SECONDS if job.path.suffix.lower() in OFFICE_SUFFIXES else 0.0
        return Survey(
            key=job.key,
            path=job.path,
            office_folder=self._office_folder(job),
            seconds=self._settings.page_seconds + self._sizes[job.name] / _SLOWEST_BYTES_PER_SECOND + conversion,
            known_sha256=former.sha256 if former is not None and job.work.is_whole else "",
        )

    def _office_folder(self, job: _Job) -> Path:
        return self._store / WRITING / f"office-{job.key}"

    def _heed(self, job: _Job, task: Task, answer: Answer) -> None:
        if isinstance(answer, NoRoom):
            raise StoreError(no_room(self._store, answer.reason))
        if isinstance(answer, Surveyed):
            self._begin_document(job, answer)
        elif isinstance(answer, BadDocument):
            self._fail(job, answer.reason)
        elif isinstance(answer, Died):
            self._bury(job, task, answer)
        elif not isinstance(answer, Done):
            job.waiting[answer.number] = answer
            self._write_pages(job)

    def _begin_document(self, job: _Job, found: Surveyed) -> None:
        job.survey = found
        if not found.num_pages:  # touched or moved, with the content that it had
            self._copy(job, job.name, is_new=False)
        elif (twin := self._twin(found.sha256)) is not None:
            self._copy(job, twin, is_new=True)
        elif (first := self._under_way.get(found.sha256)) is not None:
            first.followers.append(job)
        else:
            self._under_way[found.sha256] = job
            job.writer = PartWriter(self._store, self._description(job, found))
            starts = range(1, found.num_pages + 1, _CHUNK_PAGES)
            job.chunks = deque((start, min(start + _CHUNK_PAGES - 1, found.num_pages)) for start in starts)

    def _twin(self, sha256: str) -> str | None:
        """Find a document in the store that has the same content, all of its page images, and texts as asked for."""
        document = self._by_sha256.get(sha256)
        is_usable = document is not None and is_complete(self._store, document, with_ocr=bool(self._ocr))
        return document if is_usable else None

    def _description(self, job: _Job, found: Surveyed) -> StoredDocument:
        return StoredDocument(
            document=job.name,
            path=str(job.path),
            num_bytes=found.stamp.num_bytes,
            mtime_ns=found.stamp.mtime_ns,
            sha256=found.sha256,
            rendered_by=self._libraries,
            ocr=self._ocr,
        )

    def _write_pages(self, job: _Job) -> None:
        """Write the pages that come next in order, and finish the document after its last page."""
        assert job.survey is not None and job.writer is not None
        while (page := job.waiting.pop(job.next_page, None)) is not None:
            job.next_page += 1
            name = page_id(job.name, page.number)
            if isinstance(page, BadPage):
                if self._settings.on_bad_document != "skip_page":
                    self._fail(job, f"page {page.number} of {job.survey.num_pages}: {page.reason}")
                    return
                job.left_out.append(Remark(name=name, reason=page.reason))
                continue
            job.writer.append(page, _title(job.survey.outline, page.number))
            self._num_rendered += 1
            job.duplicates += not page.is_new
            job.blank += [name] if page.blank else []
            job.num_read += page.text_origin == "ocr" and not page.problem
            job.unread += [Remark(name=name, reason=page.problem)] if page.problem else []
        if job.next_page > job.survey.num_pages:
            self._end_document(job)

    def _end_document(self, job: _Job) -> None:
        assert job.survey is not None and job.writer is not None
        if self._has_changed(job):
            return
        if not job.writer.num_pages:
            self._fail(job, f"none of its {job.survey.num_pages} pages can be rendered: {job.left_out[0].reason}")
            return
        job.writer.commit()
        num_pages, job.writer = job.writer.num_pages, None
        self._counts.left_out_pages += job.left_out
        self._counts.duplicate_pages += job.duplicates
        self._counts.blank_pages += job.blank
        self._counts.ocr_pages += job.num_read
        self._counts.unread_pages += job.unread
        self._count(job, num_pages)
        for follower in job.followers:
            self._copy(follower, job.name, is_new=True)

    def _copy(self, job: _Job, document: str, *, is_new: bool) -> None:
        """Copy the pages of a document with the same content, or keep the pages that this one already has."""
        assert job.survey is not None
        if self._has_changed(job):
            return
        num_pages = 0
        for page in copy_part(self._store, document, self._description(job, job.survey)):
            num_pages += 1
            self._counts.blank_pages += [page_id(job.name, page.number)] if is_new and page.blank else []
        if not is_new:
            self._counts.unchanged += 1
            self._count_done(job)
            self._leave(job)
            return
        self._counts.duplicate_documents.append(
            Remark(name=job.name, reason=f"has the same bytes as {shown(document)}")
        )
        self._counts.duplicate_pages += num_pages
        self._count(job, num_pages)

    def _count(self, job: _Job, num_pages: int) -> None:
        assert job.survey is not None
        self._by_sha256[job.survey.sha256] = job.name
        self._counts.pages += num_pages
        former = job.work.former
        if former is None:
            self._counts.added += 1
        else:
            self._counts.replaced += 1
            if former.sha256 != job.survey.sha256 and self._by_sha256.get(former.sha256) == job.name:
                del self._by_sha256[former.sha256]
        self._count_done(job)
        self._leave(job)

    def _has_changed(self, job: _Job) -> bool:
        """Tell whether a file has changed since it was surveyed; if so, have it read once more, or refuse it."""
        assert job.survey is not None
        try:
            if FileStamp.of(job.path) == job.survey.stamp:
                return False
        except OSError:
            self._fail(job, "its file was deleted while it was read")
            return True
        if job.attempts + 1 >= _MAX_ATTEMPTS:
            self._fail(job, _CHANGED)
            return True
        self._again(job, attempts=job.attempts + 1)
        return True

    def _again(self, job: _Job, *, attempts: int) -> None:
        """Start a document again from the beginning."""
        self._waiting.appendleft(_Job(key=self._new_key(), work=job.work, attempts=attempts, deaths=job.deaths))
        self._drop(job)

    def _bury(self, job: _Job, task: Task, death: Died) -> None:
        """Repeat the task of a dead worker; give up a page or document at which two workers have died."""
        number = next((number for number in self._unanswered(job, task)), 0)
        job.deaths[number] = job.deaths.get(number, 0) + 1
        is_over = job.deaths[number] >= _MAX_ATTEMPTS
        if isinstance(task, Survey):
            if is_over:
                self._fail(job, f"it cannot be opened: {death.reason}, twice")
            else:
                self._again(job, attempts=job.attempts)
            return
        assert isinstance(task, RenderPages)
        first = number or task.last + 1
        if is_over and number:
            reason = f"it cannot be rendered: {death.reason}, twice"
            first = number + 1
            job.waiting[number] = BadPage(number=number, reason=reason)
        if first <= task.last:
            job.chunks.appendleft((first, task.last))
        if is_over and number:
            self._write_pages(job)

    def _unanswered(self, job: _Job, task: Task) -> Sequence[int]:
        if not isinstance(task, RenderPages):
            return ()
        return [number for number in range(max(task.first, job.next_page), task.last + 1) if number not in job.waiting]

    def _fail(self, job: _Job, reason: str) -> None:
        """Give up a document that cannot be read, and report why."""
        stays = "; its former pages stay" if job.work.former is not None else ""
        self._count_done(job)
        self._drop(job)
        self.refuse(Remark(name=job.name, reason=f"{reason}{stays}"))

    def _drop(self, job: _Job) -> None:
        """Discard what was written of a document; a document with the same bytes that waited for it takes its place."""
        if job.writer is not None:
            job.writer.discard()
            job.writer = None
            self.has_dropped = True
        self._leave(job)
        for follower in job.followers:
            assert follower.survey is not None
            self._begin_document(follower, follower.survey)

    def _leave(self, job: _Job) -> None:
        del self._active[job.key]
        if job.survey is not None and self._under_way.get(job.survey.sha256) is job:
            del self._under_way[job.survey.sha256]
        shutil.rmtree(self._office_folder(job), ignore_errors=True)

    def _count_done(self, job: _Job) -> None:
        self._num_done += 1
        self._bytes_done += self._sizes[job.name]

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        partly = sum(
            self._sizes[job.name] * (job.next_page - 1) / job.survey.num_pages
            for job in self._active.values()
            if job.survey is not None and job.survey.num_pages
        )
        self._on_progress(
            IngestProgress(
                documents=self._num_done,
                documents_total=len(self._sizes),
                pages=self._num_rendered,
                share=min(1.0, (self._bytes_done + partly) / self._total),
                seconds=time.monotonic() - self._begin,
            )
        )


def _title(outline: Sequence[tuple[int, str]], number: int) -> str | None:
    """Return the title of the last outline entry that starts on a page or before it; None: there is none."""
    position = bisect.bisect_right(outline, number, key=lambda entry: entry[0])
    return outline[position - 1][1] if position else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
