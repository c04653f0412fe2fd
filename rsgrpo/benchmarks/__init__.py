"""The benchmarks by task name.

``evisrag/chartqa`` names one task; ``evisrag`` all of a family.
"""

from __future__ import annotations

from rsgrpo.benchmarks.base import Benchmark, BenchmarkError
from rsgrpo.benchmarks.evisrag import SETS as EVISRAG_SETS
from rsgrpo.benchmarks.evisrag import EVisRagBenchmark

__all__ = ["BENCHMARKS", "find_benchmark", "find_benchmarks"]

_ALL: tuple[Benchmark, ...] = (
    *(EVisRagBenchmark(name=f"evisrag/{set_name.lower()}", set_name=set_name) for set_name in EVISRAG_SETS),
)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
"""Every task by its name."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a task name.

    Raises:
        BenchmarkError: there is none; the message lists the choices.
    """
    try:
        return BENCHMARKS[name]
    except KeyError:
        raise BenchmarkError(f"there is no benchmark '{name}'; the choices are {', '.join(BENCHMARKS)}") from None


def find_benchmarks(name: str) -> tuple[Benchmark, ...]:
    """The benchmarks that a task name or a family's name stands for.

    Raises:
        BenchmarkError: there is none; the message lists the choices.

    Example:
        ``find_benchmarks("evisrag")`` gives the five sets, ``find_benchmarks("evisrag/chartqa")`` one.
    """
    family = tuple(benchmark for task, benchmark in BENCHMARKS.items() if task.startswith(f"{name}/"))
    return (BENCHMARKS[name],) if name in BENCHMARKS else family or (find_benchmark(name),)
