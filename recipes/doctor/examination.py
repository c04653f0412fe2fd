"""All checks in their order; one that fails by itself is a line like any other, and the next goes on.

A new check is a function of a :class:`Subject` that gives :class:`Check` records, and a line in ``STEPS``. What it
leaves in the subject is for those below it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from recipes.doctor.check import Check, Step, Subject, problem, refused
from recipes.doctor.data_checks import data_checks, image_checks
from recipes.doctor.machine import build_checks, machine_checks, version_checks
from recipes.doctor.model_checks import model_checks, template_checks
from recipes.doctor.network import network_checks
from recipes.doctor.places import place_checks
from recipes.doctor.probe import TorchProbe
from recipes.doctor.reward_checks import reward_checks
from recipes.doctor.settings import read_settings, settings_checks

# torch answers while data and model are looked at: its line comes late, under a heading of its own.
STEPS: tuple[Step, ...] = (
    Step(group="Settings", name="settings", run=settings_checks),
    Step(group="Machine", name="machine", run=machine_checks),
    Step(group="Machine", name="packages", run=version_checks),
    Step(group="Places", name="places", run=place_checks),
    Step(group="Ray and network", name="Ray and network", run=network_checks),
    Step(group="Data", name="data", run=data_checks),
    Step(group="Data", name="images", run=image_checks),
    Step(group="Model and prompts", name="model", run=model_checks),
    Step(group="Model and prompts", name="templates", run=template_checks),
    Step(group="Rewards", name="rewards", run=reward_checks),
    Step(group="Engines and devices", name="devices", run=build_checks, asks_torch=True),
)
"""All checks, in the order in which they run and are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A check under its heading."""

    title: str
    check: Check


def examine(overrides: Sequence[str], *, steps: Sequence[Step] = STEPS) -> Iterator[Line]:
    """Look at everything that a run of these settings needs; nothing is written but in a temporary folder.

    Args:
        overrides: settings as for ``rsgrpo train``, such as ``recipe=quickstart``.
        steps: what to look at.

    Yields:
        One check after the other with its heading, as soon as it has run.
    """
    with ExitStack() as stack:
        probe = TorchProbe() if any(step.asks_torch for step in steps) else None
        if probe is not None:
            stack.callback(probe.close)
        try:
            scratch = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="doctor-", ignore_cleanup_errors=True))
            )
        except OSError as error:
            yield Line(
                title="Places",
                check=problem(
                    "temporary files",
                    f"no folder can be made: {error.strerror or error}",
                    "set TMPDIR to a folder that can be written and has space; then ask again",
                ),
            )
            return
        subject = Subject(config=None, scratch=scratch, probe=probe)
        try:
            subject.config = read_settings(overrides)
        except Exception as error:  # no check may end the doctor; the error becomes its line
            yield Line(title="Settings", check=refused("settings", error))
        for step in steps:
            try:
                for check in step.run(subject):
                    yield Line(title=step.group, check=check)
            except (Exception, SystemExit) as error:  # a user's module may leave like a script
                yield Line(title=step.group, check=refused(step.name, error))
