"""One self-contained ``report.html`` of a run: curves, test results, and rollouts with their credit."""

from rsgrpo.run.report.build import build_report

__all__ = ["build_report"]
