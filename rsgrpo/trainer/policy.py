"""The policy as the recipes see it: typed calls, each of them done by all ranks together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray

from rsgrpo.cluster.environments import rank_environment
from rsgrpo.cluster.gpu_sharing import GpuSharing, OnGpu, Phase
from rsgrpo.cluster.placement import ON_CPU, Placement
from rsgrpo.cluster.topology import transfer_kind
from rsgrpo.config import Config, LossConfig, OptimizerConfig
from rsgrpo.errors import RsgrpoError
from rsgrpo.io.manifest import FileDigest, write_manifest
from rsgrpo.model.attention.backend import BackendChoice
from rsgrpo.model.micro_batches import balance, step_cost
from rsgrpo.model.setup import WorkerSpec, features_folder
from rsgrpo.trainer.checkpoint import CheckpointError, PolicyMeta, read_policy_meta, write_folder, write_policy_meta
from rsgrpo.trainer.faults import FaultyBatch, write_faulty_batch
from rsgrpo.trainer.rank_calls import RankCalls
from rsgrpo.trainer.results import RankPass, RankStep, UpdateResult, in_order, update_metrics
from rsgrpo.trainer.worker import GatheredWeights, PolicyWorker
from rsgrpo.types import ResponseStats, RolloutGroup, TrainingGroup, TrainingResponse
from rsgrpo.weights.buckets import WeightVersion, format_checksum
from rsgrpo.weights.transfer import RankStream
from rsgrpo.weights.update import WeightUpdate

Objective = Literal["policy", "nll"]


class TooManySkippedStepsError(RsgrpoError):
    """Gradients were not finite for ``trainer.max_skipped_steps`` steps in a row."""


def _cost(group: TrainingGroup) -> int:
    """What a group costs to compute, in tokens, or a guess where the engine has not told the prompt's length.

    The guess (four characters a token, 256 tokens an image) only balances ranks; it depends on nothing
    but the group, so that a resumed run shares work out as the uninterrupted one.
    """
    if group.prompt_token_ids is not None:
        prompt = len(group.prompt_token_ids)
    else:
        prompt = len(group.prompt.text) // 4 + 256 * len(group.prompt.images)
    return step_cost(prompt, [len(response.token_ids) for response in group.responses])


def unweighted(group: RolloutGroup) -> TrainingGroup:
    """Responses whose log-probabilities are wanted, and from which nothing is learned."""
    return TrainingGroup(
        sample_id=group.sample_id,
        prompt=group.prompt,
        prompt_token_ids=group.prompt_token_ids,
        responses=tuple(
            TrainingResponse(
                response_index=rollout.response_index,
                token_ids=rollout.token_ids,
                positive_weights=np.zeros(len(rollout.token_ids), dtype=np.float32),
                negative_weights=np.zeros(len(rollout.token_ids), dtype=np.float32),
                rollout_logprobs=rollout.logprobs,
                temperature=rollout.temperature,
            )
            for rollout in group.rollouts
        ),
    )


class Policy:
    """The ranks that hold and train the weights. Make one with :meth:`start`.

    Args:
        config: the run's settings.
        workers: one actor per rank.
        device: ``cpu`` or ``gpu``.
    """

    def __init__(self, config: Config, workers: list[Any], device: str) -> None:
        self._config = config
        self._ranks = RankCalls(workers, config.trainer.timeout_seconds)
        self._transfer = transfer_kind(config, device)
        self._gpu_sharing: GpuSharing | None = None
        self._loading: list[ray.ObjectRef] | None = None
        self._version = 0
        self._has_sent_all = False
        self._base_checksum = ""
        # Asynchronous mode: a thread that samples asks for weights while another one updates them, and all ranks have
        # to get these calls in the same order.
        self._one_at_a_time = threading.RLock()

    @classmethod
    def start(
        cls,
        config: Config,
        model_folder: Path,
        *,
        device: str,
        num_threads: int | Sequence[int],
        num_threads_alone: Sequence[int] = (),
        placement: Placement = ON_CPU,
    ) -> Policy:
        """Start the ranks and return at once; they load the model in the background.

        Args:
            config: the run's settings.
            model_folder: a model folder that every node can read.
            device: ``cpu`` or ``gpu``.
            num_threads: CPU threads of each rank; one number: of all of them.
            num_threads_alone: the same, while no engine works; empty: no others.
            placement: where the ranks run; where they share GPUs, they load when they first train.

        Returns:
            The policy; each of its methods waits for the ranks where it must.
        """
        num_ranks = config.trainer.num_ranks
        threads = [num_threads] * num_ranks if isinstance(num_threads, int) else num_threads
        environments = [rank_environment(config, device, own, is_shared=placement.is_shared) for own in threads]
        workers = [
            ray.remote(PolicyWorker)
            .options(**placement.for_rank(rank, environments[rank]))
            .remote(
                WorkerSpec(
                    config=config,
                    model_folder=model_folder,
                    rank=rank,
                    world_size=num_ranks,
                    device=device,
                    num_threads=threads[rank],
                    num_threads_alone=(num_threads_alone or threads)[rank],
                    features_folder=features_folder(config),
                )
            )
            for rank in range(num_ranks)
        ]
        policy = cls(config, workers, device)
        if not placement.is_shared:
            policy._load()
        return policy

    def _load(self) -> None:
        address = self._ranks.workers[0].address.remote()
        self._loading = [worker.load.remote(address) for worker in self._ranks.workers]

    @property
    def version(self) -> int:
        """How many optimizer steps were taken, over both stages."""
        return self._version

    def wait_ready(self) -> None:
        """Wait until every rank has loaded the model.

        Raises:
            RsgrpoError: the model folder cannot be used, or a rank died.
        """
        if self._gpu_sharing is not None:
            self._gpu_sharing.begin(Phase.TRAINING)
        self._wait_loaded()

    def _wait_loaded(self) -> None:
        if self._loading is None:
            self._load()
        if self._loading:
            self._ranks.log_paths = self._ranks.each(lambda worker: worker.log_path.remote())
            self._base_checksum = self._ranks.collect(self._loading, is_collective=True)[0]
            self._loading = []

    def share_gpus(self, gpu_sharing: GpuSharing) -> None:
        """Share the GPUs with the engines from here on.

        Args:
            gpu_sharing: the one that the engines take part in as well.
        """
        self._gpu_sharing = gpu_sharing

    def set_on_gpu(self, parts: OnGpu) -> None:
        """See :class:`rsgrpo.cluster.gpu_sharing.GpuUser`."""
        if self._loading is None and parts == OnGpu.NOTHING:
            return
        self._wait_loaded()
        self._ranks.each(lambda worker: worker.set_on_gpu.remote(parts))

    def gpus(self) -> tuple[str, ...]:
        """The GPU of each rank, as its node numbers them."""
        return tuple(self._ranks.each(lambda worker: worker.gpu.remote()))

    def attention(self) -> tuple[BackendChoice, ...]:
        """The attention backend of each rank, and why no faster one is used."""
        self.wait_ready()
        return tuple(self._ranks.each(lambda worker: worker.attention.remote()))

    def begin_from(self, folder: Path, *, needs_reference: bool, is_alone: bool = False) -> None:
        """Say which model a stage starts from, before it begins or goes on from a checkpoint.

        Adapters begin at zero on that model. The KL term holds on to it: each rank keeps a frozen copy, or with
        adapters computes with its own weights, adapters off. The weights of a policy without adapters stay.

        Args:
            folder: what the ranks were started with, or what :meth:`export_model` wrote at the last stage's end.
            needs_reference: whether updates of the objective ``policy`` need the reference's log-probabilities.
            is_alone: whether no engine works during the stage; the ranks then use the engines' CPU threads as well.
        """
        self.wait_ready()
        self._base_checksum = self._ranks.each(
            lambda worker: worker.begin_from.remote(folder, needs_reference, is_alone), is_collective=True
        )[0]

    def begin_stage(self, optimizer: OptimizerConfig, num_steps: int) -> None:
        """Start a stage: fresh moments, a new schedule.

        Args:
            optimizer: the optimizer's settings of the stage.
            num_steps: how many optimizer steps the stage has (a cosine ends there).
        """
        self.wait_ready()
        self._ranks.each(lambda worker: worker.begin_stage.remote(optimizer, num_steps))

    def update(
        self,
        groups: Sequence[TrainingGroup],
        objective: Objective,
        loss: LossConfig | None = None,
        *,
        before_step: Callable[[Sequence[ResponseStats]], None] | None = None,
    ) -> UpdateResult:
        """One optimizer step.

        Args:
            groups: the whole step's responses; their token weights carry the division by the token counts.
            objective: ``policy`` for the clipped loss, ``nll`` for weighted likelihood.
            loss: clipping and importance correction; needed for ``policy``.
            before_step: looks at what the ranks saw of the responses, in the order of ``groups``; if it raises,
                there is no step: weights, moments and counters stay, the gradient is forgotten.

        Returns:
            The numbers of the step, and log-probabilities and (``policy`` only) entropy of every response token
            under the weights before it, in the order of ``groups``.

        Raises:
            RsgrpoError: a prompt or response does not fit, a rank died, or gradients stay non-finite.
        """
        if objective == "policy" and loss is None:
            raise ValueError("objective='policy' needs loss=LossConfig(...)")
        with self._one_at_a_time:
            num_micro_batches, planned = self._prepare(groups)
            passes: list[RankPass] = self._ranks.each(
                lambda worker: worker.accumulate.remote(num_micro_batches, objective, loss), is_collective=True
            )
            try:
                stats = in_order(groups, [response for rank in passes for response in rank.responses])
                if before_step is not None:
                    before_step(stats)
            except Exception:
                self._ranks.each(lambda worker: worker.drop_gradients.remote(), is_collective=True)
                raise
            steps: list[RankStep] = self._ranks.each(lambda worker: worker.take_step.remote(), is_collective=True)
            if not steps[0].is_skipped:
                self._version += 1
        if steps[0].is_skipped and steps[0].num_skipped_in_row >= self._config.trainer.max_skipped_steps:
            kept = self._keep_fault(
                FaultyBatch(groups=tuple(groups), objective=objective, loss=loss, version=self._version)
            )
            raise TooManySkippedStepsError(
                f"the gradient was not finite for {steps[0].num_skipped_in_row} steps in a row "
                f"(trainer.max_skipped_steps={self._config.trainer.max_skipped_steps}); the weights are those before "
                f"them, {kept}: lower the learning rate, or use model.dtype=float32, and go on with resume=auto"
            )
        return UpdateResult(metrics=update_metrics(passes, steps, planned), responses=stats)

    def _keep_fault(self, batch: FaultyBatch) -> str:
        """Write a batch, and the model that it fails on, into the run folder; says where, or why not."""
        folder = Path(self._config.run_dir).absolute() / "faults" / f"{batch.version:06d}"
        try:
            write_faulty_batch(folder, batch)
            self.export_model(folder / "model")
        except CheckpointError as error:
            return f"the batch could not be kept ({error})"
        return f"{folder} holds the last batch and the model that it fails on"

    def score(self, groups: Sequence[TrainingGroup], *, with_entropy: bool = False) -> tuple[ResponseStats, ...]:
        """Log-probabilities of responses under the present weights, without an update.

        Args:
            groups: prompts and responses; their token weights are not read.
            with_entropy: whether the records hold the entropy too.

        Returns:
            One record for each response, in the order of ``groups``.
        """
        with self._one_at_a_time:
            num_micro_batches, _ = self._prepare(groups)
            ranks = self._ranks.each(
                lambda worker: worker.score.remote(num_micro_batches, with_entropy), is_collective=True
            )
        return in_order(groups, [response for rank in ranks for response in rank])

    def _prepare(self, groups: Sequence[TrainingGroup]) -> tuple[int, int]:
        """Hand out the groups; returns the most micro-batches of a rank, and those of all ranks together."""
        if not groups:
            raise ValueError("there are no groups to train on or to score")
        self.wait_ready()
        shares = balance([_cost(group) for group in groups], len(self._ranks.workers))
        counts = self._ranks.collect(
            [
                worker.prepare.remote([groups[index] for index in share])
                for worker, share in zip(self._ranks.workers, shares, strict=True)
            ]
        )
        return max(counts), sum(counts)

    def weights(self, max_bucket_bytes: int = 0, *, trainable_only: bool | None = None) -> WeightUpdate:
        """The present weights: in the object store, or ready to be sent from GPU to GPU.

        Args:
            max_bucket_bytes: the most bytes of a bucket, 0: ``rollout.weight_bucket_mib``; one larger parameter makes a
                bucket of its own.
            trainable_only: whether what training does not change is left out; None: only after the first call.

        Returns:
            The version with the buckets, or with what sends them; the latter must be sent before the next update.
        """
        self.wait_ready()
        max_bucket_bytes = max_bucket_bytes or self._config.rollout.weight_bucket_mib * 2**20
        leaves_frozen_out = self._has_sent_all if trainable_only is None else trainable_only
        whole = partial(self.weights, max_bucket_bytes, trainable_only=False)
        with self._one_at_a_time:
            is_adapter = self._config.model.lora.update == "adapter"  # an engine has the base from its folder
            self._has_sent_all = self._has_sent_all or not leaves_frozen_out
            if self._transfer != "object_store" and not is_adapter:
                return WeightUpdate(
                    version=WeightVersion(version=self._version, checksum=""),
                    buckets=(),
                    is_complete=not leaves_frozen_out,
                    whole=whole,
                    sender=RankStream(
                        self._transfer,
                        self._ranks.workers,
                        partial(self._ranks.collect, is_collective=True),
                        max_bucket_bytes=max_bucket_bytes,
                        trainable_only=leaves_frozen_out,
                    ),
                )
            gathered: list[GatheredWeights] = self._ranks.each(
                lambda worker: worker.gather_weights.remote(max_bucket_bytes, leaves_frozen_out, is_adapter),
                is_collective=True,
            )
            return WeightUpdate(
                version=WeightVersion(version=self._version, checksum=format_checksum(gathered[0].checksum)),
                buckets=gathered[0].buckets,
                is_complete=not leaves_frozen_out and not is_adapter,
                whole=whole,
            )

    def export_model(self, folder: Path, *, is_adapter: bool = False) -> None:
        """Write a model folder that ``from_pretrained`` and ``vllm serve`` load, tokenizer and processor included.

        Args:
            folder: the folder to write, which appears complete or not at all.
            is_adapter: whether the adapters alone are written, as peft and ``vllm serve --enable-lora`` load them.
        """
        self.wait_ready()

        def write(partial: Path) -> None:
            self._ranks.each(lambda worker: worker.export.remote(partial, is_adapter), is_collective=True)

        write_folder(folder, write)

    def save_checkpoint(self, folder: Path) -> None:
        """Write weights, moments, schedule and counters, enough to go on to the bit.

        Args:
            folder: the folder to write, which appears complete or not at all; every node must reach it.
        """
        self.wait_ready()

        def write(partial: Path) -> None:
            written: list[tuple[FileDigest, ...]] = self._ranks.each(
                lambda worker: worker.save.remote(partial), is_collective=True
            )
            write_policy_meta(
                partial, PolicyMeta(version=self._version, shape=self._shape(), base_checksum=self._base_checksum)
            )
            write_manifest(partial, [digest for rank in written for digest in rank])

        write_folder(folder, write)

    def load_checkpoint(self, folder: Path) -> None:
        """Go on from what :meth:`save_checkpoint` wrote; :meth:`begin_stage` is not to be called again.

        Whether its files are whole is for :func:`rsgrpo.trainer.checkpoint.find_checkpoint` to say before.

        Args:
            folder: the folder that :meth:`save_checkpoint` wrote.

        Raises:
            CheckpointError: the checkpoint was written by another version, with other ranks, ZeRO stage or adapters, or
                rests on another model.
        """
        self.wait_ready()
        meta = read_policy_meta(folder, shape=self._shape(), base_checksum=self._base_checksum)
        self._ranks.each(lambda worker: worker.restore.remote(folder), is_collective=True)
        self._version = meta.version
        self._has_sent_all = False

    def _shape(self) -> dict[str, int | bool]:
        """The settings that a checkpoint's files depend on, by their full names."""
        config = self._config
        return {
            "trainer.num_ranks": config.trainer.num_ranks,
            "trainer.zero_stage": config.trainer.zero_stage,
            "model.lora.rank": config.model.lora.rank,
            "model.vision_cache": bool(config.model.vision_cache.folder),
        }

    def close(self) -> None:
        """End the ranks."""
        self._ranks.close()
