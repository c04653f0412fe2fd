"""Small data sets for retrieval, in the formats of VisRAG and of mteb's copies on the hub; an embedder of colours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.data.images.loading import load_image
from rsgrpo.retrieval.embedders.embedder import EmbedderIdentity, EmbeddingError, PageImage, normalised
from rsgrpo.types import FloatArray, ImageRef

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 220, 0),
    "pink": (255, 60, 120),
}
"""The colour of each page by its id."""

QUERIES: Mapping[str, str] = {"q-red": "red", "q-blue": "blue", "q-yellow": "yellow", "q-green": "green"}
RELEVANT = (("q-red", "red"), ("q-blue", "blue"), ("q-yellow", "green"), ("q-green", "green"))
"""Query and relevant page; of the yellow query it is not the page that an embedder of colours finds first."""


class ColourEmbedder:
    """An embedder whose vector of a page is its mean colour; a question names a colour."""

    def __init__(self, *, revision: str = "sha256:00") -> None:
        self.settings = EmbedderConfig(model="colours")
        self.num_pages = 0
        self.identity = EmbedderIdentity(
            model="colours",
            revision=revision,
            pooling="mean",
            query_instruction="",
            instruction_place="text",
            min_pixels=0,
            max_pixels=10_000,
            dpi=None,
            dimension=3,
        )

    def embed_queries(self, queries: Sequence[str]) -> FloatArray:
        unknown = [query for query in queries if query not in COLOURS]
        if unknown:
            raise EmbeddingError(f"question {unknown[0]!r} has no character that the model's tokenizer knows")
        return normalised(np.array([COLOURS[query] for query in queries], dtype=np.float64))

    def embed_pages(self, pages: Sequence[PageImage]) -> FloatArray:
        self.num_pages += len(pages)
        images = [load_image(page, ImageRules()) if isinstance(page, ImageRef) else page for page in pages]
        return normalised(np.array([np.asarray(image.convert("RGB")).mean(axis=(0, 1)) for image in images]))


def png(colour: tuple[int, int, int], size: tuple[int, int] = (56, 56)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def _write(root: Path, split: str, parts: Mapping[str, tuple[str, datasets.Dataset]]) -> Path:
    """Write parts as parquet and a README with ``configs``, as the hub has them; a part names its folder and rows."""
    lines = ["---", "configs:"]
    for config, (folder, rows) in parts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        rows.to_parquet(str(root / folder / f"{split}-00000-of-00001.parquet"))
        lines += [f"- config_name: {config}", "  data_files:", f"  - split: {split}", f"    path: {folder}/{split}-*"]
    (root / "README.md").write_text("\n".join([*lines, "---", ""]))
    return root


def _images(key: str, **columns: datasets.Value) -> datasets.Dataset:
    rows = {key: list(COLOURS), "image": [{"bytes": png(colour), "path": None} for colour in COLOURS.values()]}
    features = datasets.Features({key: datasets.Value("string"), "image": datasets.Image()})
    return datasets.Dataset.from_dict(rows, features=features)


def _qrels(prefix: str = "") -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "query-id": [prefix + query_id for query_id, _ in RELEVANT],
            "corpus-id": [page_id for _, page_id in RELEVANT],
            "score": [1] * len(RELEVANT),
        }
    )


def _queries(key: str, text: str, prefix: str = "") -> datasets.Dataset:
    return datasets.Dataset.from_dict({key: [prefix + one for one in QUERIES], text: list(QUERIES.values())})


def write_visrag_set(root: Path) -> Path:
    """Write VisRAG's own columns, as in its ``VisRAG-Ret-Test-ChartQA``."""
    parts = {
        "corpus": ("corpus", _images("corpus-id")),
        "queries": ("queries", _queries("query-id", "query")),
        "qrels": ("qrels", _qrels()),
    }
    return _write(root, "train", parts)


def write_mteb_set(root: Path) -> Path:
    """Write the columns of mteb's copies of VisRAG's sets, such as ``VisRAGRetChartQA``."""
    parts = {
        "corpus": ("corpus", _images("id")),
        "queries": ("queries", _queries("id", "text")),
        "qrels": ("qrels", _qrels()),
    }
    return _write(root, "train", parts)


def write_vidore_v1_set(root: Path) -> Path:
    """Write ViDoRe v1's columns, which mteb renames when it loads them."""
    parts = {
        "corpus": ("corpus", _images("corpus-id")),
        "queries": ("queries", _queries("query-id", "query")),
        "qrels": ("qrels", _qrels()),
    }
    return _write(root, "test", parts)


def write_vidore_v3_set(root: Path) -> Path:
    """Write ViDoRe v3's subsets: six languages, each with its corpus (the same pages), queries and judgements."""
    parts = {}
    for language in ("french", "spanish", "english", "german", "italian", "portuguese"):
        parts[f"{language}-corpus"] = (f"{language}-corpus", _images("id"))
        parts[f"{language}-queries"] = (f"{language}-queries", _queries("id", "text", f"{language}-"))
        parts[f"{language}-qrels"] = (f"{language}-qrels", _qrels(f"{language}-"))
    return _write(root, "test", parts)
