"""What ``--model`` means: a run folder, a model folder, or an OpenAI-compatible server; and how it is asked.

runs/quickstart              the model of the run's newest stage (rl, then sft), asked as the run asks it
runs/quickstart/models/sft   that model; it lies in a run, so it is asked as the run asks it
models/qwen2.5-vl            any other model folder: our prompt, the pages in front of the question
http://localhost:8000/v1     a server, likewise
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsgrpo.config import (
    ConfigError,
    DataConfig,
    PromptConfig,
    ResponseConfig,
    ResponseFormat,
    RolloutConfig,
    SamplingConfig,
)
from rsgrpo.config.building import build
from rsgrpo.config.image_rules import ImageRules
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import FileError
from rsgrpo.run.folder import RunFolder, read_settings

RUNS_FOLDER = Path("runs")
"""The folder in which the newest run is looked for where no model is named."""

_STAGES = ("rl", "sft")
_HOW_TO_GET_ONE = (
    "train a small one with `uv run train.py` (it leaves one in runs/quickstart, which is taken where none is named), "
    "or name one with --model: a run folder, a model folder, or the address of a server"
)
# What a model that was never trained with us is asked with: pages first, so that a second question about them finds
# them read.
_PLAIN = {"prompt": {"path": "configs/prompt/ask.jinja", "image_order": "images_first"}}
_DATA_FIELDS = ("max_images", "min_pixels", "max_pixels", "background", "max_image_megapixels")
_ROLLOUT_FIELDS = (
    "tensor_parallel_size",
    "max_model_tokens",
    "max_batched_tokens",
    "gpu_memory_frac",
    "kv_cache_gib",
    "enforce_eager",
    "start_timeout_seconds",
    "max_restarts",
)
_MAX_SEQUENCES = 32  # of one engine at a time; a run's own number is for training, and costs memory
_GROUPS: Mapping[str, type] = {
    "prompt": PromptConfig,
    "response": ResponseConfig,
    "data": DataConfig,
    "sampling": SamplingConfig,
    "rollout": RolloutConfig,
}


class ModelChoiceError(RsgrpoError):
    """There is no such model; the message says why and how to get one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AskSettings:
    """How a model is asked.

    Attributes:
        prompt: how a question becomes a prompt.
        response_format: the sections of a response.
        data: how pages are read, and the most pages that the model takes.
        sampling: how the answer is drawn.
        rollout: the settings of an engine of our own.
        dtype: the type of the weights in an engine of our own.
        keeps_turns: whether the model has learnt to read a conversation; else it reads one question at a time.
    """

    prompt: PromptConfig
    response_format: ResponseFormat
    data: DataConfig
    sampling: SamplingConfig
    rollout: RolloutConfig
    dtype: str
    keeps_turns: bool = True

    @property
    def image_rules(self) -> ImageRules:
        """How pages are read."""
        return self.data.image_rules

    @property
    def max_images(self) -> int:
        """The most pages that the model takes."""
        return self.data.max_images


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenModel:
    """A model, and how it is asked.

    Attributes:
        name: the name of the model for people, such as ``runs/quickstart (rl)``.
        settings: how it is asked.
        folder: the folder of the model; None: a server has it.
        run: the folder of the run that trained it; None: it is not known.
        url: the base address of the server; empty: there is none, an engine is started.
        served_name: the name of the model on the server; empty: the one that the server has.
        key: the key of the server; empty: none.
    """

    name: str
    settings: AskSettings
    folder: Path | None = None
    run: Path | None = None
    url: str = ""
    served_name: str = ""
    key: str = field(default="", repr=False)


def choose_model(
    model: str,
    *,
    served_name: str = "",
    key_variable: str = "",
    settings_from: str = "",
    given: Mapping[str, Mapping[str, Any]] | None = None,
    runs: Path = RUNS_FOLDER,
) -> ChosenModel:
    """Find a model and read how it is asked.

    Args:
        model: a run folder, a model folder, or the base address of a server; empty: the newest run in ``runs`` that has
            a model.
        served_name: the name of the model on the server; empty: the one that it has.
        key_variable: the environment variable that holds the server's key; empty: none.
        settings_from: a run folder, or a file of settings, whose prompt, sections, image and sampling settings hold;
            empty: those of the run that trained the model.
        given: settings that hold before all others, by group (``prompt``, ``response``, ``data``, ``sampling``,
            ``rollout``) and name.
        runs: the folder of runs.

    Returns:
        The model.

    Raises:
        ModelChoiceError: there is no such model, or it is none that can be asked.
        ConfigError: a setting does not fit.
    """
    is_server = model.startswith(("http://", "https://"))
    if not is_server and (served_name or key_variable):
        raise ModelChoiceError("--model-name and --api-key-variable are of a server; give --model its address")
    if is_server:
        own = _settings_file(settings_from) if settings_from else None
        return ChosenModel(
            name=served_name or model,
            settings=_ask_settings(own, given or {}),
            url=model.rstrip("/"),
            served_name=served_name,
            key=_key(key_variable),
        )
    folder, run = _model_folder(Path(model)) if model else _newest(runs)
    own = _settings_file(settings_from) if settings_from else (run / "config.yaml" if run else None)
    name = f"{run} ({folder.name})" if run else str(folder)
    settings = _ask_settings(own, given or {})
    if own is None:
        settings = _within_context(settings, folder)
    return ChosenModel(name=name, settings=settings, folder=folder, run=run)


def _key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise ModelChoiceError(
            f"--api-key-variable {shown(variable, 80)} names an environment variable that is not set; export it"
        )
    return key


def _newest(runs: Path) -> tuple[Path, Path]:
    """The model of the newest run that has one, and the run."""
    found = [
        (model.stat().st_mtime, model, run.parent)
        for run in (runs.glob("*/config.yaml") if runs.is_dir() else ())
        if (model := _model_of(run.parent)) is not None
    ]
    if not found:
        where = f"no run in {shown(runs)} has one" if runs.is_dir() else f"there is no folder {shown(runs)}"
        raise ModelChoiceError(f"there is no trained model here ({where}); {_HOW_TO_GET_ONE}")
    _, model, run = max(found)
    return model, run


def _model_of(run: Path) -> Path | None:
    """The model of a run's newest finished stage; None where there is none."""
    folders = (RunFolder(root=run).model(stage) for stage in _STAGES)
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def _model_folder(path: Path) -> tuple[Path, Path | None]:
    """The folder of a model and that of its run, which is None where the model lies in no run.

    Raises:
        ModelChoiceError: there is no such folder, or no model in it that we know.
    """
    if not path.exists():
        raise ModelChoiceError(f"--model {shown(path)} does not exist; {_HOW_TO_GET_ONE}")
    if (path / "config.yaml").is_file() and not (path / "config.json").is_file():
        model = _model_of(path)
        if model is None:
            raise ModelChoiceError(
                f"--model {shown(path)} is a run that has no model of a finished stage yet (models/rl or models/sft); "
                "let it go on, or name another"
            )
        _check_kind(model)
        return model, path
    _check_kind(path)
    run = path.absolute().parent.parent
    return path, (run if path.absolute().parent.name == "models" and (run / "config.yaml").is_file() else None)


def _check_kind(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        what = "is a file" if folder.is_file() else "holds neither a model (config.json) nor a run (config.yaml)"
        raise ModelChoiceError(f"--model {shown(folder)} {what}; {_HOW_TO_GET_ONE}")
    from rsgrpo.model.folder import check_model_type

    check_model_type(folder, f"--model {shown(folder)}")


def _settings_file(path: str) -> Path:
    file = Path(path)
    file = file / "config.yaml" if file.is_dir() else file
    if not file.is_file():
        raise ModelChoiceError(
            f"--settings {shown(path)} is neither a run folder with a config.yaml nor a file of settings; name one"
        )
    return file


def _ask_settings(file: Path | None, given: Mapping[str, Mapping[str, Any]]) -> AskSettings:
    """Read settings off a run's file, and put those that are given before them."""
    own: dict[str, Any] = {}
    if file is not None:
        try:
            own = OmegaConf.to_container(read_settings(file), resolve=True)  # type: ignore[assignment]  # a mapping
        except FileError as error:
            raise ModelChoiceError(f"{error}; name another run with --settings") from error
    data, rollout = _part(own, "data"), _part(own, "rollout")
    before: dict[str, Mapping[str, Any]] = {
        "prompt": _part(own, "prompt") if file else _PLAIN["prompt"],
        "response": _part(own, "response"),
        "data": {name: data[name] for name in _DATA_FIELDS if name in data},
        "sampling": _part(_part(own, "eval"), "sampling") or {"temperature": 0.0, "max_response_tokens": 2048},
        "rollout": {name: rollout[name] for name in _ROLLOUT_FIELDS if name in rollout},
    }
    built: dict[str, Any] = {}
    for group in ("prompt", "response", "data", "sampling", "rollout"):
        values = dict(given.get(group, {}))
        if group == "rollout":  # what a run samples while it trains does not matter here
            values = {"max_num_sequences": _MAX_SEQUENCES, "sampling": _plain_sampling(built["sampling"])} | values
        built[group] = _built(group, before[group], values, file)
    dtype = str(given.get("model", {}).get("dtype") or _part(own, "model").get("dtype") or "bfloat16")
    return AskSettings(
        prompt=built["prompt"],
        response_format=built["response"].format,
        data=built["data"],
        sampling=built["sampling"],
        rollout=built["rollout"],
        dtype=dtype,
        keeps_turns=not _is_quickstart(own),
    )


def _is_quickstart(settings: Mapping[str, Any]) -> bool:
    """Whether a run has trained the quickstart's own small model, on single questions alone."""
    data = _part(settings, "data")
    named = [data.get("sft_path"), data.get("rl_path"), data.get("mixture"), _part(settings, "model").get("path")]
    return bool(settings) and not any(named)


def _plain_sampling(sampling: SamplingConfig) -> dict[str, Any]:
    return {"max_response_tokens": sampling.max_response_tokens}


def _part(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, Mapping) else {}


def _built(group: str, before: Mapping[str, Any], given: Mapping[str, Any], file: Path | None) -> Any:
    schema = OmegaConf.structured(_GROUPS[group])
    try:
        return build(OmegaConf.merge(schema, dict(before), dict(given)), group)
    except OmegaConfBaseException as error:
        where = f" (or in {shown(file)})" if file else ""
        raise ConfigError(
            f"{group}.{error.full_key or ''} does not fit{where}: {shown(str(error).splitlines()[0], 160)}; "
            "docs/settings.md lists what there is"
        ) from error


def _within_context(settings: AskSettings, folder: Path) -> AskSettings:
    """Settings of no run, fitted to a model with fewer positions than they have tokens."""
    import dataclasses
    import json

    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config") or config
    positions = text.get("max_position_embeddings")
    if not isinstance(positions, int) or positions >= settings.rollout.max_model_tokens:
        return settings
    response = min(settings.sampling.max_response_tokens, positions // 2)
    sampling = dataclasses.replace(settings.sampling, max_response_tokens=response)
    rollout = dataclasses.replace(settings.rollout, max_model_tokens=positions, sampling=sampling)
    return dataclasses.replace(settings, sampling=sampling, rollout=rollout)


def split_ask_settings(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Tell settings such as ``prompt.path=my.jinja`` from everything else.

    Args:
        arguments: the arguments of a command.

    Returns:
        The other arguments, and the settings by group and name; ``eval.sampling.top_p=0.9`` stands in the group
        ``sampling``.

    Example:
        ``split_ask_settings(["why?", "data.max_images=3"])`` gives ``["why?"]`` and ``{"data": {"max_images": 3}}``.
    """
    rest: list[str] = []
    given: dict[str, dict[str, Any]] = {}
    for argument in arguments:
        key, mark, value = argument.removeprefix("eval.").partition("=")
        group, dot, name = key.partition(".")
        is_setting = bool(mark and dot) and name.isidentifier() and (group in _GROUPS or group == "model")
        if not is_setting or (group == "sampling" and not argument.startswith("eval.")):
            rest.append(argument)
            continue
        given.setdefault(group, {})[name] = _value(value)
    return rest, given


def _value(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index, call-overload]  # a mapping
