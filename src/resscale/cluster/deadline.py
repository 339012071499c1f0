"""When SLURM's time limit ends the job."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from datetime import datetime

from resscale.cluster.environment import SlurmJob

# An administrator may move the limit; nobody needs to know it to the second.
_ASK_EVERY_S = 60.0
# Of a job that has no end, or whose end SLURM did not tell when it was busy.
_ASK_ABOUT_NONE_EVERY_S = 600.0
_ANSWER_TIMEOUT_S = 10.0


class Deadline:
    """Tells when the job's end draws near.

    Args:
        job: the job.
        ask: returns its end in seconds since 1970, or None where it has none or nobody says;
            None: SLURM is asked.
    """

    def __init__(self, job: SlurmJob, ask: Callable[[], float | None] | None = None) -> None:
        self._ask = ask if ask is not None else lambda: ask_slurm(job.job_id)
        self._end_s = job.end_time_s if job.end_time_s is not None else self._ask()
        self._asked_s = time.time() if self._end_s is None else float("-inf")

    def is_near(self, margin_s: float, now_s: float | None = None) -> bool:
        """Return whether fewer than `margin_s` seconds are left.

        Args:
            margin_s: what a stop needs.
            now_s: seconds since 1970; None: now.
        """
        now_s = time.time() if now_s is None else now_s
        if self._end_s is None:
            if now_s - self._asked_s < _ASK_ABOUT_NONE_EVERY_S:
                return False
            self._asked_s, self._end_s = now_s, self._ask()
        if self._end_s is None or now_s < self._end_s - margin_s:
            return False
        if now_s - self._asked_s >= _ASK_EVERY_S:
            # The limit may have been moved since the job started.
            self._asked_s = now_s
            self._end_s = self._ask() or self._end_s
        return now_s >= self._end_s - margin_s


def ask_slurm(job_id: str) -> float | None:
    """Return when a job ends, seconds since 1970; None where SLURM does not say.

    Args:
        job_id: the job's number, with that of the task in an array.
    """
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job_id, "--format", "%e"],
            capture_output=True,
            text=True,
            timeout=_ANSWER_TIMEOUT_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_end(answer)


def parse_end(answer: str) -> float | None:
    """Return SLURM's date and time, of this machine's zone, in seconds since 1970.

    Args:
        answer: such as "2026-11-23T20:30:00"; "NONE" or "N/A" where there is no limit.
    """
    first = answer.strip().partition("\n")[0]
    try:
        return datetime.fromisoformat(first).timestamp()
    except ValueError:
        return None
