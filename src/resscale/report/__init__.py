"""Reports of runs: curves, results and differences on one page."""

from resscale.report.groups import Group, group_runs
from resscale.report.page import write_report
from resscale.report.runs import Run, find_runs, load_run

__all__ = ["Group", "Run", "find_runs", "group_runs", "load_run", "write_report"]
