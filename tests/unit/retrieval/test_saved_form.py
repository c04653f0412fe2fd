"""What a model's folder says of its vectors, read as sentence-transformers does; refused where vLLM would differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.indexing.places import make_single_embedder
from rsgrpo.config.embedder import VISRAG_INSTRUCTION, EmbedderConfig
from rsgrpo.retrieval.embedders.embedder import EmbeddingError
from rsgrpo.retrieval.embedders.saved_form import SavedForm, query_instruction, read_form, write_instruction

READER = {"type": "sentence_transformers.base.modules.transformer.Transformer", "path": ""}
POOLING = {"type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling", "path": "1_Pooling"}
NORMALIZE = {"type": "sentence_transformers.base.modules.normalize.Normalize", "path": "2_Normalize"}
DENSE = {"type": "sentence_transformers.base.modules.dense.Dense", "path": "2_Dense"}


def save(folder: Path, *, modules: Any = (READER, POOLING, NORMALIZE), pooling: Any = None, **files: Any) -> Path:
    """Write what sentence-transformers saves beside a model."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(list(modules)))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode": "lasttoken"}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_prompts_and_settings_are_read_as_they_were_saved(tmp_path: Path) -> None:
    folder = save(
        tmp_path / "m",
        pooling={
            "pooling_mode_lasttoken": False,
            "pooling_mode_weightedmean_tokens": True,
        },  # as older releases have it
        sentence_bert_config={
            "processing_kwargs": {"image": {"max_pixels": 9}, "chat_template": {"add_generation_prompt": True}}
        },
        config_sentence_transformers={"prompts": {"query": "Find.", "passage": "P", "corpus": "C"}},
    )
    assert read_form(EmbedderConfig(model=str(folder)), folder) == SavedForm(
        pooling="weightedmean",
        query_prompt="Find.",
        page_prompt="P",
        image_settings={"max_pixels": 9},
        template_settings={"add_generation_prompt": True},
    )


def test_a_plain_model_has_the_pooling_of_its_preset(tmp_path: Path) -> None:
    config = EmbedderConfig(model=str(tmp_path), preset="visrag")
    assert read_form(config, tmp_path) == SavedForm(pooling="weightedmean")
    with pytest.raises(EmbeddingError, match=r"has no modules.json"):
        read_form(EmbedderConfig(model=str(tmp_path)), tmp_path)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"modules": (READER, POOLING, DENSE)}, r"saved with the module Dense in 2_Dense, which embedder.runner=vllm"),
        ({"modules": (READER, NORMALIZE)}, r"saved with no module Pooling"),
        ({"pooling": {"pooling_mode": "cls"}}, r"saved with the pooling cls, which embedder.runner=vllm cannot do"),
        ({"pooling": {"pooling_mode": ["mean", "max"]}}, r"the pooling mean\+max"),
        ({"pooling": {"pooling_mode": "mean", "include_prompt": False}}, r"the pooling mean without the prompt"),
        ({"sentence_bert_config": {"processing_kwargs": {"text": {}}}}, r"saved with settings of text"),
        ({"sentence_bert_config": {"modality_config": {"text": {}}}}, r"saved with texts without a chat template"),
    ],
    ids=["projection", "no_pooling", "cls", "two", "without_prompt", "text_settings", "no_template"],
)
def test_what_vllm_cannot_do_alike_is_refused(tmp_path: Path, saved: dict[str, Any], message: str) -> None:
    folder = save(tmp_path / "m", **saved)
    with pytest.raises(EmbeddingError, match=message):
        make_single_embedder(EmbedderConfig(model=str(folder), runner="vllm"))


def test_a_preset_does_not_override_what_a_model_was_saved_with(tmp_path: Path) -> None:
    folder = save(tmp_path / "m")
    with pytest.raises(EmbeddingError, match=r"saved with the pooling lasttoken, embedder.preset=visrag is weightedme"):
        read_form(EmbedderConfig(model=str(folder), preset="visrag"), folder)
    (folder / "modules.json").write_text("{")
    with pytest.raises(EmbeddingError, match=r"modules.json.*copy the model's folder again"):
        read_form(EmbedderConfig(model=str(folder)), folder)


def test_the_instruction_stands_where_the_model_was_trained_with_it(tmp_path: Path) -> None:
    auto, visrag = EmbedderConfig(model="m"), EmbedderConfig(model="m", preset="visrag")
    given = EmbedderConfig(model="m", query_instruction="Look.")
    assert query_instruction(auto, tmp_path, "Find.") == ("Find.", "prompt")
    assert query_instruction(visrag, tmp_path, "Find.") == (VISRAG_INSTRUCTION, "text")
    assert query_instruction(given, tmp_path, "Find.") == ("Look.", "prompt")
    write_instruction(tmp_path, "Which page?")
    assert query_instruction(auto, tmp_path, "Find.") == ("Which page?", "text")
    assert query_instruction(given, tmp_path, "Find.") == ("Look.", "prompt")
