"""Ranks and launchers: the one module that reads rank and SLURM variables."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from resscale.errors import UserInputError

# Set by rank 0's process for the ranks that it starts itself.
RUN_DIR_VARIABLE = "RESSCALE_RUN_DIR"
# What a name or an address of the machine that ranks meet at is taken from, where the user knows
# better than SLURM.
ADDRESS_VARIABLE = "MASTER_ADDR"
# The numbers above this one are SLURM's own steps: the batch script, `salloc`'s shell.
_LAST_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class SlurmJob:
    """A SLURM job as one of its processes sees it.

    Args:
        job_id: "1234", or "1230_4" for task 4 of the array 1230.
        raw_id: SLURM_JOB_ID. Of an array's last task it is the array's own number, which SLURM's
            commands take for all of its tasks: give them `job_id`.
        step_id: number of the srun that started this process; None where none did.
        rank: number of this task among the step's.
        local_rank: the same on this node.
        node_rank: number of this node among the step's.
        tasks_per_node: tasks of the step (or of the job, where no srun has started this process)
            on each node.
        restart_count: how often SLURM has requeued the job.
        node_list: the step's nodes, as SLURM writes them.
        node_name: this node.
        cpus_per_task: CPUs that each task was given, where somebody said so.
        gpus_on_node: GPUs that the job was given on this node; 0 where none.
        end_time_s: when the time limit ends the job, seconds since 1970; None where SLURM does not
            say (before 22.05).
    """

    job_id: str
    raw_id: str
    step_id: str | None
    rank: int
    local_rank: int
    node_rank: int
    tasks_per_node: tuple[int, ...]
    restart_count: int
    node_list: str
    node_name: str
    cpus_per_task: int | None
    gpus_on_node: int
    end_time_s: float | None

    @property
    def num_tasks(self) -> int:
        """Tasks on all nodes."""
        return sum(self.tasks_per_node)

    @property
    def num_nodes(self) -> int:
        """Nodes that tasks run on."""
        return len(self.tasks_per_node)

    @property
    def starts_ranks(self) -> bool:
        """srun has started several tasks, and so each of them is a rank."""
        return self.step_id is not None and self.num_tasks > 1


@dataclass(frozen=True)
class Launch:
    """How this process was started.

    Args:
        rank: global rank as far as the environment tells, else 0.
        job_id: names the job, alike for all ranks of it; None where nobody has named it, and in a
            rank that resscale's own launcher started.
        run_dir: the run directory that rank 0 chose, in a rank that it started.
        launcher: what has started each rank; None: rank 0 starts the others of this machine.
        slurm: the job, inside one.
        restart_count: how often SLURM has requeued the job, or torchrun has started its ranks anew.
        local_rank: the rank among those of this node, as far as the environment tells, else 0.
    """

    rank: int
    job_id: str | None
    run_dir: str | None
    launcher: Literal["srun", "torchrun"] | None = None
    slurm: SlurmJob | None = None
    restart_count: int = 0
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """This process speaks for the job."""
        return self.rank == 0

    @property
    def is_first_on_node(self) -> bool:
        """This process looks at what all ranks of its node share."""
        return self.local_rank == 0

    @property
    def srun(self) -> SlurmJob | None:
        """The job whose tasks are the ranks."""
        return self.slurm if self.launcher == "srun" else None

    @property
    def is_restart(self) -> bool:
        """SLURM or torchrun has started the job anew: it goes on with what it has begun."""
        return self.restart_count > 0

    def check_started(self, argv: Sequence[str]) -> None:
        """Refuse to train alone what SLURM has several tasks for: a forgotten srun.

        Args:
            argv: the command's words, to be shown with srun before them.

        Raises:
            UserInputError: the job has several tasks, and srun has started none of them.
        """
        job = self.slurm
        if job is None or job.step_id is not None or job.num_tasks < 2:
            return
        raise UserInputError(
            f"SLURM job {job.job_id} has {job.num_tasks} tasks on {job.num_nodes} "
            f"{'node' if job.num_nodes == 1 else 'nodes'}, but srun has not started this process: "
            f"write `srun {shlex.join(argv)}`, or ask for one task (--ntasks=1 --nodes=1)."
        )

    def check_nodes(self, num_nodes: int) -> None:
        """Refuse several nodes where nobody starts ranks on the others: they would be waited for.

        Raises:
            UserInputError: neither srun nor torchrun has started this process.
        """
        if num_nodes > 1 and self.launcher is None:
            raise UserInputError(
                f"trainer.num_nodes={num_nodes} needs a launcher that starts ranks on every node: "
                f"put `srun` before this command in a SLURM job, or start it by `torchrun --nnodes "
                f"{num_nodes} ... -m resscale`. For this machine alone leave the option out."
            )


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Read how this process was started: by SLURM's srun, by torchrun, by resscale, or by hand.

    Raises:
        UserInputError: torchrun gave its ranks no run id, so they could not agree on a directory.
    """
    slurm = read_slurm(environ)
    restarts = 0 if slurm is None else slurm.restart_count
    run_dir = environ.get(RUN_DIR_VARIABLE)
    if "TORCHELASTIC_RUN_ID" in environ:
        job = environ["TORCHELASTIC_RUN_ID"]
        if job == "none" and run_dir is None:
            raise UserInputError(
                "torchrun was started without a run id, so its ranks cannot agree on a run "
                "directory; add --rdzv-id NAME or --standalone to torchrun, or set "
                f"{RUN_DIR_VARIABLE}."
            )
        restarts += int(environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        rank, local_rank = (int(environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
        return Launch(rank, job, run_dir, "torchrun", slurm, restarts, local_rank)
    if slurm is not None and slurm.starts_ranks:
        job = f"job{slurm.job_id}"
        return Launch(slurm.rank, job, None, "srun", slurm, restarts, slurm.local_rank)
    rank = int(environ.get("LOCAL_RANK", "0"))
    if rank:
        return Launch(rank, None, run_dir, None, slurm, restarts, rank)
    job_id = None if slurm is None else f"job{slurm.job_id}"
    return Launch(0, job_id, None, None, slurm, restarts)


def read_slurm(environ: Mapping[str, str] = os.environ) -> SlurmJob | None:
    """Read the SLURM job that this process belongs to; None outside one."""
    raw_id = environ.get("SLURM_JOB_ID")
    if raw_id is None:
        return None
    job_id = raw_id
    if "SLURM_ARRAY_JOB_ID" in environ:
        job_id = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    step_id = environ.get("SLURM_STEP_ID")
    if step_id is not None and step_id.isdigit() and int(step_id) >= _LAST_STEP:
        step_id = None
    scope = "SLURM_STEP" if step_id is not None else "SLURM"
    tasks = environ.get(f"{scope}_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or "1"
    if step_id is None and not {"SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"} & environ.keys():
        # Nobody has asked for tasks: SLURM says how many the CPUs would be enough for.
        tasks = f"1(x{environ.get('SLURM_JOB_NUM_NODES', '1')})"
    nodes = environ.get(f"{scope}_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    end_time = environ.get("SLURM_JOB_END_TIME")
    return SlurmJob(
        job_id=job_id,
        raw_id=raw_id,
        step_id=step_id,
        rank=int(environ.get("SLURM_PROCID", "0")) if step_id is not None else 0,
        local_rank=int(environ.get("SLURM_LOCALID", "0")) if step_id is not None else 0,
        node_rank=int(environ.get("SLURM_NODEID", "0")) if step_id is not None else 0,
        tasks_per_node=expand_counts(tasks),
        restart_count=int(environ.get("SLURM_RESTART_COUNT", "0")),
        node_list=nodes,
        node_name=environ.get("SLURMD_NODENAME", ""),
        cpus_per_task=_number(environ.get("SLURM_CPUS_PER_TASK")),
        gpus_on_node=_number(environ.get("SLURM_GPUS_ON_NODE")) or 0,
        end_time_s=float(end_time) if end_time and end_time.isdigit() else None,
    )


def expand_counts(text: str) -> tuple[int, ...]:
    """Return the counts of each node: "2(x3),1" is three nodes with 2 and one with 1."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is not None:
            counts += [int(found[1])] * int(found[2] or 1)
    return tuple(counts) or (1,)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
