"""Whether nodes, tasks, ranks and GPUs fit each other, and whether srun was forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resscale.cluster.doctor.finding import Finding, of_error
from resscale.cluster.environment import Launch
from resscale.cluster.shape import check_gpus, check_sees_gpus, check_shape
from resscale.errors import UserInputError

NAME = "placement"


@dataclass(frozen=True)
class Placement:
    """How many ranks there are, or will be.

    Args:
        num_nodes: nodes.
        per_node: ranks on each.
    """

    num_nodes: int
    per_node: int

    @property
    def world_size(self) -> int:
        """Ranks on all nodes."""
        return self.num_nodes * self.per_node


def find_placement(
    launch: Launch, world_size: int, num_nodes: int, devices: int | str | Sequence[int], gpus: int
) -> Placement:
    """Return the ranks of the run that is being prepared.

    Args:
        launch: how this process was started.
        world_size: processes that srun or torchrun has started; 1 by hand.
        num_nodes: `trainer.num_nodes`.
        devices: `trainer.devices`.
        gpus: GPUs that ranks are to use here; 0: they are on CPUs.
    """
    if launch.slurm is not None and launch.slurm.num_tasks > 1:
        counts = launch.slurm.tasks_per_node
        return Placement(len(counts), max(counts))
    if world_size > 1:
        per_node = max(1, world_size // max(1, num_nodes))
        return Placement(world_size // per_node, per_node)
    if isinstance(devices, str):
        here = int(devices) if devices.isdigit() else max(1, gpus)
    elif isinstance(devices, int):
        here = devices if devices > 0 else max(1, gpus)
    else:
        here = max(1, len(devices))
    return Placement(max(1, num_nodes), here)


def check_placement(
    launch: Launch,
    placement: Placement,
    asked: tuple[int, int | str | Sequence[int]],
    gpus: int,
    accelerator: str,
    command: Sequence[str],
) -> list[Finding]:
    """Judge how ranks lie on nodes and GPUs.

    Args:
        launch: how this process was started.
        placement: the ranks.
        asked: `trainer.num_nodes` and `trainer.devices`.
        gpus: GPUs that torch sees in this process.
        accelerator: "auto", "gpu" or "cpu".
        command: this call's words, shown with srun before them where that was forgotten.
    """
    try:
        launch.check_started(command)
        if launch.slurm is not None:
            check_sees_gpus(launch.slurm, gpus, accelerator)
        if launch.srun is not None:
            _, per_node = check_shape(launch.srun, *asked)
            check_gpus(launch.srun, per_node, gpus, accelerator)
    except UserInputError as error:
        return [of_error(NAME, error)]
    return _outside_srun(launch, placement, gpus, accelerator) or [
        Finding(NAME, "ok", describe(placement, accelerator, gpus))
    ]


def describe(placement: Placement, accelerator: str, gpus: int) -> str:
    """Return the ranks in words: "4 ranks: 2 nodes × 2, on CPUs"."""
    ranks = "1 rank" if placement.world_size == 1 else f"{placement.world_size} ranks"
    nodes = "1 node" if placement.num_nodes == 1 else f"{placement.num_nodes} nodes"
    on = "GPUs" if gpus and accelerator != "cpu" else "CPUs"
    return f"{ranks}: {nodes} × {placement.per_node}, on {on}"


def _outside_srun(
    launch: Launch, placement: Placement, gpus: int, accelerator: str
) -> list[Finding]:
    if launch.srun is not None or not gpus or accelerator == "cpu":
        return []
    if placement.per_node > gpus:
        return [
            Finding(
                NAME,
                "fail" if placement.num_nodes == 1 else "warn",
                f"{placement.per_node} ranks on each node, and {gpus} "
                f"{'GPU' if gpus == 1 else 'GPUs'} here",
                f"set --trainer.devices {gpus}, or run this on a node of the job",
            )
        ]
    if placement.per_node < gpus:
        return [
            Finding(
                NAME,
                "warn",
                f"{describe(placement, accelerator, gpus)}; {gpus - placement.per_node} of {gpus} "
                f"GPUs here are idle",
                f"use them all with --trainer.devices {gpus}",
            )
        ]
    return []
