"""Progress for people: plain lines in a pipe, a bar on a terminal, silence on request."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.run.progress import MAX_COLUMNS, Progress, readable_seconds, step_line


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_plain_lines() -> None:
    out = io.StringIO()
    progress = Progress(True, out)
    with progress.phase("Supervised training", total=2) as phase:
        phase.advance("step 1/2  loss 2.31")
        phase.advance()
        phase.advance("x" * 500)
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["Supervised training …", "  step 1/2  loss 2.31"]
    assert lines[-1].startswith("Supervised training: done in 0.")
    assert len(lines) == 4  # the silent advance printed none
    assert max(map(len, lines)) == MAX_COLUMNS
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_a_failed_phase_does_not_say_done() -> None:
    out = io.StringIO()
    with pytest.raises(RuntimeError), Progress(True, out).phase("Starting the engine"):
        raise RuntimeError("no")
    assert "done" not in out.getvalue()
    assert "stopped after" in out.getvalue()


def test_disabled_prints_nothing() -> None:
    out = io.StringIO()
    with Progress(False, out).phase("Building data", total=1) as phase:
        phase.advance("line")
    assert out.getvalue() == ""


def test_a_terminal_gets_nested_bars_and_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = _Terminal()
    progress = Progress(True, out)
    with progress.phase("RL", total=3) as outer:
        with progress.phase("Evaluation [after_rl]", total=1) as inner:
            inner.advance("answered [512]")
        outer.advance("step 1/3")
    text = out.getvalue()
    assert "\x1b[" in text
    for wanted in ("answered [512]", "step 1/3", "Evaluation [after_rl]: done in", "RL: done in"):
        assert wanted in text


def test_no_color_is_honoured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    out = _Terminal()
    with Progress(True, out).phase("RL", total=3) as phase:
        phase.advance("step 1/3")
    assert "\x1b[3" not in out.getvalue().replace("\x1b[3A", "")  # no foreground colours 30..39


@given(
    st.dictionaries(st.text("abcdefgh ", min_size=1, max_size=20), st.floats(allow_nan=True, allow_infinity=True)),
    st.integers(1, 10**6),
)
def test_a_step_line_always_fits(values: dict[str, float], total: int) -> None:
    assert len(step_line("rl", 1, total, values)) <= MAX_COLUMNS - 2


def test_a_step_line_says_the_first_numbers() -> None:
    line = step_line("rl", 7, 100, {"accuracy": 0.51234, "lr": 1e-6, "tokens/s": 12345.0, "entropy": 1.25})
    assert line == "rl   7/100  accuracy 0.512  lr 1.00e-06  tokens/s 12345  entropy 1.25"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.24, "4.2 s"), (59.97, "1 min 00 s"), (75.0, "1 min 15 s"), (7384.0, "2 h 03 min")]
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert readable_seconds(seconds) == text
