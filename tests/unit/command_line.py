"""What tests of the command line share: how a good sentence looks."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def is_one_sentence(text: str) -> bool:
    return bool(text) and len(text) < 500 and "\n" not in text.strip() and "Traceback" not in text
