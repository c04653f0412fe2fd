"""Training of a page retriever in two processes: the same as in one, each of its batches of one source, one end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recipes.retriever.preparation import PAIRS_FILE
from recipes.retriever.rank_work import Event, RankTask, StepTaken, do_rank
from recipes.retriever.ranks import RankError, train_in_ranks
from rsgrpo.config import (
    ClusterConfig,
    Config,
    DataConfig,
    ModelConfig,
    NegativesConfig,
    OptimizerConfig,
    RetrieverConfig,
    TrainerConfig,
)
from rsgrpo.retrieval.training.pair_table import write_pairs
from rsgrpo.retrieval.training.start_model import READING_RULES
from rsgrpo.retrieval.training.training_pairs import read_training_pairs
from tests.tiny_model import build_tiny_model
from tests.unit.retrieval.pair_files import write_pairs_file

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def settings(num_ranks: int) -> Config:
    return Config(
        stage="retriever",
        model=ModelConfig(dtype="float32", gradient_checkpointing=False, freeze_vision=False),
        trainer=TrainerConfig(num_ranks=num_ranks, num_threads=1, timeout_seconds=120.0),
        cluster=ClusterConfig(device="cpu"),
        retriever=RetrieverConfig(
            preset="visrag",
            batch_size=4,
            micro_batch_size=2,
            max_steps=3,
            num_epochs=3,
            max_pixels=12544,
            warmup_frac=0.0,
            optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear"),
            negatives=NegativesConfig(num_pages=1, margin=0.1),
            matryoshka_dimensions=[16],
            int8_weight=0.1,
            save_every_steps=2,
            zero_stage=num_ranks - 1,  # two ranks share the optimizer's states
        ),
    )


def task(folder: Path, model: Path) -> RankTask:
    file = write_pairs_file(folder / "given", 12, sources=("a", "b"), negatives=1)
    data = DataConfig(media_cache=str(folder / "cache"))
    write_pairs(folder / "data" / PAIRS_FILE, read_training_pairs([str(file)], data, READING_RULES).pairs)
    return RankTask(run_folder=folder, start_model=model)


def test_two_ranks_train_what_one_trains_on_the_same_batches(model: Path, tmp_path: Path) -> None:
    told: dict[int, list[Event]] = {1: [], 2: []}
    do_rank(settings(1), task(tmp_path / "one", model), told[1].append)
    train_in_ranks(settings(2), task(tmp_path / "two", model), told[2].append)
    steps = {n: [event for event in events if isinstance(event, StepTaken)] for n, events in told.items()}
    assert [event.step for event in steps[2]] == [1, 2, 3]
    for one, two in zip(steps[1], steps[2], strict=True):
        for name in ("retriever/loss", "retriever/batch_accuracy", "retriever/grad_norm"):
            assert two.values[name] == pytest.approx(one.values[name], rel=1e-4), name
    # AdamW moves a weight by up to the rate of 1e-3 in either direction, however small its gradient is: where that is
    # hardly more than the noise of the last digit, one weight of thousands may go the other way.
    stored = [load_file(tmp_path / name / "models/retriever/model.safetensors") for name in ("one", "two")]
    for name, weights in stored[0].items():
        difference = (stored[1][name] - weights).abs()
        assert difference.max() < 1e-3, name
        assert difference.mean() < 1e-6, name
    assert (tmp_path / "two/checkpoints/retriever-000002/rng_state_1.pth").is_file()


def ranks_here() -> list[int]:
    """Processes of ranks that this process has started."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            command = (place / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        if parent == os.getpid() and b"recipes.retriever.rank_process" in command:
            found.append(int(place.name))
    return sorted(found)


def test_a_rank_that_dies_ends_training_with_a_sentence_and_no_process_is_left(model: Path, tmp_path: Path) -> None:
    def kill_one(event: Event) -> None:
        os.kill(ranks_here()[-1], signal.SIGKILL)

    with pytest.raises(RankError, match=r"rank 1 was ended by signal 9; .*go on with resume=auto"):
        train_in_ranks(settings(2), task(tmp_path, model), kill_one)
    assert ranks_here() == []
