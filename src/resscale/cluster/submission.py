"""From one statement, nodes and GPUs, to everything that sbatch and the ranks are told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from resscale.cluster.site import Site, sbatch_flags
from resscale.cluster.slurm import SlurmUnavailable, call, explain_refusal, parse_time
from resscale.errors import UserInputError

# A job is told to save one to two minutes before its limit, and starting takes about as long.
_SHORTEST_S = 300


@dataclass(frozen=True)
class NodeKind:
    """What a node of the partition has.

    Args:
        cpus: as SLURM counts them.
        gpus: of the sort that is asked for.
        limit_s: the longest time limit of a job there; None: none.
    """

    cpus: int
    gpus: int
    limit_s: int | None = None


@dataclass(frozen=True)
class Shape:
    """The job's ranks.

    Args:
        nodes: how many.
        tasks_per_node: ranks on each.
        gpus_per_node: as many, or 0.
        cpus_per_task: None where neither the user nor SLURM says.
    """

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int | None

    @property
    def num_ranks(self) -> int:
        """Ranks on all nodes."""
        return self.nodes * self.tasks_per_node

    def __str__(self) -> str:
        what = "GPU" if self.gpus_per_node else "rank"
        ranks = "" if self.num_ranks == 1 else "s"
        cpus = "" if self.cpus_per_task is None else f", {self.cpus_per_task} CPUs each"
        return (
            f"{self.nodes} {'node' if self.nodes == 1 else 'nodes'} × {self.tasks_per_node} {what}"
            f"{'' if self.tasks_per_node == 1 else 's'} = {self.num_ranks} rank{ranks}{cpus}"
        )


def derive_shape(
    nodes: int,
    gpus_per_node: int,
    tasks_per_node: int | None,
    cpus_per_task: int | None,
    kinds: Sequence[NodeKind],
) -> Shape:
    """Return tasks and CPUs, which follow from nodes and GPUs.

    Args:
        nodes: how many.
        gpus_per_node: 0 for training on CPUs.
        tasks_per_node: for training on CPUs; None: one.
        cpus_per_task: None: a fair share of the node.
        kinds: the partition's nodes; empty where SLURM cannot be asked.

    Raises:
        UserInputError: numbers that contradict each other, or that no node can give.
    """
    if gpus_per_node and tasks_per_node not in (None, gpus_per_node):
        raise UserInputError(
            f"--tasks-per-node={tasks_per_node} with --gpus-per-node={gpus_per_node}: one task "
            f"trains on one GPU. Leave --tasks-per-node out."
        )
    tasks = gpus_per_node or tasks_per_node or 1
    able = [kind for kind in kinds if kind.gpus >= gpus_per_node and kind.cpus >= tasks]
    if kinds and len(able) < nodes:
        most = max(kinds, key=lambda kind: (kind.gpus, kind.cpus))
        raise UserInputError(
            f"--nodes={nodes}: {len(able)} of the {len(kinds)} nodes of this partition have "
            f"{gpus_per_node} GPUs and {tasks} CPUs or more, and the largest has {most.gpus} and "
            f"{most.cpus}: ask for fewer, or name another --partition or --gpu-type."
        )
    if cpus_per_task is None and able:
        cpus_per_task = min(_fair_share(kind, gpus_per_node, tasks) for kind in able)
    return Shape(nodes, tasks, gpus_per_node, cpus_per_task)


def find_node_kinds(partition: str | None, gpu_type: str | None) -> list[NodeKind]:
    """Ask SLURM what the nodes of a partition have.

    Args:
        partition: None: SLURM's default.
        gpu_type: which GPUs count; None: all.

    Raises:
        SlurmUnavailable: there is no SLURM here, or it does not answer.
        UserInputError: it has no such partition.
    """
    answer = call(["sinfo", "--noheader", "--Node", "--format=%P|%l|%c|%G"])
    if answer.returncode:
        raise SlurmUnavailable(explain_refusal(answer))
    kinds = parse_nodes(answer.stdout, partition, gpu_type)
    if not kinds and partition is not None:
        names = {line.partition("|")[0].rstrip("*") for line in answer.stdout.splitlines()}
        raise UserInputError(
            f"--partition={partition} is not one of SLURM's: {', '.join(sorted(names))}."
        )
    return kinds


def parse_nodes(text: str, partition: str | None, gpu_type: str | None) -> list[NodeKind]:
    """Return the nodes of `sinfo --Node --format=%P|%l|%c|%G`.

    Args:
        text: "main*|1-00:00:00|64|gpu:a100:8(S:0-1)", a line for each node of each partition; a
            star is behind the default's name.
        partition: None: the default.
        gpu_type: None: all.
    """
    kinds = []
    for line in text.splitlines():
        name, limit, cpus, generic = (line.split("|", 3) + [""] * 3)[:4]
        if name.rstrip("*") != partition if partition is not None else not name.endswith("*"):
            continue
        # "gpu:8", "gpu:a100:8", "gpu:a100:8(S:0-1)", separated by commas.
        found = re.findall(r"\bgpu:(?:([^:,()]+):)?(\d+)", generic)
        gpus = sum(int(count) for kind, count in found if gpu_type in (None, kind))
        kinds.append(NodeKind(int(cpus.rstrip("+") or 0), gpus, parse_time(limit)))
    return kinds


def check_time(text: str, kinds: Sequence[NodeKind]) -> None:
    """Refuse a time limit that SLURM would let wait for ever, or that leaves no time to train.

    Args:
        text: as sbatch takes it.
        kinds: the partition's nodes; empty where SLURM cannot be asked.

    Raises:
        UserInputError: another form, too short or too long.
    """
    limit_s = parse_time(text)
    if limit_s is None:
        raise UserInputError(
            f"--time={text} must read hours:minutes:seconds or days-hours:minutes:seconds."
        )
    if limit_s < _SHORTEST_S:
        raise UserInputError(
            f"--time={text} is too short: a job is told to save one to two minutes before its "
            f"limit, and its start takes about as long. Give it {_SHORTEST_S // 60} minutes or "
            f"more."
        )
    limits = [kind.limit_s for kind in kinds]
    longest_s = max((limit for limit in limits if limit is not None), default=0)
    if limits and None not in limits and limit_s > longest_s:
        raise UserInputError(
            f"--time={text} is beyond the {longest_s // 60} minutes of this partition, and the job "
            f"would never start: ask for less (it is requeued, and goes on), or name another "
            f"--partition."
        )


def batch_script() -> str:
    """Return the text of the batch script."""
    return resources.files("resscale.cluster").joinpath("train.sbatch").read_text()


def sbatch_command(
    shape: Shape,
    site: Site,
    *,
    name: str,
    log: str,
    script: Path,
    arguments: Sequence[str],
    time_limit: str | None = None,
    num_tasks: int = 0,
    max_running: int | None = None,
) -> list[str]:
    """Return the words that submit a job.

    Args:
        shape: its ranks.
        site: the cluster.
        name: of the job.
        log: where its output goes, with SLURM's patterns such as %j.
        script: the batch script.
        arguments: those of `resscale fit`.
        time_limit: as sbatch takes it; None: the partition's.
        num_tasks: of an array; 0: none.
        max_running: of these at a time; None: as many as there is room for.
    """
    words = ["sbatch", "--parsable", "--export=ALL", f"--job-name={name}", f"--nodes={shape.nodes}"]
    if shape.gpus_per_node:
        sort = "" if site.gpu_type is None else f"{site.gpu_type}:"
        words.append(f"--gpus-per-node={sort}{shape.gpus_per_node}")
    words.append(f"--ntasks-per-node={shape.tasks_per_node}")
    if shape.cpus_per_task is not None:
        words.append(f"--cpus-per-task={shape.cpus_per_task}")
    if time_limit is not None:
        words.append(f"--time={time_limit}")
    if num_tasks:
        limit = "" if max_running is None else f"%{max_running}"
        words.append(f"--array=0-{num_tasks - 1}{limit}")
    words.append(f"--output={log}")
    return [*words, *sbatch_flags(site), str(script), *arguments]


def _fair_share(kind: NodeKind, gpus: int, tasks: int) -> int:
    """Return the CPUs of a task, where each GPU has as many; without GPUs the job has the node."""
    of_the_job = kind.cpus * gpus // kind.gpus if gpus else kind.cpus
    return max(1, of_the_job // tasks)
