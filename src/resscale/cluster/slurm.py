"""SLURM's own commands: called, and their answers read."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from resscale.errors import UserInputError

# slurmctld answers within seconds; under load, or while its backup takes over, within a minute.
_ANSWER_TIMEOUT_S = 90.0
# States in which a job still stands before its end; all others are ends.
_UNDER_WAY = frozenset(
    (
        "PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "STAGE_OUT",
        "SIGNALING", "RESIZING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT",
        "RESV_DEL_HOLD",
    )
)  # fmt: skip


class SlurmUnavailable(UserInputError):
    """SLURM's commands are not there, or slurmctld does not answer."""


@dataclass(frozen=True)
class JobInfo:
    """A job as slurmctld describes it.

    Args:
        job_id: "1234", or "1230_4" for task 4 of the array 1230.
        state: such as RUNNING.
        reason: why it waits; "" where it does not.
        restarts: how often it was requeued.
        run_time_s: since its newest start.
        time_limit_s: None where there is none.
        nodes: as SLURM writes them; "" while it waits.
        exit_code: of the batch script.
        start_time: when it starts, or will by SLURM's estimate; "" where unknown.
    """

    job_id: str
    state: str
    reason: str = ""
    restarts: int = 0
    run_time_s: int = 0
    time_limit_s: int | None = None
    nodes: str = ""
    exit_code: int = 0
    start_time: str = ""

    @property
    def is_over(self) -> bool:
        """The job has ended, and SLURM will not start it again."""
        return self.state not in _UNDER_WAY


def find_jobs(job_id: str | None = None) -> list[JobInfo]:
    """Ask slurmctld about a job, or about all tasks of an array; nothing where it knows none.

    Args:
        job_id: as SLURM's commands take it; None: all jobs.

    Raises:
        SlurmUnavailable: there is no SLURM here, or slurmctld does not answer.
    """
    answer = call(["scontrol", "show", "job", "-o", *([job_id] if job_id else [])])
    if answer.returncode == 0:
        return parse_jobs(answer.stdout)
    if "Invalid job id" in answer.stderr:
        return []
    raise SlurmUnavailable(explain_refusal(answer))


def parse_jobs(text: str) -> list[JobInfo]:
    """Return the jobs of `scontrol show job -o`, one a line."""
    return [_parse_job(line) for line in text.splitlines() if "JobId=" in line]


def parse_time(text: str) -> int | None:
    """Return the seconds of a time as SLURM writes and reads it; None for UNLIMITED and the like.

    Args:
        text: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or
            days-hours:minutes:seconds.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        return None
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # without days one or two numbers begin with minutes
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def call(
    command: Sequence[str], *, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands, and return what it said.

    Args:
        command: the words.
        environ: its environment; None: this process's own.

    Raises:
        SlurmUnavailable: the command is not there, or slurmctld does not answer in time.
    """
    if shutil.which(command[0]) is None:
        raise SlurmUnavailable(
            f"there is no {command[0]} on this machine: run this on a login node of the cluster, "
            f"or install SLURM's client commands."
        )
    try:
        return subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            errors="replace",
            env=environ,
            timeout=_ANSWER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(
            f"`{command[0]}` has had no answer for {_ANSWER_TIMEOUT_S:g} s: see whether slurmctld "
            f"is up with `scontrol ping`, and try again."
        ) from None


def explain_refusal(answer: subprocess.CompletedProcess[str]) -> str:
    """Return what a command of SLURM's refused, as one sentence."""
    words = [
        re.sub(r"^\w+: (error|fatal): ", "", line).strip()
        for line in (answer.stderr or answer.stdout).splitlines()
    ]
    said = "; ".join(word for word in words if word) or f"exit code {answer.returncode}"
    return f"{answer.args[0]} refuses: {said}."


def _parse_job(line: str) -> JobInfo:
    # Values with spaces in them, such as commands, are cut; none of those is read.
    facts = dict(re.findall(r"(?:^| )([A-Za-z/:]+)=(\S*)", line))
    job_id = facts["JobId"]
    if "ArrayJobId" in facts:
        job_id = f"{facts['ArrayJobId']}_{facts.get('ArrayTaskId', '0')}"
    return JobInfo(
        job_id=job_id,
        state=facts.get("JobState", "").partition(",")[0],
        reason=_known(facts.get("Reason")),
        restarts=int(facts.get("Restarts", "0")),
        run_time_s=parse_time(facts.get("RunTime", "")) or 0,
        time_limit_s=parse_time(facts.get("TimeLimit", "")),
        nodes=_known(facts.get("NodeList")),
        exit_code=_exit_code(facts.get("ExitCode", "0:0")),
        start_time=_known(facts.get("StartTime")),
    )


def _known(text: str | None) -> str:
    return "" if text in (None, "None", "(null)", "N/A", "Unknown") else str(text)


def _exit_code(text: str) -> int:
    """Return the code of "code:signal", as a shell would."""
    code, _, number = text.partition(":")
    return 128 + int(number) if number.isdigit() and int(number) else int(code or 0)
