"""How much the trainer holds at a time where it may choose: what the code goes by and what the plan counts with.

Numbers only: nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping

CHUNK_LOGITS: Mapping[str, int] = {"gpu": 2**26, "cpu": 2**24}
"""The most logits that are held at a time, in float32, by kind of device: 256 MiB on a GPU, some 440 rows of Qwen's
vocabulary, enough to keep it busy; 64 MiB on a CPU, which gains nothing from more."""

BLOCK_WEIGHTS: Mapping[str, int] = {"gpu": 2**24, "cpu": 2**22}
"""The most elements of the head's weight that are handled at a time where a product needs them, or makes their
gradient, in float32: 64 MiB on a GPU, 16 MiB on a CPU."""

DELTA_CHUNK = 64
"""How many tokens gated delta nets compute together; each of such chunks hands on a state."""

IMAGE_BYTES = 3 * 2**27
"""The most bytes of packed pixels that a rank keeps in host memory: 86 pages of 1.57 million pixels."""

CHANNELS = 3
"""The number of colour channels of a page."""

FRAMES = 2
"""How many times the vision tower's patches hold each page; the copies are not packed."""

FP32 = 4
"""How many bytes a float32 number takes."""

_MOST_IN_BUCKET = 500_000_000  # DeepSpeed's own default


def bucket_elements(num_trained: int) -> int:
    """How many elements the buffer has through which DeepSpeed sums gradients over ranks; it is always allocated whole.

    One that holds all gradients is never given away half full, so that a larger one would sum the same.

    Args:
        num_trained: the number of elements of the parameters that are trained.

    Example:
        11 elements take 12, an even number; 7·10⁹ take 5·10⁸.
    """
    return min(_MOST_IN_BUCKET, max(2, -(-num_trained // 2) * 2))
