"""Read the vectors of VisRAG's demo (``visrag_pipeline/build_index.py``), so that they can be added to an index.

The demo leaves ``reps.npy``, float32 [pages, dimension], and ``index2img_filename.txt``, whose line ``i`` names the
image of row ``i``: ``{file}.pdf_{page, from 0}.png``. Neither file says which model made the vectors; the caller must.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from rsgrpo.config.embedder import VISRAG_INSTRUCTION
from rsgrpo.errors import shown
from rsgrpo.io.atomic_files import shown_error
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity, EmbeddingError, checked_vectors
from rsgrpo.retrieval.index.page_index import IndexedPage
from rsgrpo.types import FloatArray

VECTORS_FILE = "reps.npy"
NAMES_FILE = "index2img_filename.txt"

_IMAGE_NAME = re.compile(r"(?P<document>.+)_(?P<number>\d{1,9})\.png", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoIndex:
    """The pages and vectors that the demo's two files hold.

    Attributes:
        pages: the pages in row order, one for each vector.
        vectors: the vectors, [pages, dimension] float32, each of length 1.
    """

    pages: tuple[IndexedPage, ...]
    vectors: FloatArray

    def identity(self, *, model: str, revision: str, max_pixels: int) -> EmbedderIdentity:
        """Describe the embedder that made these vectors, from what is known of the demo and what the files do not say.

        Args:
            model: the model that the demo was run with: a folder, or a name on the hub.
            revision: the text that tells the model's weights from others; for vectors of an embedder of this library
                its :func:`~rsgrpo.retrieval.embedders.embedder.weights_digest`.
            max_pixels: the area in pixels that larger pages were scaled down to.

        Returns:
            The identity, with VisRAG's weighted mean, its instruction and 200 dpi.
        """
        return EmbedderIdentity(
            model=model,
            revision=revision,
            pooling="weightedmean",
            query_instruction=VISRAG_INSTRUCTION,
            instruction_place="text",
            min_pixels=0,
            max_pixels=max_pixels,
            dpi=200.0,  # the demo's
            dimension=self.vectors.shape[1],
        )


def read_demo(folder: Path) -> DemoIndex:
    """Read the pages and vectors of the demo's two files.

    Args:
        folder: the folder that holds both files and the pages' images.

    Returns:
        The pages and vectors, row by row; a page whose image is not in the folder has an empty ``image_path``.

    Raises:
        EmbeddingError: a file is missing or holds something else, the numbers of names and vectors differ, a name is
            there twice, or a vector is not finite or not of length 1.

    Example:
        ``demo = read_demo(Path("knowledge_base"))``, then ``index.add(demo.pages, demo.vectors)``.
    """
    try:
        # Not numpy's load, which would also open pickles; this refuses arrays of Python objects.
        vectors: NDArray[Any] = open_memmap(folder / VECTORS_FILE, mode="r")
        names = (folder / NAMES_FILE).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise EmbeddingError(
            f"{shown(folder)} holds no index of VisRAG's demo: {shown_error(error)}; it needs {VECTORS_FILE} and "
            f"{NAMES_FILE}"
        ) from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(names):
        raise EmbeddingError(
            f"{shown(folder / VECTORS_FILE)} holds {vectors.dtype} {list(vectors.shape)}, expected floats of "
            f"[{len(names)}, dimension], a row for each line of {NAMES_FILE}"
        )
    doubled = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if doubled is not None or "" in names:
        raise EmbeddingError(
            f"{shown(folder / NAMES_FILE)} names {shown(doubled or 'nothing', 80)!r} "
            f"{'twice' if doubled else 'in a line'}; every line must name another image"
        )
    pages = tuple(_page(folder, name) for name in names)
    return DemoIndex(pages=pages, vectors=checked_vectors(vectors, names, dimension=vectors.shape[1]))


def _page(folder: Path, name: str) -> IndexedPage:
    found = _IMAGE_NAME.fullmatch(name)
    image = folder / name
    return IndexedPage(
        page_id=name,
        document=found["document"] if found else name,
        page_number=int(found["number"]) + 1 if found else 1,
        image_path=str(image.resolve()) if image.is_file() else "",
    )
