"""Every setting, as typed dataclasses: the field is the documentation, YAML holds only values.

Hydra composes ``configs/``, OmegaConf checks names and types against these classes, and
``load_config`` turns the result into objects, which runs the cross-checks below. Nothing here imports
torch, so ``train.py --cfg job`` answers at once. Code never writes to a config.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsgrpo.errors import RsgrpoError

_TAGS = tuple(f"<{slash}{name}>" for name in ("observe", "evidence", "think", "answer") for slash in ("", "/"))


class ConfigError(RsgrpoError, ValueError):
    """A setting is wrong; the message names the key, what was got, and the way out."""


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}={value!r} is not known; choose one of {', '.join(choices)}")


def _at_least(key: str, value: float, minimum: float) -> None:
    if math.isnan(value) or value < minimum:
        raise ConfigError(f"{key}={value} is too small; it must be at least {minimum}")


def _more_than(key: str, value: float, bound: float) -> None:
    if math.isnan(value) or value <= bound:
        raise ConfigError(f"{key}={value} is too small; it must be more than {bound}")


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The policy."""

    path: str = ""
    """Qwen2.5-VL directory or hub id; empty: build the quickstart's small one into the run folder."""
    revision: str = ""
    """Hub revision; empty: the newest."""
    dtype: str = "bfloat16"
    """Compute precision, ``float32`` or ``bfloat16`` (master weights are float32 either way)."""
    freeze_vision: bool = True
    """Keep the vision tower as it is (the projector, ``visual.merger``, goes with it)."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass."""
    attention: str = "auto"
    """``auto``, ``sdpa`` or ``flash``: what computes attention in the trainer."""

    def __post_init__(self) -> None:
        _one_of("model.dtype", self.dtype, ("float32", "bfloat16"))
        _one_of("model.attention", self.attention, ("auto", "sdpa", "flash"))


@dataclass(kw_only=True, slots=True)
class QuickstartConfig:
    """The handwriting task that the quickstart writes, and the small model that it builds."""

    num_sft_samples: int = 4096
    num_rl_samples: int = 4096
    num_test_samples: int = 512
    unanswerable_frac: float = 0.2
    """Share of questions whose pages do not hold the answer."""
    page_pixels: int = 56
    """Width and height of a page; a multiple of 28."""
    text_hidden: int = 128
    text_layers: int = 4
    text_heads: int = 4
    vision_hidden: int = 96
    vision_layers: int = 2
    vision_heads: int = 4
    vocabulary_tokens: int = 512
    """Size of the byte-level BPE vocabulary, special tokens included."""

    def __post_init__(self) -> None:
        for name in ("num_sft_samples", "num_rl_samples", "num_test_samples"):
            _at_least(f"quickstart.{name}", getattr(self, name), 1)
        if not 0.0 <= self.unanswerable_frac < 1.0:
            raise ConfigError(f"quickstart.unanswerable_frac={self.unanswerable_frac} must lie in [0, 1)")
        if self.page_pixels % 28 or self.page_pixels < 28:
            raise ConfigError(f"quickstart.page_pixels={self.page_pixels} must be a positive multiple of 28")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """EVisRAG-Train / -Test files (JSONL or JSON beside image files or ``images.parquet``)."""

    sft_path: str = ""
    """Tagged trajectories; a file, or a folder. All three empty: the quickstart's own data."""
    rl_path: str = ""
    """Questions with gold for reinforcement learning."""
    test_path: str = ""
    """Held-out questions."""
    image_root: str = ""
    """Folder that image paths are relative to; empty: the folder of the data file."""
    id_column: str = "qid"
    question_column: str = "query"
    prompt_column: str = "prompt"
    answer_column: str = "answer"
    image_column: str = "image"
    max_images: int = 5
    """Images a question may have; further ones are cut in evaluation data, an error in training data."""
    min_pixels: int = 3136
    """Smaller pages are scaled up to this area before the processor sees them."""
    max_pixels: int = 1568000
    """Larger pages are scaled down to this area."""
    max_prompt_tokens: int = 15000
    """A longer prompt is rejected or skipped, never cut."""
    on_bad_sample: str = "reject"
    """``reject``: stop and name the sample. ``skip``: leave it out and say how many were left out."""

    def __post_init__(self) -> None:
        _one_of("data.on_bad_sample", self.on_bad_sample, ("reject", "skip"))
        _at_least("data.max_images", self.max_images, 1)
        _at_least("data.min_pixels", self.min_pixels, 1)
        if self.max_pixels < self.min_pixels:
            raise ConfigError(
                f"data.max_pixels={self.max_pixels} is less than data.min_pixels={self.min_pixels}; "
                "raise the one or lower the other"
            )
        paths = (self.sft_path, self.rl_path, self.test_path)
        if any(paths) and not self.test_path:
            raise ConfigError("data.test_path is empty although other data.*_path are set; name the held-out questions")


@dataclass(kw_only=True, slots=True)
class PromptConfig:
    """How a question becomes a prompt."""

    path: str = "configs/prompt/evidence.jinja"
    """Jinja template with the variables ``question`` and ``num_images``."""
    image_order: str = "text_first"
    """``text_first``, ``images_first``, or ``markers`` (where the data set's ready prompt says)."""
    system: str = "You are a helpful assistant."
    """System turn; the default is the Qwen chat template's own."""

    def __post_init__(self) -> None:
        _one_of("prompt.image_order", self.image_order, ("text_first", "images_first", "markers"))


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float = 1.0e-6
    schedule: str = "constant"
    """``constant`` or ``cosine`` (to zero), after a linear warm-up."""
    warmup_steps: int = 0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _more_than("optimizer.learning_rate", self.learning_rate, 0.0)
        _one_of("optimizer.schedule", self.schedule, ("constant", "cosine"))
        _at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        _more_than("optimizer.max_grad_norm", self.max_grad_norm, 0.0)


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """The ranks that hold and update the policy."""

    num_ranks: int = 1
    zero_stage: int = 2
    """DeepSpeed ZeRO stage: 1, 2 or 3."""
    offload_optimizer: bool = False
    """Keep optimizer states in host memory."""
    offload_parameters: bool = False
    """Keep parameters in host memory (ZeRO 3)."""
    micro_batch_tokens: int = 16384
    """Hard cap of tokens in one forward pass; one group that alone is longer is an error."""
    share_prefix: bool = True
    """Compute a group's prompt once for its n responses (same gradient, less work)."""
    max_skipped_steps: int = 3
    """Stop after this many steps in a row with a non-finite gradient."""

    def __post_init__(self) -> None:
        _at_least("trainer.num_ranks", self.num_ranks, 1)
        _at_least("trainer.micro_batch_tokens", self.micro_batch_tokens, 1)
        if self.zero_stage not in (1, 2, 3):
            raise ConfigError(f"trainer.zero_stage={self.zero_stage} is not known; choose 1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise ConfigError("trainer.offload_parameters=true needs trainer.zero_stage=3")


@dataclass(kw_only=True, slots=True)
class SftConfig:
    """Supervised stage."""

    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=5.0e-7, schedule="cosine", warmup_steps=200)
    )
    num_epochs: int = 1
    max_steps: int = 0
    """Stop after this many optimizer steps; 0: when the epochs are through."""
    samples_per_step: int = 64
    """Samples in one optimizer step, over all ranks."""
    validation_samples: int = 128
    """Held out of the supervised data for the validation loss; 0: none."""
    validate_every_steps: int = 100
    save_every_steps: int = 100

    def __post_init__(self) -> None:
        _at_least("sft.num_epochs", self.num_epochs, 1)
        _at_least("sft.samples_per_step", self.samples_per_step, 1)
        _at_least("sft.save_every_steps", self.save_every_steps, 1)
        _at_least("sft.validate_every_steps", self.validate_every_steps, 1)
        _at_least("sft.max_steps", self.max_steps, 0)


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """Which groups to train on."""

    mode: str = "signal"
    """``signal``: keep a group if any reward varies in it. ``mean_range``: the public code's rule.
    ``none``: keep all."""
    low: float = 0.01
    high: float = 6.9
    """``mean_range``: keep if low < mean weighted sum of the rewards < high."""
    max_refills: int = 3
    """Further rounds of prompts that may be sampled to fill a step."""
    carry_over: bool = True
    """Keep surplus groups with signal for the next step (they are stale by one update)."""

    def __post_init__(self) -> None:
        _one_of("rl.filter.mode", self.mode, ("signal", "mean_range", "none"))
        _at_least("rl.filter.max_refills", self.max_refills, 0)


@dataclass(kw_only=True, slots=True)
class CreditConfig:
    """From rewards to token credit (rs_grpo, "Credit")."""

    compat: str = "none"
    """``reference`` reproduces the public implementation's formula, defects included."""
    baseline: str = "group_mean"
    """``group_mean`` or ``leave_one_out`` (RLOO)."""
    scale: str = "group_std"
    """``group_std`` (unbiased), ``batch_std``, or ``none`` (Dr. GRPO)."""
    normaliser: str = "active"
    """W sums the weights of the rewards with signal in the step (``active``) or of ``all``."""
    epsilon: float = 1.0e-6

    def __post_init__(self) -> None:
        _one_of("rl.credit.compat", self.compat, ("none", "reference"))
        _one_of("rl.credit.baseline", self.baseline, ("group_mean", "leave_one_out"))
        _one_of("rl.credit.scale", self.scale, ("group_std", "batch_std", "none"))
        _one_of("rl.credit.normaliser", self.normaliser, ("active", "all"))
        _at_least("rl.credit.epsilon", self.epsilon, 0.0)


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """The clipped objective (rs_grpo, "Loss" and "Old log-probabilities")."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 3.0
    old_logprobs: str = "auto"
    """pi_old: ``auto`` (the forward pass itself where there is one update a batch, else recomputed
    once), ``recompute``, or ``engine`` (the engine's own log-probabilities)."""
    importance_cap: float = 2.0
    """Cap of the importance weight trainer/engine; 0: no correction."""

    def __post_init__(self) -> None:
        _one_of("rl.loss.old_logprobs", self.old_logprobs, ("auto", "recompute", "engine"))
        if not 0.0 < self.clip_low < 1.0:
            raise ConfigError(f"rl.loss.clip_low={self.clip_low} must lie in (0, 1)")
        _more_than("rl.loss.clip_high", self.clip_high, 0.0)
        _more_than("rl.loss.dual_clip", self.dual_clip, 1.0 + self.clip_high)
        _at_least("rl.loss.importance_cap", self.importance_cap, 0.0)


@dataclass(kw_only=True, slots=True)
class RlConfig:
    """Reinforcement stage."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    num_epochs: int = 16
    max_steps: int = 0
    """Stop after this many optimizer batches; 0: when the epochs are through."""
    prompts_per_step: int = 32
    samples_per_prompt: int = 8
    """n, the group's size."""
    shuffle: bool = True
    """Draw the questions in a new random order every epoch; false keeps the file's (easy to hard)."""
    updates_per_batch: int = 1
    """Optimizer steps on each rollout batch."""
    max_logprob_gap: float = 0.5
    """Mean |engine - trainer| log-probability gap in nats beyond which the weights count as stale."""
    save_every_steps: int = 10
    rollouts_in_report: int = 4
    """Groups kept in full, with credit, for the report each time a checkpoint is written."""

    def __post_init__(self) -> None:
        _at_least("rl.prompts_per_step", self.prompts_per_step, 1)
        _at_least("rl.samples_per_prompt", self.samples_per_prompt, 2)
        _at_least("rl.updates_per_batch", self.updates_per_batch, 1)
        _at_least("rl.save_every_steps", self.save_every_steps, 1)
        _at_least("rl.num_epochs", self.num_epochs, 1)
        _at_least("rl.max_steps", self.max_steps, 0)
        if self.prompts_per_step % self.updates_per_batch:
            raise ConfigError(
                f"rl.prompts_per_step={self.prompts_per_step} must be a multiple of "
                f"rl.updates_per_batch={self.updates_per_batch}"
            )


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How responses are drawn. Training refuses what would change the meaning of log-probabilities."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    """-1: off."""
    repetition_penalty: float = 1.0
    max_response_tokens: int = 1536

    def __post_init__(self) -> None:
        _at_least("temperature", self.temperature, 0.0)
        _at_least("max_response_tokens", self.max_response_tokens, 1)
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p={self.top_p} must lie in (0, 1]")


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """The pool of vLLM workers."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_workers: int = 1
    tensor_parallel_size: int = 1
    max_model_tokens: int = 16536
    """Prompt and response together."""
    max_num_sequences: int = 256
    max_batched_tokens: int = 16384
    gpu_memory_frac: float = 0.6
    kv_cache_gib: float = 1.0
    """CPU engine only: memory for the paged cache."""
    enforce_eager: bool = False
    num_threads: int = 0
    """CPU engine only: threads a worker; 0: all cores."""
    start_timeout_seconds: float = 900.0
    generate_timeout_seconds: float = 3600.0
    max_restarts: int = 2
    """How often a dead worker is replaced before the run stops."""

    def __post_init__(self) -> None:
        _at_least("rollout.num_workers", self.num_workers, 1)
        _at_least("rollout.tensor_parallel_size", self.tensor_parallel_size, 1)
        if self.max_model_tokens <= self.sampling.max_response_tokens:
            raise ConfigError(
                f"rollout.max_model_tokens={self.max_model_tokens} leaves no room for a prompt beside "
                f"rollout.sampling.max_response_tokens={self.sampling.max_response_tokens}"
            )


@dataclass(kw_only=True, slots=True)
class ScopeConfig:
    """Which response tokens a reward may touch: either start and stop, or one of the named forms."""

    start: str = ""
    """``begin`` or a tag such as ``<think>``; the start tag belongs to the scope."""
    stop: str = ""
    """``end`` or a tag; the stop tag does not belong to the scope."""
    section: str = ""
    """A section by name: ``think`` is ``<think>`` up to and with ``</think>``."""
    evidence_line: bool = False
    """Each image's own ``[i]:`` line; the reward then returns one value an image."""

    def __post_init__(self) -> None:
        forms = [bool(self.start or self.stop), bool(self.section), self.evidence_line]
        if sum(forms) != 1:
            raise ConfigError(
                "a scope needs exactly one of {start, stop}, {section} or {evidence_line: true}; "
                f"got start={self.start!r} stop={self.stop!r} section={self.section!r} "
                f"evidence_line={self.evidence_line}"
            )
        if self.section:
            _one_of("scope.section", self.section, ("observe", "evidence", "think", "answer"))
        if self.start or self.stop:
            _one_of("scope.start", self.start, ("begin", *_TAGS))
            _one_of("scope.stop", self.stop, (*_TAGS, "end"))


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """One reward: a Python function, the tokens it may touch, and how much it weighs."""

    function: str
    """``package.module:function`` or ``path/to/file.py:function``."""
    scope: ScopeConfig
    weight: float = 1.0
    on_missing: str = "skip"
    """Scope absent: ``skip`` (no credit) or ``whole`` (the whole response, as the public code)."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the function."""
    timeout_seconds: float = 60.0
    """A call that takes longer stops the run and names the sample."""

    def __post_init__(self) -> None:
        _one_of("rewards.*.on_missing", self.on_missing, ("skip", "whole"))
        _more_than("rewards.*.timeout_seconds", self.timeout_seconds, 0.0)
        _at_least("rewards.*.weight", self.weight, 0.0)
        if self.function.count(":") != 1:
            raise ConfigError(
                f"rewards.*.function={self.function!r} must be package.module:function or path/to/file.py:function"
            )


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Evaluation of a checkpoint on the test questions."""

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0, max_response_tokens=2048))
    max_samples: int = 0
    """0: all."""
    before_sft: bool = True
    """Also score the model that the run starts from."""
    checkpoint: str = ""
    """``stage=eval``: model folder to score; empty: the run's newest, else ``model.path``."""


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Ray."""

    address: str = ""
    """Address of a running cluster; empty: start one on this machine."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``gpu``."""
    num_nodes: int = 1
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        _one_of("cluster.device", self.device, ("auto", "cpu", "gpu"))
        _at_least("cluster.num_nodes", self.num_nodes, 1)


@dataclass(kw_only=True, slots=True)
class LoggingConfig:
    """Where numbers go, beside ``metrics.jsonl``."""

    wandb_mode: str = "offline"
    """``offline``, ``online`` or ``disabled``."""
    wandb_project: str = "rsgrpo"
    tensorboard: bool = True
    progress: bool = True
    """Live progress display (a plain line a step where the output is no terminal)."""

    def __post_init__(self) -> None:
        _one_of("logging.wandb_mode", self.wandb_mode, ("offline", "online", "disabled"))


@dataclass(kw_only=True, slots=True)
class Config:
    """One run."""

    name: str = "run"
    stage: str = "all"
    """``sft``, ``rl``, ``eval`` or ``all``."""
    run_dir: str = "runs/${name}"
    """Everything that the run writes."""
    resume: str = "never"
    """``auto``: go on from the newest checkpoint in ``run_dir`` if there is one. ``never``: refuse a
    run folder that already holds a run."""
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    quickstart: QuickstartConfig = field(default_factory=QuickstartConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: dict[str, RewardConfig] = field(default_factory=dict)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        _one_of("stage", self.stage, ("sft", "rl", "eval", "all"))
        _one_of("resume", self.resume, ("auto", "never"))
        if self.stage in ("rl", "all"):
            self._check_rl()

    def _check_rl(self) -> None:
        sampling = self.rollout.sampling
        for key, value, neutral in (
            ("temperature", sampling.temperature, 1.0),
            ("top_p", sampling.top_p, 1.0),
            ("top_k", sampling.top_k, -1),
            ("repetition_penalty", sampling.repetition_penalty, 1.0),
        ):
            if value != neutral:
                raise ConfigError(
                    f"rollout.sampling.{key}={value} would make the engine's log-probabilities mean something "
                    f"else than the policy's; training needs {key}={neutral} (evaluation.sampling is free)"
                )
        if not any(reward.weight > 0 for reward in self.rewards.values()):
            raise ConfigError("no reward has a weight above 0; set at least one under rewards.*")


def register_schema() -> None:
    """Make the schema known to hydra under the name that ``configs/config.yaml`` starts from."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def load_config(composed: DictConfig) -> Config:
    """Turn hydra's composition into checked settings.

    Args:
        composed: what hydra composed over the schema.

    Returns:
        The settings; every ``__post_init__`` check has passed.

    Raises:
        ConfigError: a value of the wrong type, a key that the schema lacks, or a failed cross-check.
    """
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ConfigError):
            raise cause from None
        raise ConfigError(f"the settings do not fit rsgrpo/config.py: {error}") from error
    except (AttributeError, TypeError) as error:
        raise ConfigError(
            f"a key on the command line is not in rsgrpo/config.py ({error}); `train.py --cfg job` lists the keys"
        ) from error
    assert isinstance(config, Config)
    return config


def resolved_yaml(config: Config) -> str:
    """The settings as YAML, every default written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
