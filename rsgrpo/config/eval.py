"""``eval``: what is scored, and served models."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from rsgrpo.config.checks import (
    MAX_PROCESSES,
    MAX_SECONDS,
    ConfigError,
    Literal,
    at_least,
    at_most,
    between,
    check_choices,
    more_than,
)
from rsgrpo.config.sampling import SamplingConfig
from rsgrpo.errors import shown

RETRIEVAL_FAMILIES = ("visrag_ret", "vidore")
"""Families of tasks in ``eval.tasks`` that an embedder searches; all others are answered by a model."""


def is_retrieval_task(name: str) -> bool:
    """Whether a task of ``eval.tasks`` is searched by an embedder.

    Example:
        ``is_retrieval_task("vidore/v3")`` is true, ``is_retrieval_task("evisrag/chartqa")`` is not.
    """
    return name.partition("/")[0] in RETRIEVAL_FAMILIES


PIPELINE_FAMILY = "pipeline"
"""Family of tasks in ``eval.tasks`` that are searched, filtered and answered in one run."""


def is_pipeline_task(name: str) -> bool:
    """Whether a task of ``eval.tasks`` is searched, filtered and answered in one run, such as ``pipeline/manuals``."""
    return name.partition("/")[0] == PIPELINE_FAMILY


def _check_address(key: str, url: str) -> None:
    """Refuse what no client can connect to."""
    expected = "write http://HOST:PORT/v1"
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", url)
    except ValueError as error:  # brackets without an end, a port that is no number or too large
        raise ConfigError(f"{key}={shown(url)!r} is no address ({shown(error, 120)}); {expected}") from error
    if not is_address:
        raise ConfigError(f"{key}={shown(url)!r} is no address; {expected}, without blanks")
    if parts.query or parts.fragment:
        raise ConfigError(f"{key}={shown(url)!r} has something behind ? or #; {expected}: the path is added to it")


@dataclass(kw_only=True, slots=True)
class EndpointConfig:
    """A server with OpenAI's chat interface, such as `vllm serve`."""

    url: str = ""
    """Base address, such as ``http://localhost:8000/v1``; empty: answer with ``eval.checkpoint`` on our own engines."""
    model: str = ""
    """Name under which the server knows the model."""
    concurrency: int = 8
    """How many requests are on their way at a time."""
    timeout_seconds: float = 300.0
    """Seconds that one attempt may take, from sending to the last byte."""
    retries: int = 5
    """How many further attempts follow a time-out, a broken connection, 408, 429, 5xx or a reply that cannot be
    read."""
    backoff_seconds: float = 1.0
    """Seconds before the first retry; they double each time, up to a minute. A server's ``Retry-After`` counts more."""
    give_up_after: int = 32
    """Questions that fail one after the other before the run stops: the server is gone."""
    api_key_variable: str = ""
    """Environment variable that holds the key; empty: none is sent. The key itself is never written anywhere."""
    processor_min_pixels: int = 3136
    """Smallest area to which the server's image processor scales: Qwen2.5-VL's own; what ``preprocessor_config.json``
    or ``--mm-processor-kwargs`` of the server says. Read where boxes are in pixels (``eval.box_coordinates``)."""
    processor_max_pixels: int = 12845056
    """Largest area to which the server's image processor scales, from the same places."""
    processor_factor: int = 28
    """The server's image processor makes the sides of an image multiples of so many pixels: patch size times merge
    size."""

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"eval.endpoint.url={shown(self.url)!r} must start with http:// or https://")
        if self.url:
            _check_address("eval.endpoint.url", self.url)
        if bool(self.url) != bool(self.model):
            raise ConfigError(
                f"eval.endpoint.url={shown(self.url, 120)!r} and eval.endpoint.model={shown(self.model, 120)!r} belong "
                "together; set both"
            )
        between("eval.endpoint.concurrency", self.concurrency, 1, MAX_PROCESSES)
        more_than("eval.endpoint.timeout_seconds", self.timeout_seconds, 0.0)
        at_most("eval.endpoint.timeout_seconds", self.timeout_seconds, MAX_SECONDS)
        at_least("eval.endpoint.retries", self.retries, 0)
        between("eval.endpoint.backoff_seconds", self.backoff_seconds, 0.0, MAX_SECONDS)
        at_least("eval.endpoint.give_up_after", self.give_up_after, 1)
        at_least("eval.endpoint.processor_factor", self.processor_factor, 1)
        at_least("eval.endpoint.processor_min_pixels", self.processor_min_pixels, 1)
        at_least("eval.endpoint.processor_max_pixels", self.processor_max_pixels, self.processor_min_pixels)


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Evaluation of a checkpoint, on the test questions or on published benchmarks."""

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0, max_response_tokens=2048))
    max_samples: int = 0
    """How many questions of the test set, or of every task, are asked; 0: all."""
    before_sft: bool = True
    """Also score the model that the run starts from."""
    checkpoint: str = ""
    """``stage=eval``: model folder to score; empty: the run's newest, else ``model.path``."""
    tasks: list[str] = field(default_factory=list)
    """``stage=eval``: benchmarks to answer instead of the test questions, such as ``evisrag/chartqa``,
    ``milebench/ALFRED``, ``vhs/single`` or ``mig_bench``; and data sets that ``embedder.model`` searches, such as
    ``visrag_ret/chartqa`` or ``vidore/v3``; and ``visrag_gen/chartqa`` or ``pipeline/FOLDER``, which do both.
    docs/evaluation.md lists them."""
    data_root: str = ""
    """Folder that holds the benchmarks as they are downloaded, and data sets of your own for retrieval."""
    image_root: str = ""
    """Visual Haystacks: folder of COCO's photographs; empty: ``coco`` in ``data_root``."""
    prompt_style: Literal["official", "evidence"] = "official"
    """``official``: each benchmark's own words, order and response limit. ``evidence``: ``prompt.path`` with the
    benchmark's question in it, and ``eval.sampling`` as it is; the answer section is scored, the whole text kept."""
    haystack_sizes: list[int] = field(default_factory=list)
    """Visual Haystacks: how many images a question has; empty: every size that ``data_root`` holds."""
    haystack_set: Literal["VHs_large", "VHs_small"] = "VHs_large"
    """Visual Haystacks: ``VHs_large`` or ``VHs_small``."""
    max_canvases: int = 0
    """MileBench: show the images on so many combined canvases at most (the paper's variant is 1); 0: one by one."""
    max_context_tokens: int = 0
    """MileBench: cut contexts from the left to so many tokens, images included, as the original does; 0: never."""
    image_tokens: int = 256
    """MileBench: what an image is taken to cost in that count."""
    box_coordinates: Literal["relative", "permille", "shares", "pixels"] = "relative"
    """MIG-Bench: ``relative`` (the model answers in 0-1000 or in shares, as the benchmark reads it; ``permille`` and
    ``shares`` say the same) or ``pixels`` (of the page at the size at which the model saw it, as in Qwen2.5-VL)."""
    search_run: str = ""
    """``visrag_gen`` and ``pipeline``: which pages were found, a TREC run: a file, or a folder with ``*.trec`` or, of
    several sets, ``ChartQA/test.0.trec`` …; empty: ``search_index`` or ``embedder.model`` searches."""
    search_index: str = ""
    """``visrag_gen`` and ``pipeline``: folder of an index of the set's pages, under their ids, that is searched; empty:
    an index in the run folder."""
    top_k: int = 3
    """``visrag_gen``: how many pages a question is answered from, best first."""
    concatenation: Literal["horizontal", "vertical"] = "horizontal"
    """``visrag_gen/SET/page_concatenation``: how the pages stand in their one image."""
    pipeline_depths: list[int] = field(default_factory=lambda: [1, 3, 5, 10])
    """``pipeline``: from how many pages, best first, each question is answered; and from its gold pages at last."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)

    def __post_init__(self) -> None:
        check_choices(self, "eval.")
        for name in ("max_samples", "max_canvases", "max_context_tokens"):
            at_least(f"eval.{name}", getattr(self, name), 0)
        for name in ("image_tokens", "top_k"):
            at_least(f"eval.{name}", getattr(self, name), 1)
        if (
            not self.pipeline_depths
            or min(self.pipeline_depths) < 1
            or len({*self.pipeline_depths}) < len(self.pipeline_depths)
        ):
            raise ConfigError(
                f"eval.pipeline_depths={self.pipeline_depths}: expected different whole numbers of at least 1, such as "
                "[1, 3, 5, 10]"
            )
        if self.search_run and self.search_index:
            raise ConfigError("eval.search_run and eval.search_index both say which pages are found; leave one out")
        repeated = sorted({name for name in self.tasks if self.tasks.count(name) > 1})
        if repeated:
            raise ConfigError(f"eval.tasks names {shown(', '.join(repeated))} more than once; name every task once")
        answered = [name for name in self.tasks if not is_retrieval_task(name)]
        if answered and not self.data_root:
            raise ConfigError("eval.tasks needs eval.data_root, the folder that holds the benchmarks")
        if self.endpoint.url and not answered:
            raise ConfigError("eval.endpoint answers benchmarks; name some in eval.tasks")
        if self.endpoint.url and self.max_context_tokens:
            raise ConfigError(
                "eval.max_context_tokens counts the model's own tokens, which an endpoint does not tell; leave it at 0"
            )
        if self.max_canvases > 1:
            raise ConfigError(
                f"eval.max_canvases={self.max_canvases}: MileBench's prompt for combined images shows one; set 1"
            )
