"""The plan: laws of its memory, its tokens in an example by hand, what it refuses and proposes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from recipes.plan.command import show_plan
from recipes.plan.estimate import Facts, estimate
from recipes.plan.gpus import GpuKind, PlanError, gpu_kind, read_gpus
from recipes.plan.output import plan_lines, refusal
from recipes.plan.proposals import proposals
from recipes.plan.reading import ImageCounter, Reader, spread
from recipes.plan.workload import DataSet, Item, Stage, step_work, steps_of
from recipes.setup.preparation import PromptLengths
from rsgrpo.config import (
    ClusterConfig,
    Config,
    DataConfig,
    LoraConfig,
    ModelConfig,
    PlanConfig,
    RewardConfig,
    RlConfig,
    RolloutConfig,
    SamplingConfig,
    ScopeConfig,
    SftConfig,
    TrainerConfig,
)
from rsgrpo.data.evisrag_files import load_samples, write_evisrag
from rsgrpo.model.memory_bounds import bucket_elements
from rsgrpo.model.sizes import ParameterSize, model_sizes
from rsgrpo.prompts.template import PromptBuilder
from rsgrpo.trainer.state_memory import aligned_share, split_elements, state_memory
from rsgrpo.types import ImageRef, Sample
from tests.examples import examples
from tests.tiny_model import build_tiny_model, write_images

ASSUMED, KINDS = read_gpus()

parameters = st.lists(
    st.builds(
        ParameterSize,
        name=st.just("p"),
        num_elements=st.integers(1, 10_000_000),
        is_trained=st.booleans(),
        is_vision=st.booleans(),
    ),
    min_size=1,
    max_size=20,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's processor with the config of Qwen2.5-VL-3B; the weights do not belong to it."""
    place = build_tiny_model(tmp_path_factory.mktemp("model"))
    file = place / "config.json"
    content = json.loads(file.read_text())
    content["text_config"] |= {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 128000,
        "layer_types": ["full_attention"] * 36,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    content["vision_config"] |= {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
    }
    content["tie_word_embeddings"] = True
    file.write_text(json.dumps(content))
    for weights in place.glob("*.safetensors"):
        weights.unlink()  # nobody may read them
    return place


def _config(**trainer: object) -> Config:
    return Config(
        stage="rl",
        data=DataConfig(rl_path="-", test_path="-"),
        trainer=TrainerConfig(**{"num_ranks": 4, "zero_stage": 3, **trainer}),  # type: ignore[arg-type]
        rl=RlConfig(prompts_per_step=2, samples_per_prompt=4),
        rollout=RolloutConfig(num_workers=4),
        rewards={"accuracy": _reward()},
    )


def _reward() -> RewardConfig:
    return RewardConfig(function="rewards.functions.accuracy:accuracy", scope=ScopeConfig(start="begin", stop="end"))


def _facts(folder: Path, gpu: GpuKind = KINDS["H100"], response: int = 1000) -> Facts:
    items = tuple(
        Item(sample_id=f"q{index}", prompt_text_tokens=100, images=(ImageRef(path=f"{index}.png"),) * 3)
        for index in range(8)
    )
    stage = Stage(
        name="rl",
        data=DataSet(name="rl", items=items, num_items=8),
        per_step=2,
        num_samples=4,
        max_response_tokens=response,
        num_steps=10,
    )
    return Facts(
        folder=folder, stages=(stage,), tokens_of_image=lambda _, pixels: pixels // 784, gpu=gpu, assumed=ASSUMED
    )


@given(found=parameters, num_ranks=st.integers(1, 64), weight_bytes=st.sampled_from([2, 4]))
@examples(100)
def test_states_shrink_with_the_zero_stage(found: list[ParameterSize], num_ranks: int, weight_bytes: int) -> None:
    zero_1, zero_2, zero_3 = (
        state_memory(found, num_ranks=num_ranks, zero_stage=stage, weight_bytes=weight_bytes) for stage in (1, 2, 3)
    )
    # ZeRO 3 pads each parameter to the ranks, and leaves those of up to 100,000 elements whole beside their parts.
    padding = 4 * num_ranks * len(found)
    small = weight_bytes * sum(p.num_elements for p in found if p.num_elements <= 100_000)
    assert zero_2.gradients <= zero_1.gradients
    assert (zero_2.masters, zero_2.moments, zero_2.weights) == (zero_1.masters, zero_1.moments, zero_1.weights)
    assert zero_3.weights <= zero_2.weights + small + padding
    assert (
        zero_3.gradients + zero_3.masters + zero_3.moments
        <= zero_2.gradients + zero_2.masters + zero_2.moments + 4 * padding
    )


@given(found=parameters, num_ranks=st.integers(1, 32))
@examples(100)
def test_twice_the_ranks_halve_what_is_split(found: list[ParameterSize], num_ranks: int) -> None:
    for split in (aligned_share, split_elements):
        few, many = split(found, num_ranks), split(found, 2 * num_ranks)
        assert few <= 2 * many <= few + 4 * len(found)  # rounded up


def test_buckets_grow_with_the_model_up_to_deepspeeds_own_size() -> None:
    assert [bucket_elements(count) for count in (0, 1, 10, 11)] == [2, 2, 10, 12]
    assert bucket_elements(499_999_999) == bucket_elements(7 * 10**9) == 500_000_000
    small, large = (
        ParameterSize(name="a", num_elements=count, is_trained=True, is_vision=False) for count in (10**6, 7 * 10**9)
    )

    def buckets(parameter: ParameterSize, zero_stage: int, weight_bytes: int) -> int:
        return state_memory([parameter], num_ranks=2, zero_stage=zero_stage, weight_bytes=weight_bytes).buckets

    # ZeRO 3: one of float32. ZeRO 2: two that take turns, in bfloat16 their sum in float32 beside them.
    assert (buckets(small, 3, 2), buckets(small, 2, 4), buckets(small, 2, 2)) == (4 * 10**6, 8 * 10**6, 8 * 10**6)
    assert (buckets(large, 3, 2), buckets(large, 2, 4), buckets(large, 2, 2)) == (2 * 10**9, 4 * 10**9, 4 * 10**9)


def test_only_adapters_have_moments_in_lora(folder: Path) -> None:
    sizes = model_sizes(folder, ModelConfig(lora=LoraConfig(rank=16)))
    adapters = [parameter for parameter in sizes.parameters if "lora_" in parameter.name]
    found = state_memory(sizes.parameters, num_ranks=1, zero_stage=2, weight_bytes=2)
    assert sum(parameter.num_elements for parameter in adapters) == sizes.num_trained
    assert found.moments == 8 * sizes.num_trained


def test_sizes_of_the_3b_model_are_the_published_ones(folder: Path) -> None:
    sizes = model_sizes(folder, ModelConfig())
    assert sizes.num_elements == 3_754_622_976
    assert sizes.num_trained == 3_085_938_688  # all but the frozen tower; the head is the embedding
    assert sizes.is_tied


def test_tokens_of_a_step_are_those_of_the_data() -> None:
    # Conversations of 10 + 5, 20 + 6 and 3 + 1 tokens, the second with a page of 16 tokens: 15 + 42 + 4 = 61.
    items = (
        Item(sample_id="a", prompt_text_tokens=10, answer_text_tokens=5),
        Item(sample_id="b", prompt_text_tokens=20, answer_text_tokens=6, images=(ImageRef(path="b.png"),)),
        Item(sample_id="c", prompt_text_tokens=3, answer_text_tokens=1),
    )
    stage = Stage(
        name="sft",
        data=DataSet(name="sft", items=items, num_items=3),
        per_step=3,
        num_samples=1,
        max_response_tokens=0,
        num_steps=1,
    )
    config = Config(stage="sft", sft=SftConfig(samples_per_step=3), trainer=TrainerConfig(micro_batch_tokens=50))
    work = step_work(steps_of(stage)[0], stage, config, lambda *_: 16, patches_a_token=4, frac=1.0)
    assert work.num_tokens == 61
    assert [row.num_tokens for row in work.packs[0]] == [46, 15]  # 42 + 4, and 15
    assert sum(row.num_patches for row in work.packs[0]) == 64


def test_a_prompt_stands_once_for_the_responses_of_its_row(folder: Path) -> None:
    facts = _facts(folder)
    config = _config(num_ranks=1)
    stage = facts.stages[0]
    work = step_work(steps_of(stage)[0], stage, config, lambda *_: 300, patches_a_token=4, frac=0.5)
    # Two groups of 100 + 3 · 300 prompt tokens and four responses of 500 each, in one row of 16,384.
    assert work.num_tokens == 2 * (1000 + 4 * 500)
    assert work.num_sampled_tokens == 4000
    assert work.packs[0][0].num_patches == 2 * 300 * 4  # a group shows one page three times: it is encoded once


@given(memory=st.floats(8.0, 200.0))
@examples(15)
def test_what_fits_also_fits_with_more_memory(folder_of_3b: Facts, memory: float) -> None:
    config = _config()

    def fits(gib: float) -> bool:
        gpu = dataclasses.replace(KINDS["H100"], memory_gib=gib)
        facts = dataclasses.replace(folder_of_3b, gpu=gpu)
        return not estimate(config, facts).problems

    assert not fits(memory) or fits(memory + 1.0)


@pytest.fixture(scope="module")
def folder_of_3b(folder: Path) -> Facts:
    return _facts(folder)


@pytest.mark.parametrize("settings", [{"zero_stage": 1}, {"zero_stage": 2, "num_ranks": 1}, {"zero_stage": 3}])
def test_proposals_fit(folder: Path, settings: dict[str, int]) -> None:
    facts = _facts(folder, dataclasses.replace(KINDS["RTX-4090"], memory_gib=24.0), response=4000)
    config = _config(**settings)
    found = estimate(config, facts)
    assert found.problems
    proposed = proposals(config, facts)
    assert proposed
    for proposal in proposed:
        assert not proposal.estimate.problems
        assert all("=" in override for override in proposal.overrides)
    sentence = refusal(found, proposed)
    assert " ".join(proposed[0].overrides) in sentence
    assert len(sentence) <= 500


def test_nothing_is_proposed_where_nothing_fits(folder: Path) -> None:
    facts = _facts(folder, dataclasses.replace(KINDS["RTX-4090"], memory_gib=1.0))
    config = _config()
    assert proposals(config, facts) == ()
    assert "more memory" in refusal(estimate(config, facts), ())


def test_shared_gpus_are_counted_once(folder: Path) -> None:
    config = _config()
    apart = estimate(config, _facts(folder))
    together = estimate(dataclasses.replace(config, cluster=ClusterConfig(topology="colocated")), _facts(folder))
    assert (apart.gpus, together.gpus) == (8, 4)
    assert together.engine is not None and together.engine.beside > 0
    assert apart.engine is not None and apart.engine.beside == 0


def test_less_work_takes_less_time(folder: Path) -> None:
    facts = _facts(folder)
    slow = estimate(_config(), facts)
    fast = estimate(_config(), dataclasses.replace(facts, gpu=dataclasses.replace(facts.gpu, bfloat16_teraflops=1e4)))
    unshared = estimate(_config(share_prefix=False), facts)
    assert fast.stages[0].step_seconds < slow.stages[0].step_seconds < unshared.stages[0].step_seconds
    assert slow.hours == pytest.approx(10 * slow.stages[0].step_seconds / 3600)


def test_kinds_of_gpus_are_found_by_name() -> None:
    assert gpu_kind("a100-80", KINDS).memory_gib == 80.0
    with pytest.raises(PlanError, match="V100"):
        gpu_kind("V100", KINDS)
    assert ASSUMED.source.startswith("assumed")


def test_samples_are_spread_evenly() -> None:
    samples = [Sample(sample_id=str(index)) for index in range(10)]
    assert [sample.sample_id for sample in spread(samples, 3)] == ["0", "3", "6"]
    assert spread(samples, 10) == samples


def _write_data(folder: Path, count: int) -> Path:
    images = write_images(folder / "imgs", [(56, 84)] * count)
    samples = [
        Sample(
            sample_id=f"q{index}",
            question="What?",
            prompt="<image>What?",
            images=(dataclasses.replace(images[index], path=f"imgs/{index}.png"),),
            gold_response="<observe>a</observe><evidence>b</evidence><think>c</think><answer>d</answer>",
        )
        for index in range(count)
    ]
    from PIL import Image

    shown = {sample.images[0].path: Image.open(sample.images[0].file) for sample in samples}
    write_evisrag(folder / "train.jsonl", samples, shown, layout="train", as_table=False)
    return folder / "train.jsonl"


def _data_config(file: Path, run_dir: Path, **more: object) -> Config:
    return dataclasses.replace(
        _config(),
        run_dir=str(run_dir),
        data=DataConfig(rl_path=str(file), test_path=str(file), min_pixels=784),
        rollout=RolloutConfig(num_workers=4, sampling=SamplingConfig(max_response_tokens=64)),
        **more,  # type: ignore[arg-type]
    )


def test_items_have_the_lengths_that_preparation_counts(folder: Path, tmp_path: Path) -> None:
    file = _write_data(tmp_path, 3)
    config = _data_config(file, tmp_path / "run")
    processor = AutoProcessor.from_pretrained(folder)
    counter = ImageCounter(config, processor)
    (stage,) = Reader(config, processor, tmp_path, counter.count).stages()
    lengths = PromptLengths(config, processor)
    builder = PromptBuilder(config.prompt, processor)
    samples = load_samples(str(file), config.data, is_training=True).samples
    prompts = [builder.prompted(sample).prompt for sample in samples]
    counted = [lengths._count(prompt.text, prompt.images) for prompt in prompts]
    planned = [
        item.prompt_text_tokens + sum(counter.count(image, config.data.max_pixels) for image in item.images)
        for item in stage.data.items
    ]
    assert planned == counted
    assert stage.data.num_items == 3


def test_a_plan_writes_nothing_but_its_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _write_data(tmp_path, 4)
    plan = PlanConfig(gpu="H200", price_per_gpu_hour=2.0, file=str(tmp_path / "plan.json"), max_samples=2)
    config = _data_config(file, tmp_path / "run", model=ModelConfig(path=str(folder)), plan_for=plan)
    show_plan(config)
    printed = capsys.readouterr().out
    assert "2 of 4 samples looked at" in printed
    assert "H200" in printed
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["fits"] is True
    assert content["cost"] == pytest.approx(2.0 * content["gpu_hours"])
    assert (
        sum(value for name, value in content["rank_bytes"].items() if name != "together")
        == content["rank_bytes"]["together"]
    )
    assert not (tmp_path / "run").exists()


def test_what_cannot_fit_is_refused_behind_the_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _write_data(tmp_path, 4)
    config = _data_config(
        file, tmp_path / "run", model=ModelConfig(path=str(folder)), plan_for=PlanConfig(gpu="RTX-4090")
    )
    config = dataclasses.replace(config, trainer=TrainerConfig(num_ranks=1, zero_stage=2))
    with pytest.raises(PlanError, match=r"does not fit: a rank needs .* GiB of an RTX-4090; .* would fit") as raised:
        show_plan(config)
    assert len(str(raised.value)) <= 500
    assert "GPU memory of a rank" in capsys.readouterr().out


def test_lines_are_aligned(folder: Path) -> None:
    config, facts = _config(), _facts(folder)
    lines = plan_lines(config, facts, estimate(config, facts), [])
    memory = [line for line in lines if line.endswith("GiB")]
    assert {line.rindex("GiB") for line in memory if "together" not in line} == {48}
    assert max(map(len, lines)) <= 118
