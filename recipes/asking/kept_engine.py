"""An engine that stays for later calls: starting one takes half a minute, asking it a second.

    call 1 ── starts ──> keeper (a process of its own) ── starts ──> vLLM's server
                            │ writes port and key to NAME.json, which only this user may read
    call 2 ── reads NAME.json, holds NAME.use while it asks ──────────> vLLM's server
                            │ nobody has asked for so many minutes: ends the server and itself

NAME is made of everything that the engine is started with and of the model's weights, so that a model that was trained
on meanwhile gets an engine of its own.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from recipes.asking.chat_server import ServerAddress, ServerError
from recipes.asking.engine_server import EngineServer, EngineSettings, OnWait, is_healthy
from recipes.asking.shared_restart import STOPPED, SharedRestart
from rsgrpo.config import RolloutConfig, SamplingConfig
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import FileError, read_json_object
from rsgrpo.system.processes import is_alive

_LOOK_SECONDS = 0.25
_END_SECONDS = 15.0
_MINUTE = 60.0
_PLAIN_FIELDS = ("name", "device", "dtype", "max_images", "num_threads")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Places:
    """The files of one kept engine."""

    folder: Path
    name: str

    @property
    def state(self) -> Path:
        """Where it answers; its time of change is the time of the last question."""
        return self.folder / f"{self.name}.json"

    @property
    def use(self) -> Path:
        """Held, shared, by everybody who asks."""
        return self.folder / f"{self.name}.use"

    @property
    def keeper(self) -> Path:
        """Held by the keeper as long as it lives."""
        return self.folder / f"{self.name}.lock"

    @property
    def error(self) -> Path:
        """Why the engine did not start."""
        return self.folder / f"{self.name}.error"

    @property
    def log(self) -> Path:
        """The server's output."""
        return self.folder / f"{self.name}.log"


def _places(settings: EngineSettings) -> _Places:
    weights = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in settings.folder.iterdir()
        if path.is_file()
    )
    made_of = [settings.command(0), settings.device, settings.num_threads, settings.rollout.kv_cache_gib, weights]
    name = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return _Places(folder=root / "rsgrpo" / "engines", name=name)


def kept_engine_runs(settings: EngineSettings) -> bool:
    """Whether an engine with these settings was kept and answers.

    Args:
        settings: what the engine would be started with.
    """
    return _address(_places(settings)) is not None


def end_kept_engine(settings: EngineSettings) -> None:
    """End the engine with these settings that was kept, where there is one.

    Args:
        settings: what the engine was started with.
    """
    places = _places(settings)
    state = _state(places)
    keeper = state.get("keeper")
    if not isinstance(keeper, int) or not _is_held(places.keeper):
        return
    with suppress(ProcessLookupError, PermissionError):
        os.kill(keeper, signal.SIGTERM)
    deadline = time.monotonic() + _END_SECONDS
    while _is_held(places.keeper) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


class KeptEngine:
    """A :class:`~recipes.asking.chat_server.ChatServer` that stays when this call is over.

    Args:
        settings: what the engine is started with.
        keep_minutes: how long it stays after the last question; None: as it was started.
        on_wait: is called while it starts; None: nobody is told.
    """

    def __init__(self, settings: EngineSettings, keep_minutes: float | None, on_wait: OnWait | None = None) -> None:
        self._settings = settings
        self._keep_minutes = keep_minutes
        self._on_wait = on_wait or (lambda what, seconds: None)
        self._places = _places(settings)
        self._found: ServerAddress | None = None
        self._use: IO[bytes] | None = None
        self._restart = SharedRestart(self._find)
        self._is_closed = False

    def __enter__(self) -> KeptEngine:
        self._places.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._use = _opened(self._places.use)
        fcntl.flock(self._use, fcntl.LOCK_SH)
        try:
            self._find()
        except BaseException:
            self._use.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed = True
        self._restart.close()
        self._touch()
        if self._use is not None:
            self._use.close()

    @property
    def address(self) -> ServerAddress:
        """See :class:`~recipes.asking.chat_server.ChatServer`."""
        assert self._found is not None
        return self._found

    @property
    def is_ours(self) -> bool:
        """See :class:`~recipes.asking.chat_server.ChatServer`."""
        return True

    async def recover(self, attempt: int, reason: str) -> None:
        """See :class:`~recipes.asking.chat_server.ChatServer`: one that has died is started again."""
        if attempt >= self._settings.rollout.max_restarts:
            raise ServerError(
                f"the engine failed {attempt + 1} times on one question, at last with: {reason}; its output is in "
                f"{shown(self._places.log)}"
            )
        await self._restart.done()

    def _find(self) -> None:
        """Find the engine, or start it and wait for it."""
        found = _address(self._places)  # whoever asks meanwhile is told the old address
        begin = time.monotonic()
        keeper: subprocess.Popen[bytes] | None = None
        try:
            while found is None:
                if self._is_closed:
                    raise ServerError(STOPPED)
                if not _is_held(self._places.keeper):
                    if keeper is not None and keeper.poll() is not None:
                        raise ServerError(self._why(keeper.returncode))
                    keeper = keeper or self._start_keeper()
                self._on_wait("the engine starts", time.monotonic() - begin)
                time.sleep(_LOOK_SECONDS)
                found = _address(self._places)
        except BaseException:
            if keeper is not None and keeper.poll() is None:  # nobody waits for it any more
                keeper.terminate()
                keeper.wait()
            raise
        self._found = found
        self._touch(is_new=True)

    def _start_keeper(self) -> subprocess.Popen[bytes]:
        self._places.error.unlink(missing_ok=True)
        self._places.state.unlink(missing_ok=True)
        with os.fdopen(_descriptor(self._places.log, os.O_TRUNC), "wb") as log:
            keeper = subprocess.Popen(
                [sys.executable, "-P", "-m", "recipes.asking.kept_engine"],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert keeper.stdin is not None
        minutes = self._keep_minutes if self._keep_minutes is not None else 1.0
        with suppress(BrokenPipeError), keeper.stdin as pipe:
            pipe.write(json.dumps(_plain(self._settings, self._places, minutes)).encode())
        return keeper

    def _why(self, status: int) -> str:
        with suppress(OSError):
            return self._places.error.read_text(encoding="utf-8")
        return f"the process that keeps the engine ended with status {status}; see {shown(self._places.log)}"

    def _touch(self, *, is_new: bool = False) -> None:
        """Note that the engine was asked just now; and how long it shall stay."""
        state = _state(self._places)
        if is_new and state and self._keep_minutes is not None and state.get("minutes") != self._keep_minutes:
            _write(self._places.state, {**state, "minutes": self._keep_minutes})
        with suppress(OSError):
            os.utime(self._places.state)


def _state(places: _Places) -> dict[str, object]:
    try:
        return dict(read_json_object(places.state))
    except FileError:
        return {}


def _address(places: _Places) -> ServerAddress | None:
    """Where a kept engine answers; None: there is none that does."""
    state = _state(places)
    url, model, key, pid = (state.get(name) for name in ("url", "model", "key", "pid"))
    if not (isinstance(url, str) and isinstance(model, str) and isinstance(key, str) and isinstance(pid, int)):
        return None
    # The process first: whoever else took its port must not get the key.
    if not is_alive(pid) or not _is_held(places.keeper):
        return None
    address = ServerAddress(url=url, model=model, key=key)
    return address if is_healthy(address) else None


def _descriptor(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)


def _opened(path: Path) -> IO[bytes]:
    return os.fdopen(_descriptor(path), "r+b")


def _write(path: Path, state: dict[str, object]) -> None:
    """Write the state whole or not at all; nobody but this user may read the key in it."""
    half = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(_descriptor(half, os.O_TRUNC), "w", encoding="utf-8") as file:
        json.dump(state, file)
    half.replace(path)


def _is_held(lock: Path) -> bool:
    """Whether a process holds a lock."""
    if not lock.exists():
        return False
    with _opened(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _told_to_end() -> Iterator[list[int]]:
    """Collects the signals that ask the keeper to end."""
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, frame: _note(told, received))
    yield told


def _note(told: list[int], number: int) -> None:
    told.append(number)
    raise KeyboardInterrupt


def keep_engine(settings: EngineSettings, places: _Places, minutes: float) -> int:
    """The keeper's work: start an engine, say where it is, end it when nobody has asked for long.

    Args:
        settings: what the engine is started with.
        places: its files.
        minutes: how long it stays after the last question.

    Returns:
        The exit status: 0 where the engine was up and is no longer needed.
    """
    with _opened(places.keeper) as lock, _told_to_end():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0  # another call has started it in the same moment
        try:
            with EngineServer(settings, places.log.with_suffix(".server.log")) as server:
                address = server.address
                state: dict[str, object] = {
                    "url": address.url,
                    "model": address.model,
                    "key": address.key,
                    "pid": server.pid,
                    "keeper": os.getpid(),
                    "minutes": minutes,
                }
                _write(places.state, state)
                while is_alive(server.pid) and not _is_over(places):
                    time.sleep(_LOOK_SECONDS)
                print("nobody asked any more" if is_alive(server.pid) else "the server has ended", flush=True)
        except RsgrpoError as error:
            places.error.write_text(str(error), encoding="utf-8")
            return 1
        except KeyboardInterrupt:
            print("told to end", flush=True)
            return 0
        finally:
            places.state.unlink(missing_ok=True)
    return 0


def _is_over(places: _Places) -> bool:
    state = _state(places)
    minutes = state.get("minutes")
    if not isinstance(minutes, int | float):
        return True  # somebody took the file away: nobody finds the engine any more
    idle = time.time() - places.state.stat().st_mtime
    return idle > minutes * _MINUTE and not _is_held(places.use)


def _plain(settings: EngineSettings, places: _Places, minutes: float) -> dict[str, Any]:
    """What a keeper is told, as JSON can hold it; :func:`_told` reads it."""
    own = {name: getattr(settings, name) for name in _PLAIN_FIELDS}
    return {
        "settings": {**own, "program": list(settings.program), "folder": str(settings.folder)},
        "rollout": dataclasses.asdict(settings.rollout),
        "places": {"folder": str(places.folder), "name": places.name},
        "minutes": minutes,
    }


def _told(plain: dict[str, Any]) -> tuple[EngineSettings, _Places, float]:
    """What :func:`_plain` wrote down."""
    own, rollout = plain["settings"], plain["rollout"]
    settings = EngineSettings(
        **{name: own[name] for name in _PLAIN_FIELDS},
        folder=Path(own["folder"]),
        program=tuple(own["program"]),
        rollout=RolloutConfig(**{**rollout, "sampling": SamplingConfig(**rollout["sampling"])}),
    )
    places = _Places(folder=Path(plain["places"]["folder"]), name=plain["places"]["name"])
    return settings, places, float(plain["minutes"])


if __name__ == "__main__":
    sys.exit(keep_engine(*_told(json.load(sys.stdin))))
