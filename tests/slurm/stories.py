"""What happens to four jobs, side by side: each story ends when its job has."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import processes
from brake import SAVING, VALIDATING
from slurm_cluster import SlurmCluster
from trial import COMMON, STEPS_PER_EPOCH, Trial, braked, submit, variables

TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2")
# Story by story its own nodes, so that a lost one is lost to one story.
LEFT = ("--exclude=n3,n4,n5",)
RIGHT = ("--exclude=n1,n2",)


@dataclass
class Ended:
    """A job that has ended.

    Args:
        trial: what it left behind.
        facts: what SLURM knows of it.
        nodes: where each of its starts ran, as far as its story asked.
        lost: the nodes that were lost, one after the other.
        saved: the checkpoints that it had when a second signal came.
    """

    trial: Trial
    facts: dict[str, str]
    nodes: list[list[str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """Where stories take place.

    Args:
        slurm: the cluster.
        repository: the checkout.
        folder: for what the jobs write.
    """

    slurm: SlurmCluster
    repository: Path
    folder: Path

    def trial(self, name: str, options: tuple[str, ...], limit: float | None = None) -> Trial:
        """Submit a job, held at `limit`."""
        folder = self.folder / name
        trial = Trial(self.slurm, folder, limit)
        arguments = () if limit is None else braked(folder)
        trial.job = submit(self.slurm, self.repository, folder, options, arguments)
        return trial


def undisturbed(stage: Stage) -> list[Ended]:
    """Nothing happens."""
    trial = stage.trial("undisturbed", (*TWO_BY_TWO, *LEFT))
    return [Ended(trial, trial.finish())]


def stopped(stage: Stage) -> list[Ended]:
    """The time limit, a signal to the shell alone, two preemptions, a signal while saving."""
    slurm = stage.slurm
    options = ("--partition=low", "--gpus-per-node=2", *TWO_BY_TWO, *LEFT)
    trial = stage.trial("stopped", options, limit=4)

    # The time limit: SLURM sends the signal that train.sbatch asks for, to all ranks, two minutes
    # before it. It comes at once where less is left; more than one minute is.
    trial.wait_until_held(4, ranks=4, restart=0)
    hours, minutes, _ = slurm.facts(trial.job)["RunTime"].split(":")
    _set_job(slurm, trial.job, f"TimeLimit={60 * int(hours) + int(minutes) + 2}")
    trial.wait_until_heard(4)
    trial.hold_at(STEPS_PER_EPOCH + VALIDATING)
    slurm.wait_for(lambda: slurm.state(trial.job) == "PENDING", "the requeue", 600)
    _set_job(slurm, trial.job, "TimeLimit=60")

    # In the validation, the batch shell alone hears of it.
    trial.wait_until_held(STEPS_PER_EPOCH + VALIDATING, ranks=4, restart=1)
    before = trial.count_heard()
    slurm.signal(trial.job, "TERM", to="batch")
    trial.wait_until_heard(4, before)
    trial.hold_at(27)

    # Preempted without grace: SLURM requeues it by itself, saved or not.
    trial.wait_until_held(27, ranks=4, restart=2)
    _preempt(stage, trial, 34)

    # Preempted with grace, and signalled again while it saves.
    slurm.run("scontrol", "update", "PartitionName=low", "GraceTime=60")
    trial.wait_until_held(34, ranks=4, restart=3)
    # A vote counts one step later: all ranks save behind the second step.
    _preempt(stage, trial, 36 + SAVING)
    trial.wait_until_held(36 + SAVING, ranks=4, restart=3)
    saved = trial.checkpoints()
    slurm.signal(trial.job, "TERM")
    for pid in slurm.ranks(trial.job).values():
        os.kill(pid, signal.SIGUSR2)
    return [Ended(trial, trial.finish(), saved=saved)]


def shared(stage: Stage) -> list[Ended]:
    """Two tasks of an array on the same two nodes: one goes on with half of them, one is told.

    An array's number stands for its task's margin before the time limit of 600 s: 599 s are
    left 1 s behind the start, and 0 s never in time.
    """
    slurm = stage.slurm
    options = ("--array=0,599", "--nodes=2", "--ntasks-per-node=1", "--time=10", *LEFT)
    told, early = (Trial(slurm, stage.folder / f"shared-{task}", 0) for task in (0, 599))
    folder = stage.folder / "shared-{task}"
    arguments = ("--preempt.margin_s={task}", *braked(folder))
    array = submit(slurm, stage.repository, folder, options, arguments)
    told.job, early.job = f"{array}_0", f"{array}_599"

    # Both stand on both nodes at the same time. One rank of one task hears of a signal.
    told.wait_until_held(0, ranks=2, restart=0)
    early.wait_until_held(0, ranks=2, restart=0)
    nodes = [_nodes(slurm, trial.job) for trial in (told, early)]
    os.kill(slurm.ranks(told.job)[1], signal.SIGTERM)
    told.let_go()

    # The other sees by itself that its time is nearly over, and goes on with one node.
    early.let_go()
    slurm.wait_for(lambda: slurm.state(early.job) == "PENDING", "the requeue", 600)
    _set_job(slurm, early.job, "NumNodes=1", "NumTasks=1", "TimeLimit=60")
    return [Ended(trial, trial.finish(), nodes) for trial in (told, early)]


def refused(stage: Stage) -> list[Ended]:
    """A forgotten srun, and three tasks on two nodes."""
    slurm, folder = stage.slurm, stage.folder
    command = shlex.join([sys.executable, "-m", "resscale", "fit", *COMMON])
    forgotten = Trial(slurm, folder / "forgotten")
    options = ("--nodes=1", "--ntasks=2", f"--output={forgotten.output}", *LEFT)
    words = (*options, "--wrap", f"{command} --run_dir={forgotten.run_dir}")
    forgotten.job = slurm.submit(*words, cwd=stage.repository, variables=variables())
    unlike = stage.trial("unlike", ("--nodes=2", "--ntasks=3", *LEFT))
    return [Ended(trial, slurm.wait_for_end(trial.job)) for trial in (forgotten, unlike)]


def lost(stage: Stage) -> list[Ended]:
    """A rank is killed, a node loses its power, then one its daemon, then one its cable."""
    slurm = stage.slurm
    trial = stage.trial("lost", (*TWO_BY_TWO, *RIGHT), limit=8)
    nodes = []

    trial.wait_until_held(8, ranks=4, restart=0)
    nodes.append(_nodes(slurm, trial.job))
    ranks = slurm.ranks(trial.job)
    os.kill(ranks[2], signal.SIGKILL)
    trial.hold_at(13)
    processes.wait_gone(list(ranks.values()), 300)

    # The node of the batch script and of rank 0.
    trial.wait_until_held(13, ranks=4, restart=1)
    facts = slurm.facts(trial.job)
    nodes.append(_nodes(slurm, trial.job))
    ranks = slurm.ranks(trial.job)
    dead = facts["BatchHost"]
    slurm.kill_node(dead)
    trial.hold_at(27)
    processes.wait_gone(list(ranks.values()), 300)
    trial.wait_for_restart(2)
    slurm.start_node(dead)
    slurm.wait_for_node(dead)

    # Its ranks live on, while SLURM starts others elsewhere.
    trial.wait_until_held(27, ranks=4, restart=2)
    facts = slurm.facts(trial.job)
    nodes.append(_nodes(slurm, trial.job))
    ranks = slurm.ranks(trial.job)
    silent = facts["BatchHost"]
    slurm.kill_slurmd(silent)
    trial.wait_for_restart(3)
    trial.wait_until_held(27, ranks=4, restart=3)
    processes.wait_gone(list(ranks.values()), 300)
    slurm.start_node(silent)
    slurm.wait_for_node(silent)
    trial.hold_at(33)

    trial.wait_until_held(33, ranks=4, restart=3)
    facts = slurm.facts(trial.job)
    nodes.append(_nodes(slurm, trial.job))
    ranks = slurm.ranks(trial.job)
    (cut,) = set(nodes[-1]) - {facts["BatchHost"]}
    slurm.cut(cut)
    trial.hold_at(38)
    trial.wait_for_restart(4)
    # Its ranks wait for an answer that cannot come: SLURM ends them when it sees the node again.
    slurm.heal(cut)
    slurm.wait_for_node(cut)
    processes.wait_gone(list(ranks.values()), 300)
    trial.wait_until_held(38, ranks=4, restart=4)
    nodes.append(_nodes(slurm, trial.job))
    return [Ended(trial, trial.finish(), nodes, [dead, silent, cut])]


def _preempt(stage: Stage, trial: Trial, limit: float) -> None:
    """Let a job of higher rank take the place; hold again at `limit`."""
    before = trial.count_heard()
    words = ("--partition=high", "--nodes=2", "--gpus-per-node=2", "--output=/dev/null", *LEFT)
    stage.slurm.submit(*words, "--wrap", "srun sleep 1", cwd=stage.folder)
    trial.wait_until_heard(4, before)
    trial.hold_at(limit)


def _set_job(slurm: SlurmCluster, job: str, *settings: str) -> None:
    done = slurm.run("scontrol", "update", f"JobId={job}", *settings)
    assert done.returncode == 0, done.stderr


def _nodes(slurm: SlurmCluster, job: str) -> list[str]:
    """Where a job runs: the names behind SLURM's "n[1-2]"."""
    nodes = slurm.facts(job)["NodeList"]
    return slurm.run("scontrol", "show", "hostnames", nodes).stdout.split()
