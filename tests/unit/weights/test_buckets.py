"""Weight buckets and their checksum."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
import torch

from rsgrpo.weights.buckets import (
    bucket_checksum,
    bucket_tensors,
    engine_layer,
    flatten_bucket,
    format_checksum,
    tensors_checksum,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bucket_gives_back_the_same_tensors(dtype):
    named = [("a", torch.randn(2, 3).to(dtype)), ("b", torch.randn(5).to(dtype)), ("c", torch.tensor(1.5).to(dtype))]
    bucket = flatten_bucket(named)
    # 6 + 5 + 1 numbers
    assert bucket.data.nbytes == 12 * dtype.itemsize
    bucket.data.flags.writeable = False
    found = dict(bucket_tensors(bucket))
    assert list(found) == ["a", "b", "c"]
    assert all(torch.equal(found[name], tensor) for name, tensor in named)


def test_checksum_sees_every_byte_every_name_and_the_order():
    first, second = (flatten_bucket([(name, torch.arange(4.0))]) for name in ("a", "b"))
    expected = zlib.crc32(np.arange(4, dtype=np.float32).tobytes(), zlib.crc32(b"a"))
    assert bucket_checksum(first) == expected
    changed = dataclasses.replace(first, data=first.data.copy())
    changed.data[3] ^= 1
    found = {
        bucket_checksum(first),
        bucket_checksum(changed),
        bucket_checksum(second),
        bucket_checksum(second, bucket_checksum(first)),
        bucket_checksum(first, bucket_checksum(second)),
    }
    assert len(found) == 5
    assert format_checksum(0xAB) == "000000ab"


def test_parameters_that_the_engine_keeps_in_one_layer_go_together():
    layer = "model.language_model.layers.3"
    together = [f"{layer}.self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")]
    assert {engine_layer(name) for name in together} == {f"{layer}.self_attn.qkv_proj"}
    assert engine_layer(f"{layer}.mlp.up_proj.weight") == engine_layer(f"{layer}.mlp.gate_proj.weight")
    assert engine_layer(f"{layer}.self_attn.o_proj.weight") == f"{layer}.self_attn.o_proj"
    assert engine_layer("layers.3.self_attn.q_proj.weight") != engine_layer("layers.4.self_attn.k_proj.weight")


def test_checksum_of_tensors_sees_values_names_and_precision():
    tensor = torch.arange(6.0)
    same = tensors_checksum([("a", tensor.clone())])
    assert same == tensors_checksum([("a", tensor)])
    moved = tensor.clone()
    moved[3] = torch.nextafter(moved[3], torch.tensor(9.0))
    others = [("a", moved), ("b", tensor), ("a", tensor.bfloat16())]
    assert len({same, *(tensors_checksum([named]) for named in others)}) == 4
