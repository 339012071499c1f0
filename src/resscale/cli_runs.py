"""The command `resscale runs`: a table of runs, with what SLURM says of their jobs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from resscale.cli_data_arguments import Parser, parse
from resscale.cluster.run_state import RunFacts, find_job, find_run_dirs, read_run, state_of
from resscale.cluster.slurm import JobInfo, SlurmUnavailable, find_jobs
from resscale.errors import UserInputError, nearest

_EXAMPLES = """examples:
  resscale runs
  resscale runs runs/demo-sweep-20261123-101500-1a2b3c
  resscale runs --json

States: "waits" and "starting" have a job that does not train yet, "running" trains, "done",
"preempted", "stopped" (by a guard) and "failed" are what the run said last, "gone" said that it
trains, and nobody does."""
_TITLES = ("run", "state", "epoch", "top-1", "best", "job", "restarts")


def runs_parser() -> Parser:
    """Return the parser of `resscale runs`."""
    parser = Parser(
        prog="resscale runs",
        description="List runs: state, epoch, accuracy, job and restarts, oldest first.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", nargs="?", default="runs", metavar="DIR", help="folder of runs, or one (runs)"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    return parser


def run_runs(argv: list[str]) -> int:
    """Run `resscale runs` with these arguments; return the exit status.

    Raises:
        UserInputError: wrong arguments, or no runs there.
    """
    options = parse(runs_parser(), argv)
    if isinstance(options, int):
        return options
    folder = Path(options.folder)
    found = find_run_dirs(folder)
    if not found:
        beside = [str(p) for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserInputError(
            f"{folder} holds no runs: name the folder that `resscale fit` or `resscale submit` "
            f"wrote to.{nearest(str(folder), beside)}"
        )
    runs = [read_run(path) for path in found]
    jobs, hint = _known_jobs() if any(run.job_id for run in runs) else (None, None)
    rows = [_row(run, folder, jobs) for run in runs]
    if options.json:
        for run, row in zip(runs, rows, strict=True):
            more = {"path": str(run.path), "state": row[1], "restarts": _restarts(run, jobs)}
            print(json.dumps({**asdict(run), **more}))
        return 0
    print(_table(rows))
    if hint:
        print(hint)
    return 0


def _known_jobs() -> tuple[dict[str, JobInfo] | None, str | None]:
    """Return all jobs that slurmctld knows, and what to say where it cannot be asked."""
    try:
        return {job.job_id: job for job in find_jobs()}, None
    except SlurmUnavailable as error:
        return None, f"whether the jobs are still there is not known: {error}"


def _row(run: RunFacts, folder: Path, jobs: dict[str, JobInfo] | None) -> tuple[str, ...]:
    name = run.path.name if run.path == folder else str(run.path.relative_to(folder))
    of = "" if run.epochs_planned is None else f"/{run.epochs_planned}"
    return (
        name,
        state_of(run, jobs),
        f"{run.epochs_done}{of}",
        _percent(run.top1),
        _percent(run.best_top1),
        run.job_id or "-",
        str(_restarts(run, jobs)) if run.job_id else "-",
    )


def _restarts(run: RunFacts, jobs: dict[str, JobInfo] | None) -> int:
    """Return how often the job was requeued; while it waits, SLURM knows of one more."""
    job = find_job(jobs, run.job_id) if jobs is not None and run.job_id is not None else None
    return run.restarts if job is None else max(run.restarts, job.restarts)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (_TITLES, *rows)
    )
