"""Tables opened by several threads at a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rsgrpo.data import tables


def test_threads_open_tables_one_after_the_other_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{index}.parquet" for index in range(4)]
    for index, file in enumerate(files):
        pyarrow.parquet.write_table(pyarrow.table({"row": [index]}), file)
    inside = threading.Semaphore(1)
    opened: list[str] = []

    def read(file: str) -> Any:
        assert inside.acquire(blocking=False), "two threads are in `datasets` at a time"
        time.sleep(0.02)
        opened.append(file)
        inside.release()
        return pyarrow.parquet.read_table(file)

    monkeypatch.setattr(tables, "_parquet_copy", read)
    wanted = [str(file) for file in files] * 8
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(tables.open_table, wanted))
    assert [table.column("row").to_pylist() for table in found] == [[index] for index in range(4)] * 8
    assert sorted(opened) == sorted(str(file) for file in files)
