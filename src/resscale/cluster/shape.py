"""Whether the trainer's devices, SLURM's tasks and the GPUs fit, refused before ranks meet."""

from __future__ import annotations

from collections.abc import Sequence

from resscale.cluster.environment import SlurmJob
from resscale.errors import UserInputError


def ranks_of(job: SlurmJob) -> tuple[int, int]:
    """Return `(num_nodes, devices)` as the trainer counts them: nodes, and ranks on each.

    Raises:
        UserInputError: nodes with different numbers of tasks.
    """
    counts = set(job.tasks_per_node)
    if len(counts) > 1:
        raise UserInputError(
            f"SLURM job {job.job_id} has {', '.join(map(str, job.tasks_per_node))} tasks on its "
            f"nodes, and every node must have as many: use --ntasks-per-node in place of --ntasks."
        )
    return job.num_nodes, counts.pop()


def check_shape(
    job: SlurmJob, num_nodes: int, devices: int | str | Sequence[int]
) -> tuple[int, int]:
    """Return the trainer's `(num_nodes, devices)`, which follow from SLURM's tasks.

    Args:
        job: this job, whose tasks are the ranks.
        num_nodes: what the user says; 1 where nothing.
        devices: what the user says; "auto" where nothing.

    Raises:
        UserInputError: the user says something else than SLURM.
    """
    nodes, ranks = ranks_of(job)
    if num_nodes not in (1, nodes):
        raise UserInputError(
            f"trainer.num_nodes={num_nodes}, but SLURM job {job.job_id} runs on {nodes}: leave "
            f"the option out, it follows from `srun --nodes`."
        )
    asked = _count(devices)
    if asked is not None and asked != ranks:
        raise UserInputError(
            f"trainer.devices={devices}, but srun has started {ranks} "
            f"{'task' if ranks == 1 else 'tasks'} on each node: leave the option out, it follows "
            f"from --ntasks-per-node (now {ranks}; for {asked} devices set it to {asked})."
        )
    return nodes, ranks


def check_sees_gpus(job: SlurmJob, visible: int, accelerator: str) -> None:
    """Refuse to train on CPUs, unasked, where SLURM has given GPUs.

    Args:
        job: this job.
        visible: GPUs that torch sees in this process.
        accelerator: "auto", or what the user chose.

    Raises:
        UserInputError: torch sees none of them.
    """
    if accelerator == "auto" and visible == 0 and job.gpus_on_node > 0:
        raise UserInputError(
            f"SLURM gave this job {job.gpus_on_node} GPUs on {job.node_name}, and torch sees "
            f"none: install a torch with CUDA (or see to the driver), or train on CPUs by "
            f"--trainer.accelerator cpu."
        )


def check_gpus(job: SlurmJob, ranks: int, visible: int, accelerator: str) -> None:
    """Refuse tasks that do not fit the GPUs of a node.

    Args:
        job: this job, whose tasks are the ranks.
        ranks: tasks on each node.
        visible: GPUs that torch sees in this task.
        accelerator: "auto", or what the user chose.

    Raises:
        UserInputError: GPUs that would idle or be missing.
    """
    if accelerator == "cpu" or visible == 0:
        return
    if visible == 1 < ranks:
        raise UserInputError(
            f"each of the {ranks} tasks on {job.node_name} sees one GPU alone: ask for GPUs by "
            f"--gpus-per-node={ranks}, without --gpus-per-task and without --gpu-bind, so that "
            f"each task sees all of its node and takes the one of its number."
        )
    if visible != ranks:
        raise UserInputError(
            f"{ranks} {'task' if ranks == 1 else 'tasks'} and {visible} GPUs on {job.node_name}: "
            f"one task trains on one GPU, so set --ntasks-per-node={visible}, or "
            f"--gpus-per-node={ranks}."
        )


def _count(devices: int | str | Sequence[int]) -> int | None:
    """Return how many devices the user asks for; None for "auto"."""
    if isinstance(devices, str):
        return int(devices) if devices.isdigit() else None
    if isinstance(devices, int):
        return devices if devices > 0 else None
    return len(devices)
