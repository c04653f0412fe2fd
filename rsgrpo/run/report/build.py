"""Read a run folder, write ``report.html``.

    metrics.jsonl ─► curves ─┐
    summary.json ─► results ─┼─► one JSON document ─► page.html.jinja + CSS + JavaScript ─► report.html
    rollouts.jsonl ─► credit ┘

The page loads nothing from anywhere: styles, scripts, data and images stand in it, and its content
security policy forbids the rest. Everything that a model wrote reaches the page as text, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsgrpo.config import EVISRAG, ConfigError, ResponseFormat, load_config
from rsgrpo.config.image_rules import ImageRules, parse_colour
from rsgrpo.errors import RsgrpoError, shown
from rsgrpo.io.atomic_files import FileError, shown_error, write_text
from rsgrpo.io.jsonl import cut_line_note
from rsgrpo.run.folder import read_settings
from rsgrpo.run.logger import METRICS_FILE, read_metrics
from rsgrpo.run.recorder import read_groups
from rsgrpo.run.report.curves import Chart, collect_charts, collect_times
from rsgrpo.run.report.results import collect_cards, collect_evaluations, collect_facts
from rsgrpo.run.report.rollouts import collect_rollouts
from rsgrpo.run.report.signals import collect_alarms
from rsgrpo.run.summary import RunSummary, SummaryError, read_summary

REPORT_FILE = "report.html"
ROLLOUTS_FILE = "rollouts.jsonl"
_SCRIPTS = ("dom.js", "charts.js", "rollouts.js", "page.js")

Content = TypeVar("Content")


class ReportError(RsgrpoError):
    """There is no run to report on."""


def build_report(run_folder: Path, say: Callable[[str], None] = lambda note: None) -> Path:
    """Write the report of a run, finished or not.

    Args:
        run_folder: the folder that ``train.py`` wrote; every file in it may be missing or damaged: what can be read is
            shown.
        say: is called with one sentence for each file that could not be read; they stand on the page, too.

    Returns:
        The path of ``report.html``, one file that needs no network.

    Raises:
        ReportError: there is no such folder, or the page cannot be written into it.

    Example:
        ``rsgrpo report runs/quickstart`` prints ``runs/quickstart/report.html``.
    """
    if not run_folder.is_dir():
        raise ReportError(f"{shown(run_folder)} is no folder; name the run_dir of a run, such as runs/quickstart")
    notes: list[str] = []
    page = _render(_document(run_folder, notes))
    for note in notes:
        say(note)
    target = run_folder / REPORT_FILE
    try:
        write_text(target, page)
    except (IsADirectoryError, PermissionError) as error:
        raise ReportError(f"{shown(target)} cannot be written ({shown_error(error)}); move it away") from error
    return target


def _read(read: Callable[[], Content], notes: list[str]) -> Content | None:
    """The content of a file; None where it cannot be read, which is added to the notes."""
    try:
        return read()
    except (FileError, SummaryError) as error:
        notes.append(str(error))
        return None


def _read_lines(
    path: Path, read: Callable[[Path, Callable[[FileError], None]], tuple[Content, ...]], notes: list[str]
) -> tuple[Content, ...]:
    """The lines of a file that can be read; the others are counted in a note."""
    problems: list[FileError] = []
    cut = _read(lambda: cut_line_note(path), notes)
    if cut is None:
        return ()
    if cut:
        notes.append(cut)
    found = read(path, problems.append)
    if problems:
        notes.append(f"left out {len(problems)} of the lines of {path.name}; the first: {problems[0]}")
    return found


def _document(run_folder: Path, notes: list[str]) -> dict[str, Any]:
    rows = _read_lines(run_folder / METRICS_FILE, read_metrics, notes)
    groups = _read_lines(run_folder / ROLLOUTS_FILE, read_groups, notes)
    summary = _read(lambda: _read_summary(run_folder / "summary.json"), notes)
    config = _read(lambda: _read_config(run_folder / "config.yaml"), notes) or {}
    rewards = config.get("rewards")
    evaluations = collect_evaluations(summary, rows)
    return {
        "name": _name(summary, config, run_folder),
        "cards": collect_cards(summary, evaluations, rows),
        "facts": [*collect_facts(summary, config), *(["damaged", note] for note in notes)],
        "evaluations": evaluations,
        "charts": [_chart_document(chart) for chart in collect_charts(rows)],
        "alarms": collect_alarms(rows),
        "times": collect_times(rows),
        "rollouts": collect_rollouts(
            groups,
            rewards if isinstance(rewards, dict) else {},
            run_folder,
            _image_rules(config),
            _response_format(config),
        ),
    }


def _read_summary(path: Path) -> RunSummary | None:
    return read_summary(path) if path.exists() else None


def _name(summary: RunSummary | None, config: dict[str, Any], run_folder: Path) -> str:
    if summary is not None:
        return summary.name
    return str(config.get("name") or run_folder.resolve().name)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    # Values are shown, not used: unresolved references may stay as they are.
    plain = OmegaConf.to_container(read_settings(path), resolve=False)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _image_rules(config: Mapping[str, Any]) -> ImageRules:
    """How the run read images; the defaults where its settings are gone."""
    data = config.get("data")
    colour = data.get("background") if isinstance(data, dict) else None
    try:
        return ImageRules(background=parse_colour(colour)) if isinstance(colour, str) else ImageRules()
    except ValueError:
        return ImageRules()


def _response_format(config: Mapping[str, Any]) -> ResponseFormat:
    """The sections that the run declared; EVisRAG's where its settings are gone, or older than the setting."""
    try:
        return load_config(OmegaConf.create({"stage": "eval", "response": config.get("response", {})})).response.format
    except (ConfigError, OmegaConfBaseException):
        return EVISRAG


def _chart_document(chart: Chart) -> dict[str, Any]:
    return {
        "section": chart.section,
        "title": chart.title,
        "note": chart.note,
        "isLog": chart.is_log,
        "series": [{"name": sery.name, "steps": sery.steps, "values": sery.values} for sery in chart.series],
    }


def _render(document: dict[str, Any]) -> str:
    package = resources.files("rsgrpo.run.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string((package / "page.html.jinja").read_text(encoding="utf-8"))
    scripts = [(package / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    return template.render(
        name=document["name"],
        style=Markup((package / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        data=Markup(embedded_json(document)),
    )


def embedded_json(document: object) -> str:
    """JSON that can stand inside a ``<script>`` element whatever its texts hold.

    Args:
        document: JSON values without NaN.

    Returns:
        JSON without ``<``, ``>`` and ``&``, which stand as escapes: no text can close the element or
        open a comment.

    Example:
        ``embedded_json("</script>")`` is ``"\\u003c/script\\u003e"`` in quotes.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
