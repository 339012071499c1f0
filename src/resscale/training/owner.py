"""Whose the run directory is: one start of one job, and a later start of that job takes it over.

A node that SLURM has lost may still train. The job is requeued to other nodes meanwhile, and both
would write here. So a start that finds the directory taken by an earlier start of its own job
says that it is the owner now; the earlier one sees it, ends, and with it its lock.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A start of a job.

    Args:
        job_id: the job's name; None for a process that belongs to none.
        restart_count: how often the job was started before.
        host: machine of its rank 0.
        pid: process of its rank 0.
    """

    job_id: str | None = None
    restart_count: int = 0
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    def follows(self, other: Owner | None) -> bool:
        """Return whether this is a later start of the same job."""
        return (
            other is not None
            and self.job_id is not None
            and self.job_id == other.job_id
            and self.restart_count > other.restart_count
        )


def owner_file(run_dir: Path) -> Path:
    """Return where the owner's name stands."""
    return run_dir / "ranks" / "owner.json"


def read_owner(run_dir: Path) -> Owner | None:
    """Return who owns the run directory; None where nobody has said so."""
    try:
        return Owner(**json.loads(owner_file(run_dir).read_text()))
    except (OSError, json.JSONDecodeError, TypeError):
        return None


def write_owner(run_dir: Path, owner: Owner) -> None:
    """Say who owns the run directory, in one step."""
    target = owner_file(run_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}-{owner.host}-{owner.pid}.tmp")
    temporary.write_text(json.dumps(asdict(owner)) + "\n")
    temporary.replace(target)
