"""Reading a checkpoint, and whether training on this data can go on from it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from resscale.data.datamodule import ShardDataModule
from resscale.data.repeats import check_other_repeats
from resscale.errors import UserInputError
from resscale.training.checkpoint_seal import seal_holds

# Where a checkpoint says what a resume needs to know.
STATE_KEY = "resscale"


def check_resumable(checkpoint: dict[str, Any], data: ShardDataModule) -> dict[str, Any]:
    """Return what a checkpoint says of its run, if training on `data` can go on from it.

    Raises:
        UserInputError: not one of ours; other data, another global batch, seed or order.
    """
    state: dict[str, Any] | None = checkpoint.get(STATE_KEY)
    if state is None:
        raise UserInputError(
            "the checkpoint was not written by resscale: it does not say how many samples were "
            "seen, so training cannot go on from it."
        )
    _refuse_other(state, "global_batch_size", data.global_batch_size, "data.global_batch_size")
    _refuse_other(state, "seed", data.seed, "seed_everything")
    _refuse_other(state, "manifest", data.manifest("train").fingerprint, "data.train")
    saved = (state.get("config") or {}).get("data", {})
    for name in ("shuffle", "window", "partitions"):
        # A window orders nothing but in a windowed shuffle.
        if name in saved and (name != "window" or data.shuffle == "window"):
            _refuse_other(saved, name, getattr(data, name), f"data.{name}")
    return state


def check_repeats_of(state: dict[str, Any], data: ShardDataModule, epoch: int, step: int) -> None:
    """Refuse other repeats of samples where the resume would see some of them more often.

    Args:
        state: what the checkpoint says of its run; one of before there were repeats has 1.
        data: of now.
        epoch: epochs completed.
        step: optimizer steps done in the epoch under way.

    Raises:
        UserInputError: they are others, and here they may not change.
    """
    check_other_repeats(state.get("repeats", 1), data.repeats, epoch, step)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it; tensors stay on disk until used.

    Raises:
        UserInputError: it is damaged, or holds more than tensors and plain values.
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        # torch would advise on how to save one.
        raise UserInputError(
            f"{path} is not a checkpoint: no file of torch.save, or torn off in the middle. Name "
            f"another, or --ckpt_path auto for the newest whole one of a run."
        )
    try:
        if seal_holds(path) is False:
            raise UserInputError(
                f"{path} is damaged: its bytes are not those that its SHA-256 was taken of. "
                f"Name another, or --ckpt_path auto for the newest whole one of a run."
            )
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserInputError(
            f"{path} is not a checkpoint that can be read safely ({str(error).splitlines()[0]}). "
            f"Name another, or --ckpt_path auto for the newest whole one of a run."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserInputError(f"{path} is not a checkpoint of a training run: no state_dict in it.")
    return checkpoint


def _refuse_other(state: dict[str, Any], name: str, now: Any, option: str) -> None:
    if state[name] != now:
        raise UserInputError(
            f"the checkpoint was trained with {name}={state[name]}, now it is {now}: the order of "
            f"samples would change in mid-run. Set {option} as it was, or start a new run."
        )
