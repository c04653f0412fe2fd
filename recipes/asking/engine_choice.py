"""The server that answers for a model: somebody else's, an engine that is kept warm, or one for this call alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipes.asking.chat_server import ChatServer, RemoteServer, ServerError
from recipes.asking.chat_stream import address_of
from recipes.asking.engine_server import EngineServer, EngineSettings, OnWait, server_program
from recipes.asking.kept_engine import KeptEngine, end_kept_engine, kept_engine_runs
from recipes.asking.model_choice import ChosenModel
from recipes.asking.opened import section_opened_by
from rsgrpo.cluster.device import vllm_build


def engine_settings(model: ChosenModel) -> EngineSettings:
    """What an engine for a model is started with.

    Args:
        model: a model that has a folder.

    Raises:
        ServerError: no vLLM is installed that could run here.
    """
    assert model.folder is not None
    build = vllm_build()
    if build.problem:
        raise ServerError(
            f"no engine can be started: {build.problem}; uv sync installs one, or give --model the address of a server"
        )
    rollout = model.settings.rollout
    device = "cpu" if build.device == "cpu" else "gpu"
    return EngineSettings(
        folder=model.folder.absolute(),
        name=model.folder.name,
        device=device,
        dtype=model.settings.dtype,
        program=server_program(model.folder, device=device, dtype=model.settings.dtype),
        rollout=rollout,
        max_images=model.settings.max_images,
        num_threads=rollout.num_threads or len(os.sched_getaffinity(0)),
    )


@contextmanager
def open_server(
    model: ChosenModel,
    *,
    keep_minutes: float | None = None,
    log_file: Path | None = None,
    on_wait: OnWait | None = None,
    niceness: int = 0,
) -> Iterator[ChatServer]:
    """Have a server that answers for a model, for the length of the block.

    Args:
        model: the model.
        keep_minutes: how long an engine stays after its last question, for later calls; 0: it ends with the block, and
            one that was kept does too; None: one that was kept is used and stays, else as 0.
        log_file: the file that the output of an engine goes to, where it is not kept; None: a temporary one.
        on_wait: is called while an engine starts; None: nobody is told.
        niceness: by how many steps of niceness others go before an engine that is started and not kept.

    Yields:
        The server, ready to be asked.

    Raises:
        ServerError: the server cannot be asked, or the engine does not start; the message says why.
    """
    if model.url:
        yield RemoteServer(address_of(model.url, model.served_name, model.key))
        return
    settings = engine_settings(model)
    if keep_minutes == 0:
        end_kept_engine(settings)
    if keep_minutes or (keep_minutes is None and kept_engine_runs(settings)):
        with KeptEngine(settings, keep_minutes, on_wait) as kept:
            yield kept
        return
    with EngineServer(settings, log_file, on_wait, niceness) as server:
        yield server


def opened_section_of(model: ChosenModel) -> str:
    """The section that the model's chat template opens at the end of a prompt.

    Args:
        model: the model.

    Returns:
        The name of the section; empty: none, or the template is not known.

    Raises:
        ConfigError: the template does not read one of ``prompt.template_arguments``.
    """
    if model.folder is None:
        return ""
    settings = model.settings
    return section_opened_by(model.folder, settings.response_format, settings.prompt.template_arguments)
