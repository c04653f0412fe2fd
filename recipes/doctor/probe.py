"""What torch says about itself, asked in a process of its own.

Importing it takes seconds, in which the other checks go on, and a build that does not fit the processor or the driver
ends its process, which must not be the doctor's.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass

_WAIT_SECONDS = 120.0  # on a cold disk that others use as well
_QUESTIONS = """
import json, warnings
warnings.simplefilter("ignore")
import torch
float((torch.ones(8, 8) @ torch.ones(8, 8)).sum())
gpus = []
if torch.version.cuda and torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        about, (free, total) = torch.cuda.get_device_properties(index), torch.cuda.mem_get_info(index)
        gpus.append([about.name, free, total, about.major, about.minor])
print(json.dumps([torch.__version__, torch.version.cuda or "", gpus]))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU as torch sees it.

    Attributes:
        name: the name of the device.
        free_bytes: how many bytes of its memory are free.
        total_bytes: how many bytes of memory it has.
        capability: its compute capability, major and minor number.
    """

    name: str
    free_bytes: int
    total_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchAnswer:
    """What torch said.

    Attributes:
        version: the version of torch.
        cuda: the CUDA version that torch was built with; empty for a CPU build.
        gpus: the GPUs that torch can use.
        error: why torch gave no answer; empty if it did.
    """

    version: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    error: str = ""


class TorchProbe:
    """Asks torch in the background.

    Args:
        command: prints the answer; the default asks the torch of this environment.
    """

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-c", _QUESTIONS)) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._answer: TorchAnswer | None = None

    def answer(self) -> TorchAnswer:
        """Wait for torch's answer; every call returns the same one."""
        if self._answer is None:
            self._answer = self._wait()
        return self._answer

    def close(self) -> None:
        """End the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def _wait(self) -> TorchAnswer:
        try:
            said, complaint = self._process.communicate(timeout=_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.close()
            return TorchAnswer(error=f"importing it took longer than {_WAIT_SECONDS:g} s")
        if self._process.returncode < 0:
            return TorchAnswer(error=f"importing it ended the process ({_signal_name(-self._process.returncode)})")
        if self._process.returncode:
            return TorchAnswer(error=(complaint.strip().splitlines() or ["it cannot be imported"])[-1])
        version, cuda, gpus = json.loads(said.splitlines()[-1])
        return TorchAnswer(
            version=version,
            cuda=cuda,
            gpus=tuple(
                Gpu(name=name, free_bytes=free, total_bytes=total, capability=(major, minor))
                for name, free, total, major, minor in gpus
            ),
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
