"""How responses are drawn and what they earn: sampling, engines, scopes, rewards."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rsgrpo.config.checks import (
    MAX_PROCESSES,
    MAX_SECONDS,
    MAX_THREADS,
    ConfigError,
    at_least,
    at_most,
    between,
    more_than,
    one_of,
)
from rsgrpo.config.response import ResponseFormat, check_declared
from rsgrpo.errors import shown

WEIGHT_TRANSFERS = ("object_store", "cuda_ipc", "nccl")

_MAX_TEMPERATURE = 100.0  # beyond it every token is as likely as any other
_MAX_TOP_K = 1_000_000  # more than any vocabulary has tokens
_MAX_PENALTY = 100.0
_MAX_TOKENS = 100_000_000  # of a sequence
_MAX_BATCHED_TOKENS = 4_194_304  # the engine sets memory aside for each of them
_MAX_SEQUENCES = 65_536
MAX_BUCKET_MIB = 4_000
"""A bucket travels between vLLM's processes as one message, which ends at 4 GiB."""
_MAX_CACHE_GIB = 1.0e5
_TAG = re.compile(r"</?([^<>/]+)>")


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How responses are drawn. Training refuses what would change the meaning of log-probabilities."""

    temperature: float = 1.0
    """Logits are divided by it. In training the policy's log-probabilities are taken at the same temperature."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability; 1: among all."""
    top_k: int = -1
    """-1: off."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that occurred before; 1: none."""
    max_response_tokens: int = 1536
    """A response is cut after so many tokens."""

    def __post_init__(self) -> None:
        between("temperature", self.temperature, 0.0, _MAX_TEMPERATURE)
        if self.top_k != -1:
            between("top_k", self.top_k, 1, _MAX_TOP_K)
        more_than("repetition_penalty", self.repetition_penalty, 0.0)
        at_most("repetition_penalty", self.repetition_penalty, _MAX_PENALTY)
        between("max_response_tokens", self.max_response_tokens, 1, _MAX_TOKENS)
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p={self.top_p} must lie in (0, 1]")


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """The pool of vLLM workers."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_workers: int = 1
    """Engines."""
    tensor_parallel_size: int = 1
    """GPUs of an engine."""
    max_model_tokens: int = 16536
    """Prompt and response together."""
    max_num_sequences: int = 256
    """Responses that an engine samples at the same time."""
    max_batched_tokens: int = 16384
    """Tokens that an engine computes in one of its steps; longer prompts are read in parts."""
    gpu_memory_frac: float = 0.0
    """Share of a GPU's memory that an engine takes for weights, cache and activations; 0: 0.9 where it has its
    GPUs to itself, 0.6 where it shares them with the trainer (``cluster.topology=colocated``)."""
    kv_cache_gib: float = 1.0
    """CPU engine only: memory for the paged cache."""
    enforce_eager: bool = False
    """Leave out vLLM's CUDA graphs: they cost memory and start-up time, and sample faster."""
    image_embeds: bool = False
    """Feed the engine the stored features of pages instead of pixels (needs ``model.vision_cache.folder``)."""
    num_threads: int = 0
    """CPU threads of each engine; 0: its share of its node's cores (docs/scaling.md)."""
    start_timeout_seconds: float = 900.0
    """How long an engine may take to load the model and to start."""
    generate_timeout_seconds: float = 3600.0
    """How long an engine may say nothing while it samples, or a call to it may take."""
    max_restarts: int = 2
    """How often a dead worker is replaced before the run stops."""
    weight_transfer: str = "auto"
    """How new weights reach the engines: ``object_store`` (Ray's shared memory), ``cuda_ipc`` (trainer and
    engine on the same GPUs), ``nccl`` (broadcast between GPUs). ``auto``: the object store on a CPU, else
    ``cuda_ipc`` where ``cluster.topology`` is colocated and ``nccl`` where it is not."""
    weight_bucket_mib: int = 512
    """Weights travel in flat buckets of at most this size (one larger parameter makes its own)."""

    def __post_init__(self) -> None:
        between("rollout.num_workers", self.num_workers, 1, MAX_PROCESSES)
        between("rollout.tensor_parallel_size", self.tensor_parallel_size, 1, MAX_PROCESSES)
        between("rollout.num_threads", self.num_threads, 0, MAX_THREADS)
        between("rollout.weight_bucket_mib", self.weight_bucket_mib, 1, MAX_BUCKET_MIB)
        between("rollout.max_num_sequences", self.max_num_sequences, 1, _MAX_SEQUENCES)
        between("rollout.max_batched_tokens", self.max_batched_tokens, 1, _MAX_BATCHED_TOKENS)
        between("rollout.max_model_tokens", self.max_model_tokens, 2, _MAX_TOKENS)
        at_least("rollout.max_restarts", self.max_restarts, 0)
        if self.gpu_memory_frac:
            between("rollout.gpu_memory_frac", self.gpu_memory_frac, 0.01, 1.0)
        for name, value, maximum in (
            ("kv_cache_gib", self.kv_cache_gib, _MAX_CACHE_GIB),
            ("start_timeout_seconds", self.start_timeout_seconds, MAX_SECONDS),
            ("generate_timeout_seconds", self.generate_timeout_seconds, MAX_SECONDS),
        ):
            more_than(f"rollout.{name}", value, 0.0)
            at_most(f"rollout.{name}", value, maximum)
        if self.max_batched_tokens < self.max_num_sequences:
            raise ConfigError(
                f"rollout.max_batched_tokens={self.max_batched_tokens} is less than rollout.max_num_sequences="
                f"{self.max_num_sequences}, each of which needs a token in every pass; raise the one or lower the other"
            )
        one_of("rollout.weight_transfer", self.weight_transfer, ("auto", *WEIGHT_TRANSFERS))
        if self.max_model_tokens <= self.sampling.max_response_tokens:
            raise ConfigError(
                f"rollout.max_model_tokens={self.max_model_tokens} leaves no room for a prompt beside "
                f"rollout.sampling.max_response_tokens={self.sampling.max_response_tokens}"
            )


@dataclass(kw_only=True, slots=True)
class ScopeConfig:
    """Which response tokens a reward may touch: either start and stop, or one of the named forms.

    Sections and tags are those that ``response.sections`` declares.
    """

    start: str = ""
    """``begin`` or a tag such as ``<think>``, its first one; the start tag belongs to the scope."""
    stop: str = ""
    """``end`` or a tag, its first one; the stop tag does not belong to the scope."""
    section: str = ""
    """A section by name: ``think`` is ``<think>`` up to and with ``</think>``; of a repeatable one all of them."""
    evidence_line: bool = False
    """Each image's own ``[i]:`` line in the section with ``per_image_lines``; the reward then returns one value per
    image."""
    pattern: str = ""
    """``box``: every box such as ``(x1,y1),(x2,y2)``, bracket to bracket; with ``section``: in that one only."""

    def __post_init__(self) -> None:
        forms = [bool(self.start or self.stop), bool(self.section or self.pattern), self.evidence_line]
        if sum(forms) != 1:
            raise ConfigError(
                "a scope needs exactly one of {start, stop}, {section}, {pattern} or {evidence_line: true}; "
                f"got start={shown(self.start, 40)!r} stop={shown(self.stop, 40)!r} "
                f"section={shown(self.section, 40)!r} "
                f"pattern={shown(self.pattern, 40)!r} evidence_line={str(self.evidence_line).lower()}"
            )
        if self.pattern:
            one_of("pattern", self.pattern, ("box",))
        if self.start or self.stop:
            for key, value, edge in (("start", self.start, "begin"), ("stop", self.stop, "end")):
                if value != edge and not _TAG.fullmatch(value):
                    raise ConfigError(f"{key}={shown(value, 80)!r} is no edge; write {edge}, or a tag such as <think>")

    def check(self, key: str, response_format: ResponseFormat) -> None:
        """Refuse what the declared sections do not have.

        Args:
            key: of this scope, such as ``rewards.accuracy.scope``.
            response_format: what is declared.

        Raises:
            ConfigError: it names a section that is not declared, or lines that no section holds.
        """
        for name, value in (("section", self.section), ("start", self.start), ("stop", self.stop)):
            tag = _TAG.fullmatch(value)
            if value and (name == "section" or tag):
                check_declared(f"{key}.{name}", [tag[1] if tag else value], response_format)
        if self.evidence_line and not response_format.lines_section:
            raise ConfigError(
                f"{key}.evidence_line=true needs a section with one line per image; {response_format.declared}: set "
                "per_image_lines: true on one of them"
            )


_MAX_REWARD_WEIGHT = 1.0e6


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """One reward: a Python function, the tokens it may touch, and how much it weighs."""

    function: str
    """``package.module:function`` or ``path/to/file.py:function``."""
    scope: ScopeConfig
    weight: float = 1.0
    """What its advantage counts for beside others'; 0: it is only logged."""
    on_missing: str = "skip"
    """Scope absent: ``skip`` (no credit) or ``whole`` (the whole response, as the public code)."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the function."""
    timeout_seconds: float = 60.0
    """A call that takes longer stops the run and names the sample."""

    def __post_init__(self) -> None:
        one_of("on_missing", self.on_missing, ("skip", "whole"))
        more_than("timeout_seconds", self.timeout_seconds, 0.0)
        at_most("timeout_seconds", self.timeout_seconds, MAX_SECONDS)
        between("weight", self.weight, 0.0, _MAX_REWARD_WEIGHT)
        if self.function.count(":") != 1:
            raise ConfigError(
                f"function={shown(self.function, 120)!r} must be package.module:function or path/to/file.py:function"
            )


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
    """The name under which the server knows the model."""
    concurrency: int = 8
    """Requests on their way at a time."""
    timeout_seconds: float = 300.0
    """For one attempt, from sending to the last byte."""
    retries: int = 5
    """Further attempts after a time-out, a broken connection, 408, 429, 5xx or a reply that cannot be read."""
    backoff_seconds: float = 1.0
    """Wait before the first retry; it doubles each time, up to a minute. A server's ``Retry-After`` counts more."""
    give_up_after: int = 32
    """Questions that fail one after the other before the run stops: the server is gone."""
    api_key_variable: str = ""
    """Environment variable that holds the key; empty: none is sent. The key itself is never written anywhere."""
    processor_min_pixels: int = 3136
    """Smallest area to which the server's image processor scales: Qwen2.5-VL's own; what ``preprocessor_config.json``
    or ``--mm-processor-kwargs`` of the server says. Read where boxes are in pixels (``eval.box_coordinates``)."""
    processor_max_pixels: int = 12845056
    """Largest area, likewise."""
    processor_factor: int = 28
    """Its sides are multiples of so many pixels: patch size times merge size."""

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
    """Questions of the test set, or of every task; 0: all."""
    before_sft: bool = True
    """Also score the model that the run starts from."""
    checkpoint: str = ""
    """``stage=eval``: model folder to score; empty: the run's newest, else ``model.path``."""
    tasks: list[str] = field(default_factory=list)
    """``stage=eval``: benchmarks to answer instead of the test questions, such as ``evisrag/chartqa``,
    ``milebench/ALFRED``, ``vhs/single`` or ``mig_bench``; docs/evaluation.md lists them."""
    data_root: str = ""
    """Folder that holds the benchmarks as they are downloaded."""
    image_root: str = ""
    """Visual Haystacks: folder of COCO's photographs; empty: ``coco`` in ``data_root``."""
    prompt_style: str = "official"
    """``official``: each benchmark's own words, order and response limit. ``evidence``: ``prompt.path`` with the
    benchmark's question in it, and ``eval.sampling`` as it is; the answer section is scored, the whole text kept."""
    haystack_sizes: list[int] = field(default_factory=list)
    """Visual Haystacks: how many images a question has; empty: every size that ``data_root`` holds."""
    haystack_set: str = "VHs_large"
    """Visual Haystacks: ``VHs_large`` or ``VHs_small``."""
    max_canvases: int = 0
    """MileBench: show the images on so many combined canvases at most (the paper's variant is 1); 0: one by one."""
    max_context_tokens: int = 0
    """MileBench: cut contexts from the left to so many tokens, images included, as the original does; 0: never."""
    image_tokens: int = 256
    """MileBench: what an image is taken to cost in that count."""
    box_coordinates: str = "relative"
    """MIG-Bench: ``relative`` (the model answers in 0-1000 or in shares, as the benchmark reads it; ``permille`` and
    ``shares`` say the same) or ``pixels`` (of the page at the size at which the model saw it, as in Qwen2.5-VL)."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)

    def __post_init__(self) -> None:
        one_of("eval.prompt_style", self.prompt_style, ("official", "evidence"))
        one_of("eval.haystack_set", self.haystack_set, ("VHs_large", "VHs_small"))
        one_of("eval.box_coordinates", self.box_coordinates, ("relative", "permille", "shares", "pixels"))
        for name in ("max_samples", "max_canvases", "max_context_tokens"):
            at_least(f"eval.{name}", getattr(self, name), 0)
        at_least("eval.image_tokens", self.image_tokens, 1)
        repeated = sorted({name for name in self.tasks if self.tasks.count(name) > 1})
        if repeated:
            raise ConfigError(f"eval.tasks names {shown(', '.join(repeated))} more than once; name every task once")
        if self.tasks and not self.data_root:
            raise ConfigError("eval.tasks needs eval.data_root, the folder that holds the benchmarks")
        if self.endpoint.url and not self.tasks:
            raise ConfigError("eval.endpoint answers benchmarks; name some in eval.tasks")
        if self.endpoint.url and self.max_context_tokens:
            raise ConfigError(
                "eval.max_context_tokens counts the model's own tokens, which an endpoint does not tell; leave it at 0"
            )
        if self.max_canvases > 1:
            raise ConfigError(
                f"eval.max_canvases={self.max_canvases}: MileBench's prompt for combined images shows one; set 1"
            )
