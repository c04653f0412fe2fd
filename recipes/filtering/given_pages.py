"""The pages that a command line names: image files, pages of documents such as ``page2.pdf#3``, pages of an index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsgrpo.config.documents import RenderSettings
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import check_image
from rsgrpo.data.images.sources import ImageError
from rsgrpo.documents.pdf import PdfDocument
from rsgrpo.documents.records import DocumentError
from rsgrpo.documents.sources import file_kind
from rsgrpo.documents.stored_images import encode_image
from rsgrpo.errors import shown
from rsgrpo.retrieval.index.page_index import PageIndex
from rsgrpo.types import ImageRef

_SHOWN_REASON = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenPage:
    """One page as a user gave it.

    Attributes:
        number: the number of the page, from 1, in the order in which pages were given; what ``[number]`` means.
        name: the page as the user calls it, such as ``page2.pdf#3``.
        page: the page; None where it cannot be read.
        problem: why it cannot be read; empty where it can.
    """

    number: int
    name: str
    page: ImageRef | None = None
    problem: str = ""


def given_pages(
    names: Sequence[str], folder: Path, settings: RenderSettings, rules: ImageRules, index: PageIndex | None = None
) -> list[GivenPage]:
    """Find the pages that were named; one that cannot be read is named with the reason, and the others go on.

    Args:
        names: image files; documents, all of whose pages are meant; pages of documents, such as ``page2.pdf#3``;
            pages of the index, by the ids that it knows them by.
        folder: a folder for the images of rendered pages.
        settings: how pages of documents are rendered.
        rules: how images are read.
        index: an index whose pages may be named; None: there is none.

    Returns:
        The pages, numbered from 1 in the order in which they were given.
    """
    known = {page.page_id: page.image_path for page in index.pages()} if index is not None else {}
    found: list[tuple[str, ImageRef | None, str]] = []
    for name in names:
        if name in known:
            found.append(_checked(ImageRef(path=name, file=known[name]), rules))
            continue
        path, number = _split(name)
        try:
            is_document = path.is_file() and file_kind(path) == "pdf"
            if not is_document:
                found.append(_checked(ImageRef(path=name, file=str(path.absolute())), rules))
                continue
            found += _rendered(path, number, folder / f"{len(found)}", settings)
        except (DocumentError, OSError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            found.append((name, None, shown(reason, _SHOWN_REASON)))
    return [
        GivenPage(number=number, name=name, page=page, problem=problem)
        for number, (name, page, problem) in enumerate(found, start=1)
    ]


def _split(name: str) -> tuple[Path, int | None]:
    """The file and the page number of ``page2.pdf#3``; a file whose name ends like this is taken as it is."""
    document, mark, number = name.rpartition("#")
    if mark and document and number.isascii() and number.isdigit() and not Path(name).exists():
        return Path(document), int(number)
    return Path(name), None


def _checked(page: ImageRef, rules: ImageRules) -> tuple[str, ImageRef | None, str]:
    try:
        check_image(page, rules)
    except ImageError as error:
        return page.path, None, shown(error, _SHOWN_REASON)
    return page.path, page, ""


def _rendered(
    path: Path, number: int | None, folder: Path, settings: RenderSettings
) -> Iterator[tuple[str, ImageRef | None, str]]:
    """Render one page of a document, or all of them.

    Raises:
        DocumentError: the document cannot be read, or has no such page.
        OSError: the document cannot be read, or the folder cannot be written.
    """
    document = PdfDocument(path, settings)
    try:
        if number is not None and not 1 <= number <= document.num_pages:
            raise DocumentError(f"it has {document.num_pages} pages, and page {number} is asked for")
        folder.mkdir(parents=True, exist_ok=True)
        for wanted in [number] if number is not None else range(1, document.num_pages + 1):
            name = f"{path}#{wanted}"
            try:
                data, suffix = encode_image(document.page(wanted, with_text=False).pixels, settings.image_format)
            except DocumentError as error:
                yield name, None, shown(error, _SHOWN_REASON)
                continue
            file = folder / f"{wanted}{suffix}"
            file.write_bytes(data)
            yield name, ImageRef(path=name, file=str(file)), ""
    finally:
        document.close()
