"""``filter``: which pages of a question the answering model gets to see, and who judges them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rsgrpo.config.checks import ConfigError, Literal, at_least, check_choices, check_share, more_than, not_empty
from rsgrpo.config.prompt import check_template_arguments
from rsgrpo.errors import shown


@dataclass(kw_only=True, slots=True)
class FilterStageConfig:
    """One pass over the pages that are left: it scores each of them by itself, and keeps the best."""

    scorer: Literal["cosine", "yes_no", "head"] = "yes_no"
    """``cosine``: an embedder's cosine of question and page. ``yes_no``: the answering model itself is asked whether
    the page helps, and says yes or no. ``head``: a model that was trained to say so (``filter.head``)."""
    top_k: int = 3
    """Most pages that are kept."""
    threshold: float = 0.5
    """Probability from which on a page counts as relevant, from 0 to 1; 0: all pages do, so that only ``top_k``
    decides."""
    mode: Literal["strict", "mirage"] = "strict"
    """``strict``: of the ``top_k`` best pages those that reach the threshold. ``mirage``: all of them, also those below
    it, as soon as any page reaches it. Where no page does, both keep the best one."""
    max_pixels: int = 200_704
    """Area in pixels that larger pages are scaled down to while they are judged; 200,704 are 247 tokens of an A4 page.
    An embedder has its own (``embedder.max_pixels``)."""

    def __post_init__(self) -> None:
        check_choices(self, "filter.stages.")
        at_least("filter.stages.top_k", self.top_k, 1)
        check_share("filter.stages.threshold", self.threshold)
        at_least("filter.stages.max_pixels", self.max_pixels, 1)


@dataclass(kw_only=True, slots=True)
class HeadTrainingConfig:
    """Training of a head from labelled pages (``rsgrpo train-filter``), with MIRAGE's published numbers."""

    learning_rate: float = 1.0e-5
    """Peak of the learning rate, which falls along a cosine."""
    warmup_frac: float = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    num_epochs: float = 2.0
    """Passes over the pairs."""
    max_steps: int = 0
    """Steps in place of ``num_epochs``; 0: as many as these take."""
    batch_size: int = 32
    """Pairs of a step."""
    micro_batch_size: int = 4
    """Pairs that are in memory at once."""
    positive_weight: float = 5.0
    """How many times as much a relevant pair weighs in the loss."""
    max_pixels: int = 200_704
    """Area in pixels that larger pages are scaled down to."""
    held_out_frac: float = 0.1
    """Share of the questions that are kept out of training, on which the head is measured at the end."""
    seed: int = 0
    """Seed of the order of the pairs and of the questions that are held out."""

    def __post_init__(self) -> None:
        more_than("filter.head_training.learning_rate", self.learning_rate, 0.0)
        more_than("filter.head_training.num_epochs", self.num_epochs, 0.0)
        more_than("filter.head_training.positive_weight", self.positive_weight, 0.0)
        check_share("filter.head_training.warmup_frac", self.warmup_frac)
        check_share("filter.head_training.held_out_frac", self.held_out_frac)
        for name, least in (("max_steps", 0), ("batch_size", 1), ("micro_batch_size", 1), ("max_pixels", 1)):
            at_least(f"filter.head_training.{name}", getattr(self, name), least)
        if self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"filter.head_training.batch_size={self.batch_size} is no multiple of micro_batch_size="
                f"{self.micro_batch_size}; set one that is"
            )


@dataclass(kw_only=True, slots=True)
class QueryFilterConfig:
    """The query-aware filter in front of the answering model, as in MIRAGE (arXiv:2407.13766)."""

    enabled: bool = False
    """Answer test questions, and those of ``pipeline/…`` in ``eval.tasks``, from the pages that the filter keeps. They
    keep their numbers: page 7 stays ``[7]``."""
    stages: list[FilterStageConfig] = field(default_factory=lambda: [FilterStageConfig()])
    """The passes, in order; each judges the pages that the one before kept. Such as
    ``[{scorer: cosine, top_k: 20, threshold: 0}, {scorer: yes_no, top_k: 3}]``."""
    max_pages: int = 1000
    """Most pages of a question that the filter reads; a test question's further pages are left out. Of those that it
    keeps the answering model sees at most ``data.max_images``."""
    prompt: str = "configs/prompt/relevance.jinja"
    """``yes_no``: Jinja template of the question about one page, with the variable ``question``."""
    template_arguments: dict[str, Any] = field(default_factory=dict)
    """``yes_no``: what the chat template of the model that is asked gets beside the conversation, such as
    ``{enable_thinking: false}``: its first word has to be yes or no."""
    yes: str = "yes"
    """``yes_no`` and ``head``: the answer that means relevant; one token of the model."""
    no: str = "no"
    """``yes_no`` and ``head``: the answer that means irrelevant; one token of the model."""
    index: str = ""
    """``cosine``: folder of an index whose embedder and vectors are used, so that no page in it is embedded again."""
    embedder: str = ""
    """``cosine``: folder or hub name of the embedder; empty: that of ``filter.index``."""
    calibration: str = ""
    """``cosine``: file that ``rsgrpo filter --calibrate`` wrote; empty: ``filter_calibration.json`` beside the
    embedder. Not needed where the threshold is 0."""
    policy: str = ""
    """``yes_no`` in ``rsgrpo filter``: folder or hub name of the model that is asked. In an evaluation it is the model
    that answers."""
    head: str = ""
    """``head``: folder of a trained head."""
    head_training: HeadTrainingConfig = field(default_factory=HeadTrainingConfig)

    def __post_init__(self) -> None:
        at_least("filter.max_pages", self.max_pages, 1)
        for name in ("prompt", "yes", "no"):
            not_empty(f"filter.{name}", getattr(self, name))
        check_template_arguments("filter.template_arguments", self.template_arguments)
        if self.yes == self.no:
            raise ConfigError(f"filter.yes and filter.no are both {shown(self.yes, 40)!r}; they must differ")
        if not self.stages:
            raise ConfigError(
                "filter.stages is empty; name one pass at least, such as filter.stages=[{scorer: yes_no}]"
            )
        scorers = [stage.scorer for stage in self.stages]
        if "head" in scorers and not self.head:
            raise ConfigError("filter.stages has a head, and filter.head is empty; name the folder of a trained one")
        if self.enabled and "cosine" in scorers and not (self.index or self.embedder):
            raise ConfigError("filter.stages has a cosine; set filter.index or filter.embedder")
        for key in ("prompt", "index", "embedder", "calibration", "policy", "head"):
            value = getattr(self, key)
            if value.startswith("~"):
                raise ConfigError(
                    f"filter.{key}={shown(value)} begins with ~, which only a shell expands; write $HOME instead"
                )
