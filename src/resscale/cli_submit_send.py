"""What `resscale submit` sends, sent: the run directories made, the job recorded in each."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from resscale.cluster.job_record import JobRecord, read_job, write_job
from resscale.cluster.slurm import SlurmUnavailable, call, explain_refusal, find_jobs
from resscale.cluster.sweep import SweepTask, write_arguments
from resscale.errors import UserInputError

# What SLURM's words are about -> where to look.
_ADVICE = {
    "partition": "`sinfo` lists the partitions.",
    "account": "`sacctmgr show associations user=$USER` lists your accounts.",
    "time limit": "`sinfo --format='%P %l'` lists the limits.",
    "feature": "`sinfo --format='%P %f'` lists the features of nodes.",
    "configuration is not available": "`sinfo --Node --format='%P %c %G'` lists the nodes.",
}


@dataclass(frozen=True)
class Submission:
    """All that is sent.

    Args:
        folder: the run directory, or that of the sweep.
        run_dirs: of each run.
        tasks: of a sweep; empty without.
        command: the words that submit it.
        environment: the site's variables.
        script: the text of the batch script.
        record: what job.json will say, but for the job's number.
    """

    folder: Path
    run_dirs: list[Path]
    tasks: list[SweepTask]
    command: list[str]
    environment: dict[str, str]
    script: str
    record: JobRecord

    def log_of(self, job_id: str) -> str:
        """Return the log of a job, or of a task of an array ("1230_4")."""
        array, _, task = job_id.partition("_")
        pattern = self.record.log
        return pattern.replace("%A", array).replace("%a", task).replace("%j", array)


def send(submission: Submission) -> str:
    """Submit, and write the record into each run directory; return the job's number.

    Raises:
        UserInputError: SLURM refuses; nothing is left of it.
    """
    is_new = not submission.folder.exists()
    submission.folder.mkdir(parents=True, exist_ok=True)
    try:
        Path(submission.record.script).write_text(submission.script)
        for task, run_dir in zip(submission.tasks, submission.run_dirs, strict=False):
            write_arguments(submission.folder, task, ["--run_dir", str(run_dir)])
        answer = call(submission.command, environ={**os.environ, **submission.environment})
        if answer.returncode:
            raise UserInputError(_with_advice(answer))
    except BaseException:
        if is_new:
            shutil.rmtree(submission.folder)
        raise
    # "1234", or "1234;cluster" where there are several.
    job_id = answer.stdout.strip().partition(";")[0]
    names = [f"{job_id}_{task.number}" for task in submission.tasks] or [job_id]
    for run_dir, name in zip(submission.run_dirs, names, strict=True):
        write_job(run_dir, replace(submission.record, job_id=name, log=submission.log_of(name)))
    return job_id


def _with_advice(answer: subprocess.CompletedProcess[str]) -> str:
    said = explain_refusal(answer)
    return " ".join([said, *(text for word, text in _ADVICE.items() if word in said.lower())])


def refuse_queued(run_dir: Path) -> None:
    """Refuse a second job for a run that has one already.

    Raises:
        UserInputError: it waits or trains.
    """
    before = read_job(run_dir)
    try:
        jobs = [] if before is None else find_jobs(before.job_id)
    except SlurmUnavailable:
        # Then nothing can be sent either; a dry run is not held up.
        return
    for job in jobs:
        if not job.is_over:
            raise UserInputError(
                f"job {job.job_id} ({job.state}) is there for {run_dir} already: wait for its "
                f"end, or `scancel {job.job_id}` first."
            )
