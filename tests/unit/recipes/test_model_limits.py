"""What a model's sizes do not allow is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Qwen2_5_VLConfig

from rsgrpo.config import Config, ConfigError, Dtype, ModelConfig, RolloutConfig, Stage
from rsgrpo.model.folder import check_limits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes of Qwen2.5-VL-72B."""
    written = tmp_path_factory.mktemp("model")
    text = {"vocab_size": 152_064, "hidden_size": 8192, "max_position_embeddings": 128_000}
    Qwen2_5_VLConfig(text_config=text).save_pretrained(written)
    return written


def _config(transfer: str, dtype: Dtype, stage: Stage = "sft") -> Config:
    return Config(stage=stage, model=ModelConfig(dtype=dtype), rollout=RolloutConfig(weight_transfer=transfer))


def test_a_parameter_beyond_one_message_is_refused_with_its_size(folder: Path) -> None:
    # 152,064 x 8,192 x 4 bytes = 4,752 MiB; a message of vLLM's ends at 4,096 MiB
    words = r"at most 4000 MiB, the embedding of the model in .* has 4752 MiB in float32.*model.dtype=bfloat16"
    with pytest.raises(ConfigError, match=words) as caught:
        check_limits(folder, _config("object_store", "float32"))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("transfer", "dtype", "stage"),
    [
        ("object_store", "bfloat16", "sft"),  # 2,376 MiB
        ("nccl", "float32", "sft"),  # never in a message
        ("object_store", "float32", "eval"),  # nothing is sent
    ],
)
def test_what_fits_is_accepted(folder: Path, transfer: str, dtype: Dtype, stage: Stage) -> None:
    check_limits(folder, _config(transfer, dtype, stage))


def test_a_bucket_beyond_one_message_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollout.weight_bucket_mib"):
        RolloutConfig(weight_bucket_mib=4096)
