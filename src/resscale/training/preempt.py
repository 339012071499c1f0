"""Stopping on request: a signal sets a flag, ranks agree at a step boundary, save once, leave.

Nothing happens inside the signal handler: a save or a collective there can meet another one half
done, and hang.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from resscale.errors import Preempted
from resscale.training.checkpoint import Checkpointer
from resscale.training.consensus import Consensus
from resscale.training.position import Position

# Not USR1: NCCL and Lightning use it.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Preemption(Checkpoint):
    """Ends training with a checkpoint when a signal asks for it. Must be the last callback.

    It is a `Checkpoint` because Lightning calls those last, and in the order given: it must not
    leave before the checkpointer has kept the epoch's best.

    Args:
        checkpointer: writes the checkpoint.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        super().__init__()
        self.checkpointer = checkpointer
        self.requested: str | None = None
        self._consensus: Consensus | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over; Lightning has set its own handlers just before."""
        self._consensus = Consensus()
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        _silence_lightnings_sigterm_broadcast(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Vote at each step boundary; the epoch's last step leaves it to `on_train_epoch_end`.

        A save that failed in the background is a reason to leave too: rank 0 alone knows of it.
        """
        position = Position.of(trainer)
        if not position.is_step_boundary or position.at_epoch_start:
            return
        assert self._consensus is not None
        if self._consensus.cast(int(self._wants_to_leave())):
            self._leave(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Vote behind the validation, so that a resumed run does not miss it."""
        assert self._consensus is not None
        asked = self._consensus.settle(int(self.requested is not None))
        if asked and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._leave(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._restore()

    def _leave(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Raises what went wrong with the save before, if anything did.
        path = self.checkpointer.save(trainer, pl_module)
        self.checkpointer.settle(trainer)
        reason = self.requested or "another rank's request"
        raise Preempted(f"stopped by {reason} at step {trainer.global_step}; saved {path}")

    def _wants_to_leave(self) -> bool:
        return self.requested is not None or self.checkpointer.has_failed

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and self.requested is not None:
            # The second Ctrl-C is meant: give up at once.
            self._restore()
            raise KeyboardInterrupt
        if self.requested is None:
            hint = "; Ctrl-C again to give up at once" if number == signal.SIGINT else ""
            print(f"{name}: stopping at the next step boundary{hint}", file=sys.stderr, flush=True)
        self.requested = name

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _silence_lightnings_sigterm_broadcast(trainer: Trainer) -> None:
    """Drop the broadcast and `.item()` that Lightning does before each micro-batch.

    It tells the ranks of a SIGTERM, which the consensus does without stalling the device.
    """
    loop = trainer.fit_loop.epoch_loop
    if hasattr(loop, "_broadcast_sigterm_tensor"):
        loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    return
