"""``index``: where the vectors of pages are kept, and how they are searched."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rsgrpo.config.checks import ConfigError, Literal, at_least, between, check_choices
from rsgrpo.errors import shown

_MAX_LISTS = 1_000_000
_MAX_CANDIDATES = 1_000_000_000
_COLLECTION = re.compile(r"[A-Za-z0-9][\w.-]{0,127}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """Where the vectors of pages are kept, and how they are searched."""

    precision: Literal["auto", "float32", "float16"] = "auto"
    """Type of the vectors on the disk; ``auto``: float16 above ``index.half_above_pages`` pages, else float32."""
    half_above_pages: int = 100_000
    """Number of pages above which ``index.precision=auto`` keeps the vectors in float16; with a multi-vector embedder
    number of vectors."""
    lists: Literal["auto", "always", "never"] = "auto"
    """Whether inverted lists are built: a search reads the nearest few of them and may miss a page. ``auto``: above
    ``index.lists_above_pages`` pages; up to that many every search is exact."""
    lists_above_pages: int = 1_000_000
    """Number of pages above which ``index.lists=auto`` builds inverted lists."""
    num_lists: int = 0
    """Number of inverted lists; 0: four times the square root of the number of pages."""
    num_probes: int = 32
    """Number of inverted lists that a search reads; more lists find more pages and take longer."""
    candidates: int = 0
    """Number of pages in a folder that a search with a multi-vector embedder looks at in full: those of which the mean
    of the vectors is nearest to the question's. 0: all pages, which is exact."""
    language: str = ""
    """Language of the documents, by which the text search stems words and leaves stop words out, such as ``german``;
    ``none`` for documents of many languages. Empty: the language that ``rsgrpo tune-search`` was given, else
    ``english``."""
    url: str = ""
    """Address of a Qdrant server, such as ``http://localhost:6333``; empty: the index lies in a folder."""
    collection: str = "pages"
    """Name of the index on the Qdrant server."""
    api_key_variable: str = ""
    """Name of the environment variable that holds the Qdrant server's key; empty: the server asks for none."""

    def __post_init__(self) -> None:
        check_choices(self, "index.")
        at_least("index.half_above_pages", self.half_above_pages, 0)
        at_least("index.lists_above_pages", self.lists_above_pages, 0)
        between("index.num_lists", self.num_lists, 0, _MAX_LISTS)
        between("index.num_probes", self.num_probes, 1, _MAX_LISTS)
        between("index.candidates", self.candidates, 0, _MAX_CANDIDATES)
        if not _COLLECTION.fullmatch(self.collection):
            raise ConfigError(
                f"index.collection={shown(self.collection, 80)!r} is no name; use letters, digits, - _ and ."
            )
        if self.url and not re.fullmatch(r"https?://[^\s/]\S*", self.url):
            raise ConfigError(f"index.url={shown(self.url, 80)!r} is no address; write http://HOST:PORT")

    def is_half(self, num_vectors: int) -> bool:
        """Whether that many vectors are kept in float16."""
        return self.precision == "float16" or (self.precision == "auto" and num_vectors > self.half_above_pages)

    def has_lists(self, num_pages: int) -> bool:
        """Whether inverted lists are built for that many pages."""
        return num_pages > 0 and (
            self.lists == "always" or (self.lists == "auto" and num_pages > self.lists_above_pages)
        )
