"""Whether processes or threads read the batches of a rank."""

from __future__ import annotations

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
