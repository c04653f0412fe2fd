"""Every setting, as typed dataclasses: the field is the documentation, YAML holds only values.

Hydra composes ``configs/``, OmegaConf checks names and types against these classes, and
``load_config`` turns the result into objects, which runs the cross-checks. Nothing here imports torch,
so ``train.py --cfg job`` answers at once. Only composing imports OmegaConf: the trainer's model and rows
work without it. Code never writes to a config.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, make_dataclass, replace
from typing import TYPE_CHECKING, Any

from rsgrpo.config.checks import ConfigError, Literal, between, check_choices, not_empty
from rsgrpo.config.cluster import ClusterConfig, Device, Topology
from rsgrpo.config.data import (
    BOX_COORDINATES,
    DATA_FORMATS,
    DataConfig,
    DistractorConfig,
    OnBadSample,
    SourceConfig,
    VideoConfig,
)
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.config.eval import EndpointConfig, EvalConfig, is_pipeline_task
from rsgrpo.config.filter import FilterStageConfig, HeadTrainingConfig, QueryFilterConfig
from rsgrpo.config.logging import LoggingConfig
from rsgrpo.config.model import Attention, Dtype, LoraConfig, ModelConfig, VisionCacheConfig
from rsgrpo.config.optimizer import OptimizerConfig
from rsgrpo.config.plan import PlanConfig
from rsgrpo.config.prompt import ImageOrder, PromptConfig
from rsgrpo.config.quickstart import QuickstartConfig
from rsgrpo.config.response import (
    EVISRAG,
    ResponseConfig,
    ResponseFormat,
    SectionConfig,
    SectionRule,
    check_declared,
)
from rsgrpo.config.retriever import NegativesConfig, RetrieverConfig
from rsgrpo.config.rewards import RewardConfig, ScopeConfig
from rsgrpo.config.rl import (
    Aggregation,
    Baseline,
    Clipping,
    CreditConfig,
    Estimator,
    FilterConfig,
    KlConfig,
    LossConfig,
    Normaliser,
    OldLogprobsFrom,
    Ratio,
    Reach,
    RlConfig,
    Scale,
    Scoping,
)
from rsgrpo.config.rollout import RolloutConfig
from rsgrpo.config.sampling import SamplingConfig
from rsgrpo.config.sft import SftConfig, SftPhaseConfig
from rsgrpo.config.trainer import TrainerConfig
from rsgrpo.errors import shown

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = [
    "BOX_COORDINATES",
    "DATA_FORMATS",
    "EVISRAG",
    "Aggregation",
    "Attention",
    "Baseline",
    "Clipping",
    "ClusterConfig",
    "Config",
    "ConfigError",
    "CreditConfig",
    "DataConfig",
    "Device",
    "DistractorConfig",
    "Dtype",
    "EmbedderConfig",
    "EndpointConfig",
    "Estimator",
    "EvalConfig",
    "FilterConfig",
    "FilterStageConfig",
    "HeadTrainingConfig",
    "ImageOrder",
    "KlConfig",
    "LoggingConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "NegativesConfig",
    "Normaliser",
    "OldLogprobsFrom",
    "OnBadSample",
    "OptimizerConfig",
    "PlanConfig",
    "PromptConfig",
    "QueryFilterConfig",
    "QuickstartConfig",
    "Ratio",
    "Reach",
    "ResponseConfig",
    "ResponseFormat",
    "Resume",
    "RetrieverConfig",
    "RewardConfig",
    "RlConfig",
    "RolloutConfig",
    "SamplingConfig",
    "Scale",
    "ScopeConfig",
    "Scoping",
    "SectionConfig",
    "SectionRule",
    "SftConfig",
    "SftPhaseConfig",
    "SourceConfig",
    "Stage",
    "Topology",
    "TrainerConfig",
    "VideoConfig",
    "VisionCacheConfig",
    "load_config",
    "register_schema",
    "resolved_yaml",
]


_MAX_SEED = 2**32 - 1  # what NumPy's and scikit-learn's generators take

_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*:/")  # s3://…, hdfs:/…: as a path they would make a folder named "s3:"

Resume = Literal["auto", "never"]

Stage = Literal["sft", "rl", "eval", "all", "retriever"]


@dataclass(kw_only=True, slots=True)
class Config:
    """One run."""

    name: str = "run"
    """Name of the run: its default folder is ``runs/NAME``, and wandb shows it."""
    stage: Stage = "all"
    """Which stage runs: ``sft``, ``rl``, ``eval`` or ``all`` (both training stages, with evaluations between them), or
    ``retriever``, which trains a model that finds pages."""
    plan: bool = False
    """Say what the run would take in memory, time and money, and start nothing; docs/plan.md."""
    run_dir: str = "runs/${name}"
    """Folder that holds everything that the run writes."""
    resume: Resume = "never"
    """``auto``: go on from the newest checkpoint in ``run_dir`` if there is one. ``never``: refuse a
    run folder that already holds a run."""
    seed: int = 0
    """Seed of everything that is drawn: order of samples, responses, adapters. The same seed gives the same run on the
    same machine, with one engine."""
    plan_for: PlanConfig = field(default_factory=PlanConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    quickstart: QuickstartConfig = field(default_factory=QuickstartConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    response: ResponseConfig = field(default_factory=ResponseConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    retriever: RetrieverConfig = field(default_factory=RetrieverConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: dict[str, RewardConfig] = field(default_factory=dict)
    """The rewards that responses are judged by, by name; see ``rewards.NAME``."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    filter: QueryFilterConfig = field(default_factory=QueryFilterConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        check_choices(self, "")
        between("seed", self.seed, 0, _MAX_SEED)
        not_empty("run_dir", self.run_dir)
        not_empty("name", self.name)
        for key, path in (
            ("run_dir", self.run_dir),
            ("model.path", self.model.path),
            ("model.vision_cache.folder", self.model.vision_cache.folder),
            ("prompt.path", self.prompt.path),
            ("eval.checkpoint", self.eval.checkpoint),
            ("eval.data_root", self.eval.data_root),
            ("eval.image_root", self.eval.image_root),
            ("eval.search_run", self.eval.search_run),
            ("eval.search_index", self.eval.search_index),
        ):
            if path.startswith("~"):
                raise ConfigError(f"{key}={shown(path)} begins with ~, which only a shell expands; write $HOME instead")
        for key, path in (
            ("run_dir", self.run_dir),
            ("model.vision_cache.folder", self.model.vision_cache.folder),
            ("data.media_cache", self.data.media_cache),
        ):
            if _ADDRESS.match(path):
                raise ConfigError(
                    f"{key}={shown(path)} is an address, and files are written to folders only; give a path of this "
                    "machine's file system (a bucket can be mounted, or the folder copied there afterwards)"
                )
        if "/" in self.name or self.name in (".", ".."):
            raise ConfigError(f"name={shown(self.name, 80)!r} is no name; leave slashes to run_dir, the run's folder")
        if self.rollout.image_embeds and not self.model.vision_cache.folder:
            raise ConfigError(
                "rollout.image_embeds=true feeds the engine features from model.vision_cache.folder, which is empty; "
                "set the folder, such as model.vision_cache.folder=features, or rollout.image_embeds=false"
            )
        if self.stage == "all" and self.model.lora.update == "adapter":
            raise ConfigError(
                "model.lora.update=adapter leaves engines the base that they loaded, and with stage=all the adapters "
                "of reinforcement learning rest on the supervised stage's model; run stage=sft and stage=rl one after "
                "the other, or set model.lora.update=merged"
            )
        self._check_sections()
        if self.stage in ("rl", "all"):
            self._check_rl()
        if self.stage == "retriever":
            self._check_retriever()
        self._check_vision_rates()
        self._check_filter()
        if self.eval.tasks and self.stage != "eval":
            raise ConfigError(f"eval.tasks is answered by stage=eval, got stage={self.stage}; set stage=eval")
        if self.cluster.topology == "colocated":
            self._check_colocated()

    def _check_vision_rates(self) -> None:
        phases = (phase.optimizer for phase in self.sft.phases)
        optimizers = (self.rl.optimizer, self.sft.optimizer, self.retriever.optimizer, *phases)
        if self.model.freeze_vision and any(optimizer.vision_learning_rate for optimizer in optimizers):
            raise ConfigError(
                "optimizer.vision_learning_rate is the rate of a vision tower that model.freeze_vision=true keeps "
                "as it is; set model.freeze_vision=false, or leave the rate out"
            )

    def _check_retriever(self) -> None:
        if self.retriever.batch_size % self.trainer.num_ranks:
            raise ConfigError(
                f"retriever.batch_size={self.retriever.batch_size} is shared out evenly over trainer.num_ranks="
                f"{self.trainer.num_ranks} ranks; make it a multiple of that"
            )
        for key, value, only in (
            ("cluster.num_nodes", self.cluster.num_nodes, 1),
            ("cluster.address", self.cluster.address, ""),
            ("model.vision_cache.folder", self.model.vision_cache.folder, ""),
        ):
            if value != only:
                raise ConfigError(
                    f"{key}={shown(value)}: stage=retriever trains on this machine alone, without Ray and without "
                    f"features of a frozen tower; set {key}={only or repr('')}"
                )

    def _check_filter(self) -> None:
        if not self.filter.enabled:
            return
        others = [name for name in self.eval.tasks if not is_pipeline_task(name)]
        if others:
            raise ConfigError(
                "filter.enabled=true filters the pages of data.test_path and of pipelines, not those of "
                f"{shown(', '.join(others), 80)}; set one of them"
            )
        most = self.filter.stages[-1].top_k
        if most > self.data.max_images:
            raise ConfigError(
                f"the last of filter.stages keeps {most} pages, the model sees at most data.max_images="
                f"{self.data.max_images}; raise it, or lower top_k"
            )

    def _check_colocated(self) -> None:
        if self.rl.max_staleness_steps > 0:
            raise ConfigError(
                "rl.max_staleness_steps=1 samples while the trainer works, cluster.topology=colocated lets them take "
                "turns on the same GPUs; choose one of the two"
            )
        num_engine_gpus = self.rollout.num_workers * self.rollout.tensor_parallel_size
        if self.stage not in ("eval", "retriever") and self.trainer.num_ranks != num_engine_gpus:
            raise ConfigError(
                f"cluster.topology=colocated shares each GPU between one rank and one engine's part: trainer.num_ranks="
                f"{self.trainer.num_ranks} must equal rollout.num_workers={self.rollout.num_workers} × "
                f"rollout.tensor_parallel_size={self.rollout.tensor_parallel_size} = {num_engine_gpus}"
            )

    def _check_sections(self) -> None:
        """Refuse settings that speak of sections which ``response.sections`` does not declare."""
        response_format = self.response.format
        for name, reward in self.rewards.items():
            reward.scope.check(f"rewards.{name}.scope", response_format)
        check_declared("data.sft_sections", self.data.sft_sections or (), response_format)

    @property
    def trajectory_sections(self) -> tuple[str, ...]:
        """The sections that every trajectory of ``data.sft_path`` must have."""
        return self.response.format.required if self.data.sft_sections is None else tuple(self.data.sft_sections)

    @property
    def scored_rewards(self) -> dict[str, RewardConfig]:
        """The rewards as they are scored: the public code (``rl.credit.compat: upstream``) widens absent scopes."""
        if self.rl.credit.compat != "upstream":
            return self.rewards
        return {name: replace(reward, on_missing="whole") for name, reward in self.rewards.items()}

    def _check_rl(self) -> None:
        sampling = self.rollout.sampling
        for key, value, neutral in (
            ("top_p", sampling.top_p, 1.0),
            ("top_k", sampling.top_k, -1),
            ("repetition_penalty", sampling.repetition_penalty, 1.0),
        ):
            if value != neutral:
                raise ConfigError(
                    f"rollout.sampling.{key}={value} would make the engine's log-probabilities mean something "
                    f"else than the policy's; training needs {key}={neutral} (eval.sampling is free)"
                )
        if sampling.temperature <= 0:
            raise ConfigError(
                "rollout.sampling.temperature=0 would draw the same response n times, so that nothing can be compared; "
                "training needs a temperature above 0"
            )
        if not any(reward.weight > 0 for reward in self.rewards.values()):
            raise ConfigError("no reward has a weight above 0; set at least one under rewards.*")


def register_schema() -> None:
    """Make the schema known to hydra under the name that ``configs/config.yaml`` starts from.

    Rewards are checked by :func:`load_config`: hydra cannot add an entry (``+rewards.mine={…}``) to a
    dictionary whose values are typed.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    untyped: Any = field(default_factory=dict)
    members = [("rewards", dict[str, Any], untyped)]
    schema = OmegaConf.structured(make_dataclass("Schema", members, bases=(Config,), kw_only=True, slots=True))
    OmegaConf.set_struct(schema.rewards, False)
    ConfigStore.instance().store(name="schema", node=schema)


def load_config(composed: DictConfig) -> Config:
    """Turn hydra's composition into checked settings.

    Args:
        composed: what hydra composed over the schema.

    Returns:
        The settings; every ``__post_init__`` check has passed.

    Raises:
        ConfigError: a value of the wrong type, a key that the schema lacks, or a failed cross-check.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from rsgrpo.config.building import build

    try:
        plain = OmegaConf.to_container(composed, resolve=False)
        config = build(OmegaConf.merge(OmegaConf.structured(Config), plain))
    except (OmegaConfBaseException, RecursionError) as error:
        # Here: it needs this package to name what a key takes.
        from rsgrpo.config.refusals import value_sentence

        if isinstance(error, RecursionError):
            raise ConfigError("a setting refers to itself through ${…}; write a value instead") from None
        raise ConfigError(value_sentence(error)) from error
    assert isinstance(config, Config)
    return config


def resolved_yaml(config: Config) -> str:
    """The settings as YAML, every default written out."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))
