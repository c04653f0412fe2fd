"""stage=retriever from settings to summary, on a small random model: each recipe, going on, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from recipes.pipeline import run
from recipes.plan.gpus import PlanError
from recipes.retriever.rank_messages import RankFailed
from recipes.retriever.ranks import _failure, _Rank
from recipes.setup.first_checks import check_first
from rsgrpo.config import Config, ConfigError
from rsgrpo.config.embedder import EmbedderConfig
from rsgrpo.data.file_bytes import DataError
from rsgrpo.retrieval.embedders.sentence_embedder import SentenceEmbedder
from rsgrpo.run.logger import read_metrics
from rsgrpo.run.report.curves import _SPECS
from rsgrpo.run.summary import read_summary
from rsgrpo.trainer.checkpoint import CheckpointError
from tests.tiny_model import build_tiny_model
from tests.unit.composition import composed
from tests.unit.retrieval.pair_files import write_pairs_file, write_test_set

SMALL = (
    "cluster.device=cpu",
    "trainer.num_ranks=1",
    "trainer.num_threads=1",
    "logging.wandb_mode=disabled",
    "logging.progress=false",
    "retriever.max_steps=3",
    "retriever.num_epochs=3",
    "retriever.batch_size=4",
    "retriever.micro_batch_size=4",
    "retriever.validation_samples=3",
    "retriever.validate_every_steps=2",
    "retriever.save_every_steps=2",
    "retriever.max_pixels=12544",
    "retriever.max_tokens=512",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model, the same as an embedder, training pairs on pages 0 to 13 and a test set on pages 14 to 19."""
    folder = tmp_path_factory.mktemp("world")
    build_tiny_model(folder / "plain")
    reader = Transformer(str(folder / "plain"))
    modules = [reader, Pooling(reader.get_embedding_dimension(), "lasttoken"), Normalize()]
    SentenceTransformer(modules=modules, prompts={"query": "Find it."}).save(str(folder / "embedder"))
    pairs = write_pairs_file(folder, 20, sources=("a", "b"), negatives=1)
    lines = pairs.read_text().splitlines(keepends=True)
    pairs.write_text("".join(lines[:14]))
    write_test_set(folder / "test", range(14, 20))
    return folder


def settings(world: Path, folder: Path, recipe: str, *more: str, model: str = "plain") -> Config:
    return composed(
        f"recipe={recipe}",
        *SMALL,
        f"run_dir={folder / 'run'}",
        f"model.path={world / model}",
        f"retriever.data=[{world / 'pairs.jsonl'}]",
        f"retriever.test_path={world / 'test'}",
        f"data.media_cache={folder / 'cache'}",
        *more,
    )


def test_visrags_recipe_trains_measures_and_reports(world: Path, tmp_path: Path) -> None:
    config = settings(world, tmp_path, "retriever_visrag")
    assert check_first(config) == []
    report = run(config)
    assert report is not None and "Page retriever" in report.read_text()
    summary = read_summary(tmp_path / "run" / "summary.json")
    assert summary.retriever is not None and summary.retriever.num_steps == 3
    assert summary.retrieval.keys() == {"before_retriever", "after_retriever"}
    assert summary.retrieval["after_retriever"].num_pages == 6
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row.stage == "retriever"]
    assert [row.step for row in rows] == [1, 2, 3]
    names = rows[1].values
    curves = [spec for spec in _SPECS if spec.stage == "retriever"]
    assert curves and all(any(re.fullmatch(spec.pattern, name) for name in names) for spec in curves)
    assert ["eval/mrr@10" in row.values for row in rows] == [False, True, False]
    trained = SentenceEmbedder(EmbedderConfig(model=str(tmp_path / "run/models/retriever"), device="cpu"))
    assert trained.identity.pooling == "weightedmean"
    assert trained.identity.query_instruction == "Represent this query for retrieving relevant documents: "
    report_of_data = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report_of_data["retriever"]["pairs"] == 14


def test_the_modern_recipe_trains_an_embedder_with_adapters(world: Path, tmp_path: Path) -> None:
    more = ("retriever.matryoshka_dimensions=[16,8]", "retriever.keep_adapter=true", "model.dtype=float32")
    run(settings(world, tmp_path, "retriever_modern", *more, model="embedder"))
    models = tmp_path / "run" / "models"
    assert (models / "retriever_adapter" / "adapter_config.json").is_file()
    shortened = SentenceEmbedder(EmbedderConfig(model=str(models / "retriever"), dimension=8, device="cpu"))
    assert shortened.embed_queries(["page number 3?"]).shape == (1, 8)


def test_the_quickstart_makes_its_own_pages_and_model(tmp_path: Path) -> None:
    config = composed(
        "recipe=retriever_quickstart",
        *(setting for setting in SMALL if not setting.startswith(("retriever.max_pixels", "retriever.max_tokens"))),
        f"run_dir={tmp_path / 'run'}",
        f"data.media_cache={tmp_path / 'cache'}",
        "quickstart.num_retriever_samples=40",
        "quickstart.num_test_pages=8",
        "quickstart.num_sft_samples=64",
        "quickstart.text_hidden=32",
        "quickstart.vision_hidden=32",
        "quickstart.text_layers=1",
    )
    check_first(config)
    run(config)
    summary = read_summary(tmp_path / "run" / "summary.json")
    assert summary.retrieval["after_retriever"].num_pages == 8


def test_a_run_goes_on_from_its_checkpoint_and_forgets_what_came_after(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(world, tmp_path, "retriever_quickstart", "retriever.validation_samples=0")
    whole = dataclasses.replace(config, run_dir=str(tmp_path / "whole"))
    run(whole)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    from recipes.retriever import rank_work

    with monkeypatch.context() as patched:
        patched.setattr(rank_work, "remove_old_checkpoints", lambda *_, **__: stop())
        with pytest.raises(KeyboardInterrupt):
            run(config)  # ends as the checkpoint of step 2 is complete
    run(dataclasses.replace(config, resume="auto"))
    models = [
        folder / "models" / "retriever" / "model.safetensors" for folder in (tmp_path / "whole", tmp_path / "run")
    ]
    assert models[0].read_bytes() == models[1].read_bytes()
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row.stage == "retriever"]
    assert [row.step for row in rows] == [1, 2, 3]


def test_other_data_than_a_checkpoint_was_trained_on_are_refused(world: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    lines = (world / "pairs.jsonl").read_text().replace("imgs/", f"{world}/imgs/").splitlines(keepends=True)
    pairs.write_text("".join(lines))
    config = settings(world, tmp_path, "retriever_quickstart", f"retriever.data=[{pairs}]", "retriever.test_path=''")
    run(config)
    (tmp_path / "run" / "models" / "retriever").rename(tmp_path / "gone")
    pairs.write_text("".join(lines[1:]))
    with pytest.raises(CheckpointError, match="was trained on other pairs"):
        run(dataclasses.replace(config, resume="auto"))


def test_pages_of_the_test_set_are_refused_as_training_pages(world: Path, tmp_path: Path) -> None:
    write_test_set(world / "leaking", [0, 1])
    config = settings(world, tmp_path, "retriever_quickstart", f"retriever.test_path={world / 'leaking'}")
    with pytest.raises(DataError, match=r"2 × page of the test set"):
        run(config)


def test_questions_that_are_too_long_are_refused_by_their_line(world: Path, tmp_path: Path) -> None:
    config = settings(world, tmp_path, "retriever_visrag", "retriever.max_tokens=100")
    # One token a byte: VisRAG's instruction has 56, and 48 are kept for the template.
    with pytest.raises(DataError, match=r"line 1: its query has \d+ tokens .* retriever.max_tokens=100 leaves 52"):
        run(config)


@pytest.mark.parametrize(
    ("setting", "kind", "words"),
    [
        ("retriever.data=[nowhere.jsonl]", DataError, r"retriever.data\[0\]: .*nowhere.jsonl"),
        ("retriever.test_path=nowhere", DataError, "retriever.test_path=nowhere is no folder"),
        ("model.path=''", ConfigError, "model.path is empty; name the model to start from"),
        ("retriever.data=[]", DataError, "retriever.test_path is set and retriever.data is empty"),
    ],
    ids=["data", "test", "model", "only a test"],
)
def test_slips_show_before_anything_is_read(world: Path, tmp_path: Path, setting, kind, words) -> None:
    with pytest.raises(kind, match=words):
        check_first(settings(world, tmp_path, "retriever_quickstart", setting))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trainer.num_ranks=3", "retriever.batch_size=4 is shared out evenly over trainer.num_ranks=3"),
        ("cluster.num_nodes=2", "stage=retriever trains on this machine alone"),
        ("retriever.negatives.margin=3", "retriever.negatives.margin=3.0 is too large"),
        ("retriever.matryoshka_dimensions=[8,8]", "names a length twice"),
        ("retriever.preset=multi_vector", "retriever.preset='multi_vector' is not known"),
        ("retriever.max_pixels=2000000", "retriever.max_pixels=2000000 is too large"),
    ],
    ids=lambda text: text.partition("=")[0],
)
def test_settings_that_cannot_work_are_refused(world: Path, tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings(world, tmp_path, "retriever_quickstart", setting)


def test_a_plan_of_a_retrievers_training_is_refused(world: Path, tmp_path: Path) -> None:
    config = settings(world, tmp_path, "retriever_quickstart", "plan=true", "cluster.device=auto")
    with pytest.raises(PlanError, match="not for stage=retriever"):
        run(config)


def test_the_rank_that_knows_the_reason_is_heard_among_those_that_only_miss_it(tmp_path: Path) -> None:
    from multiprocessing import Pipe

    def rank(number: int, word: RankFailed | None) -> _Rank:
        made = object.__new__(_Rank)
        made.number, made.log = number, tmp_path / f"{number}.log"
        made.connection, theirs = Pipe()
        if word is not None:
            theirs.send(word)
        theirs.close()
        return made

    lost = RankFailed(sentence="connection closed by peer", is_foreseen=False, trace="trace")
    known = RankFailed(sentence="image 'a.png' does not exist; put it back", is_foreseen=True, trace="")
    first = rank(0, None)
    assert str(_failure(first, lost, [rank(1, known)])) == known.sentence
    assert "rank 0 failed: connection closed by peer" in str(_failure(first, lost, [rank(1, lost)]))
    assert (tmp_path / "0.log").read_text() == "trace"
