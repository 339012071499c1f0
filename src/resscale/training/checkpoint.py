"""Checkpoints: when they are written, what they hold, where training goes on.

The position in training is one number, the optimizer steps done. Lightning's own loop counters are
derived from it when a checkpoint is loaded, so a run continues on any number of ranks.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from resscale.errors import CheckpointError, UserInputError
from resscale.training.batchnorm import (
    average_batchnorm_statistics,
    gather_rank_statistics,
    restore_rank_statistics,
)
from resscale.training.checkpoint_background import BackgroundCheckpointIO
from resscale.training.checkpoint_folder import (
    drop_oldest,
    find_newest_valid,
    newest_first,
    publish,
    remove_leftovers,
)
from resscale.training.checkpoint_io import AtomicCheckpointIO, PendingSave
from resscale.training.checkpoint_load import (
    STATE_KEY,
    check_repeats_of,
    check_resumable,
    load_checkpoint,
)
from resscale.training.checkpoint_space import expected_bytes, shortage
from resscale.training.ema import WeightAverage
from resscale.training.finite import refuse_to_save
from resscale.training.loss_scale import read_loss_scale, write_loss_scale
from resscale.training.phase import Phase, enter_phase
from resscale.training.position import Position, rewrite_loops, validation_due
from resscale.training.rng import capture_rng, restore_rng
from resscale.training.rundir import RunDir

__all__ = [
    "STATE_KEY",
    "AtomicCheckpointIO",
    "Checkpointer",
    "check_resumable",
    "find_newest_valid",
    "load_checkpoint",
    "newest_first",
    "tidy_finished",
]

_FORMAT = 1


class Checkpointer(Checkpoint):
    """Saves at the end of each epoch, every so many steps, and on request.

    Files: `epoch-<e>-step-<s>.ckpt` (the newest `keep_last` of them), `last.ckpt` (a link to the
    newest) and `best.ckpt` (highest val/top1).

    Args:
        every_n_steps: also save every so many optimizer steps; 0: only at the ends of epochs.
        keep_last: how many of the newest to keep.
        asynchronous: copy to host memory and let a thread write, while training goes on.
    """

    def __init__(
        self, every_n_steps: int = 0, keep_last: int = 2, asynchronous: bool = False
    ) -> None:
        super().__init__()
        if keep_last < 1:
            raise UserInputError(
                f"checkpoint.keep_last={keep_last} must be at least 1, which keeps the newest "
                f"alone; best.ckpt is kept beside them."
            )
        if every_n_steps < 0:
            raise UserInputError(
                f"checkpoint.every_n_steps={every_n_steps} must be 1 or more, or 0 to save at the "
                f"ends of epochs alone."
            )
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.asynchronous = asynchronous
        self.best_top1 = -1.0
        self.best_step = -1
        self.longest_save_s = 0.0
        # The step of the newest save, and whether a validation was due then.
        self._saved = (-1, False)
        # The newest save, on every rank alike; only rank 0's is ever done.
        self._pending: PendingSave | None = None
        # Of a checkpoint, until the strategy that is to go on with them is set up.
        self._rng: dict[str, Any] | None = None
        # Of a stop that lies between two averages: into a checkpoint, and out of it.
        self._rank_statistics: Tensor | None = None
        self._loss_scale: dict[str, float] | None = None

    @property
    def has_failed(self) -> bool:
        """The save in the background has failed; known to rank 0 alone until `settle`."""
        return self._pending is not None and self._pending.has_failed

    def checkpoint_io(self) -> AtomicCheckpointIO:
        """Return the writer that the trainer is to use."""
        return BackgroundCheckpointIO() if self.asynchronous else AtomicCheckpointIO()

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy so far, and the step that had it."""
        return {"best_top1": self.best_top1, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the best accuracy so far."""
        self.best_top1 = state_dict["best_top1"]
        # Checkpoints written before 2026-11-24 do not say.
        self.best_step = state_dict.get("best_step", -1)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the loss scale: its keeper may be new since the checkpoint was read."""
        if self._loss_scale is not None:
            write_loss_scale(trainer, self._loss_scale)
        self._loss_scale = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear up behind a kill, warn of a small disk, go on with the random numbers."""
        if trainer.is_global_zero:
            self.clear_up(trainer)
            self._warn_of_small_disk(trainer, pl_module)
        if self._rng is not None:
            restore_rng(self._rng, trainer.strategy.root_device)
        if self._rank_statistics is not None:
            rank, world_size = trainer.global_rank, trainer.world_size
            restore_rank_statistics(pl_module, self._rank_statistics, rank, world_size)
        self._rng = self._rank_statistics = None

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
        position = Position.of(trainer)
        # An epoch's last step is saved behind its validation: a run that is killed while it
        # validates must not go on behind it.
        if due and position.is_step_boundary and not position.at_epoch_start:
            self.save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch, and keep it as the best where val/top1 rose."""
        top1 = trainer.callback_metrics.get("val/top1")
        improved = top1 is not None and float(top1) > self.best_top1
        if improved:
            assert top1 is not None
            self.best_top1 = float(top1)
            self.best_step = trainer.global_step
        self.save(trainer, pl_module, best=improved)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not end before the last save is on the disk."""
        self.settle(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let a save under way come to its end, unless the user gave up at once."""
        if not trainer.is_global_zero or isinstance(exception, KeyboardInterrupt):
            return
        error = self._pending.wait() if self._pending is not None else None
        if error is not None and error is not exception:
            print(f"the last checkpoint failed too: {error}", file=sys.stderr, flush=True)

    def save(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        *,
        best: bool = False,
        stopping: bool = False,
    ) -> Path:
        """Save now, on all ranks together; return the file, complete or being written.

        Args:
            trainer: in training, at a step boundary.
            pl_module: the module in training.
            best: make it `best.ckpt` too.
            stopping: a run that is not stopped would not save here.

        Raises:
            CheckpointError: it cannot be written, or the one before it could not be.
            TrainingStopped: the weights are not finite.
        """
        position = Position.of(trainer)
        folder = RunDir(trainer.default_root_dir).checkpoints
        name = f"epoch-{position.epoch:04d}-step-{position.global_step:08d}.ckpt"
        path = folder / name
        self.settle(trainer)
        saving = (position.global_step, validation_due(trainer))
        if self._saved == saving and not position.at_epoch_start:
            return path
        began_s = time.monotonic()
        enter_phase(trainer, Phase.SAVE)
        refuse_to_save(pl_module, position.global_step)
        self._rank_statistics = gather_rank_statistics(pl_module) if stopping else None
        average_batchnorm_statistics(pl_module)
        self._pending = PendingSave(
            partial(publish, path, self.keep_last, best),
            partial(drop_oldest, folder, self.keep_last),
        )
        trainer.save_checkpoint(path, weights_only=False, storage_options=self._pending)
        self._saved = saving
        if not self.asynchronous:
            self.settle(trainer)
        self.longest_save_s = max(self.longest_save_s, time.monotonic() - began_s)
        enter_phase(trainer, Phase.SYNC)
        return path

    def settle(self, trainer: Trainer) -> None:
        """Wait until the newest save is on the disk; all ranks together.

        Raises:
            CheckpointError: it cannot be written; on every rank.
        """
        pending = self._pending
        if pending is None:
            return
        enter_phase(trainer, Phase.SAVE)
        error = pending.wait() if trainer.is_global_zero else None
        # All ranks must leave at the same step, or the others would wait for ever.
        told: str | None = trainer.strategy.broadcast(None if error is None else str(error))
        self._pending = None
        if error is not None:
            raise error
        if told is not None:
            raise CheckpointError(told)

    def clear_up(self, trainer: Trainer) -> None:
        """Remove what a kill has left half written, and mend the links to what it has not."""
        folder = RunDir(trainer.default_root_dir).checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        resumed = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
        if resumed in newest_first(folder):
            # The kill may have come between the file and its links.
            publish(resumed, self.keep_last, best=trainer.global_step == self.best_step)

    def _warn_of_small_disk(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = RunDir(trainer.default_root_dir).checkpoints
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set at run time
        averaged = any(isinstance(callback, WeightAverage) for callback in callbacks)
        size = expected_bytes(pl_module, trainer.optimizers, averaged)
        warning = shortage(folder, size, self.keep_last, len(newest_first(folder)))
        if warning is not None:
            print(f"warning: {warning}", file=sys.stderr, flush=True)

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
            "validation_due": validation_due(trainer),
            "global_batch_size": data.global_batch_size,
            "seed": data.seed,
            "repeats": data.repeats,
            "manifest": data.manifest("train").fingerprint,
            "num_samples": data.manifest("train").num_samples,
            "decoder": data.decoder_name,
            "config": getattr(trainer, "resscale_config", None),
            "rng": capture_rng(trainer.strategy.root_device),
            "loss_scale": read_loss_scale(trainer),
            "rank_statistics": self._rank_statistics,
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
        # Checkpoints written before 2026-11-24 do not say.
        data.decoder_before = state.get("decoder")
        # Checkpoints written before 2026-11-24 have none.
        self._rng = state.get("rng")
        # Lightning keeps the scale too, but for single device and DDP alone.
        self._loss_scale = state.get("loss_scale")
        self._rank_statistics = state.get("rank_statistics")
        accumulate = data.plan(trainer.world_size).accumulate
        position = Position(state["global_step"], data.steps_per_epoch(), accumulate)
        check_repeats_of(state, data, position.epoch, position.step_in_epoch)
        # Checkpoints written before 2026-11-24 never stop in a validation.
        due = bool(state.get("validation_due", False))
        rewrite_loops(checkpoint["loops"]["fit_loop"], position, validation_due=due)


def tidy_finished(run: RunDir, trainer: Trainer) -> None:
    """Say that a run is done which was killed between its last checkpoint and its end.

    A start that finds nothing left to train calls none of training's hooks.

    Args:
        run: the run directory.
        trainer: behind a `fit` that ended well.
    """
    facts = run.read_summary()
    if facts.get("status") in (None, "done"):
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set at run time
        if isinstance(callback, Checkpointer):
            callback.clear_up(trainer)
    run.write_summary({**facts, "status": "done"})
    run.append_event("ended", status="done", step=trainer.global_step)
