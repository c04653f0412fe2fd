"""``embedder``: the model that turns pages and questions into vectors, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass

from rsgrpo.config.checks import MAX_TOKENS, ConfigError, Literal, at_least, between, check_choices
from rsgrpo.errors import shown

EmbedderPreset = Literal["auto", "visrag", "last_token", "multi_vector"]

VISRAG_INSTRUCTION = "Represent this query for retrieving relevant documents: "
"""VisRAG's instruction (arXiv:2410.10594) in front of a question, never of a page; its demo drops the plural."""

MAX_DIMENSION = 65_536
"""More numbers than a vector of any embedder has."""
_MAX_PIXELS = 100_000_000
_MAX_DPI = 2400
_MAX_POOL_FACTOR = 1000


@dataclass(kw_only=True, slots=True)
class EmbedderConfig:
    """The model that turns pages and questions into vectors."""

    model: str = ""
    """A folder, or a name on the hub: any model of sentence-transformers that reads text and images, or with
    ``embedder.preset`` a plain vision-language model. Empty with ``stage=eval``: the run's trained retriever."""
    revision: str = ""
    """Revision of a model on the hub; empty: the newest."""
    preset: EmbedderPreset = "auto"
    """``auto``: pooling and prompts that were saved with the model. ``visrag``: VisRAG's weighted mean over all tokens,
    its instruction in front of the question's text. ``last_token``: the last token's vector, as most models of 2026.
    ``multi_vector``: a vector for each token, compared by MaxSim, as ColQwen and ColPali have it."""
    query_instruction: str | None = None
    """Text in front of a question; null: the preset's own (``visrag`` has one, ``last_token`` none, ``auto`` and
    ``multi_vector`` what the model was saved with). It goes into the text, under these two where the model's own prompt
    goes."""
    min_pixels: int = 0
    """Area in pixels that smaller pages are scaled up to; 0: no bound."""
    max_pixels: int = 1_568_000
    """Area in pixels that larger pages are scaled down to; the default is an A4 page at about 127 dpi."""
    dpi: float | None = None
    """Resolution in pixels an inch at which pages of documents are rendered; null: as high as ``embedder.max_pixels``
    allows. It stands in the index: pages that were rendered at another resolution have other vectors."""
    dimension: int = 0
    """How many numbers a vector has; 0: as many as the model gives. A shorter vector keeps the first numbers and is
    normalised again, which suits models that were trained for it (Matryoshka)."""
    pool_factor: int = 1
    """How many vectors of a page become one, under ``multi_vector``: like vectors are grouped and replaced by their
    mean, so that an index is that many times smaller. 1: all are kept. Questions keep theirs."""
    runner: Literal["sentence_transformers", "vllm"] = "sentence_transformers"
    """Library that runs the model; either gives the same vectors, so that an index does not care. ``vllm``: its pooling
    runner, for GPUs, of models that pool the last token, the mean or the weighted mean."""
    batch_tokens: int = 16_384
    """Most tokens of a batch, padding included. A page that is longer by itself makes a batch of its own; with
    ``embedder.runner=vllm`` it is refused."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that the model runs on; ``auto``: a GPU if there is one, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights while the model runs; ``auto``: float32 on a CPU, bfloat16 on a GPU. Vectors are float32
    always."""

    def __post_init__(self) -> None:
        check_choices(self, "embedder.")
        at_least("embedder.min_pixels", self.min_pixels, 0)
        between("embedder.max_pixels", self.max_pixels, 1, _MAX_PIXELS)
        between("embedder.dpi", 1.0 if self.dpi is None else self.dpi, 1.0, _MAX_DPI)
        between("embedder.dimension", self.dimension, 0, MAX_DIMENSION)
        between("embedder.pool_factor", self.pool_factor, 1, _MAX_POOL_FACTOR)
        between("embedder.batch_tokens", self.batch_tokens, 1, MAX_TOKENS)
        if self.pool_factor > 1 and self.preset != "multi_vector":
            raise ConfigError(
                f"embedder.pool_factor={self.pool_factor} is of pages with many vectors, and "
                f"embedder.preset={self.preset} gives one; set embedder.pool_factor=1"
            )
        if self.runner == "vllm" and self.preset == "multi_vector":
            raise ConfigError(
                "embedder.runner=vllm gives one vector a page; embedder.preset=multi_vector needs "
                "embedder.runner=sentence_transformers"
            )
        if self.min_pixels > self.max_pixels:
            raise ConfigError(
                f"embedder.min_pixels={self.min_pixels} is above embedder.max_pixels={self.max_pixels}; lower it"
            )
        if self.model.startswith("~"):
            raise ConfigError(
                f"embedder.model={shown(self.model)} begins with ~, which only a shell expands; write $HOME instead"
            )
