"""Hold on to what foreign code raises, to report it as what it is: a mistake in a plugin."""

from __future__ import annotations

from types import TracebackType


class Capture:
    """A block whose exception ends the block and stays in ``error``."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return True
