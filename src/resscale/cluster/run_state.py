"""How it goes with a run: what its directory and SLURM say, put together."""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from resscale.cluster.job_record import read_job
from resscale.cluster.slurm import JobInfo
from resscale.training.owner import owner_file, read_owner
from resscale.training.rundir import METRIC_COLUMNS, RunDir

_TAIL_BYTES = 4096
# Ten times faster, where PyYAML was built with libyaml.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# runs/<run>, and runs/<sweep>/<run>.
_DEPTH = 2


@dataclass(frozen=True)
class RunFacts:
    """What a run directory says of its run.

    Args:
        path: the directory.
        status: of summary.json; None before the first step.
        epochs_done: epochs behind it.
        epochs_planned: None where the configuration is not there yet.
        top1: of the newest validation, as a fraction.
        best_top1: of the best one.
        job_id: of the job that trains it, "1230_4" in an array; None for a process of its own.
        restarts: how often that job was started again.
        is_held: a process trains in there; None where the file system does not tell.
    """

    path: Path
    status: str | None = None
    epochs_done: int = 0
    epochs_planned: int | None = None
    top1: float | None = None
    best_top1: float | None = None
    job_id: str | None = None
    restarts: int = 0
    is_held: bool | None = None

    @property
    def progress(self) -> str:
        """Such as "epoch 3 of 20, top-1 93.1%"."""
        of = "" if self.epochs_planned is None else f" of {self.epochs_planned}"
        top1 = "" if self.top1 is None else f", top-1 {self.top1:.1%}"
        return f"epoch {self.epochs_done}{of}{top1}"


def find_run_dirs(folder: Path) -> list[Path]:
    """Return the run directories of a folder, and of the sweeps in it, oldest first."""
    found = list(_search(folder, _DEPTH))
    return sorted(found, key=lambda path: (_first_written_s(path), path.name))


def read_run(path: Path) -> RunFacts:
    """Read what a run directory says; whatever is missing or torn is left out."""
    run = RunDir(path)
    summary = run.read_summary()
    owner, job = read_owner(path), read_job(path)
    # Who trains says more than who was submitted: the newest start may have been one by hand.
    job_id = None if owner is None else owner.job_id
    if job is not None and (owner is None or _sent_later(path)):
        job_id = job.job_id
    return RunFacts(
        path=path,
        status=summary.get("status"),
        epochs_done=max(int(summary.get("epoch") or 0), _epochs_logged(run.metrics)),
        epochs_planned=_epochs_planned(run.config),
        top1=summary.get("val_top1"),
        best_top1=summary.get("best_val_top1"),
        job_id=job_id,
        restarts=owner.restart_count if owner is not None and owner.job_id == job_id else 0,
        is_held=_is_held(run.config),
    )


def state_of(run: RunFacts, jobs: Mapping[str, JobInfo] | None) -> str:
    """Return the state of a run in words.

    Args:
        run: what its directory says.
        jobs: by number, all that slurmctld knows; None where it cannot be asked.
    """
    job = None if jobs is None or run.job_id is None else find_job(jobs, run.job_id)
    if job is not None and not job.is_over:
        return _state_in_queue(run, job)
    ended = f" (job {job.state})" if job is not None else ""
    if run.status not in (None, "running"):
        return f"{run.status}{ended if run.status == 'preempted' else ''}"
    if run.is_held:
        return "running" if run.status else "starting"
    if run.job_id is not None and jobs is None and run.is_held is None:
        return f"{run.status or 'submitted'}?"
    if run.status is None:
        return f"never began{ended}"
    # It says so itself, and there is nobody left who could change it.
    return f"gone{ended}" if run.is_held is not None or run.job_id is not None else "running?"


def find_job(jobs: Mapping[str, JobInfo], job_id: str) -> JobInfo | None:
    """Return a job by its number; the waiting tasks of an array share an entry, "1230_2-5,8"."""
    if job_id in jobs:
        return jobs[job_id]
    array, _, task = job_id.partition("_")
    if not task.isdigit():
        return None
    for name, job in jobs.items():
        if name.partition("_")[0] == array and _covers(name.partition("_")[2], int(task)):
            return job
    return None


def _state_in_queue(run: RunFacts, job: JobInfo) -> str:
    if job.state == "RUNNING":
        return "running" if run.status == "running" or run.is_held else "starting"
    if job.state == "COMPLETING":
        return "ending"
    why = f" ({job.reason})" if job.reason else ""
    again = "requeued, " if run.status is not None or job.restarts else ""
    return f"{again}waits{why}"


def _covers(tasks: str, task: int) -> bool:
    """Tell whether "2-5,8%3" has a task."""
    for part in tasks.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and int(first) <= task <= int(last if last.isdigit() else first):
            return True
    return False


def _search(folder: Path, depth: int) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
    elif depth and folder.is_dir():
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink():
                yield from _search(child, depth - 1)


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in ("job.json", "config.yaml", "summary.json"))


def _first_written_s(path: Path) -> float:
    files = [file for name in ("job.json", "config.yaml") if (file := path / name).exists()]
    return min((file.stat().st_mtime for file in files), default=path.stat().st_mtime)


def _sent_later(path: Path) -> bool:
    """Tell whether a job was submitted behind the last start of the run."""
    return (path / "job.json").stat().st_mtime > owner_file(path).stat().st_mtime


def _epochs_planned(config: Path) -> int | None:
    try:
        trainer = yaml.load(config.read_text(), _LOADER).get("trainer") or {}
    except (OSError, yaml.YAMLError, AttributeError):
        return None
    planned = trainer.get("max_epochs")
    return planned if isinstance(planned, int) and planned > 0 else None


def _epochs_logged(metrics: Path) -> int:
    """Return the epochs behind the table's last row; a validation ends its epoch."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return 0
    for cells in csv.reader(reversed(lines)):
        row = dict(zip(METRIC_COLUMNS, cells, strict=False))
        if row.get("epoch", "").isdigit():
            return int(row["epoch"]) + bool(row.get("val/loss"))
    return 0


def _is_held(config: Path) -> bool | None:
    """Tell whether a process holds the lock of the run directory."""
    # A start in just these microseconds would be refused; it is not worth a second lock file.
    try:
        with config.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False
