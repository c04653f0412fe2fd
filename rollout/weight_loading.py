"""What runs inside vLLM's own workers when weights come in from the trainer's GPUs, and what all updates share."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

from torch import Tensor

from rsgrpo.weights.transfer import StagedBucket, device_checksum

# One broadcast a bucket: vLLM cuts what it receives where this many bytes are passed, which is never.
_NEVER_CUT_BYTES = 2**62
_NUM_BYTES = {"float32": 4, "bfloat16": 2}
_RELOADING = "vllm.model_executor.model_loader.reload.layerwise"
_KEPT_LAYER = "%s: Failed to load weights"


def call_pickled(worker: Any, call: bytes) -> Any:
    """Call a function of this module whose arguments came pickled.

    Between its own processes vLLM turns records into dictionaries and arrays into tuples.

    Args:
        worker: vLLM's worker, on which the function is called.
        call: the pickled function and its arguments.
    """
    function, arguments = pickle.loads(call)
    return function(worker, *arguments)


@contextmanager
def without_kept_layers() -> Iterator[None]:
    """Keep vLLM from warning of every layer that was not sent: a frozen tower has hundreds of them.

    Which of them should have been is for :func:`rollout.layer_loading.unfinished_layers` to say.
    """
    logger = logging.getLogger(_RELOADING)

    def is_other(record: logging.LogRecord) -> bool:
        return record.msg != _KEPT_LAYER

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def tie_head(model: Any) -> None:
    """Let a tied head follow the embedding, once that is loaded.

    Args:
        model: vLLM's model, whose head is tied to its embedding.
    """
    language = model.language_model
    if language.config.tie_word_embeddings:
        # Reloading goes by the checkpoint's names, where a tied head has none: the head would keep the old
        # embedding, which it has packed for its own matrix product.
        language.lm_head = language.lm_head.tie_weights(language.model.embed_tokens)
        language.lm_head.quant_method.process_weights_after_loading(language.lm_head)


class CountedModel:
    """A model that adds up the checksum of the weights on their way in.

    Args:
        model: vLLM's model, which loads the weights that pass.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.checksum = 0

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """Load weights as the model does, and add those that it has taken to the checksum."""
        return self.model.load_weights(self._counted(weights))

    def _counted(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self.checksum = device_checksum(name, tensor, self.checksum)
            yield name, tensor


def join_trainer(worker: Any, kind: str, group: str, first_member: int, num_members: int) -> None:
    """Tell vLLM's transfer how buckets come.

    Args:
        worker: vLLM's worker, which holds the model.
        kind: ``cuda_ipc`` or ``nccl``.
        group: the id of the group to meet under; ``nccl`` only.
        first_member: the member number of this engine's first worker; ``nccl`` only.
        num_members: how many members there are, trainer and all engine workers; ``nccl`` only.
    """
    how: dict[str, object] = {"packed": True}
    if kind == "nccl":
        how |= {
            "nccl_unique_id_b64": group,
            "rank_offset": first_member,
            "world_size": num_members,
            "packed_buffer_size_bytes": _NEVER_CUT_BYTES,
            "packed_num_buffers": 1,
        }
    worker.init_weight_transfer_engine(how)


def begin_update(worker: Any) -> None:
    """Open a weight update."""
    worker.start_weight_update()


def receive_bucket(worker: Any, bucket: StagedBucket) -> int:
    """Let vLLM's transfer load a bucket.

    Args:
        worker: vLLM's worker, which holds the model.
        bucket: the bucket that the trainer staged.

    Returns:
        The checksum of the weights that came in.
    """
    update: dict[str, object] = {
        "names": list(bucket.names),
        "dtype_names": [bucket.dtype] * len(bucket.names),
        "shapes": [list(shape) for shape in bucket.shapes],
    }
    if bucket.handles:
        update["ipc_handles"] = dict(bucket.handles)
        update["tensor_sizes"] = [prod(shape) * _NUM_BYTES[bucket.dtype] for shape in bucket.shapes]
    transfer = worker.weight_transfer_engine
    counted = CountedModel(transfer.model)
    transfer.model = counted
    try:
        worker.update_weights(update)
    finally:
        transfer.model = counted.model
    return counted.checksum


def finish_update(worker: Any) -> None:
    """Close a weight update: vLLM lays the new weights out as it wants them."""
    with without_kept_layers():
        worker.finish_weight_update()
    tie_head(worker.model_runner.get_model())
