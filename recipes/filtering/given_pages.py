"""The pages that a command line names: image files, pages of documents (``a.pdf#3``, ``#2-5``), pages of an index."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rsgrpo.config.documents import RenderSettings
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import SKIP_ADVICE, check_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.documents.pdf import PdfDocument
from rsgrpo.documents.pictures import PictureDocument
from rsgrpo.documents.records import DocumentError
from rsgrpo.documents.sources import file_kind
from rsgrpo.documents.stored_images import Pixels, encode_image
from rsgrpo.errors import shown
from rsgrpo.retrieval.index.page_index import PageIndex
from rsgrpo.types import ImageRef

_SHOWN_REASON = 200
_NUMBERED = re.compile(r"(?P<document>.+)#(?P<first>[0-9]{1,9})(-(?P<last>[0-9]{1,9}))?", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenPage:
    """One page as a user gave it.

    Attributes:
        number: the number of the page, from 1, in the order in which pages were given; what ``[number]`` means.
        name: the page as the user calls it, such as ``page2.pdf#3``.
        document: the file that the page is of; empty: a page of the index.
        page_number: the page's number in the document, from 1.
        page: the page; None where it cannot be read.
        problem: why it cannot be read; empty where it can.
    """

    number: int
    name: str
    document: str = ""
    page_number: int = 1
    page: ImageRef | None = None
    problem: str = ""


def given_pages(
    names: Sequence[str], folder: Path, settings: RenderSettings, rules: ImageRules, index: PageIndex | None = None
) -> list[GivenPage]:
    """Find the pages that were named; one that cannot be read is named with the reason, and the others go on.

    Args:
        names: image files; documents, all of whose pages are meant, as all pictures of a TIFF file; pages of these,
            such as ``page2.pdf#3`` or ``page2.pdf#2-5``; pages of the index, by the ids that it knows them by.
        folder: a folder for the images of rendered pages.
        settings: how pages of documents are rendered.
        rules: how images are read.
        index: an index whose pages may be named; None: there is none.

    Returns:
        The pages, numbered from 1 in the order in which they were given.
    """
    known = {page.page_id: page.image_path for page in index.pages()} if index is not None else {}
    found: list[GivenPage] = []
    for name in names:
        if name in known:
            found.append(_checked(ImageRef(path=name, file=known[name]), rules))
            continue
        path, wanted = _split(name)
        problem = _missing(path, is_searched=index is not None)
        if problem:
            found.append(GivenPage(number=0, name=name, problem=problem))
            continue
        try:
            document = _opened(path, settings)
            if isinstance(document, PictureDocument) and document.num_pages == 1 and wanted in (None, (1, 1)):
                found.append(_checked(ImageRef(path=name, file=str(path.absolute())), rules, document=str(path)))
                continue
            found += _rendered(document, path, wanted, folder / f"{len(found)}", settings)
        except (DocumentError, OSError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            found.append(GivenPage(number=0, name=name, problem=shown(reason, _SHOWN_REASON)))
    return [replace(page, number=number) for number, page in enumerate(found, start=1)]


def _split(name: str) -> tuple[Path, tuple[int, int] | None]:
    """The file, and the first and last page, of ``page2.pdf#3`` and ``page2.pdf#2-5``; None: all pages.

    A file whose name ends like this is taken as it is.
    """
    named = _NUMBERED.fullmatch(name)
    if named is None or Path(name).exists():
        return Path(name), None
    first = int(named["first"])
    return Path(named["document"]), (first, int(named["last"] or first))


def _missing(path: Path, *, is_searched: bool) -> str:
    """What a command line should be told where a path is of no file; empty: it is of one."""
    if path.is_dir():
        return "it is a folder; name the images or documents in it, such as folder/*.png, or index it with rsgrpo index"
    if path.exists():
        return ""
    in_index = " and no such page in the index" if is_searched else ""
    where = "" if path.is_absolute() else f", as seen from {shown(Path.cwd(), 120)}"
    return f"there is no such file{in_index}; give its path{where}"


def _checked(page: ImageRef, rules: ImageRules, document: str = "") -> GivenPage:
    try:
        check_image(page, rules)
    except ImageError as error:
        reason = str(error).replace(SKIP_ADVICE, "")  # such pages are passed over as it is
        return GivenPage(number=0, name=page.path, document=document, problem=shown(reason, _SHOWN_REASON))
    return GivenPage(number=0, name=page.path, document=document, page=page)


def _opened(path: Path, settings: RenderSettings) -> PdfDocument | PictureDocument:
    if path.is_file() and file_kind(path) == "pdf":
        return PdfDocument(path, settings)
    return PictureDocument(path, settings)


def _rendered(
    document: PdfDocument | PictureDocument,
    path: Path,
    wanted: tuple[int, int] | None,
    folder: Path,
    settings: RenderSettings,
) -> Iterator[GivenPage]:
    """Render some pages of a document, or all of them, and close it; their numbers are given later.

    Raises:
        DocumentError: the document has no such page.
        OSError: the folder cannot be written.
    """
    try:
        first, last = wanted or (1, document.num_pages)
        if not 1 <= first <= last <= document.num_pages:
            asked = f"page {first} is" if first == last else f"pages {first} to {last} are"
            raise DocumentError(f"it has {document.num_pages} pages, and {asked} asked for")
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(first, last + 1):
            page = GivenPage(number=0, name=f"{path}#{number}", document=str(path), page_number=number)
            try:
                data, suffix = encode_image(_pixels(document, number), settings.image_format)
            except DocumentError as error:
                yield replace(page, problem=shown(error, _SHOWN_REASON))
                continue
            file = folder / f"{number}{suffix}"
            file.write_bytes(data)
            yield replace(page, page=ImageRef(path=page.name, file=str(file)))
    finally:
        document.close()


def _pixels(document: PdfDocument | PictureDocument, number: int) -> Pixels:
    if isinstance(document, PdfDocument):
        return document.page(number, with_text=False).pixels
    return document.page(number).pixels
