"""From an exception to the sentence that a user reads."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.system import interrupts

MAX_SENTENCE = 490
"""The most characters of a sentence; with ``error: `` in front of it a line stays below 500."""

_GO_ON = "then go on with resume=auto"
_SYSTEM: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space left on the disk", f"free some, {_GO_ON}"),
    errno.EDQUOT: ("the disk quota is used up", f"free some, {_GO_ON}"),
    errno.EACCES: ("permission denied", "make it accessible to this user, or name another place"),
    errno.EPERM: ("not permitted", "make it accessible to this user, or name another place"),
    errno.EROFS: ("the file system is read-only", "name another place"),
    errno.EMFILE: ("too many open files", f"raise the limit (ulimit -n 65536), {_GO_ON}"),
    errno.ENFILE: ("the system has too many open files", f"close other programs, {_GO_ON}"),
    errno.ENAMETOOLONG: ("the path is too long", "shorten it"),
    errno.ENOENT: ("there is no such file or folder", "check the path"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "check the path"),
    errno.EISDIR: ("it is a folder where a file is needed", "name a file"),
    errno.EEXIST: ("something with that name is there already", "move it, or name another place"),
    errno.ELOOP: ("its symbolic links lead in a circle", "check the path"),
    errno.EIO: ("the disk or network file system failed", f"check it, {_GO_ON}"),
    errno.ESTALE: ("the network file system lost the file", f"mount it anew, {_GO_ON}"),
    errno.ENOMEM: ("the system has no memory left", f"end other programs, {_GO_ON}"),
    errno.EAGAIN: ("the system has no processes or threads left", f"raise ulimit -u or end other programs, {_GO_ON}"),
    errno.EADDRINUSE: ("the network port is in use", "end the program that uses it, and start again"),
    errno.EPIPE: ("whoever read the output has gone", f"start again, {_GO_ON}"),
    errno.EINVAL: ("the system refuses the path or value", "check it"),
    errno.ETIMEDOUT: ("the network did not answer in time", f"check it, {_GO_ON}"),
    errno.ECONNREFUSED: ("the network connection was refused", "check that the server runs"),
    errno.ECONNRESET: ("the network connection was cut", "check that the server runs, and start again"),
}
# By the names of their classes: importing Ray, torch or the hub only to ask would take seconds.
_BY_NAME: dict[str, str] = {
    "torch.OutOfMemoryError": (
        "a GPU ran out of memory; lower trainer.micro_batch_tokens, rollout.gpu_memory_frac or data.max_pixels, "
        f"{_GO_ON}"
    ),
    "ray.OutOfMemoryError": (
        f"Ray ended a worker because the machine ran out of memory; lower trainer.micro_batch_tokens or "
        f"rollout.kv_cache_gib, or end other programs, {_GO_ON}"
    ),
    "ray.ActorDiedError": f"a worker's process died; its log lies in Ray's session folder: look there, {_GO_ON}",
    "ray.ActorUnavailableError": f"a worker cannot be reached any more; {_GO_ON[5:]}",
    "ray.WorkerCrashedError": f"a worker's process died; its log lies in Ray's session folder: look there, {_GO_ON}",
    "ray.NodeDiedError": f"a node of the Ray cluster died; replace it, {_GO_ON}",
    "ray.LocalRayletDiedError": f"Ray's node process (raylet) died; {_GO_ON[5:]}",
    "ray.RaySystemError": f"Ray's own processes failed; {_GO_ON[5:]}",
    "ray.GetTimeoutError": f"a worker did not answer in time; {_GO_ON[5:]}",
    "ray.ObjectStoreFullError": (
        f"Ray's object store is full; enlarge /dev/shm, or lower rollout.weight_bucket_mib, {_GO_ON}"
    ),
    "ray.OutOfDiskError": f"the disk of Ray's session folder (TMPDIR, /tmp) is full; free some, {_GO_ON}",
    "ray.RuntimeEnvSetupError": "Ray could not set up a worker's environment; check that all nodes reach this folder",
    "huggingface_hub.GatedRepoError": "the hub gives this only to those who agreed to its terms; agree, and log in",
    "huggingface_hub.RepositoryNotFoundError": "the hub has no such repository, or it needs a log-in; check the name",
    "huggingface_hub.LocalEntryNotFoundError": "the hub cannot be reached, and no copy is here; check the network",
    "huggingface_hub.HfHubHTTPError": "the hub refused the request; check name, network and log-in",
    "httpx.TransportError": "the network failed; check it, and start again",
    "requests.RequestException": "the network failed; check it, and start again",
    "wandb.Error": "Weights & Biases failed; log in with `wandb login`, or set logging.wandb_mode=offline",
    "safetensors.SafetensorError": "a weights file is damaged; fetch or write the model again",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What went wrong, for a user.

    Attributes:
        sentence: what went wrong, in one line of at most :data:`MAX_SENTENCE` characters.
        is_foreseen: whether somebody foresaw the failure; if not, only the traceback says more.
    """

    sentence: str
    is_foreseen: bool


def explain(error: BaseException) -> Failure:
    """Say in one sentence what an exception means to a user.

    Args:
        error: the error that ended a command.

    Example:
        ``OSError(ENOSPC, "…", "runs/a/x")`` is "no space left on the disk: runs/a/x; free some, then go on with
        resume=auto".
    """
    sentence = _foreseen(_cause(error))
    if sentence:
        return Failure(sentence=shown(_in_one_line(sentence), MAX_SENTENCE), is_foreseen=True)
    return Failure(sentence=f"internal error, {reason(error)}", is_foreseen=False)


def _in_one_line(message: str) -> str:
    """A message of several lines, such as a list of bad records, with a mark where each ended."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    marked = [line if line[-1] in ":;,.…" else f"{line};" for line in lines[:-1]]
    return " ".join([*marked, *lines[-1:]])


def reason(error: BaseException) -> str:
    """An exception's kind and first line, for a sentence of the caller's own; of Ray's wrapper, what is inside.

    Args:
        error: an error of a library, or one from another process.
    """
    cause = _cause(error)
    first = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {shown(first[0])}" if first else type(cause).__name__


def _cause(error: BaseException) -> BaseException:
    """The exception that Ray carried from another process inside an exception; else the exception itself."""
    # Ray's wrapper passes for the class of its cause, but its text is the other process's traceback.
    if "ray.RayTaskError" in _names(error):
        carried = vars(error).get("cause")
        if isinstance(carried, BaseException) and carried is not error:
            return _cause(carried)
    return error


def _foreseen(error: BaseException) -> str:
    if isinstance(error, RsgrpoError):
        return str(error) or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return interrupts.sentence()
    if isinstance(error, MemoryError):
        return f"this process ran out of memory; use fewer or smaller data files, or a larger machine, {_GO_ON}"
    if os.strerror(errno.ENOSPC) in str(error):  # of a library that writes by itself, in words of its own
        what, way_out = _SYSTEM[errno.ENOSPC]
        return (isinstance(error, OSError) and _system_sentence(error)) or f"{what} ({reason(error)}); {way_out}"
    named = next(filter(None, (_BY_NAME.get(name) for name in _names(error))), "")
    if named:
        return _with_detail(named, error)
    if "hydra" in sys.modules or "omegaconf" in sys.modules:
        from rsgrpo.config.refusals import settings_sentence

        sentence = settings_sentence(error)
        if sentence:
            return sentence
    return _system_sentence(error) if isinstance(error, OSError) else ""


def _names(error: BaseException) -> Iterator[str]:
    """The names ``package.Class`` of the exception's class and of those that it is derived from."""
    for kind in type(error).__mro__:
        package = kind.__module__.partition(".")[0]
        yield f"{package}.{kind.__name__}"


def _with_detail(sentence: str, error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    what, separator, rest = sentence.partition(";")
    return f"{what} ({shown(lines[0])}){separator}{rest}" if lines else sentence


def _system_sentence(error: OSError) -> str:
    paths = ", ".join(shown(path) for path in (error.filename, error.filename2) if path not in (None, ""))
    if error.errno is None:
        return ""  # raised by a library in words of its own: nothing that the system said
    what, way_out = _SYSTEM.get(error.errno, (f"the system says: {error.strerror}", f"see to it, {_GO_ON}"))
    return f"{what}: {paths}; {way_out}" if paths else f"{what}; {way_out}"
