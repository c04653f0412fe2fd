"""The texts of pages for ``visrag_gen/<set>/text``: the corpus' own, those of an index' pages, or what OCR reads.

What OCR reads is kept in ``run_dir/benchmarks/page_texts`` under the hash of the image, so that a page is read once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from recipes.indexing.places import PAGES_FOLDER
from rsgrpo.config import Config
from rsgrpo.data.images.loading import read_image
from rsgrpo.data.images.sources import image_bytes
from rsgrpo.documents.ocr import OcrError, TextReader, check_ocr
from rsgrpo.documents.stored_images import STORE_FILE, WRITING
from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import BenchmarkError
from rsgrpo.retrieval.measuring.relevance_files import RetrievalPage


def read_page_texts(
    name: str, pages: Iterable[RetrievalPage], config: Config, folder: Path, reader: TextReader | None = None
) -> Mapping[str, str]:
    """Read the texts of pages.

    Args:
        name: the name of the task, for messages.
        pages: the pages; one may come twice.
        config: the settings of the run.
        folder: the folder that what OCR reads is kept in.
        reader: reads images; None: rapidocr.

    Returns:
        The text of each page by its id.

    Raises:
        BenchmarkError: OCR is needed and not installed, or a page cannot be read by it.
    """
    wanted = {page.page_id: page for page in pages}
    texts = {page_id: page.text for page_id, page in wanted.items() if page.text}
    store = Path(config.eval.search_index) / PAGES_FOLDER if config.eval.search_index else None
    if store is not None and (store / STORE_FILE).exists():
        from rsgrpo.documents.page_store import PageStore

        texts |= {page_id: text for page_id, text in PageStore.open(store).texts() if text and page_id in wanted}
    unread = [page for page_id, page in wanted.items() if page_id not in texts]
    if not unread:
        return texts
    if reader is None:
        try:
            check_ocr("rapidocr")
        except OcrError as error:
            raise BenchmarkError(
                f"{name}: {len(unread)} of {len(wanted)} pages have no text, and no OCR is installed that would read "
                "it; install it with uv sync --extra ocr, give the corpus a column text, or name another setting"
            ) from error
        reader = TextReader(folder)
    (folder / WRITING).mkdir(parents=True, exist_ok=True)
    for page in unread:
        if page.image is None:
            texts[page.page_id] = ""
            continue
        pixels = np.asarray(read_image(page.image, config.data.image_rules))
        found = reader.read(pixels, hashlib.sha256(image_bytes(page.image)).hexdigest())
        if found.problem:
            raise BenchmarkError(f"{name}: page {shown(page.page_id, 80)!r}: {found.problem}; give the corpus its text")
        texts[page.page_id] = found.text
    return texts
