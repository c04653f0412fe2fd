"""What tests ask of a store of pages."""

from __future__ import annotations

import hashlib

from rsgrpo.config.documents import OnBadDocument, RenderSettings
from rsgrpo.documents.page_store import PageStore
from tests.unit.documents.in_process_pool import InProcessPool

SKIP = RenderSettings(on_bad_document="skip")


def skipping(store: PageStore, how: OnBadDocument = "skip", pool: type[InProcessPool] = InProcessPool) -> PageStore:
    rendering = RenderSettings(on_bad_document=how)
    return PageStore(store.folder, rendering, pool)


def texts(store: PageStore) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for page in store.pages():
        found.setdefault(page.document, []).append(page.text)
    return found


def image_files(store: PageStore) -> set[str]:
    return {path.name for path in (store.folder / "images").rglob("*") if path.is_file()}


def check_whole(store: PageStore) -> None:
    """Check what must hold whenever no process writes: images and pages agree, and nothing incomplete is left."""
    assert not (store.folder / "writing").exists()
    pages = list(store.pages())
    assert {page.image_path.name for page in pages} == image_files(store)
    for page in pages:
        assert hashlib.sha256(page.image_path.read_bytes()).hexdigest() == page.sha256 == page.image_path.stem
        assert page.page_id == f"{page.document}#{page.page_number}"
    assert store.num_pages == len(pages)
