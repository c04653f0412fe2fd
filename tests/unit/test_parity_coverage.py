"""No vector is left lying: every file is compared by some test, or the exception list says why not."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import PARITY_FOLDER

EXCEPTIONS = PARITY_FOLDER / "EXCEPTIONS.md"


def test_every_file_of_vectors_is_compared_or_excepted_with_a_reason() -> None:
    tests = "".join(file.read_text() for file in Path(__file__).parent.rglob("test_*.py"))
    compared = set(re.findall(r"parity\(\"(\w+)\"\)", tests))
    excepted = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| (.+) \|$", EXCEPTIONS.read_text(), re.MULTILINE))
    files = {file.stem for file in PARITY_FOLDER.glob("*.json")}
    assert compared | excepted.keys() == files
    assert not compared & excepted.keys()
    assert all(len(reason.split()) > 5 for reason in excepted.values())
