"""How many read the batches of a rank, and whether they are processes or threads."""

from __future__ import annotations

import os
from typing import Literal, get_args

from resscale.errors import UserInputError, nearest

WorkerKind = Literal["processes", "threads"]
WorkerChoice = Literal["auto", "processes", "threads"]
# What these do under Python's lock takes a few hundredths of a millisecond for an image. Pillow
# takes apart files under it, and the wheels resize with torch, whose own threads the rank needs.
_FOR_THREADS = frozenset({"native", "nvimgcodec_gpu"})


def choose_worker_kind(choice: str, decoder: str, *, is_sequential: bool) -> WorkerKind:
    """Return what reads batches.

    Args:
        choice: "processes", "threads", or "auto": threads where the decoder does nearly all of its
            work without Python's lock, else processes.
        decoder: name of the decoder.
        is_sequential: the source is read in one direction, by each reader its own part.

    Raises:
        UserInputError: no such choice, or threads for a sequential source.
    """
    if choice not in get_args(WorkerChoice):
        raise UserInputError(
            f"data.worker_kind={choice} is not one of {', '.join(get_args(WorkerChoice))}."
            f"{nearest(choice, get_args(WorkerChoice))}"
        )
    if is_sequential and choice == "threads":
        raise UserInputError(
            "data.worker_kind=threads cannot read a sequential source (`pipe:`, `.tar.gz`): each "
            "reader has streams of its own. Set data.worker_kind=processes or leave it out."
        )
    if choice == "auto":
        return "threads" if decoder in _FOR_THREADS and not is_sequential else "processes"
    return "threads" if choice == "threads" else "processes"


def check_num_workers(num_workers: int | None) -> None:
    """Refuse fewer readers than none.

    Raises:
        UserInputError: a number below 0.
    """
    if num_workers is not None and num_workers < 0:
        raise UserInputError(f"data.num_workers={num_workers} must be 0 or more.")


def readers_per_rank(num_workers: int | None, cpus_per_rank: int | None, local_ranks: int) -> int:
    """Return how many readers a rank has.

    Args:
        num_workers: what the user says; None: one for each CPU of the rank but one, which trains.
        cpus_per_rank: CPUs of the rank, where somebody knows; None: its share of the process's.
        local_ranks: ranks that share those.
    """
    if num_workers is not None:
        return num_workers
    return max(0, (cpus_per_rank or len(os.sched_getaffinity(0)) // max(1, local_ranks)) - 1)
