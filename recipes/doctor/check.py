"""What the doctor says about one thing, and what its checks hand on to one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rsgrpo.errors import RsgrpoError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from recipes.doctor.probe import TorchProbe
    from rsgrpo.config import Config
    from rsgrpo.types import Sample

Status = Literal["ok", "warning", "problem"]

MAX_FOUND = 330  # with the advice below 500 characters, the most that a person reads of one line
MAX_ADVICE = 160

_TELLS_MORE = (
    "it has ",
    "it is ",
    "the ",
    "there ",
    "expected ",
    "got ",
)  # such an ending says what is there, not what to do
_NOT_MINE = "this check itself failed, the others stand; run `rsgrpo train` to see what it says, and report this line"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: the name of the thing that was looked at, such as ``shared memory``.
        status: ``ok``; ``warning``: a run may suffer; ``problem``: a run would stop, or learn the wrong thing.
        found: what was found, at most ``MAX_FOUND`` characters.
        advice: what to do about it, at most ``MAX_ADVICE`` characters; empty where all is well.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Check:
    """A check with the status ``ok``: all is well."""
    return Check(name=name, status="ok", found=shortened(found, MAX_FOUND))


def warning(name: str, found: str, advice: str) -> Check:
    """A check with the status ``warning``: a run may suffer."""
    return Check(name=name, status="warning", found=shortened(found, MAX_FOUND), advice=shortened(advice, MAX_ADVICE))


def problem(name: str, found: str, advice: str) -> Check:
    """A check with the status ``problem``: a run would stop, or learn the wrong thing."""
    return Check(name=name, status="problem", found=shortened(found, MAX_FOUND), advice=shortened(advice, MAX_ADVICE))


def refused(name: str, error: BaseException) -> Check:
    """A check that ended with an exception.

    Errors for users carry their way out behind the last semicolon or line break; of any other one only its name and
    first line are told.
    """
    if not isinstance(error, RsgrpoError):
        first_line = next(iter(str(error).splitlines()), "")
        return problem(name, f"{type(error).__name__}: {first_line}".rstrip(": "), _NOT_MINE)
    message = str(error)
    cut = max(message.rfind("; "), message.rfind("\n"))
    advice = message[cut + 1 :].strip() if cut >= 0 else ""
    if not advice or len(advice) > MAX_ADVICE or advice.startswith(_TELLS_MORE):
        return problem(name, message, "fix what the message names; `rsgrpo train` would stop with it")
    return problem(name, message[:cut], advice)


def shortened(text: str, limit: int) -> str:
    """A text in one line of at most ``limit`` characters; the middle goes first, for both ends tell something.

    Example:
        ``shortened("abcdefghij", 7)`` is ``"abc…hij"``.
    """
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    tail = (limit - 1) // 2
    return f"{line[: limit - 1 - tail]}…{line[len(line) - tail :]}"


@dataclass(kw_only=True, slots=True)
class Subject:
    """What is examined, and what one check leaves for the next.

    Attributes:
        config: the checked settings; None where they cannot be read.
        scratch: an empty folder for the checks to write to, which is removed after the examination.
        probe: gives what torch says about itself; None where no step asks for it.
        samples: the usable samples by data set (``sft``, ``rl``, ``test``), which the data checks leave here.
        tokenizer: the model's tokenizer, which the tokenizer check leaves here; None before.
    """

    config: Config | None
    scratch: Path
    probe: TorchProbe | None = None
    samples: dict[str, tuple[Sample, ...]] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A few checks that belong together.

    Attributes:
        group: the heading under which the checks are shown.
        name: the name that is shown as failed if ``run`` raises.
        run: the function that takes the subject and gives the checks one after the other.
        asks_torch: whether ``run`` needs ``Subject.probe``.
    """

    group: str
    name: str
    run: Callable[[Subject], Iterable[Check]]
    asks_torch: bool = False
