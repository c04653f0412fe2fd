"""Checks that need neither model nor engine, in the order of what they cost: a slip shows within seconds.

Nothing here imports torch, transformers or Ray; what needs them is checked in ``preparation.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from recipes.evaluation.answer_sets import check_search, find_answer_set
from recipes.retriever.wanted_data import check_retriever_data
from recipes.setup.wanted_data import WANTED, builds_quickstart_data, find_embedder, has_engines, uses_mixture
from rewards.plugins import load_rewards
from rsgrpo.cluster.device import check_build, choose_device
from rsgrpo.cluster.topology import check_topology
from rsgrpo.config import Config, ConfigError, SourceConfig
from rsgrpo.config.eval import is_pipeline_task
from rsgrpo.data.files import DataError, data_files
from rsgrpo.data.readers.sources import source_files
from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks import find_benchmarks
from rsgrpo.evaluation.benchmarks.visrag_gen import VisRagGenBenchmark
from rsgrpo.evaluation.retrieval_sets import find_retrieval_tasks, split_tasks
from rsgrpo.io.atomic_files import FileError, read_json_object
from rsgrpo.io.special_files import special_kind
from rsgrpo.prompts.template import template_fingerprint
from rsgrpo.run.folder import open_run_folder
from rsgrpo.system.machine import check_cluster, has_gpu_files, prepare_process

_MODEL_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_first(config: Config) -> list[str]:
    """Refuse whatever can be refused without a model.

    Args:
        config: the checked settings of the run.

    Returns:
        Lines for the user about what was changed in this process's environment.

    Raises:
        RsgrpoError: the settings cannot work; the message names the setting, path or variable.
    """
    lines = prepare_process()
    check_cluster(config.cluster)
    if not config.plan:  # a plan may be for another machine
        _check_device(config)
    if config.stage != "retriever":
        template_fingerprint(config.prompt.path)
    _check_model_path("model.path", config.model.path)
    if config.stage == "eval":
        _check_folder("eval.checkpoint", config.eval.checkpoint)
        _check_model_files("eval.checkpoint", config.eval.checkpoint)
    if config.stage == "retriever":
        check_retriever_data(config)
    elif config.eval.tasks:
        _check_benchmarks(config)
    else:
        _check_data(config)
        load_rewards(config.scored_rewards, Path.cwd(), config.response.format)
    if not config.plan:  # nor does it write there
        with open_run_folder(config):
            pass
    return lines


def _check_device(config: Config) -> None:
    """Check all of the device choice that is known before Ray runs, which alone tells how many GPUs there are."""
    if config.stage == "retriever":
        choose_device(config.cluster, int(has_gpu_files()), has_engines=False)
        return
    samples = has_engines(config)
    if config.eval.endpoint.url or (config.eval.tasks and not samples):
        return
    if config.cluster.address:
        if samples:
            check_build(config.cluster)
        return
    choice = choose_device(config.cluster, int(has_gpu_files()), has_engines=samples)
    if choice.device == "cpu":
        check_topology(config, device="cpu", gpus_per_node=(), has_engines=samples)


def _check_model_path(key: str, path: str) -> None:
    """Check that ``model.path`` is a folder, or could be the name of a model on the hub."""
    if not path or Path(path).is_dir():
        _check_model_files(key, path)
        _check_model_type(key, path)
        return
    if Path(path).exists():
        raise ConfigError(f"{key}={shown(path)} is a file; name the model folder that holds it")
    if not _HUB_ID.fullmatch(path) or ".." in path or path.startswith("."):
        raise ConfigError(
            f"{key}={shown(path)}: there is no such folder, and it is no name of a model on the hub; check the path"
        )


def _check_model_files(key: str, path: str) -> None:
    """Refuse what libraries would wait for, or stumble over once workers have started."""
    for file in sorted(Path(path).iterdir()) if path else ():
        kind = special_kind(file) if file.suffix in _MODEL_SUFFIXES and not file.name.startswith(".") else ""
        if kind:
            raise ConfigError(f"{key}={shown(path)}: {shown(file.name)} in it is {kind}; put the file itself there")
    generation = Path(path) / "generation_config.json"
    if path and generation.is_file():
        try:
            read_json_object(generation)
        except FileError as error:
            raise ConfigError(f"{key}={shown(path)}: {error}; fetch the model again, or remove the file") from error


def _check_model_type(key: str, path: str) -> None:
    if path and not (Path(path) / "config.json").is_file():
        raise ConfigError(f"{key}={shown(path)} is no model folder: it has no config.json; name another")


def _check_folder(key: str, path: str) -> None:
    if path and not Path(path).is_dir():
        raise ConfigError(f"{key}={shown(path)} is no folder; check the path")


def _check_benchmarks(config: Config) -> None:
    _check_folder("eval.data_root", config.eval.data_root)
    answered, searched = split_tasks(config.eval.tasks)
    for name in answered:
        if is_pipeline_task(name):
            find_answer_set(name.partition("/")[2], config.eval.data_root)
            check_search(config)
            continue
        for benchmark in find_benchmarks(name):
            if isinstance(benchmark, VisRagGenBenchmark):
                find_answer_set(benchmark.name.split("/")[1], config.eval.data_root)
                if benchmark.setting != "oracle":
                    check_search(config)
    for name in searched:
        find_retrieval_tasks(name, config.eval.data_root)
    if searched:
        find_embedder(config)
    _check_folder("eval.image_root", config.eval.image_root)


def _check_data(config: Config) -> None:
    data = config.data
    paths = {"sft": data.sft_path, "rl": data.rl_path, "test": data.test_path}
    is_mixture = uses_mixture(config)
    if builds_quickstart_data(config):
        return
    for name in WANTED[config.stage]:
        is_free = is_mixture and (name == "sft" or (name == "test" and config.stage == "sft"))
        if not paths[name] and not is_free:
            raise DataError(f"stage={config.stage} needs data.{name}_path; set it, or choose another stage")
        if paths[name] and not (is_mixture and name == "sft"):
            _located(f"data.{name}_path", data_files, paths[name])
    if is_mixture and config.stage in ("sft", "all"):
        _check_sources("data.mixture", data.mixture)
        for index, phase in enumerate(config.sft.phases):
            _check_sources(f"sft.phases[{index}].mixture", phase.mixture)
        if not data.mixture and data.sft_path:
            _located("data.sft_path", source_files, data.sft_path, "all")
    _check_folder("data.image_root", data.image_root)


def _check_sources(key: str, sources: list[SourceConfig]) -> None:
    for index, source in enumerate(sources):
        _located(f"{key}[{index}].path", source_files, source.path, source.sampling)
        _check_folder(f"{key}[{index}].media_root", source.media_root)


def _located(key: str, find: Callable[..., object], *arguments: str) -> None:
    """Look for the files behind a setting; an error names the setting."""
    try:
        find(*arguments)
    except DataError as error:
        raise error if key in str(error) else DataError(f"{key}: {error}") from error
