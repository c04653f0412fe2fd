"""The plan of every family: operations, caches and parts of memory by hand; conversations of several rows."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from recipes.plan.engine_cache import CachePages, cache_pages, delta_state_bytes
from recipes.plan.estimate import Estimate, Facts, estimate
from recipes.plan.gpus import read_gpus
from recipes.plan.memory import engine_memory
from recipes.plan.output import plan_lines
from recipes.plan.reading import ImageCounter, Reader
from recipes.plan.timing import forward_operations, rule_seconds, weights_seconds
from recipes.plan.workload import DataSet, Item, Stage, step_work, steps_of
from rsgrpo.config import Config, DataConfig, LoraConfig, ModelConfig, SftConfig, SourceConfig, VisionCacheConfig
from rsgrpo.data.images.image_tokens import ImageTokens
from rsgrpo.model.activation_memory import PackedSize
from rsgrpo.model.attention.delta_net import padded_size
from rsgrpo.model.families.table import FAMILIES
from rsgrpo.model.folder import load_processor
from rsgrpo.model.micro_batches import plan_micro_batches
from rsgrpo.model.policy_model import group_sizes
from rsgrpo.model.sizes import model_sizes
from rsgrpo.prompts.conversation import ConversationBuilder, ResponsePart, count_tokens
from rsgrpo.types import ChatPrompt, ImageRef, Sample, Turn
from tests.examples import examples
from tests.published_sizes import PUBLISHED, write_config
from tests.tiny_model import build_tiny_model, write_images
from tests.unit.composition import composed
from tests.unit.prompts.chat import THINKING

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

from bare_step import BareStep
from workload import NARROW, GroupShape, build_group, build_model

ASSUMED, KINDS = read_gpus()
RECIPES = {
    "evisrag_qwen3_vl_4b": "Qwen3-VL-4B",
    "evisrag_qwen3_5_2b": "Qwen3.5-2B",
    "evisrag_qwen3_5_9b": "Qwen3.5-9B",
    "sft_mgrounding": "Qwen2-VL-7B",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that hold nothing but the config of a published model."""
    return {name: write_config(name, tmp_path_factory.mktemp(name.replace(".", "_"))) for name in PUBLISHED}


def _stage(config: Config, name: str) -> Stage:
    """A step of 32 questions of 400 tokens and three pages each, with answers of 300 tokens where none are sampled."""
    items = tuple(
        Item(
            sample_id=f"q{number}",
            prompt_text_tokens=400,
            images=tuple(ImageRef(path=f"{number}-{page}.png") for page in range(3)),
            answer_text_tokens=300,
        )
        for number in range(32)
    )
    is_sampled = name == "rl"
    return Stage(
        name=name,
        data=DataSet(name=name, items=items, num_items=32),
        per_step=32,
        num_samples=config.rl.samples_per_prompt if is_sampled else 1,
        max_response_tokens=config.rollout.sampling.max_response_tokens if is_sampled else 0,
        num_steps=10,
    )


def _planned(recipe: str, folders: dict[str, Path], config: Config | None = None) -> tuple[Config, Facts, Estimate]:
    config = config or composed(f"recipe={recipe}")
    model = RECIPES[recipe]
    area = FAMILIES[PUBLISHED[model].family].token_pixels ** 2
    names = {"all": ("sft", "rl"), "sft": ("sft",)}[config.stage]
    facts = Facts(
        folder=folders[model],
        stages=tuple(_stage(config, name) for name in names),
        tokens_of_image=lambda _, pixels: pixels // area,
        gpu=KINDS["H100"],
        assumed=ASSUMED,
    )
    return config, facts, estimate(config, facts)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipes_table_is_that_of_its_model(recipe: str, folders: dict[str, Path]) -> None:
    config, facts, found = _planned(recipe, folders)
    assert found.problems == ()
    assert found.gpus == (8 if config.stage == "sft" else config.cluster.num_nodes * config.cluster.gpus_per_node)
    assert found.rank is not None
    size = PUBLISHED[RECIPES[recipe]]
    # ZeRO 3 in bfloat16: 2 bytes of each parameter split over the ranks, beside norms and biases that all hold.
    assert found.rank.parts["weights"] == pytest.approx(2 * size.num_parameters / config.trainer.num_ranks, rel=0.01)
    # With recomputation each layer keeps its input alone, 2 bytes of each number of the stream, and all share angles.
    tokens, head = found.rank.packed.num_tokens, size.text.get("head_dim", 128)
    kept = 2 * tokens * (size.text["num_hidden_layers"] * size.text["hidden_size"] + 2 * head)
    assert found.rank.activations.kept == kept
    assert tokens == pytest.approx(config.trainer.micro_batch_tokens, rel=0.05)
    if config.stage == "sft":
        assert found.engine is None
    else:
        assert found.engine is not None
        engine_weights = 2 * size.num_parameters // config.rollout.tensor_parallel_size
        assert found.engine.parts["weights"] == engine_weights
    lines = plan_lines(config, facts, found, [])
    assert f"{size.num_parameters / 1e9:.3f}·10⁹ parameters" in "\n".join(lines)


@pytest.mark.parametrize(
    ("model", "num_gpus", "expected", "longest"),
    [
        # 36 layers of 8 heads, 128 wide: 2 · 8 · 128 · 2 = 4,096 bytes a token and layer. 16,536 tokens: 1,034 pages.
        ("Qwen3-VL-4B", 1, CachePages(page_tokens=16, page_bytes=16 * 4096 * 36, token_groups=1, state_pages=0), 1034),
        # 4,096 bytes a token in 8 layers, 2,146,304 a state: 524 tokens' worth, rounded up to 33 · 16. 24 layers with
        # states are three groups of 8, which hold two pages each; 16,536 tokens are 32 pages.
        ("Qwen3.5-9B", 1, CachePages(page_tokens=528, page_bytes=8 * 528 * 4096, token_groups=1, state_pages=6), 38),
        # Two GPUs share the heads: as many tokens a page, half the bytes.
        ("Qwen3.5-9B", 2, CachePages(page_tokens=528, page_bytes=8 * 528 * 2048, token_groups=1, state_pages=6), 38),
        # 2,048 bytes a token in 6 layers; 16 · 128 · 128 · 4 + 3 · 6,144 · 2 = 1,085,440 a state: 530 tokens, 34 · 16.
        ("Qwen3.5-2B", 1, CachePages(page_tokens=544, page_bytes=6 * 544 * 2048, token_groups=1, state_pages=6), 37),
    ],
)
def test_caches_are_divided_as_by_hand(
    model: str, num_gpus: int, expected: CachePages, longest: int, folders: dict[str, Path]
) -> None:
    sizes = model_sizes(folders[model], ModelConfig())
    found = cache_pages(sizes.language, weight_bytes=2, num_gpus=num_gpus)
    assert found == expected
    assert found.of_sequence(16536) == longest * found.page_bytes


@given(num_tokens=st.integers(1, 100_000), more=st.integers(0, 100_000))
@examples(50)
def test_only_layers_that_attend_take_more_for_longer_sequences(num_tokens: int, more: int) -> None:
    pages = CachePages(page_tokens=528, page_bytes=1000, token_groups=1, state_pages=6)
    short, long = pages.of_sequence(num_tokens), pages.of_sequence(num_tokens + more)
    assert 6000 < short <= long
    # No more than the tokens' own pages, and one that is begun.
    assert long - short <= 1000 * (more // 528 + 1)


def test_states_are_read_once_a_sequence_whatever_its_length(folders: dict[str, Path]) -> None:
    hybrid, attending = (model_sizes(folders[name], ModelConfig()).language for name in ("Qwen3.5-9B", "Qwen3-VL-4B"))
    # 24 layers, each 32 states of 128 · 128 in float32 and 3 inputs of 2 · 2,048 + 4,096 channels in bfloat16.
    assert delta_state_bytes(hybrid, 2) == 24 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)
    assert delta_state_bytes(attending, 2) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_torch_counts(family: str, tmp_path: Path) -> None:
    layers = 4 if FAMILIES[family].delta_net else 2
    folder = build_model(dataclasses.replace(NARROW, layers=layers), tmp_path / "model", family=family)
    config = ModelConfig(dtype="float32")
    step = BareStep(folder, config, torch.device("cpu"))
    shape = GroupShape(
        prompt_tokens=320, response_tokens=64, num_responses=2, num_images=2, token_pixels=FAMILIES[family].token_pixels
    )
    group = build_group(shape, tmp_path)
    prompts = step.encoder.encode([group.prompt])
    (segments,) = plan_micro_batches(group_sizes([group], prompts), budget=10**6, share_prefix=True)
    batch = step.rows.build(segments, [group], prompts)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        step.policy(batch)
    counted = {name.rpartition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    assert batch.pixel_values is not None
    padded, chunks = padded_size([320], [64, 64])
    packed = PackedSize(
        num_tokens=448,
        num_response_tokens=128,
        num_patches=len(batch.pixel_values),
        num_pairs=segments[0].num_pairs,
        num_padded=padded,
        num_chunks=chunks,
    )
    language, head, vision = forward_operations(model_sizes(folder, config), packed)
    assert language == pytest.approx(counted["language_model"], rel=0.05)
    assert head == counted["lm_head"]
    # A CPU's attention in the tower is not counted: neither are pairs of patches here, and few windows.
    assert vision == pytest.approx(counted["visual"], rel=0.05)


def test_the_rule_is_computed_in_float32(folders: dict[str, Path]) -> None:
    sizes = model_sizes(folders["Qwen3.5-9B"], ModelConfig())
    packed = PackedSize(num_tokens=640, num_response_tokens=64)
    gpu = KINDS["H100"]

    def seconds(config: ModelConfig) -> float:
        return rule_seconds(Config(stage="eval", model=config), sizes, packed, gpu, ASSUMED, passes=2)

    # A token and layer, of 16 and 32 heads: 64 · (16 · 4 · 128 + 32 · 4 · 128) in its chunk, 6 · 32 · 128 · 128 with
    # states. At 67 instead of 989 teraflops each takes 1 / 67 - 1 / 989 longer, at the share of a peak that is reached.
    operations = 2 * 640 * 24 * (64 * (16 * 4 * 128 + 32 * 4 * 128) + 6 * 32 * 128 * 128)
    expected = operations * (1 / 67 - 1 / 989) * 1e-12 / ASSUMED.matrix_share
    assert seconds(ModelConfig()) == pytest.approx(expected)
    assert seconds(ModelConfig(dtype="float32")) == 0.0
    attending = model_sizes(folders["Qwen3-VL-4B"], ModelConfig())
    assert rule_seconds(Config(stage="eval"), attending, packed, gpu, ASSUMED, passes=2) == 0.0


def test_engines_that_take_adapters_alone_get_few_bytes(folders: dict[str, Path]) -> None:
    merged, alone = (
        Config(stage="eval", model=ModelConfig(lora=LoraConfig(rank=8, update=update)))
        for update in ("merged", "adapter")
    )
    sizes = model_sizes(folders["Qwen3.5-9B"], merged.model)
    whole, few = (weights_seconds(config, sizes, KINDS["H100"], ASSUMED) for config in (merged, alone))
    assert few / whole == pytest.approx(sizes.num_adapters / (sizes.num_elements - sizes.num_vision))
    # Merged, adapters are no weights of their own.
    engines = [
        engine_memory(config, sizes, None, KINDS["H100"], ASSUMED).parts["weights"] for config in (merged, alone)
    ]
    assert engines[1] - engines[0] == 2 * sizes.num_adapters


def test_stored_features_are_counted_with_all_their_levels(folders: dict[str, Path]) -> None:
    recipe = "evisrag_qwen3_vl_4b"
    config = composed(f"recipe={recipe}")
    stored = dataclasses.replace(
        config, model=dataclasses.replace(config.model, vision_cache=VisionCacheConfig(folder="features"))
    )
    _, _, live = _planned(recipe, folders)
    _, facts, cached = _planned(recipe, folders, stored)
    assert live.rank is not None and cached.rank is not None
    # Three pages of 1,568,000 // 1,024 = 1,531 tokens a question; [main | level 1 | 2 | 3] of 2,560 numbers each.
    assert cached.rank.packed.num_stored % (3 * 1531) == 0
    assert live.rank.packed.num_patches == 4 * cached.rank.packed.num_stored
    assert cached.rank.activations.pixels == 2 * 4 * 2560 * cached.rank.packed.num_stored
    assert cached.stages[0].step_seconds < live.stages[0].step_seconds  # no tower runs
    assert facts.model(config.model).feature_width == 4 * 2560


def _conversations(folder: Path, num_turns: int) -> list[Sample]:
    """Three conversations, of which each answer begins with thoughts, about a page or without one."""
    images = write_images(folder, [(64, 64)])
    turns = []
    for number in range(num_turns):
        turns.append(Turn(role="user", text=f"Question {number}?"))
        turns.append(Turn(role="assistant", text=f"<think>\nThoughts {number}.\n</think>\n\nAnswer {number}."))
    shown = [Turn(role="user", text="<image>Look."), *turns[1:]]
    return [
        Sample(sample_id="text", turns=tuple(turns)),
        Sample(sample_id="page", turns=tuple(shown), images=(images[0],)),
        Sample(sample_id="short", turns=tuple(turns[:2])),
    ]


def _as_records(samples: Sequence[Sample], file: Path) -> None:
    people = {"user": "human", "assistant": "gpt"}
    records = []
    for sample in samples:
        turns = [{"from": people[turn.role], "value": turn.text} for turn in sample.turns]
        image = {"image": [Path(ref.file).name for ref in sample.images]} if sample.images else {}
        records.append({"id": sample.sample_id, "conversations": turns, **image})
    file.write_text(json.dumps(records))


@pytest.mark.parametrize("drops_thoughts", [False, True])
def test_all_rows_of_a_conversation_count(drops_thoughts: bool, tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "model", family="qwen3_5")
    processor = load_processor(folder)
    if drops_thoughts:
        processor.chat_template = THINKING
    samples = _conversations(tmp_path / "pages", num_turns=3)
    file = tmp_path / "talks.json"
    _as_records(samples, file)
    source = SourceConfig(format="llava", path=str(file), media_root=str(tmp_path / "pages"))
    config = Config(
        stage="sft",
        data=DataConfig(mixture=[source], min_pixels=784),
        sft=SftConfig(samples_per_step=3, validation_samples=0),
    )
    counter = ImageCounter(config, processor)
    (stage,) = Reader(config, processor, tmp_path, counter.count).stages()
    # Where thoughts of earlier turns are dropped, each of the three answers of a conversation is a row of its own.
    assert [len(item.rows) for item in stage.data.items] == ([3, 3, 1] if drops_thoughts else [1, 1, 1])
    assert stage.num_steps == 1
    work = step_work(steps_of(stage)[0], stage, config, counter.count, patches_a_token=4, frac=1.0)
    tokens_of = ImageTokens(processor.image_processor, config.data.image_rules).count
    rows = [row for sample in samples for row in ConversationBuilder(config.prompt, processor).build(sample)]
    parts: list[ChatPrompt | ResponsePart] = [row.prompt for row in rows]
    parts += [part for row in rows for part in row.parts]
    counts = [count_tokens(part.text, part.images, processor.tokenizer, tokens_of) for part in parts]
    assert work.num_tokens == sum(counts)


def test_a_conversation_with_a_row_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "model", family="qwen3_5")
    processor = load_processor(folder)
    processor.chat_template = THINKING
    file = tmp_path / "talks.json"
    _as_records(_conversations(tmp_path / "pages", num_turns=3), file)
    source = SourceConfig(format="llava", path=str(file), media_root=str(tmp_path / "pages"))
    # One token a byte: rows of 108, 149 and 190 tokens, and one of 108 that is a conversation by itself.
    config = Config(
        stage="sft",
        data=DataConfig(mixture=[source], min_pixels=784, on_bad_sample="skip"),
        sft=SftConfig(samples_per_step=1, max_tokens=170),
    )
    (stage,) = Reader(config, processor, tmp_path, ImageCounter(config, processor).count).stages()
    assert [len(item.rows) for item in stage.data.items] == [1]
