"""Where a benchmark's data and predictions lie, given a file or the folder of a whole family."""

from __future__ import annotations

from pathlib import Path

from rsgrpo.evaluation.benchmarks.base import Benchmark
from rsgrpo.evaluation.benchmarks.milebench import MileBenchmark
from rsgrpo.evaluation.benchmarks.visrag_gen import VisRagGenBenchmark
from rsgrpo.io.natural_order import visible_files


def family_of(benchmark: Benchmark) -> str:
    """The data format of a benchmark: the first part of its name."""
    return benchmark.name.partition("/")[0]


def data_place(benchmark: Benchmark, place: Path) -> Path | None:
    """The data of one benchmark.

    Args:
        benchmark: the benchmark that the data is for.
        place: the data file or folder, or a folder that holds the whole family's as they are published.

    Returns:
        The path of a file, or of a folder that holds one data set; None where a family's folder lacks this one.
    """
    if place.is_file() or not place.exists():
        return place
    set_name = benchmark.sets[0]
    if family_of(benchmark) == "evisrag":
        folder = place / f"EVisRAG-Test-{set_name}"
        if folder.is_dir():
            return folder
        if place.name.startswith("EVisRAG-Test-") and place.name != folder.name:
            return None  # another set's
        return None if any(place.glob("EVisRAG-Test-*")) else place
    if isinstance(benchmark, VisRagGenBenchmark):
        folders = (place / f"VisRAG-Ret-Test-{set_name}", place / benchmark.name.split("/")[1], place)
        return next((folder for folder in folders if any(folder.glob("queries*"))), None)
    if isinstance(benchmark, MileBenchmark):
        file_name = f"{benchmark.set_name}.json"
        candidates = (place / set_name / file_name, place / file_name)
        return next((file for file in candidates if file.is_file()), None)
    if family_of(benchmark) == "mig_bench" and (place / "MIG_data.json").is_file():
        return place / "MIG_data.json"
    return place


def predictions_place(benchmark: Benchmark, place: Path) -> Path | None:
    """The predictions of one benchmark.

    Args:
        benchmark: the benchmark that was predicted.
        place: a file, or a folder as ``write_predictions`` and the originals lay them out.

    Returns:
        The path that ``read_predictions`` takes; None where a family's folder lacks this one, or holds several.
    """
    if place.is_file() or not place.exists():
        return place
    family = family_of(benchmark)
    if family == "evisrag":
        files = visible_files(place / benchmark.sets[0], "*.jsonl") or visible_files(place, "*.jsonl")
        return files[0] if len(files) == 1 else None
    if family == "milebench":
        candidates = (place / benchmark.sets[0] / "pred.json", place / "pred.json")
        return next((file for file in candidates if file.is_file()), None)
    if family == "mig_bench":
        files = visible_files(place, f"*_{benchmark.name.rpartition('/')[2]}.json")
        return files[0] if len(files) == 1 else None
    if isinstance(benchmark, VisRagGenBenchmark):
        ending = "oracle" if benchmark.setting == "oracle" else f"{benchmark.setting}_top*"
        files = sorted(place.rglob(f"*_{benchmark.set_name}_{ending}_history.jsonl"))
        return files[0] if len(files) == 1 else None
    return place
