"""One rank of the policy: the Ray actor that holds a share of the weights and trains them.

A step comes in several calls. ``prepare`` encodes prompts and plans micro-batches: whatever is wrong with
the data is found there (of pages, with the header), before any rank waits for another in a collective.
``accumulate`` or ``score`` then runs the same number of micro-batches on every rank, and what the ranks saw
decides whether ``take_step`` follows on ``accumulate``.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its list of names

from rsgrpo.cluster.gpu_sharing import OnGpu
from rsgrpo.config import LossConfig, OptimizerConfig
from rsgrpo.io.manifest import FileDigest, digest
from rsgrpo.model.attention.backend import BackendChoice
from rsgrpo.model.exports import write_adapter, write_model
from rsgrpo.model.families.table import as_published
from rsgrpo.model.folder import load_processor
from rsgrpo.model.lora import adapters_off
from rsgrpo.model.micro_batch_pixels import MicroBatchPixels
from rsgrpo.model.micro_batches import PackedSequence, Segment, pack, plan_micro_batches
from rsgrpo.model.policy_model import MicroBatch, MicroBatchBuilder, group_sizes
from rsgrpo.model.setup import (
    WorkerSpec,
    attention_used,
    begin_process,
    frozen_checksum,
    open_image_features,
    open_policy_model,
    take_filled_tower,
    wrap_model,
)
from rsgrpo.model.vision_cache import ImageFeatures
from rsgrpo.model.vlm import EncodedPrompt, PromptEncoder, check_prompt_ids
from rsgrpo.trainer.faults import is_memory_error, memory_error
from rsgrpo.trainer.objective import RankTotals, row_loss, sum_totals
from rsgrpo.trainer.rank_share import rank_files
from rsgrpo.trainer.results import RankPass, RankStep, response_stats
from rsgrpo.types import ResponseStats, TrainingGroup
from rsgrpo.weights.buckets import bucket_checksum, flatten_bucket
from rsgrpo.weights.transfer import BucketStager, StagedBucket, new_group

_Chunks = Iterator[list[tuple[str, Tensor]]]
_MEETING_TIMEOUT = timedelta(minutes=30)  # as long as gloo waits: ranks may come late where a model's files are slow


@dataclass(frozen=True, kw_only=True, slots=True)
class GatheredWeights:
    """Weight buckets in the object store, and the checksum over them.

    Attributes:
        buckets: references to the WeightBucket records in the object store.
        checksum: the CRC-32 over the buckets, in order.
    """

    buckets: tuple[Any, ...]
    checksum: int


class PolicyWorker:
    """A rank: everything it does, it does in step with the other ranks.

    Args:
        spec: what the worker is built from: settings and place.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._config = spec.config
        self._plan: tuple[tuple[Segment, ...], ...] = ()
        self._groups: Sequence[TrainingGroup] = ()
        self._prompts: list[EncodedPrompt] = []
        self._process_seconds = 0.0
        self._num_hits_before = 0
        self._packed: PackedSequence | None = None
        self._stager: BucketStager | None = None
        self._store: TCPStore | None = None

    def address(self) -> tuple[str, int]:
        """Open the store that the ranks meet at, on this node; returns its host and port.

        The store listens from here on: a port that was only looked for could be another process's by the time that
        the ranks come.
        """
        host = ray.util.get_node_ip_address() if self._spec.world_size > 1 else "127.0.0.1"
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_MEETING_TIMEOUT)
        return host, int(self._store.port)

    def log_path(self) -> str:
        """The file that Ray writes this process's standard error to."""
        return str(Path("/proc/self/fd/2").readlink())

    def load(self, address: tuple[str, int]) -> str:
        """Meet the other ranks, then load the model.

        Args:
            address: where rank 0 has opened the store, see :meth:`address`.

        Returns:
            The checksum that :meth:`begin_from` returns.
        """
        spec = self._spec
        host, port = address
        begin_process(spec)
        os.environ |= {
            "MASTER_ADDR": host,
            "MASTER_PORT": str(port),
            "RANK": str(spec.rank),
            "WORLD_SIZE": str(spec.world_size),
            # Ray shows each worker its own GPU only.
            "LOCAL_RANK": "0",
        }
        if self._store is None:
            self._store = TCPStore(host, port, is_master=False, timeout=_MEETING_TIMEOUT)
        backend = "nccl" if spec.device == "gpu" else "gloo"
        # DeepSpeed finds the group and opens no port of its own.
        torch.distributed.init_process_group(backend, store=self._store, rank=spec.rank, world_size=spec.world_size)
        self._build()
        return self._base_checksum

    def _build(self) -> None:
        from rsgrpo.trainer.deepspeed_engine import DeepSpeedEngine, FrozenEngine

        spec, config = self._spec, self._config
        torch.manual_seed(config.seed)
        self._processor = load_processor(spec.model_folder)
        opened = open_policy_model(spec.model_folder, spec, self._processor)
        self._model = opened.model
        self._base_checksum = frozen_checksum(opened, spec) if config.model.lora.rank else ""
        self._features: ImageFeatures | None = None
        if (folder := spec.features_folder) is not None:
            tower = take_filled_tower(opened, spec.torch_device)
            self._features = open_image_features(tower, config, folder, self._processor, spec.torch_device)
        self._encoder = PromptEncoder(
            self._processor,
            rules=config.data.image_rules,
            max_prompt_tokens=config.data.max_prompt_tokens,
            num_threads=spec.num_threads,
            stored_grid=self._features.grid if self._features else None,
        )
        self._pixels = MicroBatchPixels(self._encoder, spec.torch_device, self._features)
        self._builder = MicroBatchBuilder(
            image_token_id=self._encoder.image_token_id,
            config=config.model,
            device=spec.torch_device,
            dtype=self._model.dtype,
            image_pixels=self._pixels.of,
            cached_features=self._pixels.features_of if self._features else None,
        )
        wrapped = wrap_model(self._model, spec)
        self._engine = DeepSpeedEngine(wrapped, config, device=spec.torch_device, weights=opened.weights)
        self._has_reference = False
        self._reference: FrozenEngine | None = None

    def attention(self) -> BackendChoice:
        """What this rank computes attention with."""
        return attention_used(self._model, self._builder.choice, self._spec.torch_device)

    def begin_from(self, folder: Path, needs_reference: bool, is_alone: bool = False) -> str:
        """Make a model the one that the stage starts from.

        Adapters begin at zero on it, and the KL term holds on to it: with adapters those are the policy's own
        weights without them, else a frozen copy.

        Args:
            folder: the folder that holds the model; the weights of a policy without adapters stay as they are.
            needs_reference: whether the objective has a KL term.
            is_alone: whether no engine works during the stage.

        Returns:
            Checksum of what a checkpoint of the stage rests on beside its own files (rank 0); empty: nothing.
        """
        from rsgrpo.trainer.deepspeed_engine import FrozenEngine

        torch.set_num_threads((is_alone and self._spec.num_threads_alone) or self._spec.num_threads)
        has_adapters = self._config.model.lora.rank > 0
        if has_adapters and folder != self._spec.model_folder:
            self._spec = dataclasses.replace(self._spec, model_folder=folder)
            self._engine.close()
            if self._reference is not None:
                self._reference.close()
            del self._engine, self._model
            gc.collect()
            self._build()
        if self._reference is not None:
            self._reference.close()
        self._has_reference, self._reference = needs_reference, None
        if not needs_reference or has_adapters:
            return self._base_checksum
        opened = open_policy_model(folder, self._spec, self._processor)
        checksum = frozen_checksum(opened, self._spec)
        if self._features is not None:
            opened.model.model.visual = None  # it is frozen: the policy's features are the reference's
        wrapped = wrap_model(opened.model, self._spec)
        self._reference = FrozenEngine(wrapped, self._config, device=self._spec.torch_device, weights=opened.weights)
        return checksum

    def begin_stage(self, optimizer: OptimizerConfig, num_steps: int) -> None:
        """Start a stage with fresh moments and a new schedule."""
        self._engine.begin_stage(optimizer, num_steps)

    def prepare(self, groups: Sequence[TrainingGroup]) -> int:
        """Encode this rank's groups and plan its micro-batches.

        Args:
            groups: the groups of this rank's share; may be empty.

        Returns:
            The number of micro-batches that this rank has.

        Raises:
            PromptError: a prompt is too long or does not match the engine's.
            TokenBudgetError: a prompt with one response does not fit a micro-batch.
        """
        start = time.perf_counter()
        self._num_hits_before = self._num_hits()
        self._groups = groups
        self._prompts = self._encoder.encode([group.prompt for group in groups])
        for group, encoded in zip(groups, self._prompts, strict=True):
            if group.prompt_token_ids is not None:
                check_prompt_ids(encoded, group.prompt_token_ids)
        self._prompts = [
            self._encoder.with_response_images(encoded, group.responses)
            for group, encoded in zip(groups, self._prompts, strict=True)
        ]
        sizes = group_sizes(groups, self._prompts)
        trainer = self._config.trainer
        self._plan = plan_micro_batches(
            sizes,
            budget=trainer.micro_batch_tokens,
            share_prefix=trainer.share_prefix,
            max_pairs=trainer.micro_batch_pairs,
        )
        self._process_seconds = time.perf_counter() - start
        return len(self._plan)

    def _num_hits(self) -> int:
        return self._features.counts.num_hits if self._features else 0

    def _row_makers(self, num_micro_batches: int, *, with_reference: bool = False) -> list[Callable[[], MicroBatch]]:
        """Makers of this rank's sequences, blank ones at the end so that all ranks run as many."""
        makers = [partial(self._make_micro_batch, segments, with_reference) for segments in self._plan]
        return [*makers, *[partial(self._make_micro_batch, None, with_reference)] * (num_micro_batches - len(makers))]

    def _make_micro_batch(self, segments: Sequence[Segment] | None, with_reference: bool) -> MicroBatch:
        self._packed = None if segments is None else pack(segments)
        if segments is not None:
            self._pixels.begin_micro_batch()
        batch = (
            self._builder.blank() if segments is None else self._builder.build(segments, self._groups, self._prompts)
        )
        if not with_reference:
            return batch
        if self._reference is not None:
            logprobs = self._reference.score(batch)
        else:
            with adapters_off(self._model):
                logprobs, _ = self._engine.score(batch)
        return dataclasses.replace(batch, reference_logprobs=logprobs)

    @contextmanager
    def _naming_memory(self) -> Iterator[None]:
        """Say what a sequence needed where memory does not suffice for it."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_memory_error(error):
                raise
            budget = self._config.trainer.micro_batch_tokens
            raise memory_error(error, self._packed, budget=budget, device=self._spec.torch_device) from error

    def accumulate(self, num_micro_batches: int, objective: str, loss: LossConfig | None) -> RankPass:
        """Forward and backward over what was prepared; :meth:`take_step` or :meth:`drop_gradients` ends it.

        Args:
            num_micro_batches: the most that any rank planned.
            objective: ``policy`` or ``nll``.
            loss: clipping and importance correction; for ``policy`` only.
        """
        totals: list[RankTotals] = []
        stats: list[ResponseStats] = []

        def loss_of(index: int, batch: MicroBatch, logprobs: Tensor, entropy: Tensor | None) -> Tensor:
            value, row_totals = row_loss(batch, logprobs, objective, loss)
            if index < len(self._plan):
                totals.append(row_totals)
                stats.extend(response_stats(self._plan[index], self._groups, logprobs, entropy))
            return value

        makers = self._row_makers(num_micro_batches, with_reference=self._has_reference and objective == "policy")
        start = time.perf_counter()
        with self._naming_memory(), self._pixels.of_step(self._plan, self._prompts):
            self._engine.accumulate(makers, loss_of, with_entropy=objective == "policy")
        return RankPass(
            totals=sum_totals(totals),
            responses=tuple(stats),
            forward_backward_seconds=time.perf_counter() - start,
            process_seconds=self._process_seconds + self._pixels.waited_seconds,
            num_cached_images=self._num_hits() - self._num_hits_before,
        )

    def take_step(self) -> RankStep:
        """One optimizer step with what was accumulated."""
        self._packed = None
        start = time.perf_counter()
        with self._naming_memory():
            outcome = self._engine.step()
        return RankStep(
            grad_norm=outcome.grad_norm,
            learning_rate=outcome.learning_rate,
            is_skipped=outcome.is_skipped,
            num_skipped_in_row=outcome.num_skipped_in_row,
            optimizer_seconds=time.perf_counter() - start,
        )

    def drop_gradients(self) -> None:
        """Forget what was accumulated: the next step is as if it had never been."""
        self._engine.drop_gradients()

    def score(self, num_micro_batches: int, with_entropy: bool = False) -> tuple[ResponseStats, ...]:
        """Log-probabilities of what was prepared, and the entropy if asked for, without gradients.

        Args:
            num_micro_batches: the most that any rank planned.
            with_entropy: see ``Policy.score``.
        """
        stats: list[ResponseStats] = []
        with self._naming_memory(), self._pixels.of_step(self._plan, self._prompts):
            for index, make in enumerate(self._row_makers(num_micro_batches)):
                logprobs, entropy = self._engine.score(make(), with_entropy=with_entropy)
                if index < len(self._plan):
                    stats.extend(response_stats(self._plan[index], self._groups, logprobs, entropy))
        return tuple(stats)

    def _tensors(self, *, max_bytes: int, trainable_only: bool = False, is_adapter: bool = False) -> _Chunks:
        """The engine's parameters, and those of a tower that stands outside it; or its adapters alone."""
        if is_adapter:
            yield self._engine.gathered_adapters()
            return
        yield from self._engine.gathered_parameters(trainable_only=trainable_only, max_bytes=max_bytes)
        if self._features is not None and not trainable_only:
            yield from self._features.parameters(max_bytes)

    def gather_weights(self, max_bucket_bytes: int, trainable_only: bool, is_adapter: bool) -> GatheredWeights:
        """Put the weights into the object store, bucket by bucket (rank 0; the others help gather).

        Args:
            max_bucket_bytes: the most bytes of a bucket.
            trainable_only: whether frozen parameters are left out.
            is_adapter: whether the adapters alone are sent, in one bucket.
        """
        buckets: list[Any] = []
        checksum = 0
        for named in self._tensors(trainable_only=trainable_only, max_bytes=max_bucket_bytes, is_adapter=is_adapter):
            if not self._spec.rank:
                bucket = flatten_bucket(as_published(self._model, named))
                checksum = bucket_checksum(bucket, checksum)
                buckets.append(ray.put(bucket))
        return GatheredWeights(buckets=tuple(buckets), checksum=checksum)

    def new_group(self) -> str:
        """``nccl``: an id for trainer and engines to meet under; NCCL wants it made by member 0."""
        return new_group()

    def join_engines(self, group: str, num_members: int) -> None:
        """``nccl``: meet the engines (rank 0)."""
        self._stager = BucketStager("nccl", self._spec.torch_device)
        self._stager.join(group, num_members)

    def begin_stream(self, kind: str, max_bucket_bytes: int, trainable_only: bool) -> None:
        """Start going through the weights, as :meth:`gather_weights` does, for engines' GPUs.

        Args:
            kind: ``cuda_ipc`` or ``nccl``.
            max_bucket_bytes: the most bytes of a bucket.
            trainable_only: whether what training does not change is left out.
        """
        if self._stager is None:
            self._stager = BucketStager(kind, self._spec.torch_device)
        chunks = self._tensors(trainable_only=trainable_only, max_bytes=max_bucket_bytes)
        self._stager.begin(as_published(self._model, named) for named in chunks)

    def next_bucket(self) -> StagedBucket | None:
        """Stage the next bucket; None after the last. The ranks gather it together."""
        assert self._stager is not None
        return self._stager.next()

    def broadcast_bucket(self) -> None:
        """``nccl``: send the staged bucket to the engines (rank 0)."""
        assert self._stager is not None
        self._stager.broadcast()

    def gpu(self) -> str:
        """This rank's GPU, as its node numbers them."""
        return str(ray.get_runtime_context().get_accelerator_ids()["GPU"][0])

    def set_on_gpu(self, parts: OnGpu) -> None:
        """Keep that much of the rank's memory on the GPU.

        Args:
            parts: what stays on the device: nothing, the weights, or all.
        """
        self._engine.set_on_gpu(parts)
        if self._reference is not None:
            self._reference.set_on_gpu(parts)

    def export(self, folder: Path, is_adapter: bool = False) -> None:
        """Write what ``from_pretrained``, peft and vLLM load (rank 0; the others help gather).

        Args:
            folder: the folder to write, which is empty.
            is_adapter: whether the adapters alone are written, else the model with adapters merged in.
        """
        state: dict[str, Tensor] = {}
        for named in self._tensors(max_bytes=2**29, is_adapter=is_adapter):
            state |= {} if self._spec.rank else {name: tensor.cpu().clone() for name, tensor in named}
        if is_adapter and not self._spec.rank:
            write_adapter(folder, state.items(), self._config.model.lora, self._spec.model_folder)
        elif not self._spec.rank:
            write_model(folder, self._model, self._processor, state, self._spec.model_folder)

    def save(self, folder: Path) -> tuple[FileDigest, ...]:
        """Write this rank's share of a checkpoint into ``folder``; digests of what was written."""
        self._engine.save(folder)
        return tuple(digest(folder, name) for name in rank_files(self._spec.rank, self._config.trainer.zero_stage))

    def restore(self, folder: Path) -> None:
        """Read this rank's share of a checkpoint."""
        self._engine.load(folder)

    def close(self) -> None:
        """Leave the process group."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
