"""What stands in a run's job.json: the job that trains it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

_NAME = "job.json"


@dataclass(frozen=True)
class JobRecord:
    """A submitted job.

    Args:
        job_id: "1234", or "1230_4" for task 4 of the array 1230.
        submitted: date and time.
        command: what the user typed.
        sbatch: the words that submitted it.
        environment: the site's variables that it was given.
        script: the batch script.
        log: where its output goes.
        nodes: how many.
        tasks_per_node: ranks on each.
        gpus_per_node: 0 without.
        cpus_per_task: None where SLURM's default holds.
        time_limit: as sbatch takes it; None: the partition's.
    """

    job_id: str
    submitted: str
    command: str
    sbatch: list[str]
    environment: dict[str, str]
    script: str
    log: str
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int | None = None
    time_limit: str | None = None


def write_job(run_dir: Path, record: JobRecord) -> Path:
    """Write the record in one step, and return the file."""
    target = run_dir / _NAME
    run_dir.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(json.dumps(asdict(record), indent=1) + "\n")
    temporary.replace(target)
    return target


def read_job(run_dir: Path) -> JobRecord | None:
    """Return the record; None where there is none, or none that can be read."""
    try:
        return JobRecord(**json.loads((run_dir / _NAME).read_text()))
    except (OSError, json.JSONDecodeError, TypeError):
        return None
