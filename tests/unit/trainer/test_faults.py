"""What is kept of a step that fails, and what is said of memory that does not suffice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rsgrpo.config import LossConfig
from rsgrpo.io.manifest import write_manifest
from rsgrpo.io.record_codec import RecordError, write_record
from rsgrpo.model.micro_batches import Segment, pack
from rsgrpo.trainer.checkpoint import CheckpointError
from rsgrpo.trainer.faults import FaultyBatch, is_memory_error, memory_error, read_faulty_batch, write_faulty_batch
from rsgrpo.types import TokenSpan
from tests.tiny_model import make_group

CPU = torch.device("cpu")


def _row(*lengths: int):
    return pack(
        [Segment(group=0, responses=tuple(range(len(lengths))), num_prompt_tokens=100, response_lengths=lengths)]
    )


def test_a_kept_batch_reads_back_as_it_was(tmp_path):
    group = make_group("a", [], [5, 3], seed=1)
    batch = FaultyBatch(groups=(group,), objective="policy", loss=LossConfig(clip_low=0.1), version=7)
    write_faulty_batch(tmp_path / "faults" / "000007", batch)
    again = read_faulty_batch(tmp_path / "faults" / "000007")
    assert (again.objective, again.loss, again.version) == ("policy", LossConfig(clip_low=0.1), 7)
    assert again.groups[0].prompt == group.prompt
    for found, kept in zip(again.groups[0].responses, group.responses, strict=True):
        assert np.array_equal(found.token_ids, kept.token_ids)
        assert np.array_equal(found.positive_weights, kept.positive_weights) and np.array_equal(
            found.negative_weights, kept.negative_weights
        )


def test_what_is_no_batch_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no batch that can be used: manifest\.json is missing"):
        read_faulty_batch(tmp_path)
    (tmp_path / "batch.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match="of version 1; this release reads version 3"):
        read_faulty_batch(tmp_path)
    write_record(tmp_path, "batch", TokenSpan(start=1, stop=2), version=2)
    write_manifest(tmp_path)
    with pytest.raises(RecordError, match="holds 'TokenSpan' where 'FaultyBatch' is expected"):
        read_faulty_batch(tmp_path)


def _raised(call) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        call()
    return caught.value


def test_failed_allocations_of_torch_and_numpy_are_known_and_others_are_not():
    assert is_memory_error(_raised(lambda: torch.empty(2**60, dtype=torch.uint8)))
    assert is_memory_error(_raised(lambda: np.ones(2**50)))
    assert is_memory_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."))
    assert not is_memory_error(_raised(lambda: torch.ones(2) @ torch.ones(3)))


def test_the_message_names_the_need_and_the_budget_that_helps():
    error = _raised(lambda: torch.empty(2**60, dtype=torch.uint8))
    message = str(memory_error(error, _row(60, 40), budget=300, device=CPU))
    # 2^60 bytes are 2^30 GiB; the row holds 100 + 60 + 40 tokens
    assert "a sequence of 200 tokens (2 responses) needed at least" in message
    assert "1073741824.0 GiB more were asked for" in message
    assert "set trainer.micro_batch_tokens below 200 (now 300)" in message
    lone = str(memory_error(error, _row(60), budget=300, device=CPU))
    assert "cannot be cut further" in lone and "lower data.max_pixels" in lone
    assert "trainer.micro_batch_tokens" not in lone
    step = str(memory_error(error, None, budget=300, device=CPU))
    assert "the optimizer step needed" in step and "trainer.offload_optimizer=true" in step
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has")
    assert "2.5 GiB more were asked for" in str(memory_error(cuda, _row(60, 40), budget=300, device=CPU))
