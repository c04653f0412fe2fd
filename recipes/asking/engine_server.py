"""vLLM's own OpenAI server, as a child process: its engine within a process cannot stream.

It listens on loopback alone, asks for a random key, and ends with whoever started it: in order with :meth:`close`, and
by a guard beside it where that process is killed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx

from recipes.asking.chat_server import ServerAddress, ServerError
from recipes.asking.shared_restart import STOPPED, SharedRestart
from rsgrpo.cluster.environments import serving_environment
from rsgrpo.config import RolloutConfig
from rsgrpo.errors import shown
from rsgrpo.model.folder import check_model_type
from rsgrpo.system import interrupts
from rsgrpo.system.processes import RUN_VARIABLE, Guard, end_marked, give_way, new_mark

OnWait = Callable[[str, float], None]
"""Is called with what is waited for, and for how many seconds so far, while an engine starts."""

_SERVER = "vllm.entrypoints.openai.api_server"
_DELTA_NET_SERVER = "rollout.delta_net_server"
_LOOK_SECONDS = 0.2
_HEALTH_SECONDS = 5.0
_END_SECONDS = 8.0  # killed before, the server leaves shared memory behind
_DYING_SECONDS = 20.0  # the server ends by itself when its engine has died
_START_ATTEMPTS = 3  # somebody else may take the port in between
_LOG_BYTES = 200_000
_SHOWN_REASON = 300
_PORT_TAKEN = "address already in use"
# The last error that says something: what follows it in a log is who waited for whom.
_ERROR_LINE = re.compile(r"((?:\w+\.)*\w*(?:Error|Exception|OutOfMemory)\w*: .+(?:validation error.*\n.+)?)")
_NO_REASON = ("Engine core initialization failed", "EngineDeadError", "cancelled", "See root cause above")


def server_program(folder: Path, *, device: str, dtype: str) -> tuple[str, ...]:
    """The words that start vLLM's server.

    Args:
        folder: the folder of the model.
        device: the kind of device, ``cpu`` or ``gpu``.
        dtype: the type of the weights. On a CPU vLLM's own gated delta nets take bfloat16 only.
    """
    needs_ours = device == "cpu" and dtype == "float32" and check_model_type(folder).delta_net
    return sys.executable, "-P", "-m", _DELTA_NET_SERVER if needs_ours else _SERVER


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """What an engine is started with.

    Attributes:
        folder: the folder of the model.
        name: the name by which the model is asked.
        device: the kind of device, ``cpu`` or ``gpu``.
        dtype: the type of the weights, such as ``bfloat16``.
        rollout: the settings of the engine, as a run has them.
        max_images: the most images of a question.
        num_threads: CPU threads that it may use.
        program: the command that its options are put behind; tests put another in its place.
    """

    folder: Path
    name: str
    device: str
    dtype: str
    rollout: RolloutConfig
    max_images: int
    num_threads: int
    # -P: what lies in the current folder is no package of the server's.
    program: tuple[str, ...] = (sys.executable, "-P", "-m", _SERVER)

    def command(self, port: int) -> list[str]:
        """The command line of the server.

        Args:
            port: the port that it listens on.
        """
        rollout = self.rollout
        options: dict[str, object] = {
            "model": self.folder,
            "served-model-name": self.name,
            "host": "127.0.0.1",
            "port": port,
            "dtype": self.dtype,
            "seed": 0,
            "max-model-len": rollout.max_model_tokens,
            "max-num-seqs": rollout.max_num_sequences,
            "max-num-batched-tokens": rollout.max_batched_tokens,
            "tensor-parallel-size": rollout.tensor_parallel_size,
            "limit-mm-per-prompt": json.dumps({"image": self.max_images, "video": 0}),
            "generation-config": "vllm",  # sampling is what is asked for, not a model's own defaults
            "chat-template-content-format": "openai",  # images stand where the prompt has them
        }
        flags = [
            "--enable-prefix-caching",
            "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log",
            *(["--enforce-eager"] if rollout.enforce_eager else []),
        ]
        if self.dtype == "bfloat16":  # as the engines of training have it
            options["hf-overrides"] = json.dumps({"head_dtype": "float32"})
        if self.device == "gpu" and rollout.gpu_memory_frac:
            options["gpu-memory-utilization"] = rollout.gpu_memory_frac
        told = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [*self.program, *told, *flags]


class EngineServer:
    """A :class:`~recipes.asking.chat_server.ChatServer` that is ours.

    Args:
        settings: what the engine is started with.
        log_file: the file that the server's output goes to; None: a temporary one, which stays if it does not start.
        on_wait: is called while the engine starts; None: nobody is told.
        niceness: by how many steps of niceness others go before the engine, where cores are short.
    """

    def __init__(
        self,
        settings: EngineSettings,
        log_file: Path | None = None,
        on_wait: OnWait | None = None,
        niceness: int = 0,
    ) -> None:
        self.settings = settings
        self._niceness = niceness
        self._is_log_kept = log_file is not None
        self.log_file = log_file or _temporary_log()
        self.num_starts = 0
        self._on_wait = on_wait or (lambda what, seconds: None)
        self._key = secrets.token_urlsafe(32)
        self._port = 0
        self._mark = new_mark()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._take_back: Callable[[], object] = lambda: None
        self._restart = SharedRestart(self._revive)
        self._is_closed = False

    def __enter__(self) -> EngineServer:
        try:
            self.start()
        except BaseException:
            self._dismiss_guard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> ServerAddress:
        """See :class:`~recipes.asking.chat_server.ChatServer`."""
        return ServerAddress(url=f"http://127.0.0.1:{self._port}/v1", model=self.settings.name, key=self._key)

    @property
    def is_ours(self) -> bool:
        """See :class:`~recipes.asking.chat_server.ChatServer`."""
        return True

    @property
    def pid(self) -> int:
        """The id of the server's process; 0: there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ServerError: it does not start; the message says why.
        """
        if self._guard is None:
            self._guard = Guard(self._mark)
            self._guard.silence()  # it only cleans up
            self._take_back = interrupts.at_forced_end(lambda: end_marked(self._mark))
        try:
            for attempt in range(_START_ATTEMPTS):
                self._launch()
                problem = self._wait_until_ready()
                if not problem:
                    self.num_starts += 1
                    return
                if _PORT_TAKEN not in problem or attempt == _START_ATTEMPTS - 1:
                    raise ServerError(problem)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """End the server with all that it started."""
        self._is_closed = True
        process = self._process
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)  # at once: a restart that waits for it gives up sooner
        self._restart.close()
        self._end()
        self._dismiss_guard()
        if not self._is_log_kept:
            self.log_file.unlink(missing_ok=True)

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
            self._take_back()

    async def recover(self, attempt: int, reason: str) -> None:
        """See :class:`~recipes.asking.chat_server.ChatServer`: one that has died is started again."""
        if attempt >= self.settings.rollout.max_restarts:
            raise ServerError(
                f"the engine failed {attempt + 1} times on one question, at last with: {reason}; {self._log_told}"
            )
        await self._restart.done()

    def _revive(self) -> None:
        deadline = time.monotonic() + _DYING_SECONDS
        while not self._is_closed and self._process is not None and self._process.poll() is None:
            if is_healthy(self.address):
                return
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_SECONDS)
        if self._is_closed:
            raise ServerError(STOPPED)
        self._end()
        self.start()

    def _launch(self) -> None:
        self._port = _free_port()
        settings = self.settings
        environment = serving_environment(settings.device, settings.num_threads, settings.rollout.kv_cache_gib)
        own = {RUN_VARIABLE: self._mark, "VLLM_API_KEY": self._key}  # in a command line everybody could read the key
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as log:
            # A session of its own: Ctrl-C is meant for whoever asks, who ends it in order.
            self._process = subprocess.Popen(
                settings.command(self._port),
                env={**os.environ, **environment, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if self._niceness:
            give_way(self._process.pid, self._niceness)

    def _wait_until_ready(self) -> str:
        """Wait until the server answers; the reason where it does not come up, else an empty text."""
        assert self._process is not None
        begin = time.monotonic()
        most = self.settings.rollout.start_timeout_seconds
        while not is_healthy(self.address):
            waited = time.monotonic() - begin
            if self._is_closed:
                raise ServerError(STOPPED)
            if self._process.poll() is not None:
                return (
                    f"the engine for {shown(self.settings.folder)} did not start "
                    f"({shown(self._reason() or f'status {self._process.returncode}', _SHOWN_REASON)}); "
                    f"{self._log_told}"
                )
            if waited > most:
                return (
                    f"the engine for {shown(self.settings.folder)} was not ready within rollout.start_timeout_seconds="
                    f"{most:g}; raise it, or look for what holds it up: {self._log_told}"
                )
            self._on_wait("the engine starts", waited)
            time.sleep(_LOOK_SECONDS)
        return ""

    def _reason(self) -> str:
        """The last line of the log that says what went wrong; empty where none does."""
        with suppress(OSError), self.log_file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
            text = log.read().decode(errors="replace")
            if _PORT_TAKEN in text:
                return _PORT_TAKEN
            found = [line for line in _ERROR_LINE.findall(text) if not any(words in line for words in _NO_REASON)]
            return found[-1] if found else ""
        return ""

    @property
    def _log_told(self) -> str:
        return f"its output is in {shown(self.log_file)}"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        end_marked(self._mark)
        process.wait()


def is_healthy(address: ServerAddress) -> bool:
    """Whether an engine of ours answers; it is asked without its key.

    Args:
        address: where it is.
    """
    url = f"{address.url.removesuffix('/v1')}/health"
    with suppress(httpx.HTTPError):
        # verify=False: it is plain HTTP, and every call would read all certificates, a tenth of a second.
        reply = httpx.get(url, timeout=_HEALTH_SECONDS, trust_env=False, verify=False)
        return reply.status_code == httpx.codes.OK
    return False


def _temporary_log() -> Path:
    descriptor, name = tempfile.mkstemp(prefix="rsgrpo-engine-", suffix=".log")
    os.close(descriptor)
    return Path(name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
