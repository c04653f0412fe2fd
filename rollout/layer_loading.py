"""What runs inside vLLM's own workers when weights come in from the object store, layer by layer."""

from __future__ import annotations

from typing import Any

from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from rollout.weight_loading import tie_head, without_kept_layers
from rsgrpo.weights.buckets import WeightBucket, bucket_tensors


def begin_loading(worker: Any) -> None:
    """Open a weight update from the object store: vLLM sets its layers up as they were before the first loading.

    Args:
        worker: vLLM's worker, which holds the model.
    """
    initialize_layerwise_reload(worker.model_runner.get_model())


def load_bucket(worker: Any, bucket: WeightBucket) -> None:
    """Load named tensors in the checkpoint's layout; a layer is laid out anew when all of it has come.

    Args:
        worker: vLLM's worker, which holds the model.
        bucket: the bucket that the trainer sent.
    """
    with set_current_vllm_config(worker.vllm_config):
        worker.model_runner.get_model().load_weights(bucket_tensors(bucket))


def finish_loading(worker: Any) -> None:
    """Close a weight update from the object store: layers that nothing was sent for get their tensors back."""
    model = worker.model_runner.get_model()
    with without_kept_layers(), set_current_vllm_config(worker.vllm_config):
        finalize_layerwise_reload(model, worker.model_config)
    tie_head(model)


def unfinished_layers(worker: Any, is_complete: bool) -> list[str]:
    """Layers that an open update has left without weights that they should have got; to be asked before it is closed.

    vLLM fills the rest of a layer of which a part came with whatever lies in memory, and keeps the old weights of a
    layer for which nothing came. The latter is right only where the trainer left it out because it never changes.

    Args:
        worker: vLLM's worker, which holds the model.
        is_complete: whether the update was to hold all parameters.

    Returns:
        The names of such layers; empty if every layer has its weights.
    """
    model = worker.model_runner.get_model()
    tied = model.language_model.lm_head if model.language_model.config.tie_word_embeddings else None
    found = []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        size = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        if not info.can_load() or not size or layer is tied:
            continue
        # The vocabulary is padded: its last rows never come.
        is_partial = 0 < info.load_numel < size and not isinstance(layer, VocabParallelEmbedding)
        if is_partial or (is_complete and not info.load_numel):
            found.append(name)
    return found
