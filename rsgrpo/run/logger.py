"""Numbers of every step: ``metrics.jsonl``, TensorBoard and wandb.

A metric's name is ``topic/name`` (``reward/accuracy/mean``, ``scope/evidence/found_frac``, ``policy/grad_norm``,
``engine/logprob_gap_mean``, ``time/generate``, ``eval/em``), so that a dashboard has a section a topic.
``metrics.jsonl`` is the record that the summary and the report are made from; the others are copies.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, cast

from rsgrpo.config import Config
from rsgrpo.errors import RsgrpoError
from rsgrpo.io.atomic_files import FileError, shown_value, write_text
from rsgrpo.io.jsonl import append_rows, keep_rows, line_problem, numbered_rows, refuse
from rsgrpo.types import CreditedGroup, ImageRef, ScopedReward

METRICS_FILE = "metrics.jsonl"
_MAX_STEP = 2**53  # what a browser can count to
_MAX_VALUE = 1e300  # beyond it sums over steps would not be finite
_TRAINING_STAGES = ("sft", "rl", "retriever")
_EVALUATION_POINTS = {
    "before_sft": 0,
    "after_sft": 1,
    "before_rl": 1,
    "after_rl": 2,
    "before_retriever": 0,
    "after_retriever": 1,
}


class MetricsError(RsgrpoError):
    """A place where metrics should go cannot be opened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRow:
    """One line of ``metrics.jsonl``: a stage, its step, and numbers by name (NaN where not finite)."""

    stage: str
    step: int
    values: Mapping[str, float]


def read_metrics(path: Path, on_problem: Callable[[FileError], None] = refuse) -> tuple[MetricRow, ...]:
    """Read ``metrics.jsonl``.

    Args:
        path: the file; a missing one holds nothing, a half-written last line is left out.
        on_problem: is called with a line's problem, see :func:`rsgrpo.io.jsonl.numbered_rows`.

    Returns:
        The rows in the order of writing; of two rows with one stage, step and name set the later counts.

    Raises:
        FileError: a line is no such row; the message names file and line.
    """
    rows: dict[tuple[str, int, tuple[str, ...]], MetricRow] = {}
    for number, row in numbered_rows(path, on_problem):
        try:
            metric_row = _metric_row(row)
        except ValueError as error:
            on_problem(FileError(line_problem(path, number, error)))
            continue
        rows[metric_row.stage, metric_row.step, tuple(metric_row.values)] = metric_row
    return tuple(rows.values())


def _metric_row(row: dict[str, Any]) -> MetricRow:
    stage, step = row.pop("stage", None), row.pop("step", None)
    if type(stage) is not str or type(step) is not int or not 0 <= step < _MAX_STEP:
        raise ValueError(f"got stage {shown_value(stage)} and step {shown_value(step)}, expected a text and a step")
    return MetricRow(stage=stage, step=step, values={name: _number(name, value) for name, value in row.items()})


def _number(name: str, value: object) -> float:
    """A metric's value; what is not finite was written as null."""
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not abs(cast(float, value)) < _MAX_VALUE:
        raise ValueError(f"{shown_value(name)} is {shown_value(value)}, expected a finite number or null")
    return float(cast(float, value))


class RunLogger:
    """Sends numbers wherever ``config.logging`` says. A context manager: leaving it closes everything.

    Args:
        run_folder: the run folder, below which everything is written.
        config: the run's settings.
        read_image: reads a page for wandb's table of rollouts; None: the table has no images.

    Example:
        ``with RunLogger(folder, config) as log: log.log("rl", 1, {"policy/loss": 0.5})`` appends
        ``{"stage": "rl", "step": 1, "policy/loss": 0.5}`` to ``metrics.jsonl``.
    """

    def __init__(
        self, run_folder: Path, config: Config, read_image: Callable[[ImageRef], object] | None = None
    ) -> None:
        self._folder = run_folder
        self._config = config
        self._read_image = read_image
        self._stack = ExitStack()
        self._event_files: dict[str, _EventFile] = {}
        self._wandb: _Wandb | None = None

    def __enter__(self) -> RunLogger:
        if self._config.logging.wandb_mode != "disabled":
            self._wandb = self._stack.enter_context(_Wandb(self._folder, self._config))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._event_files.clear()
        self._wandb = None

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Write one step's numbers.

        Args:
            stage: ``sft``, ``rl``, ``retriever``, or the point of an evaluation such as ``after_sft``.
            step: the step of that stage.
            values: the numbers by ``topic/name``; what is not finite is written as null.
        """
        finite = {name: float(value) if abs(value) < _MAX_VALUE else None for name, value in values.items()}
        append_rows(self._folder / METRICS_FILE, [{"stage": stage, "step": step, **finite}])
        known = {name: value for name, value in finite.items() if value is not None}
        if self._config.logging.tensorboard:
            self._event_file(stage).write(step, known)
        if self._wandb is not None:
            self._wandb.write(stage, step, known)

    def log_rollouts(self, step: int, credited: Sequence[CreditedGroup]) -> None:
        """Add groups to wandb's table of rollouts: pages, response, and every reward's value.

        Args:
            step: the step of the ``rl`` stage.
            credited: the groups to show.
        """
        if self._wandb is not None and credited:
            self._wandb.write_rollouts(step, credited, self._read_image)

    def truncate_after(self, stage: str, step: int) -> None:
        """Forget a stage's later steps; call it before going on from a checkpoint.

        Args:
            stage: the stage that goes on.
            step: the step of the checkpoint; -1 forgets the whole stage.

        Raises:
            FileError: ``metrics.jsonl`` holds a line that is no such row.
        """
        path = self._folder / METRICS_FILE
        read_metrics(path)  # what does not belong there is better said now than when the report is made
        keep_rows(path, lambda row: row["stage"] != stage or row["step"] <= step)
        if self._config.logging.tensorboard and (self._folder / "tensorboard" / stage).exists():
            self._event_file(stage).purge_after(step)

    def _event_file(self, stage: str) -> _EventFile:
        if stage not in self._event_files:
            opened = _EventFile(self._folder / "tensorboard" / stage)
            self._event_files[stage] = self._stack.enter_context(opened)
        return self._event_files[stage]


class _EventFile:
    """TensorBoard events of one stage, through TensorBoard's own writer (no torch needed)."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events, self._summaries = event_pb2, summary_pb2
        self._writer = EventFileWriter(str(folder))

    def __enter__(self) -> _EventFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        entries = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        summary = self._summaries.Summary(value=entries)
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def purge_after(self, step: int) -> None:
        # A session start tells TensorBoard to hide what earlier files say from this step on.
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step + 1, session_log=start))
        self._writer.flush()


class _Wandb:
    """One wandb run below the run folder, found again by its id when the run is resumed."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._module: ModuleType = importlib.import_module("wandb")
        is_online = config.logging.wandb_mode == "online"
        settings = self._module.Settings(
            silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True, init_timeout=30
        )
        self._module.setup(settings)  # by init alone wandb would still print what else it recommends
        try:
            self._run = self._module.init(
                project=config.logging.wandb_project,
                name=config.name,
                id=_stable_id(folder),
                dir=str(folder),
                mode=config.logging.wandb_mode,
                # Offline there is nothing to resume from: syncing appends the parts by their id.
                resume="allow" if is_online else None,
                config=asdict(config),
                settings=settings,
            )
        except self._module.errors.Error as error:
            raise MetricsError(
                f"wandb could not start: {error}; log in with `wandb login`, or use logging.wandb_mode=offline"
            ) from error
        self._tables: dict[str, Any] = {}

    def __enter__(self) -> _Wandb:
        for stage in _TRAINING_STAGES:
            self._run.define_metric(f"{stage}/step", hidden=True)
        self._run.define_metric("eval/point", hidden=True)
        self._run.define_metric("sft/*", step_metric="sft/step")
        self._run.define_metric("retriever/*", step_metric="retriever/step")
        self._run.define_metric("eval/*", step_metric="eval/point")
        for topic in ("reward", "scope", "policy", "engine", "selection", "response", "time", "rollouts"):
            self._run.define_metric(f"{topic}/*", step_metric="rl/step")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._run.finish(exit_code=1 if kind else 0)
        # Its service is a process of ours: left to the end of the program, it would be ended with the run's others, and
        # wandb would complain that it is gone.
        self._module.teardown()

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage == "rl":
            self._run.log({"rl/step": step, **values})
        elif stage in _TRAINING_STAGES:
            # A section of its own: policy/loss of two stages are different things.
            self._run.log({f"{stage}/step": step, **{_named(stage, name): value for name, value in values.items()}})
        else:
            named = {f"eval/{name.removeprefix('eval/')}": value for name, value in values.items()}
            self._run.log({"eval/point": _EVALUATION_POINTS.get(stage, len(_EVALUATION_POINTS)), **named})
            self._run.summary.update({f"{stage}/{name.removeprefix('eval/')}": v for name, v in values.items()})

    def write_rollouts(
        self, step: int, credited: Sequence[CreditedGroup], read_image: Callable[[ImageRef], object] | None
    ) -> None:
        rewards = list(
            dict.fromkeys(reward.name for group in credited for rollout in group.rollouts for reward in rollout.rewards)
        )
        # A column a page: wandb keeps an image in a cell of its own, not a list of them.
        num_images = max(len(group.sample.images) for group in credited)
        image_columns = [f"page_{number + 1}" for number in range(num_images)]
        columns = ["step", "sample", "question", *image_columns]
        columns += ["answers", "rollout", "response", "finish_reason", *rewards]
        table = self._module.Table(columns=columns)
        for group in credited:
            sample = group.sample
            captions = [f"[{number}] {image.path}" for number, image in zip(sample.numbers, sample.images, strict=True)]
            images = [
                self._image(image, caption if sample.page_numbers else image.path, read_image)
                for image, caption in zip(sample.images, captions, strict=True)
            ]
            images += [None] * (num_images - len(images))
            for credited_rollout in group.rollouts:
                rollout = credited_rollout.rollout
                table.add_data(
                    step,
                    sample.sample_id,
                    sample.question or sample.prompt,
                    *images,
                    json.dumps(list(sample.answers), ensure_ascii=False),
                    rollout.response_index,
                    rollout.text,
                    rollout.finish_reason,
                    *(_mean_value(credited_rollout.rewards, name) for name in rewards),
                )
        self._run.log({"rl/step": step, "rollouts/groups": table})

    def _image(self, image: ImageRef, caption: str, read_image: Callable[[ImageRef], object] | None) -> object | None:
        return caption if read_image is None else self._module.Image(read_image(image), caption=caption)


def _mean_value(rewards: Sequence[ScopedReward], name: str) -> float | None:
    values = [reward.value for reward in rewards if reward.name == name and reward.value is not None]
    return sum(values) / len(values) if values else None


def _named(stage: str, name: str) -> str:
    """Name of a stage's metric in the stage's own section."""
    topic, _, rest = name.rpartition("/")
    return f"{stage}/{rest}" if topic in ("", "policy", stage) else f"{stage}/{topic}_{rest}"


def _stable_id(folder: Path) -> str:
    file = folder / "wandb_id"
    known = file.read_text(errors="replace").strip() if file.is_file() else ""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", known):  # not there yet, or lost with the disk: a new one begins
        known = uuid.uuid4().hex[:12]
        write_text(file, known)
    return known
