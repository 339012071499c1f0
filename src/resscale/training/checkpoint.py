"""Checkpoints: when they are written, which one is the newest valid, where training goes on.

The position in training is one number, the optimizer steps done. Lightning's own loop counters are
derived from it when a checkpoint is loaded, so a run continues on any number of ranks.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from resscale.data.datamodule import ShardDataModule
from resscale.errors import UserInputError
from resscale.training.batchnorm import average_batchnorm_statistics
from resscale.training.phase import Phase, enter_phase
from resscale.training.position import Position, rewrite_loops
from resscale.training.rundir import RunDir

STATE_KEY = "resscale"
_FORMAT = 1


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, syncs it, renames it: a kill leaves the old file or the new."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Save atomically.

        Raises:
            UserInputError: the disk is full or not writable.
        """
        target = Path(path)
        temporary = target.with_name(target.name + ".tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its zip writer.
            temporary.unlink(missing_ok=True)
            raise UserInputError(
                f"the checkpoint {target} cannot be written ({error}). Free space or give another "
                f"--run_dir, then go on with --ckpt_path auto."
            ) from error


class Checkpointer(Checkpoint):
    """Saves at the end of each epoch, every so many steps, and on request.

    Files: `epoch-<e>-step-<s>.ckpt` (the newest `keep_last` of them), `last.ckpt` (a link to the
    newest) and `best.ckpt` (highest val/top1).

    Args:
        every_n_steps: also save every so many optimizer steps; 0: only at the ends of epochs.
        keep_last: how many of the newest to keep.
    """

    def __init__(self, every_n_steps: int = 0, keep_last: int = 2) -> None:
        super().__init__()
        if keep_last < 1:
            raise UserInputError(f"checkpoint.keep_last={keep_last} must be at least 1.")
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.best_top1 = -1.0
        self._saved_step = -1

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy so far."""
        return {"best_top1": self.best_top1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the best accuracy so far."""
        self.best_top1 = state_dict["best_top1"]

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save every `every_n_steps` optimizer steps."""
        due = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        if due and Position.of(trainer).is_step_boundary:
            self.save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch, and keep it as the best where val/top1 rose."""
        top1 = trainer.callback_metrics.get("val/top1")
        improved = top1 is not None and float(top1) > self.best_top1
        if improved:
            assert top1 is not None
            self.best_top1 = float(top1)
        path = self.save(trainer, pl_module)
        if improved and trainer.is_global_zero:
            _link(path, path.with_name("best.ckpt"))

    def save(self, trainer: Trainer, pl_module: LightningModule) -> Path:
        """Save now, on all ranks together; return the file."""
        position = Position.of(trainer)
        folder = RunDir(trainer.default_root_dir).checkpoints
        name = f"epoch-{position.epoch:04d}-step-{position.global_step:08d}.ckpt"
        path = folder / name
        if self._saved_step == position.global_step and not position.at_epoch_start:
            return path
        enter_phase(trainer, Phase.SAVE)
        average_batchnorm_statistics(pl_module)
        trainer.save_checkpoint(path, weights_only=False)
        self._saved_step = position.global_step
        if trainer.is_global_zero:
            _link(path, folder / "last.ckpt", symbolic=True)
            for old in newest_first(folder)[self.keep_last :]:
                old.unlink()
        enter_phase(trainer, Phase.SYNC)
        return path

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what a resume needs to know."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        position = Position.of(trainer)
        checkpoint[STATE_KEY] = {
            "format": _FORMAT,
            "global_step": position.global_step,
            "samples_seen": position.global_step * data.global_batch_size,
            "global_batch_size": data.global_batch_size,
            "seed": data.seed,
            "manifest": data.manifest("train").fingerprint,
            "num_samples": data.manifest("train").num_samples,
            "config": getattr(trainer, "resscale_config", None),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check that the checkpoint belongs to this data and go on behind its last sample.

        Raises:
            UserInputError: other data, another global batch or another seed.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        state = check_resumable(checkpoint, data)
        data.samples_seen = state["samples_seen"]
        accumulate = data.plan(trainer.world_size).accumulate
        position = Position(state["global_step"], data.steps_per_epoch(), accumulate)
        rewrite_loops(checkpoint["loops"]["fit_loop"], position)


def check_resumable(checkpoint: dict[str, Any], data: ShardDataModule) -> dict[str, Any]:
    """Return what a checkpoint says of its run, if training on `data` can go on from it.

    Raises:
        UserInputError: not one of ours; other data, another global batch or another seed.
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
    return state


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it; tensors stay on disk until used.

    Raises:
        UserInputError: it is damaged, or holds more than tensors and plain values.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserInputError(
            f"{path} is not a checkpoint that can be read safely ({str(error).splitlines()[0]}). "
            f"Name another, or --ckpt_path auto for the newest whole one of a run."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserInputError(f"{path} is not a checkpoint of a training run: no state_dict in it.")
    return checkpoint


def find_newest_valid(run_dir: RunDir) -> Path | None:
    """Return the newest whole checkpoint of a run; a torn one falls back to the one before."""
    return next((path for path in newest_first(run_dir.checkpoints) if is_whole(path)), None)


def newest_first(folder: Path) -> list[Path]:
    """Return the numbered checkpoints of a folder, the furthest in training first."""
    return sorted(folder.glob("epoch-*-step-*.ckpt"), key=lambda path: path.name, reverse=True)


def is_whole(path: Path) -> bool:
    """Read a checkpoint through and compare its checksums (CRC-32 of each record)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False


def _refuse_other(state: dict[str, Any], name: str, now: Any, option: str) -> None:
    if state[name] != now:
        raise UserInputError(
            f"the checkpoint was trained with {name}={state[name]}, now it is {now}: the order of "
            f"samples would change in mid-run. Set {option} as it was, or start a new run."
        )


def _link(source: Path, target: Path, *, symbolic: bool = False) -> None:
    """Point `target` at `source` in one step; a hard link outlives the source's name."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    if symbolic:
        temporary.symlink_to(source.name)
    else:
        try:
            temporary.hardlink_to(source)
        except OSError:  # file systems without hard links
            temporary.write_bytes(source.read_bytes())
    temporary.replace(target)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
