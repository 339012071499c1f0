"""How srun's tasks become ranks that find each other.

Lightning's own environment is not used: it takes a batch script without srun for a rank and waits
for ever, derives the port from the job's number, so that two jobs on a node collide, and takes
`srun --pty bash` for eight ranks.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning.fabric.plugins import ClusterEnvironment

from resscale.cluster.environment import ADDRESS_VARIABLE, SlurmJob
from resscale.errors import UserInputError

# Nodes start their tasks seconds apart, and imports over a network file system take minutes.
MEETING_TIMEOUT_S = 600.0
# Thousands of ranks look into one folder: less and less often.
_FIRST_POLL_S = 0.05
_LONGEST_POLL_S = 1.0


@dataclass(frozen=True)
class Meeting:
    """What rank 0 decides for all ranks of a start.

    Args:
        address: name or address of rank 0's node.
        port: a free one there.
        ckpt_path: where training goes on from; None: from the beginning.
        refused: the exit code, where rank 0 has found that it cannot begin and has said why.
    """

    address: str
    port: int
    ckpt_path: str | None = None
    refused: int | None = None


def meeting_file(folder: Path, job: SlurmJob) -> Path:
    """Return where the ranks of this start of the job look for rank 0's word.

    Args:
        folder: the run directory, on a file system that all nodes share.
        job: this job.
    """
    return folder / "ranks" / f"meeting-{job.job_id}-{job.restart_count}-{job.step_id}.json"


def main_address(job: SlurmJob) -> str:
    """Return the name that the other nodes find this one by."""
    return os.environ.get(ADDRESS_VARIABLE) or job.node_name or socket.gethostname()


def call_meeting(folder: Path, job: SlurmJob, meeting: Meeting) -> None:
    """Tell the other ranks; for rank 0, once it has checked all that it alone can check.

    Args:
        folder: the run directory.
        job: this job.
        meeting: what they are told.
    """
    target = meeting_file(folder, job)
    target.parent.mkdir(parents=True, exist_ok=True)
    # What earlier starts were told that did not end by themselves.
    for old in target.parent.glob(f"meeting-{job.job_id}-*-*.json"):
        if old != target and f"-{job.restart_count}-" not in old.name:
            old.unlink(missing_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(json.dumps(asdict(meeting)) + "\n")
    temporary.replace(target)


def join_meeting(folder: Path, job: SlurmJob, timeout_s: float = MEETING_TIMEOUT_S) -> Meeting:
    """Wait for rank 0's word; for the other ranks.

    Args:
        folder: the run directory.
        job: this job.
        timeout_s: how long.

    Raises:
        UserInputError: rank 0 has not spoken in this time.
    """
    target = meeting_file(folder, job)
    deadline = time.monotonic() + timeout_s
    poll_s = _FIRST_POLL_S
    while time.monotonic() < deadline:
        found = _read(target)
        if found is not None:
            return found
        time.sleep(poll_s)
        poll_s = min(_LONGEST_POLL_S, 1.5 * poll_s)
    raise UserInputError(
        f"rank {job.rank} on {job.node_name} has waited {timeout_s:g} s for rank 0's word in "
        f"{target}: the run directory must lie on a file system that all nodes share (--run_dir "
        f"or --runs_dir), and rank 0 must have started."
    )


class HeldPort:
    """A free port that nobody else is given by chance until it is closed.

    It is bound and not listened on: who knows its number, and reuses addresses as torch's store
    does, can listen there all the same.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind(("", 0))
        # Only now: two sockets that would share are both given the same port.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Give it back."""
        self._socket.close()


class SlurmRanks(ClusterEnvironment):
    """The tasks of one srun as ranks.

    Args:
        job: as this task sees it.
        meeting: where they meet.
    """

    def __init__(self, job: SlurmJob, meeting: Meeting) -> None:
        super().__init__()
        self.job = job
        self.meeting = meeting

    @property
    def creates_processes_externally(self) -> bool:
        """srun has started every rank."""
        return True

    @property
    def main_address(self) -> str:
        """Rank 0's node."""
        return self.meeting.address

    @property
    def main_port(self) -> int:
        """Rank 0's port."""
        return self.meeting.port

    @staticmethod
    def detect() -> bool:
        """Never chosen by Lightning: the command line does."""
        return False

    def world_size(self) -> int:
        """Return the number of tasks."""
        return self.job.num_tasks

    def set_world_size(self, size: int) -> None:
        """Do nothing: srun has fixed it."""

    def global_rank(self) -> int:
        """Return this task's number."""
        return self.job.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: srun has fixed it."""

    def local_rank(self) -> int:
        """Return this task's number on its node."""
        return self.job.local_rank

    def node_rank(self) -> int:
        """Return this node's number."""
        return self.job.node_rank


def _read(target: Path) -> Meeting | None:
    try:
        # Opening the folder makes network file systems look for what is new in it.
        if target.name not in os.listdir(target.parent):  # noqa: PTH208 - names are enough
            return None
        return Meeting(**json.loads(target.read_text()))
    except (OSError, json.JSONDecodeError, TypeError):
        return None
