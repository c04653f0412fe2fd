"""How fast the readers are on one core, and how much memory they hold.

    uv run --with orjson python benchmarks/reader_speed.py                  # speed, interleaved pairs on 64 MiB
    uv run --with orjson python benchmarks/reader_speed.py --memory-gib 2   # and peak memory on a file of 2 GiB

Each pair times a plain parser (``ijson`` with its C backend on a JSON list, ``orjson`` on JSONL) and a reader on
the same file, one after the other, in seconds of processor time. Memory is read from a process of its own that
does nothing but read the file. Files are written to a temporary folder and deleted.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import ijson
import orjson

from rsgrpo.data.readers import ReaderOptions, open_reader
from rsgrpo.data.readers.records import raw_records

WORDS = ["evidence", "the", "a", "chart", "shows", "12.5", "of", "region", "€", "green", "“left”", "and", "therefore"]
OPTIONS = ReaderOptions(check_media=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64, help="size of the files that speed is measured on")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory-gib", type=float, default=0.0)
    parser.add_argument("--measure-memory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        num_samples = count(open_reader("llava", options.measure_memory, options=OPTIONS))
        print(num_samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure_speed(Path(folder), options.mib << 20, options.pairs)
        if options.memory_gib:
            measure_memory(Path(folder), int(options.memory_gib * 2**30))


def measure_speed(folder: Path, num_bytes: int, num_pairs: int) -> None:
    """Compare readers with plain parsers."""
    listed, lines = folder / "d.json", folder / "d.jsonl"
    num_records = write_list(listed, num_bytes)
    write_lines(listed, lines)
    print(f"{num_records} records of {num_bytes / num_records:.0f} bytes; medians of {num_pairs} pairs")
    for name, plain, ours in (
        ("JSON list, raw records", lambda: plain_list(listed), lambda: raw_records(listed, prefix="item")),
        ("JSON list, llava samples", lambda: plain_list(listed), lambda: open_reader("llava", listed, options=OPTIONS)),
        ("JSONL, raw records", lambda: plain_lines(lines), lambda: raw_records(lines, prefix="item")),
        ("JSONL, llava samples", lambda: plain_lines(lines), lambda: open_reader("llava", lines, options=OPTIONS)),
    ):
        pairs = [(seconds(plain), seconds(ours)) for _ in range(num_pairs)]
        rates = [num_records / statistics.median(column) for column in zip(*pairs, strict=True)]
        share = statistics.median(before / after for before, after in pairs)
        print(f"{name}: {rates[1]:,.0f} records/s, plain parser {rates[0]:,.0f}, {100 * share:.0f} %")


def measure_memory(folder: Path, num_bytes: int) -> None:
    """Read a large list in a process of its own."""
    file = folder / "large.json"
    write_list(file, num_bytes)
    command = [sys.executable, __file__, "--measure-memory", str(file)]
    num_samples, peak_kib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    print(f"{num_bytes / 2**30:.1f} GiB, {num_samples} samples: peak of {int(peak_kib) / 1024:.0f} MiB resident")


def write_list(file: Path, num_bytes: int) -> int:
    """Write a JSON list of conversations such as MAmmoTH-VL's; how many."""
    generator = random.Random(0)
    variants = [json.dumps(conversation(generator), ensure_ascii=False).encode()[1:] for _ in range(512)]
    written = num_records = 0
    with file.open("wb") as stream:
        while written < num_bytes:
            opening = b",\n" if num_records else b"["
            written += stream.write(opening + b'{"id": "sample_%d", ' % num_records)
            written += stream.write(variants[generator.randrange(len(variants))])
            num_records += 1
        stream.write(b"]")
    return num_records


def conversation(generator: random.Random) -> dict[str, object]:
    """One or two questions of 20 to 60 words and answers of 80 to 300; MAmmoTH-VL's records have 2,200 bytes."""

    def text(low: int, high: int) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(low, high)))

    turns = []
    for number in range(generator.randint(1, 2)):
        turns.append({"from": "human", "value": ("" if number else "<image>\n") + text(20, 60)})
        turns.append({"from": "gpt", "value": text(80, 300)})
    return {"image": f"folder/{generator.randrange(10**6)}.jpg", "source": "CogVLM", "conversations": turns}


def write_lines(listed: Path, lines: Path) -> None:
    """The same records as JSONL."""
    with listed.open("rb") as source, lines.open("wb") as target:
        for record in ijson.items(source, "item", use_float=True):
            target.write(orjson.dumps(record) + b"\n")


def plain_list(file: Path) -> Iterable[object]:
    """What ijson does by itself."""
    with file.open("rb") as stream:
        yield from ijson.items(stream, "item", use_float=True)


def plain_lines(file: Path) -> Iterable[object]:
    """What orjson does by itself."""
    with file.open("rb") as stream:
        for line in stream:
            yield orjson.loads(line)


def count(records: Iterable[object]) -> int:
    """Count the records of a reader."""
    return sum(1 for _ in records)


def seconds(make: Callable[[], Iterable[object]]) -> float:
    """Processor time of one pass."""
    begin = time.process_time()
    count(make())
    return time.process_time() - begin


if __name__ == "__main__":
    main()
