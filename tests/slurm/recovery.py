"""Measures how long a job takes to get going again behind each kind of failure.

    python tests/slurm/recovery.py

It starts a SLURM cluster of its own (as root; see slurm_cluster.py) and one job of two ranks on two
nodes. What SLURM itself takes to notice depends on the site: here a node is given up behind 10 s
of silence (SlurmdTimeout; SLURM's own default is 300 s).
"""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import processes
from slurm_cluster import SlurmCluster, missing
from soak import Soak

NODE_TIMEOUT_S = 10


class Failures:
    """What can happen to a job, and how it is mended.

    Args:
        slurm: the cluster.
        job: on two of its nodes.
    """

    def __init__(self, slurm: SlurmCluster, job: str) -> None:
        self.slurm = slurm
        self.job = job
        self.down: str | None = None
        self.is_cut = False

    def signal_to_all(self) -> None:
        """A stop request, as at a time limit."""
        self.slurm.signal(self.job, "USR2")

    def signal_to_one(self) -> None:
        """SIGTERM to rank 1's process alone."""
        os.kill(self.slurm.ranks(self.job)[1], signal.SIGTERM)

    def killed_rank(self) -> None:
        """SIGKILL to rank 1, as when memory runs out."""
        os.kill(self.slurm.ranks(self.job)[1], signal.SIGKILL)

    def preempted(self) -> None:
        """A job of higher rank takes both nodes for a second."""
        nodes = self.slurm.facts(self.job)["NodeList"]
        words = ("--partition=high", f"--nodelist={nodes}", "--nodes=2", "--exclusive")
        self.slurm.submit(*words, "--output=/dev/null", "--wrap", "srun sleep 1")

    def node_without_power(self) -> None:
        """A node is gone at once."""
        self.down = self._other_node()
        self.slurm.kill_node(self.down)

    def node_without_slurmd(self) -> None:
        """SLURM's daemon dies; the rank lives on."""
        self.down = self._other_node()
        self.slurm.kill_slurmd(self.down)

    def node_without_network(self) -> None:
        """A node's cable is pulled."""
        self.down, self.is_cut = self._other_node(), True
        self.slurm.cut(self.down)

    def mend(self) -> None:
        """Bring the node back."""
        if self.down is not None:
            if self.is_cut:
                self.slurm.heal(self.down)
            else:
                self.slurm.start_node(self.down)
            self.slurm.wait_for_node(self.down)
            self.down, self.is_cut = None, False

    def _other_node(self) -> str:
        facts = self.slurm.facts(self.job)
        names = self.slurm.run("scontrol", "show", "hostnames", facts["NodeList"]).stdout.split()
        return next(name for name in names if name != facts["BatchHost"])


def measure(soak: Soak) -> list[tuple[str, float, float, float]]:
    """Return for each failure: what, and seconds until ranks are gone, start and train again."""
    job = soak.submit("recovery", soak.pace_s, ("--partition=low",))
    failures = Failures(soak.slurm, job)
    rows = []
    events: list[Callable[[], None]] = [
        failures.signal_to_all,
        failures.signal_to_one,
        failures.killed_rank,
        failures.preempted,
        failures.node_without_power,
        failures.node_without_slurmd,
        failures.node_without_network,
    ]
    for count, event in enumerate(events):
        soak.wait_for_start(job, count)
        soak.wait_for_step(job)
        time.sleep(2)
        pids = list(soak.slurm.ranks(job).values())
        began_s = time.monotonic()
        event()
        gone = soak.when(lambda pids=pids: not any(map(processes.parent_of, pids)))  # type: ignore[misc]
        soak.wait_for_start(job, count + 1)
        started_s = time.monotonic() - began_s
        soak.wait_for_step(job)
        trains_s = time.monotonic() - began_s
        # A rank behind a pulled cable is there until SLURM sees its node again.
        rows.append(((event.__doc__ or "").rstrip("."), gone(began_s), started_s, trains_s))
        print("{}  gone {:.0f} s, started {:.0f} s, trains {:.0f} s".format(*rows[-1]), flush=True)
        failures.mend()
    soak.slurm.run("scancel", job)
    return rows


def main() -> int:
    """Run, and print a table."""
    reason = missing()
    if reason is not None:
        print(reason)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    with SlurmCluster(num_nodes=4, node_timeout_s=NODE_TIMEOUT_S) as slurm:
        soak = Soak(slurm, folder, epochs=60, pace_s=0.08, window_s=4.0, seed=0)
        rows = measure(soak)
    print(
        "| what | ranks gone, s | started again, s | trains again, s |\n| --- | --- | --- | --- |"
    )
    for what, gone_s, *others in rows:
        gone = f"{gone_s:.0f}" if math.isfinite(gone_s) else "not before the node is back"
        print(f"| {what} | {gone} | {' | '.join(f'{value:.0f}' for value in others)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
