"""``retriever``: training of a page retriever (``stage=retriever``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsgrpo.config.checks import (
    MAX_STEP_SAMPLES,
    MAX_TOKENS,
    ConfigError,
    Literal,
    at_least,
    between,
    check_choices,
    check_share,
    more_than,
)
from rsgrpo.config.embedder import MAX_DIMENSION
from rsgrpo.config.optimizer import OptimizerConfig
from rsgrpo.errors import shown

MAX_READ_PIXELS = 1_568_000
"""The area in pixels at which a page is read before the model's own processor sees it: what embedders read by default,
so that a trained model embeds a page as it was trained on it."""

_MAX_NEGATIVES = 64


@dataclass(kw_only=True, slots=True)
class NegativesConfig:
    """Hard negatives: pages that stand beside the right one, and answer another question."""

    num_pages: int = 0
    """Hard negatives of each pair, beside the pages of the other pairs in its batch; 0: none. Of a row that names more
    the first ones are taken, one that names fewer has some of them again, which count once."""
    margin: float | None = None
    """A page whose score is above the right page's by more than this is taken for another right one, and left out of
    the loss; null: none is. Scores are cosines; Qwen3-VL-Embedding takes 0.1."""

    def __post_init__(self) -> None:
        between("retriever.negatives.num_pages", self.num_pages, 0, _MAX_NEGATIVES)
        if self.margin is not None:
            between("retriever.negatives.margin", self.margin, -2.0, 2.0)


@dataclass(kw_only=True, slots=True)
class RetrieverConfig:
    """Training of a page retriever: pairs of a question and its page, each against the other pages of its batch.

    The start model is ``model.path``, with ``model.dtype``, ``model.lora``, ``model.freeze_vision`` and
    ``model.gradient_checkpointing``; ``trainer.num_ranks`` processes train it.
    """

    data: list[str] = field(default_factory=list)
    """Training pairs: parquet in the layout of VisRAG-Ret's data sets, or JSON lines (docs/retriever_training.md);
    files, folders, or data sets of the hub. Empty: the run makes the quickstart's own, and a test set
    (``quickstart.num_retriever_samples``, ``quickstart.num_test_pages``)."""
    test_path: str = ""
    """Folder of a test set in VisRAG's layout (corpus, queries, qrels), searched before and after training; empty: no
    test."""
    preset: Literal["auto", "visrag", "last_token"] = "auto"
    """How the tokens of a text or page become one vector, as ``embedder.preset``: ``visrag`` (weighted mean),
    ``last_token``, or ``auto``, what the start model was saved with."""
    query_instruction: str | None = None
    """Text in front of a question, never of a page, as ``embedder.query_instruction``; null: the preset's own."""
    temperature: float = 0.02
    """Cosines are divided by it before the softmax; VisRAG takes 0.02."""
    batch_size: int = 128
    """Pairs of an optimizer step, over all ranks; all of one source, and no page or question in it twice. The pages of
    all of them are the negatives of each other."""
    micro_batch_size: int = 2
    """Items that run through the model at once on a rank. It bounds the memory and changes nothing else (GradCache)."""
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    matryoshka_dimensions: list[int] = field(default_factory=list)
    """Lengths of shortened vectors that are trained beside the whole one (Matryoshka), such as [1024, 512, 256];
    empty: none. ``embedder.dimension`` takes such a vector."""
    int8_weight: float = 0.0
    """Weight of a second loss on vectors that are rounded to 8 bits a number, so that an index may keep them so; 0: no
    such loss."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1.0e-5, schedule="linear", weight_decay=0.0)
    )
    warmup_frac: float = 0.1
    """Share of the steps for the warm-up, where ``optimizer.warmup_steps`` is 0."""
    num_epochs: int = 1
    """How many passes over the pairs training takes; ``max_steps`` may end it earlier."""
    max_steps: int = 0
    """Stop after this many optimizer steps; 0: when the epochs are through."""
    min_pixels: int = 3136
    """Area in pixels that the model's processor scales smaller pages up to; saved with the model."""
    max_pixels: int = MAX_READ_PIXELS
    """Area in pixels that the model's processor scales larger pages down to; saved with the model. Pages are read at
    1,568,000 pixels at most before, as by embedders."""
    max_tokens: int = 2048
    """Most tokens of a question or page, its template included; saved with the model. Settings under which a page could
    have more are refused, and so is a longer question (``data.on_bad_sample``)."""
    zero_stage: int = 0
    """0: every rank holds the whole state of the optimizer (torch's own data parallelism). 1: its states are shared out
    over the ranks with ZeRO, which pays where they do not fit beside the model."""
    keep_adapter: bool = False
    """Write the adapters of ``model.lora`` by themselves as well, into ``models/retriever_adapter``."""
    validation_samples: int = 128
    """Pairs that are held out of the training data, with all other pairs of their pages, for MRR while it trains; 0:
    none."""
    validate_every_steps: int = 100
    """Steps between two measurements on the pairs that are held out."""
    save_every_steps: int = 500
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        check_choices(self, "retriever.")
        more_than("retriever.temperature", self.temperature, 0.0)
        between("retriever.temperature", self.temperature, 1e-4, 100.0)
        between("retriever.batch_size", self.batch_size, 2, MAX_STEP_SAMPLES)
        between("retriever.micro_batch_size", self.micro_batch_size, 1, self.batch_size)
        between("retriever.int8_weight", self.int8_weight, 0.0, 100.0)
        check_share("retriever.warmup_frac", self.warmup_frac)
        at_least("retriever.num_epochs", self.num_epochs, 1)
        at_least("retriever.max_steps", self.max_steps, 0)
        between("retriever.min_pixels", self.min_pixels, 1, MAX_READ_PIXELS)
        between("retriever.max_pixels", self.max_pixels, self.min_pixels, MAX_READ_PIXELS)
        between("retriever.max_tokens", self.max_tokens, 1, MAX_TOKENS)
        between("retriever.zero_stage", self.zero_stage, 0, 1)
        at_least("retriever.validation_samples", self.validation_samples, 0)
        at_least("retriever.validate_every_steps", self.validate_every_steps, 1)
        at_least("retriever.save_every_steps", self.save_every_steps, 1)
        for dimension in self.matryoshka_dimensions:
            between("retriever.matryoshka_dimensions", dimension, 1, MAX_DIMENSION)
        if len(set(self.matryoshka_dimensions)) != len(self.matryoshka_dimensions):
            raise ConfigError(
                f"retriever.matryoshka_dimensions={self.matryoshka_dimensions} names a length twice; leave one out"
            )
        for path in (*self.data, self.test_path):
            if path.startswith("~"):
                raise ConfigError(
                    f"retriever: the path {shown(path)} begins with ~, which only a shell expands; write $HOME instead"
                )
        if any(not path.strip() for path in self.data):
            raise ConfigError("retriever.data holds an empty path; name files, folders or data sets of the hub")
