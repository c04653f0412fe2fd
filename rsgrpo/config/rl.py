"""``rl``: Reward-Scoped GRPO: groups, selection, credit and loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsgrpo.config.checks import (
    MAX_STEP_SAMPLES,
    ConfigError,
    Literal,
    at_least,
    between,
    check_choices,
    check_share,
    more_than,
)
from rsgrpo.config.optimizer import OptimizerConfig

_MAX_GROUP = 65_536

Normaliser = Literal["active", "all"]

Scoping = Literal["scoped", "whole"]

Reach = Literal["scope", "causal"]

Baseline = Literal["group_mean", "leave_one_out", "batch_mean", "shrunk_mean"]

Scale = Literal["group_std", "batch_std", "none"]

Aggregation = Literal["scope_tokens", "token_mean", "sequence_mean", "constant"]

Estimator = Literal["k1", "k2", "k3"]

OldLogprobsFrom = Literal["auto", "recompute", "engine"]

Ratio = Literal["token", "sequence"]

Clipping = Literal["ppo", "cispo"]


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """Which groups to train on."""

    mode: Literal["nonzero_variance", "mean_range", "none"] = "nonzero_variance"
    """``nonzero_variance``: keep a group if any reward varies in it. ``mean_range``: the public code's rule.
    ``none``: keep all."""
    low: float = 0.01
    """Of ``mean_range``: a group is kept if its mean weighted sum of rewards lies above this."""
    high: float = 6.9
    """Of ``mean_range``: a group is kept if its mean weighted sum of rewards lies below this."""
    max_refills: int = 3
    """Further rounds of prompts that may be sampled to fill a step."""
    keep_leftover: bool = True
    """Keep surplus groups for the next step (they are stale by one update)."""

    def __post_init__(self) -> None:
        check_choices(self, "rl.filter.")
        at_least("rl.filter.max_refills", self.max_refills, 0)
        if self.low >= self.high:
            raise ConfigError(
                f"rl.filter.low={self.low} is not below rl.filter.high={self.high}, so that no group would be kept; "
                "raise the one or lower the other"
            )


@dataclass(kw_only=True, slots=True)
class CreditConfig:
    """From rewards to token credit (:mod:`rsgrpo.algorithm.advantages`)."""

    compat: Literal["none", "upstream"] = "none"
    """``upstream`` reproduces the public implementation's formula, defects included; absent scopes of all rewards
    then widen (``on_missing: whole``)."""
    scoping: Scoping = "scoped"
    """``scoped``: each reward is compared within its group by itself and gives credit to the tokens of its scope.
    ``whole``: the weighted sum of the rewards is one number, which gives credit to the whole response (GRPO)."""
    reach: Reach = "scope"
    """Which tokens a reward credits where ``scoping`` is ``scoped``. ``scope``: those of its scope. ``causal``: those
    and all in front of them, which may have caused it; tokens behind the scope cannot have."""
    outside: float = 0.0
    """Share of a reward's credit that every other token of the response gets, where ``scoping`` is ``scoped``: 0: none,
    as in the paper; 1: each reward, compared by itself, credits the whole response."""
    baseline: Baseline = "group_mean"
    """What a reward is compared with: ``group_mean``, ``leave_one_out`` (RLOO), ``batch_mean`` (REINFORCE++), or
    ``shrunk_mean``: between the mean of the response's siblings and that of the step's other groups, where the step's
    own numbers say that noise is least."""
    scale: Scale = "group_std"
    """What the difference is divided by: ``group_std`` (unbiased), ``batch_std``, or ``none`` (Dr. GRPO)."""
    normaliser: Normaliser = "active"
    """W sums the weights of the rewards that vary in the step (``active``) or of ``all``."""
    aggregation: Aggregation = "scope_tokens"
    """How the tokens of a reward's scope add up over the optimizer step. ``scope_tokens``: their mean.
    ``token_mean``: their sum over the number of all response tokens. ``sequence_mean``: first the mean in each
    response, then that over the responses with such a scope (GRPO). ``constant``: their sum in each response
    over ``constant_tokens``, then the mean over the responses (Dr. GRPO)."""
    constant_tokens: int = 0
    """Denominator of ``aggregation: constant``, such as ``${rollout.sampling.max_response_tokens}``."""
    epsilon: float = 1.0e-6
    """Added to a group's standard deviation before dividing by it."""

    def __post_init__(self) -> None:
        check_choices(self, "rl.credit.")
        check_share("rl.credit.epsilon", self.epsilon)
        check_share("rl.credit.outside", self.outside)
        if self.scoping == "whole" and (self.reach != "scope" or self.outside):
            raise ConfigError(
                f"rl.credit.scoping=whole credits the whole response, so that rl.credit.reach={self.reach} and "
                f"rl.credit.outside={self.outside:g} would do nothing; set rl.credit.scoping=scoped, or leave them "
                "alone"
            )
        at_least("rl.credit.constant_tokens", self.constant_tokens, 0)
        if self.aggregation == "constant":
            at_least("rl.credit.constant_tokens", self.constant_tokens, 1)
        if self.compares_over_batch and self.scale == "group_std":
            raise ConfigError(
                f"rl.credit.baseline={self.baseline} compares over the batch, rl.credit.scale=group_std within a "
                "group; set rl.credit.scale to batch_std or none"
            )
        if self.compat == "upstream":
            self._check_reference()

    @property
    def compares_over_batch(self) -> bool:
        """Whether responses of different groups are compared, so that a group of equal ones can have credit."""
        return self.baseline in ("batch_mean", "shrunk_mean")

    def _check_reference(self) -> None:
        for key, value, needed in (
            ("scoping", self.scoping, "scoped"),
            ("reach", self.reach, "scope"),
            ("outside", f"{self.outside:g}", "0"),
            ("baseline", self.baseline, "group_mean"),
            ("scale", self.scale, "group_std"),
            ("aggregation", self.aggregation, "scope_tokens"),
        ):
            if value != needed:
                raise ConfigError(
                    f"rl.credit.compat=upstream is the public formula, which has rl.credit.{key}={needed}, not "
                    f"{value}; leave rl.credit.{key} alone or set rl.credit.compat=none"
                )


@dataclass(kw_only=True, slots=True)
class KlConfig:
    """The term that holds the policy near the model that the stage began with; off by default."""

    coefficient: float = 0.0
    """Weight of the term in the loss, beta; 0: no term, and no pass through the reference model. Tokens are averaged
    over whole responses as ``rl.credit.aggregation`` says (``scope_tokens`` as ``token_mean``)."""
    estimator: Estimator = "k3"
    """Estimator of the KL divergence: ``k1``, ``k2`` or ``k3`` (GRPO); losses.kl_estimate says what each one's gradient
    means."""
    target: float = 0.0
    """KL divergence in nats a token that the coefficient is steered towards, from ``coefficient`` on; 0: it stays as it
    is."""

    def __post_init__(self) -> None:
        between("rl.loss.kl.coefficient", self.coefficient, 0.0, 1.0e6)
        check_choices(self, "rl.loss.kl.")
        at_least("rl.loss.kl.target", self.target, 0.0)
        if self.target and not self.coefficient:
            raise ConfigError(
                f"rl.loss.kl.target={self.target} steers rl.loss.kl.coefficient, which is 0 and could never grow; "
                "set rl.loss.kl.coefficient to where it should begin, such as 0.05"
            )


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """The clipped objective (:mod:`rsgrpo.algorithm.losses`)."""

    ratio: Ratio = "token"
    """``token``: each token's own ratio new/old. ``sequence``: the geometric mean over its response, with the
    gradient of the token's own log-probability (GSPO-token; GSPO where credit is the same all over a response)."""
    clipping: Clipping = "ppo"
    """``ppo``: tokens beyond the bounds lose their gradient. ``cispo``: the ratio is only a weight, cut at the
    bounds, of each token's likelihood gradient."""
    clip_low: float = 0.2
    """The ratio is clipped at 1 - clip_low; 1: no lower bound."""
    clip_high: float = 0.28
    """The ratio is clipped at 1 + clip_high."""
    dual_clip: float = 3.0
    """``ppo``: the most that negative credit weighs, above 1 + clip_high; 0: no limit."""
    old_logprobs: OldLogprobsFrom = "auto"
    """pi_old: ``auto`` (the forward pass itself where there is one update a batch, else recomputed
    once), ``recompute``, or ``engine`` (the engine's own log-probabilities)."""
    importance_cap: float = 2.0
    """Cap of the importance weight trainer/engine; 0: no correction."""
    response_ratio_bound: float = 0.0
    """Responses whose geometric mean of trainer/engine ratios lies outside [1/bound, bound] get no gradient; above 1,
    such as 1.05; 0: none is left out. Their tokens stay in the denominators."""
    kl: KlConfig = field(default_factory=KlConfig)

    def __post_init__(self) -> None:
        check_choices(self, "rl.loss.")
        if not 0.0 < self.clip_low <= 1.0:
            raise ConfigError(f"rl.loss.clip_low={self.clip_low} must lie in (0, 1]")
        more_than("rl.loss.clip_high", self.clip_high, 0.0)
        if self.dual_clip != 0.0 and self.dual_clip <= 1.0 + self.clip_high:
            raise ConfigError(
                f"rl.loss.dual_clip={self.dual_clip} must be more than 1 + rl.loss.clip_high={self.clip_high}, or "
                "0 for no limit"
            )
        at_least("rl.loss.importance_cap", self.importance_cap, 0.0)
        if self.response_ratio_bound != 0.0 and self.response_ratio_bound <= 1.0:
            raise ConfigError(
                f"rl.loss.response_ratio_bound={self.response_ratio_bound} must be more than 1, or 0 to leave out none"
            )


@dataclass(kw_only=True, slots=True)
class RlConfig:
    """Reinforcement stage."""

    algorithm: str = "rs_grpo"
    """What progress and report call it; ``algorithm=NAME`` sets it beside the values that make it up."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    num_epochs: int = 16
    """Passes over the prompts; ``max_steps`` may end it earlier."""
    max_steps: int = 0
    """Stop after this many rollout batches; 0: when the epochs are through."""
    prompts_per_step: int = 32
    """How many groups a step trains on."""
    samples_per_prompt: int = 8
    """n, how many responses are sampled to each question."""
    shuffle: bool = True
    """Draw the questions in a new random order every epoch; false keeps the file's (easy to hard)."""
    updates_per_batch: int = 1
    """How many optimizer steps are taken on each rollout batch."""
    max_staleness_steps: int = 0
    """0, synchronous: every batch is sampled under the weights that it trains. 1, asynchronous: the next
    batch is sampled while the trainer updates on the present one, so its weights are one step older; pi_old
    is then the engine's log-probabilities (``rl.loss.old_logprobs=auto``). -1: 1 where ranks and engines have cores
    or GPUs of their own, 0 where they take turns on the same GPUs."""
    partial_rollouts: bool = False
    """Asynchronous mode only: the engines get new weights as soon as the trainer has them, in the middle of responses,
    which go on under them; every token keeps its own version and log-probability. Which token that is depends on
    the clock, so that a resumed run is no longer equal to the bit."""
    max_logprob_gap: float = 0.5
    """Mean |engine - trainer| log-probability gap in nats beyond which the weights count as stale."""
    validation_samples: int = 0
    """How many questions are held out and answered every ``validate_every_steps`` for the curves ``eval/*``; 0:
    none."""
    validate_every_steps: int = 20
    """Steps between two answers to the held-out questions; with ``max_staleness_steps=1`` engine and trainer are
    compared as often, on a few responses (``engine/logprob_gap_*``)."""
    save_every_steps: int = 10
    """How many steps lie between two checkpoints."""
    rollouts_in_report: int = 4
    """How many groups of a step are kept in full, with credit, for the report; 0: all of them."""
    counterfactual_exchanges: int = 3
    """How many times each page in question is exchanged for another question's, for rewards that ask what the policy
    answers without it (``rewards.functions.counterfactual``)."""
    record_every_steps: int = 0
    """How many steps lie between two further ones of which groups are kept; 0: only those that write a checkpoint, the
    first and the last. With 1 and ``rl.rollouts_in_report=0`` all that the run trains on is kept."""

    def __post_init__(self) -> None:
        between("rl.prompts_per_step", self.prompts_per_step, 1, MAX_STEP_SAMPLES)
        between("rl.samples_per_prompt", self.samples_per_prompt, 1, _MAX_GROUP)
        more_than("rl.max_logprob_gap", self.max_logprob_gap, 0.0)
        at_least("rl.rollouts_in_report", self.rollouts_in_report, 0)
        at_least("rl.record_every_steps", self.record_every_steps, 0)
        between("rl.counterfactual_exchanges", self.counterfactual_exchanges, 1, _MAX_GROUP)
        at_least("rl.updates_per_batch", self.updates_per_batch, 1)
        if self.max_staleness_steps not in (-1, 0, 1):
            raise ConfigError(
                f"rl.max_staleness_steps={self.max_staleness_steps} is not known; choose 0 (synchronous), 1 "
                "(the next batch is sampled during the update) or -1 (1 where that is possible)"
            )
        if self.partial_rollouts and self.max_staleness_steps != 1:
            raise ConfigError(
                "rl.partial_rollouts=true is for batches that are sampled during the update; set "
                "rl.max_staleness_steps=1, or leave it out"
            )
        at_least("rl.save_every_steps", self.save_every_steps, 1)
        at_least("rl.validation_samples", self.validation_samples, 0)
        at_least("rl.validate_every_steps", self.validate_every_steps, 1)
        at_least("rl.num_epochs", self.num_epochs, 1)
        at_least("rl.max_steps", self.max_steps, 0)
        if self.prompts_per_step % self.updates_per_batch:
            raise ConfigError(
                f"rl.prompts_per_step={self.prompts_per_step} must be a multiple of "
                f"rl.updates_per_batch={self.updates_per_batch}"
            )
        self._check_algorithm()

    def _check_algorithm(self) -> None:
        over_batch = self.credit.compares_over_batch
        if self.samples_per_prompt < 2 and not over_batch:
            raise ConfigError(
                f"rl.samples_per_prompt={self.samples_per_prompt} leaves a response nothing to be compared with; "
                "set it to at least 2, or rl.credit.baseline=batch_mean with rl.filter.mode=none"
            )
        if over_batch and self.filter.mode == "nonzero_variance":
            raise ConfigError(
                "rl.filter.mode=nonzero_variance drops groups whose responses earn the same, but with "
                f"rl.credit.baseline={self.credit.baseline} they have credit too; set rl.filter.mode=none"
            )
        if self.credit.compat == "upstream" and (self.loss.ratio, self.loss.clipping) != ("token", "ppo"):
            raise ConfigError(
                "rl.credit.compat=upstream is the public formula, which has rl.loss.ratio=token and "
                f"rl.loss.clipping=ppo, not {self.loss.ratio} and {self.loss.clipping}"
            )
