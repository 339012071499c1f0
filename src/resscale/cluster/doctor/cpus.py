"""CPUs of a rank against the processes that it will run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from resscale.cluster.doctor.finding import Finding

NAME = "cpus"


@dataclass(frozen=True)
class CpuFacts:
    """What this process may use.

    Args:
        allowed: CPUs in its affinity.
        machine: CPUs of the machine.
        quota: CPUs' worth of time that a container grants; None: no limit.
    """

    allowed: int
    machine: int
    quota: float | None = None


def cpus_per_rank(facts: CpuFacts, per_node: int, cpus_per_task: int | None) -> int:
    """Return the CPUs that each rank can count on.

    Args:
        facts: of one rank.
        per_node: ranks on its node.
        cpus_per_task: what SLURM was asked for; where the affinity is no larger, it is the rank's
            own, and otherwise the ranks of the node share it.
    """
    usable = facts.allowed if facts.quota is None else min(facts.allowed, int(facts.quota))
    if cpus_per_task is not None and facts.allowed <= cpus_per_task:
        return usable
    return usable // per_node


def check_cpus(
    facts: CpuFacts, per_node: int, num_workers: int | None, cpus_per_task: int | None
) -> list[Finding]:
    """Judge whether reading processes have CPUs.

    Args:
        facts: of one rank.
        per_node: ranks on its node.
        num_workers: reading processes per rank; None: they follow from the CPUs.
        cpus_per_task: what SLURM was asked for; None outside of it.
    """
    share = cpus_per_rank(facts, per_node, cpus_per_task)
    of_machine = f"of {facts.machine} CPUs of the machine"
    quota = f", limited to {facts.quota:g} by a container" if facts.quota is not None else ""
    have = f"{share} {of_machine} for each rank{quota}"
    in_slurm = cpus_per_task is not None
    if num_workers is None and share < 2:
        return [
            Finding(
                NAME,
                "warn",
                f"{have}: images are decoded between the steps, not beside them",
                _more_cpus(in_slurm, 4, per_node),
            )
        ]
    if num_workers is not None and num_workers + 1 > max(1, share):
        return [
            Finding(
                NAME,
                "warn",
                f"{have}, and data.num_workers={num_workers} and the rank itself want "
                f"{num_workers + 1}",
                f"{_more_cpus(in_slurm, num_workers + 1, per_node)}, or set --data.num_workers "
                f"{max(0, share - 1)}",
            )
        ]
    said = "" if num_workers is None else f", data.num_workers={num_workers}"
    return [Finding(NAME, "ok", have + said)]


def probe_cpus() -> CpuFacts:
    """Look at this process's CPUs."""
    return CpuFacts(
        len(os.sched_getaffinity(0)), os.cpu_count() or 1, read_quota(Path("/sys/fs/cgroup"))
    )


def read_quota(folder: Path) -> float | None:
    """Return the CPUs' worth of time that a control group grants; None for no limit.

    Args:
        folder: of the control group, version 2 (`cpu.max`) or 1 (`cpu/cpu.cfs_quota_us`).
    """
    try:
        words = (folder / "cpu.max").read_text().split()
    except OSError:
        try:
            words = [
                (folder / "cpu" / f"cpu.cfs_{name}_us").read_text().strip()
                for name in ("quota", "period")
            ]
        except OSError:
            return None
    if words[0] in ("max", "-1"):
        return None
    return int(words[0]) / int(words[1])


def _more_cpus(in_slurm: bool, wanted: int, per_node: int) -> str:
    if in_slurm:
        return f"ask SLURM for --cpus-per-task={wanted}"
    return f"give each node {wanted * per_node} CPUs (in SLURM: --cpus-per-task={wanted})"
