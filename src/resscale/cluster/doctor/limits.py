"""Shared memory that batches travel through, and open files that they take."""

from __future__ import annotations

import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from resscale.cluster.doctor.finding import Finding, in_units

SHARED_MEMORY = "shared_memory"
OPEN_FILES = "open_files"
# Tensors of a batch, each a file descriptor in the rank while the batch waits: image, label, flip,
# id.
_TENSORS = 4
# Libraries, logs, shards and pipes of a rank.
_FILES_OF_A_RANK = 256
# torch's store and the all-reduce each keep a connection to every other rank, in rank 0 at most.
_CONNECTIONS_PER_RANK = 2
# What containers get where nobody has asked is 64 MB.
_SMALL = 1 << 30


@dataclass(frozen=True)
class Batches:
    """What is on its way to a rank.

    Args:
        per_node: ranks on a node.
        num_workers: reading processes of each rank.
        prefetch: batches that each keeps ready.
        batch_bytes: size of one.
        world_size: ranks on all nodes.
    """

    per_node: int
    num_workers: int
    prefetch: int
    batch_bytes: int
    world_size: int

    @property
    def in_flight_per_rank(self) -> int:
        """Batches in shared memory: those that wait, and one that each process writes."""
        return self.num_workers * (self.prefetch + 1)

    @property
    def shared_bytes(self) -> int:
        """Shared memory that a node needs."""
        return self.per_node * self.in_flight_per_rank * self.batch_bytes

    @property
    def open_files(self) -> int:
        """Descriptors that a rank needs."""
        connections = _CONNECTIONS_PER_RANK * self.world_size
        return _FILES_OF_A_RANK + self.in_flight_per_rank * _TENSORS + connections


def check_shared_memory(free: int, total: int, batches: Batches | None) -> list[Finding]:
    """Judge /dev/shm.

    Args:
        free: bytes that are free.
        total: bytes of all of it.
        batches: what is to travel through it; None where no configuration says.
    """
    have = f"{in_units(free)} of {in_units(total)} free in /dev/shm"
    more = (
        "give the container more (docker run --shm-size, or --ipc=host; a memory volume on "
        "Kubernetes), or remount it larger"
    )
    if batches is None:
        if total < _SMALL:
            return [Finding(SHARED_MEMORY, "warn", f"{have}, which few batches fill", more)]
        return [Finding(SHARED_MEMORY, "ok", have)]
    need = (
        f"{batches.per_node} {'rank' if batches.per_node == 1 else 'ranks'} × "
        f"{batches.in_flight_per_rank} batches of {in_units(batches.batch_bytes)}"
    )
    if free < batches.shared_bytes:
        return [
            Finding(
                SHARED_MEMORY,
                "fail",
                f"{have}, and {need} need {in_units(batches.shared_bytes)}",
                f"{more}, or lower --data.num_workers (now {batches.num_workers})",
            )
        ]
    return [Finding(SHARED_MEMORY, "ok", f"{have}; {need} need {in_units(batches.shared_bytes)}")]


def check_open_files(soft: int, hard: int, batches: Batches | None) -> list[Finding]:
    """Judge how many files a process may have open.

    Args:
        soft: the limit in force.
        hard: what it can be raised to.
        batches: what a rank will hold open; None where no configuration says.
    """
    need = _FILES_OF_A_RANK if batches is None else batches.open_files
    if soft >= need:
        return [Finding(OPEN_FILES, "ok", f"up to {soft:,}; a rank needs about {need:,}")]
    if hard >= need:
        remedy = f"put `ulimit -n {hard}` before the command"
    else:
        remedy = (
            f"have the administrator raise the hard limit of {hard:,} (limits.conf, or "
            f"LimitNOFILE of slurmd)"
        )
    return [Finding(OPEN_FILES, "fail", f"up to {soft:,}, and a rank needs about {need:,}", remedy)]


def probe_shared_memory(folder: Path = Path("/dev/shm")) -> tuple[int, int]:
    """Return `(free, total)` bytes of shared memory.

    Args:
        folder: where it is mounted.
    """
    usage = shutil.disk_usage(folder)
    return usage.free, usage.total


def probe_open_files() -> tuple[int, int]:
    """Return the soft and the hard limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = 1 << 30
    return (
        unlimited if soft == resource.RLIM_INFINITY else soft,
        unlimited if hard == resource.RLIM_INFINITY else hard,
    )
