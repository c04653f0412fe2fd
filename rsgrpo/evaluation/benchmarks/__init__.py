"""The benchmarks by task name.

``evisrag/chartqa`` names one task; ``evisrag`` all of a family, ``milebench/diagnostic`` all of a group.
``visrag_gen/chartqa`` and ``visrag_gen`` stand for their tasks in the default setting.
"""

from __future__ import annotations

import difflib
import re

from rsgrpo.config.eval import PIPELINE_FAMILY, RETRIEVAL_FAMILIES, is_pipeline_task, is_retrieval_task
from rsgrpo.errors import shown
from rsgrpo.evaluation.benchmarks.base import Benchmark, BenchmarkError
from rsgrpo.evaluation.benchmarks.evisrag import SETS as EVISRAG_SETS
from rsgrpo.evaluation.benchmarks.evisrag import EVisRagBenchmark
from rsgrpo.evaluation.benchmarks.haystacks import HaystackBenchmark
from rsgrpo.evaluation.benchmarks.mig_bench import TASKS as MIG_TASKS
from rsgrpo.evaluation.benchmarks.mig_bench import MigBenchmark
from rsgrpo.evaluation.benchmarks.milebench import GROUPS as MILEBENCH_GROUPS
from rsgrpo.evaluation.benchmarks.milebench import SETS as MILEBENCH_SETS
from rsgrpo.evaluation.benchmarks.milebench import MileBenchmark
from rsgrpo.evaluation.benchmarks.visrag_gen import (
    DEFAULT_SETTING,
    GEN_SETS,
    SETTINGS,
    VisRagGenBenchmark,
    is_visrag_gen,
)

__all__ = ["BENCHMARKS", "find_benchmark", "find_benchmarks"]

_ALL: tuple[Benchmark, ...] = (
    *(EVisRagBenchmark(name=f"evisrag/{set_name.lower()}", set_name=set_name) for set_name in EVISRAG_SETS),
    *(MileBenchmark(name=f"milebench/{set_name}", set_name=set_name) for set_name in MILEBENCH_SETS),
    HaystackBenchmark(name="vhs/single", needle_mode="single_needle"),
    HaystackBenchmark(name="vhs/multi", needle_mode="multi_needle"),
    HaystackBenchmark(name="vhs/positional", needle_mode="single_needle", is_positional=True),
    MigBenchmark(name="mig_bench", tasks=MIG_TASKS),
    *(MigBenchmark(name=f"mig_bench/{task}", tasks=(task,)) for task in MIG_TASKS),
    *(
        VisRagGenBenchmark(name=f"visrag_gen/{short}/{setting}", set_name=set_name, setting=setting)
        for short, set_name in GEN_SETS.items()
        for setting in SETTINGS
    ),
)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
"""Every benchmark by the name of its task."""

_NUM_CHOICES = 5  # in a message, the most alike first
_MILEBENCH_VARIANT = re.compile(r"milebench/(?P<set>.+?)(?:_combined_\d+|-adv)")


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a task name; ``milebench/<set>_combined_<N>`` and ``milebench/<set>-adv`` are variants.

    Raises:
        BenchmarkError: there is no such benchmark; the message lists the choices.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    variant = _MILEBENCH_VARIANT.fullmatch(name)
    if variant and variant["set"] in MILEBENCH_SETS:
        return MileBenchmark(name=name, set_name=name.partition("/")[2])
    if is_pipeline_task(name):
        raise BenchmarkError(
            f"'{shown(name)}' is searched, filtered and answered in one run; name it in eval.tasks of stage=eval"
        )
    if is_retrieval_task(name):
        raise BenchmarkError(
            f"'{shown(name)}' is searched by an embedder, not answered by a model; name it in eval.tasks of stage=eval"
        )
    close = difflib.get_close_matches(name, BENCHMARKS, n=_NUM_CHOICES)
    choices = list(dict.fromkeys([*close, *BENCHMARKS]))
    families = sorted(
        {benchmark.partition("/")[0] for benchmark in BENCHMARKS} | {*RETRIEVAL_FAMILIES, PIPELINE_FAMILY}
    )
    raise BenchmarkError(
        f"there is no benchmark '{shown(name)}'; the choices are {', '.join(choices[:_NUM_CHOICES])}, "
        f"{len(choices) - _NUM_CHOICES} more, and whole families: {', '.join(families)}"
    )


def find_benchmarks(name: str) -> tuple[Benchmark, ...]:
    """The benchmarks that a task name, a family's or a group's stands for.

    Raises:
        BenchmarkError: there is no such benchmark; the message lists the choices.

    Example:
        ``find_benchmarks("evisrag")`` gives the five sets, ``find_benchmarks("milebench/diagnostic")`` three.
    """
    if name in BENCHMARKS:
        return (BENCHMARKS[name],)
    if is_visrag_gen(name):
        chosen = tuple(
            BENCHMARKS[f"visrag_gen/{short}/{DEFAULT_SETTING}"]
            for short in GEN_SETS
            if name in ("visrag_gen", f"visrag_gen/{short}")
        )
        return chosen or (find_benchmark(name),)
    group = MILEBENCH_GROUPS.get(name.removeprefix("milebench/"), ()) if name.startswith("milebench/") else ()
    if group:
        return tuple(BENCHMARKS[f"milebench/{set_name}"] for set_name in group)
    family = tuple(benchmark for task, benchmark in BENCHMARKS.items() if task.startswith(f"{name}/"))
    return family or (find_benchmark(name),)
