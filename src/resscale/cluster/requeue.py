"""Whether a job that has ended goes back into the queue: `python -m resscale.cluster.requeue`.

The batch script asks when its ranks are gone. It needs no torch, and answers at once.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resscale.cluster.environment import SlurmJob, read_slurm
from resscale.cluster.slurm import JobInfo, call, explain_refusal, find_jobs
from resscale.errors import UserInputError
from resscale.training.rundir import RunDir

STOPPED = 75
# After these the same would happen again.
_FINAL = {
    0: "the run is done",
    2: "the user's input must be mended first",
    70: "a guard ended the run",
    130: "the user gave up",
}
_MAX_STALLED = 3
# A time limit that is too short to train a step in, say. Where others take the nodes again and
# again, a hundred starts are a day's.
_MAX_IDLE_STOPS = 100
_HANG = 70
_EVENT = "requeue"
_TRIES = 5
_PAUSE_S = 5.0


@dataclass(frozen=True)
class Decision:
    """What becomes of the job.

    Args:
        requeue: it goes back into the queue.
        reason: why, in words.
    """

    requeue: bool
    reason: str


def decide(
    code: int,
    step: int,
    failed_at: Sequence[int],
    stopped_at: Sequence[int] = (),
    *,
    is_hang: bool = False,
) -> Decision:
    """Decide by how the ranks ended, and by whether the run gets on.

    Args:
        code: exit code of the ranks: the highest of all.
        step: of the newest checkpoint, 0 where there is none.
        failed_at: the same at each earlier failure (not at stops) of this job.
        stopped_at: the same at each earlier stop.
        is_hang: the ranks stood still, as behind a cut network: a fault, and no guard's stop.
    """
    if code == STOPPED:
        if sum(1 for earlier in stopped_at if earlier >= step) >= _MAX_IDLE_STOPS:
            times = f"{_MAX_IDLE_STOPS} times"
            return Decision(False, f"stopped again, {times} before without a newer checkpoint")
        return Decision(True, "stopped on request")
    if code in _FINAL and not (code == _HANG and is_hang):
        return Decision(False, _FINAL[code])
    stalled = sum(1 for earlier in failed_at if earlier >= step)
    if stalled < _MAX_STALLED:
        if not stalled:
            return Decision(True, f"exit code {code}")
        times = f"{stalled} of {_MAX_STALLED}"
        return Decision(True, f"exit code {code}, requeued at step {step} before: {times} times")
    return Decision(
        False, f"exit code {code} for the {_MAX_STALLED + 1}th time without a newer checkpoint"
    )


def may_requeue(job: JobInfo) -> bool:
    """Tell whether SLURM has left it to us what becomes of a job.

    It has not where the user has cancelled it, and where SLURM itself has requeued it after a
    preemption or a node's loss. All of these stand as COMPLETING, as does a job at its time limit,
    which nobody else would requeue.

    Args:
        job: as slurmctld describes it, while the batch script still runs.
    """
    if job.state in ("RUNNING", "SUSPENDED"):
        return True
    at_limit = job.time_limit_s is not None and job.run_time_s >= job.time_limit_s
    return job.state in ("COMPLETING", "TIMEOUT") and at_limit


def newest_step(run_dir: Path) -> int:
    """Return the global step of a run's newest checkpoint, 0 where there is none."""
    steps = [
        int(found[1])
        for path in (run_dir / "checkpoints").glob("epoch-*.ckpt")
        if (found := re.fullmatch(r"epoch-\d+-step-(\d+)\.ckpt", path.name))
    ]
    return max(steps, default=0)


def find_run_dir(arguments: Sequence[str], job_id: str) -> Path | None:
    """Return the run directory of a job: the one that its arguments name, else the one named by it.

    Args:
        arguments: those of `resscale fit`.
        job_id: of this job, "1230_4" in an array.
    """
    named = _option(arguments, "--run_dir")
    if named is not None:
        return Path(named) if Path(named).is_dir() else None
    runs_dir = Path(_option(arguments, "--runs_dir") or "runs")
    found = [path for path in runs_dir.glob(f"*-job{job_id}-*") if path.is_dir()]
    # A cluster that was set up anew counts its jobs from 1 again.
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def run_requeue(code: int, arguments: Sequence[str], job: SlurmJob) -> None:
    """Decide, write it into the run's ledger, and requeue the job.

    Args:
        code: exit code of the ranks.
        arguments: those of `resscale fit`.
        job: this job.

    Raises:
        UserInputError: SLURM cannot be asked, or refuses.
    """
    run_dir = find_run_dir(arguments, job.job_id)
    if run_dir is None:
        # Nothing tells whether it gets on.
        starts = [0] * job.restart_count
        decision = decide(code, 0, starts, starts)
    else:
        run = RunDir(run_dir)
        ledger = [entry for entry in run.read_events(_EVENT) if entry.get("job") == job.job_id]
        stopped_at, failed_at = (
            [int(entry.get("step", 0)) for entry in ledger if (entry["code"] == STOPPED) is stop]
            for stop in (True, False)
        )
        decision = decide(
            code,
            newest_step(run_dir),
            failed_at,
            stopped_at,
            is_hang=_has_hung(run.read_events("rank_failed"), ledger),
        )
    if decision.requeue and not _is_ours(job.job_id):
        decision = Decision(False, "SLURM has ended the job, or requeues it by itself")
    if run_dir is not None and code != 0:
        RunDir(run_dir).append_event(
            _EVENT,
            code=code,
            step=newest_step(run_dir),
            job=job.job_id,
            restart=job.restart_count,
            requeued=decision.requeue,
            reason=decision.reason,
        )
    verb = "goes back into the queue" if decision.requeue else "ends"
    print(f"resscale: job {job.job_id} {verb}: {decision.reason}", flush=True)
    if decision.requeue:
        _requeue(job.job_id)


def _has_hung(failures: Sequence[dict[str, Any]], ledger: Sequence[dict[str, Any]]) -> bool:
    """Tell whether the newest failure is a hang, and of this start."""
    if not failures or failures[-1].get("kind") != "hang":
        return False
    return not ledger or str(failures[-1]["time"]) >= str(ledger[-1]["time"])


def _is_ours(job_id: str) -> bool:
    found = find_jobs(job_id)
    return not found or may_requeue(found[0])


def _requeue(job_id: str) -> None:
    """Requeue; again after a pause where slurmctld is just being started anew."""
    for attempt in range(_TRIES):
        answer = call(["scontrol", "requeue", job_id])
        if answer.returncode == 0:
            return
        if attempt + 1 < _TRIES:
            time.sleep(_PAUSE_S)
    raise UserInputError(explain_refusal(answer))


def _option(arguments: Sequence[str], name: str) -> str | None:
    """Return the value of `--name VALUE` or `--name=VALUE`, the last one that is given."""
    value = None
    for position, word in enumerate(arguments):
        if word == name and position + 1 < len(arguments):
            value = arguments[position + 1]
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the module; return 0 where it has decided, 1 where it could not.

    Args:
        argv: the ranks' exit code, and the arguments of `resscale fit`; None: this process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m resscale.cluster.requeue", prefix_chars="\0")
    parser.add_argument("code", type=int, help="exit code of the ranks")
    parser.add_argument("arguments", nargs="*", help="those of `resscale fit`")
    options = parser.parse_args(argv)
    job = read_slurm()
    if job is None:
        print("resscale: no SLURM job is to be requeued here", file=sys.stderr)
        return 1
    try:
        run_requeue(options.code, options.arguments, job)
    except UserInputError as error:
        print(f"resscale: job {job.job_id} is not requeued: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
