"""Read a run folder, write ``report.html``.

    metrics.jsonl ─► curves ─┐
    summary.json ─► results ─┼─► one JSON document ─► page.html.jinja + CSS + JavaScript ─► report.html
    rollouts.jsonl ─► credit ┘

The page loads nothing from anywhere: styles, scripts, data and images stand in it, and its content
security policy forbids the rest. Everything that a model wrote reaches the page as text, never as markup.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from omegaconf import OmegaConf

from rsgrpo.errors import RsgrpoError
from rsgrpo.metrics import METRICS_FILE, read_metrics
from rsgrpo.recorder import read_groups
from rsgrpo.report.curves import Chart, collect_charts, collect_times
from rsgrpo.report.results import collect_cards, collect_evaluations, collect_facts
from rsgrpo.report.rollouts import collect_rollouts
from rsgrpo.summary import RunSummary, read_summary

REPORT_FILE = "report.html"
_SCRIPTS = ("dom.js", "charts.js", "rollouts.js", "page.js")


class ReportError(RsgrpoError):
    """There is no run to report on."""


def build_report(run_folder: Path) -> Path:
    """Write the report of a run, finished or not.

    Args:
        run_folder: what ``train.py`` wrote; every file in it may be missing.

    Returns:
        Path of ``report.html``, one file that needs no network.

    Raises:
        ReportError: there is no such folder.
        ValueError: a line of ``metrics.jsonl`` or ``rollouts.jsonl`` is damaged; the message names it.
        SummaryError: ``summary.json`` is damaged.

    Example:
        ``python -m rsgrpo.report runs/quickstart`` prints ``runs/quickstart/report.html``.
    """
    if not run_folder.is_dir():
        raise ReportError(f"{run_folder} is no folder; name the run_dir of a run, such as runs/quickstart")
    document = _document(run_folder)
    target = run_folder / REPORT_FILE
    partial = run_folder / (REPORT_FILE + ".partial")
    partial.write_text(_render(document), encoding="utf-8")
    partial.replace(target)
    return target


def _document(run_folder: Path) -> dict[str, Any]:
    rows = read_metrics(run_folder / METRICS_FILE)
    summary_file = run_folder / "summary.json"
    summary = read_summary(summary_file) if summary_file.exists() else None
    config = _read_config(run_folder / "config.yaml")
    evaluations = collect_evaluations(summary, rows)
    return {
        "name": _name(summary, config, run_folder),
        "cards": collect_cards(summary, evaluations, rows),
        "facts": collect_facts(summary, config),
        "evaluations": evaluations,
        "charts": [_chart_document(chart) for chart in collect_charts(rows)],
        "times": collect_times(rows),
        "rollouts": collect_rollouts(
            read_groups(run_folder / "rollouts.jsonl"), config.get("rewards") or {}, run_folder
        ),
    }


def _name(summary: RunSummary | None, config: dict[str, Any], run_folder: Path) -> str:
    if summary is not None:
        return summary.name
    return str(config.get("name") or run_folder.resolve().name)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    # Values are shown, not used: unresolved references may stay as they are.
    plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _chart_document(chart: Chart) -> dict[str, Any]:
    return {
        "section": chart.section,
        "title": chart.title,
        "note": chart.note,
        "isLog": chart.is_log,
        "series": [{"name": one.name, "steps": one.steps, "values": one.values} for one in chart.series],
    }


def _render(document: dict[str, Any]) -> str:
    package = resources.files("rsgrpo.report")
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
