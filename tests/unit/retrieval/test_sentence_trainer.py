"""Training of page retrievers on a small random Qwen2.5-VL: what is saved embeds as training did, and goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling

from rsgrpo.config import (
    ClusterConfig,
    Config,
    DataConfig,
    LoraConfig,
    ModelConfig,
    NegativesConfig,
    OptimizerConfig,
    RetrieverConfig,
)
from rsgrpo.config.embedder import VISRAG_INSTRUCTION, EmbedderConfig
from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder
from rsgrpo.retrieval.training.pair_loss import PairLoss
from rsgrpo.retrieval.training.sentence_trainer import RetrieverTraining, RetrieverTrainingError
from rsgrpo.retrieval.training.start_model import READING_RULES, load_start_model
from rsgrpo.retrieval.training.training_batches import plan_batches
from rsgrpo.retrieval.training.training_pairs import TrainingPair, read_training_pairs
from tests.tiny_model import build_tiny_model, write_images
from tests.unit.retrieval.pair_files import write_pairs_file

QUERIES = ["page number 1?", "Who signed?"]


@dataclasses.dataclass(slots=True)
class Recorder:
    """Hooks that keep what they are told; checkpoints stay where they are."""

    steps: list[Mapping[str, float]] = dataclasses.field(default_factory=list)
    checkpoints: dict[int, Path] = dataclasses.field(default_factory=dict)

    def on_step(self, step: int, values: Mapping[str, float], embedder: Callable[[], SentenceEmbedder]) -> None:
        self.steps.append(values)

    def on_checkpoint(self, step: int, folder: Path) -> None:
        self.checkpoints[step] = folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("start") / "plain")


@pytest.fixture(scope="module")
def saved(model: Path) -> Path:
    """The same model as sentence-transformers saves it, with a prompt for questions and one for pages."""
    reader = Transformer(str(model))
    modules = [reader, Pooling(reader.get_embedding_dimension(), "lasttoken"), Normalize()]
    prompts = {"query": "Find the page.", "document": "A page."}
    SentenceTransformer(modules=modules, prompts=prompts).save(str(model.parent / "saved"))
    return model.parent / "saved"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingPair, ...]:
    folder = tmp_path_factory.mktemp("pairs")
    file = write_pairs_file(folder, 8, negatives=1)
    return read_training_pairs([str(file)], DataConfig(media_cache=str(folder / "cache")), READING_RULES).pairs


@pytest.fixture
def pages(tmp_path: Path):
    """Pages below, within and above the bounds of the processor."""
    return write_images(tmp_path, [(28, 28), (56, 56), (300, 200)], seed=5)


def settings(*, lora: LoraConfig | None = None, **retriever: Any) -> Config:
    given: dict[str, Any] = {
        "preset": "visrag",
        "batch_size": 4,
        "micro_batch_size": 2,
        "max_steps": 2,
        "min_pixels": 1568,
        "max_pixels": 12544,
        "max_tokens": 512,
        "optimizer": OptimizerConfig(learning_rate=1e-3, schedule="linear"),
        "warmup_frac": 0.0,
        "save_every_steps": 2,
    }
    return Config(
        stage="retriever",
        model=ModelConfig(
            dtype="float32",
            gradient_checkpointing=False,
            freeze_vision=lora is not None,
            lora=lora or LoraConfig(),
        ),
        cluster=ClusterConfig(device="cpu"),
        retriever=RetrieverConfig(**(given | retriever)),
    )


def training(config: Config, start_model: Path, pairs: tuple[TrainingPair, ...], scratch: Path, hooks: Recorder):
    plan = plan_batches(pairs, batch_size=4, num_epochs=4, max_steps=config.retriever.max_steps, seed=config.seed)
    return RetrieverTraining(
        config, start_model=start_model, pairs=pairs, batches=plan.batches, scratch=scratch, hooks=hooks
    )


@pytest.mark.parametrize("preset", ["visrag", "last_token", "auto"])
def test_the_saved_model_embeds_exactly_as_the_trained_one_did(preset, model, saved, pairs, pages, tmp_path) -> None:
    start = saved if preset == "auto" else model
    instruction = "Find: " if preset == "last_token" else None
    config = settings(preset=preset, query_instruction=instruction)
    run = training(config, start, pairs, tmp_path / "scratch", recorder := Recorder())
    before = run._embedder().embed_pages(pages)
    run.train()
    live = run._embedder()
    queries, vectors = live.embed_queries(QUERIES), live.embed_pages(pages)
    assert np.abs(vectors - before).max() > 1e-3
    assert [set(values) for values in recorder.steps] == [set(recorder.steps[0])] * 2
    run.save(tmp_path / "model")
    for name in ("auto", preset):
        if (name, instruction) == ("last_token", "Find: "):
            continue  # by itself this preset has no instruction
        again = SentenceEmbedder(EmbedderConfig(model=str(tmp_path / "model"), preset=name, device="cpu"))
        np.testing.assert_array_equal(again.embed_queries(QUERIES), queries)
        np.testing.assert_array_equal(again.embed_pages(pages), vectors)
    trained = SentenceEmbedder(EmbedderConfig(model=str(tmp_path / "model"), device="cpu"))
    expected = {"visrag": VISRAG_INSTRUCTION, "last_token": "Find: ", "auto": "Find the page."}[preset]
    assert trained.identity.query_instruction == expected
    size = trained._model.processor.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (1568, 12544)
    assert trained._model.max_seq_length == 512


def test_loss_and_gradients_are_those_of_the_library(model, pairs) -> None:
    # No negatives, no further terms, all weights alike: GradCache and InfoNCE as sentence-transformers computes them.
    config = settings(negatives=NegativesConfig(num_pages=1))
    found = []
    for make in (
        lambda start: PairLoss(start, config, pairs),
        lambda start: CachedMultipleNegativesRankingLoss(start, scale=50.0, mini_batch_size=2),
    ):
        start = load_start_model(config, model).double()  # in 32 bits processors differ by ten times as much
        features = [
            start.preprocess([VISRAG_INSTRUCTION + pair.query for pair in pairs[:3]]),
            *(
                start.preprocess([_image(page) for page in column])
                for column in ([pair.page for pair in pairs[:3]], [pair.negatives[0] for pair in pairs[3:6]])
            ),
        ]
        # The negatives of pairs 3 to 5 are pages 4 to 6: none of them is a page of pairs 0 to 2.
        rows = torch.tensor([0, 1, 2])
        loss_function = make(start)
        if isinstance(loss_function, PairLoss):
            loss_function._page_ids = torch.arange(6).reshape(2, 3).T  # six pages that all differ
        loss = loss_function(features, rows)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in start.named_parameters() if parameter.grad is not None}
        found.append((loss.item(), gradients))
    (loss, gradients), (expected, reference) = found
    # Parts of both are in 32 bits all the same: 1.5e-6 in the loss and 6e-6 in gradients, of which the largest is 1.3,
    # were seen; five times as much is allowed, since processors differ in the order of their sums.
    assert loss == pytest.approx(expected, abs=1e-5)
    assert gradients.keys() == reference.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, reference[name], atol=3e-5, rtol=1e-4)


def _image(page):
    from rsgrpo.data.images.loading import load_image

    return load_image(page.image, READING_RULES)


def test_going_on_from_a_checkpoint_gives_what_training_in_one_go_gives(model, pairs, tmp_path) -> None:
    # Adapters with dropout: the states of the generators count as well.
    lora = LoraConfig(rank=2, dropout=0.2, target_modules=["q_proj", "v_proj"])
    config = settings(lora=lora, max_steps=4, negatives=NegativesConfig(num_pages=1, margin=0.1), int8_weight=0.1)
    whole = training(config, model, pairs, tmp_path / "whole", first := Recorder())
    whole.train()
    later = training(config, model, pairs, tmp_path / "later", Recorder())
    later.train(first.checkpoints[2])
    expected = dict(whole._model.named_parameters())
    trained = [name for name, parameter in expected.items() if parameter.requires_grad]
    assert trained and all("lora_" in name and "visual" not in name for name in trained)
    for name, parameter in later._model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    # And merged, the model computes the same without adapters.
    vectors = whole._embedder().embed_queries(QUERIES)
    whole.save_adapter(tmp_path / "adapter")
    whole.save(tmp_path / "merged")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    merged = SentenceEmbedder(EmbedderConfig(model=str(tmp_path / "merged"), device="cpu"))
    np.testing.assert_allclose(merged.embed_queries(QUERIES), vectors, atol=2e-6)
    with pytest.raises(RetrieverTrainingError, match="holds other weights than are trained"):
        training(settings(max_steps=4), model, pairs, tmp_path / "other", Recorder()).train(first.checkpoints[2])


def test_shortened_vectors_beyond_the_models_own_are_refused(model, pairs, tmp_path) -> None:
    with pytest.raises(EmbeddingError, match=r"matryoshka_dimensions names 64, and vectors of .* have 32 numbers"):
        training(settings(matryoshka_dimensions=[16, 64]), model, pairs, tmp_path, Recorder())


def test_a_plain_model_without_a_preset_is_refused_by_the_settings_name(model) -> None:
    with pytest.raises(EmbeddingError, match=r"set retriever\.preset=last_token or visrag"):
        load_start_model(settings(preset="auto"), model)


def test_a_loss_that_is_no_number_ends_training_with_a_sentence(model, pairs, tmp_path) -> None:
    run = training(settings(), model, pairs, tmp_path, Recorder())
    with torch.no_grad():
        next(run._model.parameters()).fill_(float("nan"))
    with pytest.raises(RetrieverTrainingError, match=r"loss of step 1 is no finite number.*lower"):
        run.train()
