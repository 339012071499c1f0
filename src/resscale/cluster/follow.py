"""Following a submitted job: its states, its log and its progress, until it is over.

SLURM is polled by `scontrol`: many clusters have no accounting, and `squeue` forgets at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from resscale.cluster.run_state import read_run
from resscale.cluster.slurm import JobInfo, SlurmUnavailable, find_jobs

POLL_S = 5.0
# slurmctld is started anew, or its backup takes over.
PATIENCE_S = 300.0


class LogTail:
    """What a growing file has that was not read yet.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read(self) -> str:
        """Return the lines that are new and whole."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except OSError:
            return ""
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace")


def describe(job: JobInfo) -> str:
    """Return a job's state in a line."""
    again = f", restart {job.restarts}" if job.restarts else ""
    where = f" on {job.nodes}" if job.nodes and not job.is_over else ""
    if job.state == "PENDING":
        start = f", to start about {job.start_time}" if job.start_time else ""
        return f"job {job.job_id}: waits{f' ({job.reason})' if job.reason else ''}{start}{again}"
    code = f", exit code {job.exit_code}" if job.is_over else ""
    return f"job {job.job_id}: {job.state}{where}{code}{again}"


def changes(before: Mapping[str, JobInfo], now: Sequence[JobInfo]) -> list[str]:
    """Return a line for each job whose state, reason or number of restarts is another.

    Args:
        before: by number, as last told.
        now: what slurmctld says.
    """

    def told(job: JobInfo) -> tuple[str, str, int]:
        return job.state, job.reason, job.restarts

    return [
        describe(job)
        for job in sorted(now, key=lambda job: job.job_id)
        if job.job_id not in before or told(before[job.job_id]) != told(job)
    ]


def final_code(jobs: Sequence[JobInfo]) -> int:
    """Return how the jobs have ended: 0, or the highest exit code; 1 where SLURM ended one."""
    return max((job.exit_code or int(job.state != "COMPLETED") for job in jobs), default=0)


def follow(
    job_id: str,
    tail: LogTail | None,
    run_dirs: Sequence[Path],
    say: Callable[[str], None],
    poll_s: float = POLL_S,
    patience_s: float = PATIENCE_S,
) -> int:
    """Tell what becomes of a job until it is over; return its exit code.

    Args:
        job_id: of a job, or of an array.
        tail: its log, to be told as it grows; None: not.
        run_dirs: whose epochs and accuracies are told.
        say: takes a line without its break.
        poll_s: how often SLURM and the files are looked at.
        patience_s: how long SLURM may be silent.

    Raises:
        SlurmUnavailable: SLURM has not answered for minutes.
    """
    told: dict[str, JobInfo] = {}
    progress: dict[Path, str] = {}
    silent_since_s: float | None = None
    while True:
        try:
            jobs = find_jobs(job_id)
            silent_since_s = None
        except SlurmUnavailable:
            silent_since_s = silent_since_s or time.monotonic()
            if time.monotonic() - silent_since_s > patience_s:
                raise
            jobs = list(told.values())
        # A job's words stand behind its start and before its end.
        told_by_slurm = changes(told, [job for job in jobs if not job.is_over])
        log = [] if tail is None else tail.read().splitlines()
        ends = changes(told, [job for job in jobs if job.is_over])
        told.update({job.job_id: job for job in jobs})
        for line in told_by_slurm:
            say(_stamped(line))
        for line in log:
            say(line)
        for line in [*_progress(run_dirs, progress), *ends]:
            say(_stamped(line))
        # Behind the job's end its log is whole. A job that slurmctld has forgotten is over, too.
        if silent_since_s is None and all(job.is_over for job in jobs):
            return final_code(jobs or list(told.values()))
        time.sleep(poll_s)


def _stamped(line: str) -> str:
    return f"{time.strftime('%H:%M:%S')}  {line}"


def _progress(run_dirs: Sequence[Path], before: dict[Path, str]) -> list[str]:
    lines = []
    for path in run_dirs:
        run = read_run(path)
        now = run.progress if run.status is not None else ""
        if now and before.get(path) != now:
            before[path] = now
            lines.append(f"{path.name}: {now}")
    return lines
