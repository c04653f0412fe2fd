"""Make a data set of PDF manuals that Debian ships: a question is an outline title, its answer the title's page.

Manuals are fetched by apt, so it takes a Debian with package lists (`apt-get update`); nothing of them is shipped here,
as their licences differ. Left out are contents and index pages, which hold every title and answer none, titles that
stand twice, and links to a file that is there already. The set is written as VisRAG lays such data out, so that
rsgrpo.retrieval.measuring.relevance_files, mteb and rsgrpo tune-search read it.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsgrpo.config.documents import RenderSettings
from rsgrpo.documents.page_store import PageStore
from rsgrpo.documents.pdf import PdfDocument
from rsgrpo.documents.records import Page
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import write_text
from rsgrpo.io.natural_order import natural_key

MANUALS = {
    "gnuplot-doc": ("usr/share/doc/gnuplot/gnuplot.pdf",),
    "octave-doc": ("usr/share/doc/octave/octave.pdf",),
    "debian-reference-en": ("usr/share/debian-reference/debian-reference.en.pdf",),
    "developers-reference": ("usr/share/developers-reference/developers-reference.pdf",),
    "installation-guide-amd64": ("usr/share/doc/installation-guide-amd64/en/install.en.pdf.gz",),
    # Not refman.pdf: 2,415 pages of one kind would outnumber all others.
    "r-doc-pdf": tuple(
        f"usr/share/R/doc/manual/R-{name}.pdf" for name in ("FAQ", "admin", "data", "exts", "intro", "ints", "lang")
    ),
    "why3-doc-pdf": ("usr/share/doc/why3-doc-pdf/manual.pdf",),
    "debian-policy": ("usr/share/doc/debian-policy/policy.pdf.gz",),
    "debmake-doc": ("usr/share/doc/debmake-doc/debmake-doc.en.pdf",),
    "auto-multiple-choice-doc-pdf": ("usr/share/doc/auto-multiple-choice/auto-multiple-choice.en.pdf",),
    "maint-guide": ("usr/share/doc/maint-guide/maint-guide.en.pdf",),
    "gri-pdf-doc": ("usr/share/doc/gri/gri.pdf.gz",),
}
"""The manuals: files in Debian's packages. Twelve of them were measured before there was this script."""

_ENDS_IN_NUMBER = re.compile(r"(?:[.\s·…]{2,}|\s|,\s?)(?:\d{1,4}|[ivxlc]{1,7})$")
_MIN_LISTED_LINES = 10
_LISTED_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Question:
    """An outline title, and the page that it leads to."""

    title: str
    page_id: str


def fetch(folder: Path) -> list[Path]:
    """Fetch the manuals, but those that are there.

    Args:
        folder: the folder that gets the packages and, below ``pdfs``, the manuals.

    Returns:
        The PDF files, in natural order.

    Raises:
        RsgrpoError: a package cannot be fetched, or lacks a file.
    """
    pdfs, packages = folder / "pdfs", folder / "packages"
    for made in (pdfs, packages):
        made.mkdir(parents=True, exist_ok=True)
    for package, names in MANUALS.items():
        wanted = {name: pdfs / _file_name(package, name) for name in names}
        if all(file.exists() for file in wanted.values()):
            continue
        unpacked = packages / package
        if not unpacked.exists():
            _run(["apt-get", "download", package], packages)
            _run(["dpkg-deb", "-x", str(next(packages.glob(f"{package}_*.deb"))), str(unpacked)], packages)
        for name, file in wanted.items():
            source = unpacked / name
            if not source.is_file() or source.is_symlink():
                raise RsgrpoError(f"the package {package} of this Debian has no file {name}; look below {unpacked}")
            content = source.read_bytes()
            file.write_bytes(gzip.decompress(content) if name.endswith(".gz") else content)
    return sorted(pdfs.glob("*.pdf"), key=lambda file: natural_key(file.name))


def _file_name(package: str, name: str) -> str:
    """Name a manual after its package, so that no two are called ``manual.pdf``."""
    stem = Path(name.removesuffix(".gz")).stem
    return f"{package}.pdf" if len(MANUALS[package]) == 1 else f"{stem}.pdf"


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RsgrpoError(f"there is no {command[0]} here; the manuals come from Debian's packages") from error
    except subprocess.CalledProcessError as error:
        said = shown(error.stderr.strip().splitlines()[-1] if error.stderr.strip() else "it does not say why", 200)
        raise RsgrpoError(f"{' '.join(command)} failed ({said}); run apt-get update, and try again") from error


def is_list(text: str) -> bool:
    """Whether a page is one of contents or an index: most of its lines end in the number of a page.

    Args:
        text: the text layer of the page.

    Example:
        Ten lines such as ``3.2 Axes . . . . . 17``.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ends = sum(bool(_ENDS_IN_NUMBER.search(line)) for line in lines)
    return ends >= _MIN_LISTED_LINES and ends >= _LISTED_SHARE * len(lines)


def questions(pdfs: Iterable[Path], pages: Iterable[str]) -> list[Question]:
    """Make questions of outline titles that stand once in all manuals, and whose page is in the corpus.

    Args:
        pdfs: the manuals.
        pages: the ids of the pages of the corpus.

    Returns:
        The questions, in the order of manuals and outlines.
    """
    corpus = frozenset(pages)
    found = []
    for pdf in pdfs:
        document = PdfDocument(pdf, RenderSettings())
        found += [Question(title=title, page_id=f"{pdf.name}#{number}") for number, title in document.outline()]
        document.close()
    counts = Counter(question.title.casefold() for question in found)
    return [
        question
        for question in found
        if counts[question.title.casefold()] == 1
        and question.page_id in corpus
        and any(character.isalpha() for character in question.title)
    ]


def write_set(folder: Path, pages: Sequence[Page], asked: Sequence[Question]) -> None:
    """Write corpus, queries and judgements as JSON lines; images stay where the store of pages has them.

    Args:
        folder: the folder of the set, in which the store lies.
        pages: the pages of the corpus.
        asked: the questions.
    """
    corpus = [
        {"corpus-id": page.page_id, "image": page.image_path.relative_to(folder).as_posix(), "text": page.text}
        for page in pages
    ]
    queries = [{"query-id": f"title-{number}", "query": question.title} for number, question in enumerate(asked)]
    judged = [
        {"query-id": f"title-{number}", "corpus-id": question.page_id, "score": 1}
        for number, question in enumerate(asked)
    ]
    for name, rows in (("corpus", corpus), ("queries", queries), ("qrels", judged)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(folder / f"{name}.jsonl", lines)


def make_set(folder: Path, workers: int) -> PageStore:
    """Fetch the manuals, render their pages, and write the set, but what is there already.

    Args:
        folder: the folder that gets it all.
        workers: the number of processes that render pages.

    Returns:
        The store of all pages, those that are no part of the corpus too.
    """
    pdfs = fetch(folder)
    store = PageStore.open(folder / "pages", RenderSettings(workers=workers))
    store.add(pdfs)
    pages = [page for page in store.pages() if not (page.blank or is_list(page.text))]
    asked = questions(pdfs, (page.page_id for page in pages))
    write_set(folder, pages, asked)
    return store
