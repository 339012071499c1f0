"""Ranks and launchers: the one module that reads rank and SLURM variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from resscale.errors import UserInputError

# Set by rank 0's process for the ranks that it starts itself.
RUN_DIR_VARIABLE = "RESSCALE_RUN_DIR"


@dataclass(frozen=True)
class Launch:
    """How this process was started.

    Args:
        rank: global rank as far as the environment tells, else 0.
        job_id: names the job for all of its ranks where a launcher started them; None where ours
            does (or will).
        run_dir: the run directory that rank 0 chose, in a rank that it started.
    """

    rank: int
    job_id: str | None
    run_dir: str | None

    @property
    def is_first(self) -> bool:
        """This process speaks for the job."""
        return self.rank == 0

    def check_nodes(self, num_nodes: int) -> None:
        """Refuse several nodes where nobody starts ranks on the others: they would be waited for.

        Raises:
            UserInputError: neither srun nor torchrun has started this process.
        """
        if num_nodes > 1 and self.job_id is None:
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
    if "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        job = environ.get("SLURM_JOB_ID", "0")
        return Launch(int(environ["SLURM_PROCID"]), f"job{job}", None)
    if "TORCHELASTIC_RUN_ID" in environ:
        job = environ["TORCHELASTIC_RUN_ID"]
        if job == "none" and environ.get(RUN_DIR_VARIABLE) is None:
            raise UserInputError(
                "torchrun was started without a run id, so its ranks cannot agree on a run "
                "directory; add --rdzv-id NAME or --standalone to torchrun, or set "
                f"{RUN_DIR_VARIABLE}."
            )
        return Launch(int(environ.get("RANK", "0")), job, environ.get(RUN_DIR_VARIABLE))
    rank = int(environ.get("LOCAL_RANK", "0"))
    return Launch(rank, None, environ.get(RUN_DIR_VARIABLE) if rank else None)
