"""Packed rows against transformers' own forward pass, and against each other."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from rsgrpo.config import ModelConfig
from rsgrpo.model.attention.windows import VISION_ATTENTION_NAMES
from rsgrpo.model.families.table import FAMILIES, family_of
from rsgrpo.model.folder import ModelError
from rsgrpo.model.micro_batches import Segment
from rsgrpo.model.policy_model import PolicyModel, load_model
from rsgrpo.types import TrainingGroup
from tests.packed import Packed
from tests.tiny_model import build_tiny_model, make_group, write_images

OTHERS = [(family, tie) for family in FAMILIES if family != "qwen2_5_vl" for tie in (False, True)]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingGroup]:
    images = write_images(tmp_path_factory.mktemp("pages"), [(56, 56), (84, 56), (112, 140), (56, 56)])
    return [
        make_group("a", images[:2], [5, 9, 7], seed=1),
        # shares a page with the first
        make_group("b", images[1:], [3, 12], seed=2, question="How many of them are there?"),
        make_group("c", [], [6, 1, 4], seed=3),
    ]


@pytest.fixture(
    scope="module",
    params=[
        {"freeze_vision": False},
        {"freeze_vision": True, "gradient_checkpointing": True},
        {"tie": True},
        *(
            {"family": family, "tie": tie, "freeze_vision": tie, "gradient_checkpointing": tie}
            for family, tie in OTHERS
        ),
    ],
    ids=[
        "all trained",
        "frozen tower, recomputed",
        "tied head",
        *(f"{family}, {'frozen tower' if tie else 'all trained'}" for family, tie in OTHERS),
    ],
)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    options = dict(request.param)
    folder = build_tiny_model(
        tmp_path_factory.mktemp("model"),
        tie=options.pop("tie", False),
        family=options.pop("family", "qwen2_5_vl"),
    )
    settings: dict[str, Any] = {"dtype": "float32", "freeze_vision": False, "gradient_checkpointing": False} | options
    return Packed(folder, ModelConfig(**settings))


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("budget", [4000, 120], ids=["one row", "many rows"])
def test_packed_equals_one_by_one_forward_of_transformers(packed, groups, share_prefix, budget):
    logprobs, gradient = packed.run(groups, share_prefix=share_prefix, budget=budget)
    expected, expected_gradient = packed.alone(groups)
    assert logprobs.keys() == expected.keys()
    for key, want in expected.items():
        torch.testing.assert_close(logprobs[key], want, atol=1e-5, rtol=0)
    assert _relative(gradient, expected_gradient) < 1e-5


def test_a_sibling_changes_nothing_for_its_siblings(packed, groups):
    alone, _ = packed.run(groups[:1], share_prefix=True, budget=4000)
    longer = make_group("a", list(groups[0].prompt.images), [5, 9, 7], seed=1)
    other = make_group("a", list(groups[0].prompt.images), [5, 30, 7], seed=1)
    mixed = type(longer)(
        sample_id="a",
        prompt=longer.prompt,
        prompt_token_ids=None,
        responses=(longer.responses[0], other.responses[1], longer.responses[2]),
    )
    got, _ = packed.run([mixed], share_prefix=True, budget=4000)
    torch.testing.assert_close(got[0, 0], alone[0, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(got[0, 2], alone[0, 2], atol=1e-5, rtol=0)


def test_every_token_carries_its_responses_weight_in_the_kl_term(packed, groups):
    weighted = dataclasses.replace(
        groups[2],
        responses=tuple(
            dataclasses.replace(response, kl_weight=weight)
            for response, weight in zip(groups[2].responses, (0.5, 0.25, 0.0), strict=True)
        ),
    )
    prompts = packed.encoder.encode([weighted.prompt])
    num_prompt_tokens = len(prompts[0].token_ids)
    segment = Segment(group=0, responses=(2, 0), num_prompt_tokens=num_prompt_tokens, response_lengths=(4, 6))
    assert packed.rows.build([segment], [weighted], prompts).kl_weights.tolist() == [0.0] * 4 + [0.5] * 6
    assert packed.rows.build([segment], [groups[2]], prompts).kl_weights is None


def test_blank_row_has_a_finite_zero_gradient_with_and_without_the_tower(packed):
    for runs_tower in (True, False):
        policy = PolicyModel(packed.model, always_run_vision=runs_tower)
        packed.model.zero_grad()
        batch = packed.rows.blank()
        logprobs, _ = policy(batch)
        (logprobs * batch.positive_weights).sum().backward()
        grads = [p.grad for p in packed.model.parameters() if p.grad is not None]
        assert all(float(grad.abs().max()) == 0.0 for grad in grads)
        visual = [p for p in packed.model.model.visual.parameters() if p.requires_grad]
        assert all((p.grad is not None) == runs_tower for p in visual)


def test_window_attention_of_the_tower_equals_torch_attention(packed, groups, monkeypatch):
    # The kernel is CUDA only: in its place stands its definition, so that what we hand to it is checked.
    calls: list[list[int]] = []

    def by_definition(query, key, value, offsets_q, offsets_k, max_q, max_k, *, scale):
        assert torch.equal(offsets_q, offsets_k)
        lengths = offsets_q.diff().tolist()
        calls.append(lengths)
        assert max_q == max_k == max(lengths)
        parts = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
        return torch.cat(
            [
                torch.einsum("hqk,khd->qhd", torch.softmax(torch.einsum("qhd,khd->hqk", q, k) * scale, -1), v)
                for q, k, v in parts
            ]
        )

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_definition)
    prompts = packed.encoder.encode([groups[0].prompt])
    pixels = torch.cat([packed.encoder.pixels(image) for image in prompts[0].images])
    grid = torch.tensor([image.grid for image in prompts[0].images])
    visual = packed.model.model.visual
    expected = visual(pixels, grid_thw=grid).pooler_output
    monkeypatch.setattr(visual.config, "_attn_implementation", VISION_ATTENTION_NAMES["varlen"])
    torch.testing.assert_close(visual(pixels, grid_thw=grid).pooler_output, expected, atol=1e-5, rtol=0)
    # Pages of 4 × 4 and 4 × 6 patches, windows of 4 × 4: 16 | 16 + 8 in the first layer, whole pages in the second.
    # A family without windows sees whole pages in both.
    has_windows = bool(family_of(packed.model).vision_shape(visual.config).window_patches)
    assert calls == [[16, 16, 8] if has_windows else [16, 24], [16, 24]]


def test_a_folder_that_is_no_qwen_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match="is a 'gpt2' model"):
        load_model(tmp_path, ModelConfig())
    with pytest.raises(ModelError, match=r"has no readable config\.json"):
        load_model(tmp_path / "nothing", ModelConfig())


def test_sliding_windows_are_refused(tmp_path):
    folder = build_tiny_model(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    content["text_config"].pop("layer_types", None)
    content["text_config"] |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="use_sliding_window=true"):
        load_model(folder, ModelConfig())
    # As published: a window is named, but none is used.
    content["text_config"]["use_sliding_window"] = False
    (folder / "config.json").write_text(json.dumps(content))
    assert load_model(folder, ModelConfig(dtype="float32")).config.text_config.layer_types == ["full_attention"] * 2
