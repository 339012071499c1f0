"""Stopping on request: a signal sets a flag, ranks agree at a step boundary, save once, leave.

Nothing happens inside the signal handler: a save or a collective there can meet another one half
done, and hang. The end of the job's time is a request like any other.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from resscale.errors import Preempted, UserInputError
from resscale.training.checkpoint import Checkpointer
from resscale.training.consensus import Consensus
from resscale.training.position import Position

# Not USR1: NCCL and Lightning use it.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
TIME_LIMIT = "the time limit"
# Beside what saving takes: for the last step, the slowest rank and SLURM's own clock.
_MARGIN_S = 60.0


@dataclass(frozen=True)
class PreemptConfig:
    """When to stop before the job's time is over.

    Args:
        margin_s: seconds before the time limit at which the run saves and leaves; None: 60, and
            twice what a save and what a step have taken.

    Raises:
        UserInputError: the time is below 0.
    """

    margin_s: float | None = None

    def __post_init__(self) -> None:
        """Check the time."""
        if self.margin_s is not None and self.margin_s < 0:
            raise UserInputError(
                f"preempt.margin_s={self.margin_s:g} must be 0 or more; leave it out for a margin "
                f"that follows from how long a save takes."
            )


def margin_s_of(config: PreemptConfig, longest_save_s: float, longest_step_s: float) -> float:
    """Return how long before the time limit a run must leave.

    Args:
        config: what the user says.
        longest_save_s: of the saves so far.
        longest_step_s: between two chances to leave, so far.
    """
    if config.margin_s is not None:
        return config.margin_s
    return _MARGIN_S + 2 * (longest_save_s + longest_step_s)


class Preemption(Checkpoint):
    """Ends training with a checkpoint when a signal asks for it. Must be the last callback.

    It is a `Checkpoint` because Lightning calls those last, and in the order given: it must not
    leave before the checkpointer has kept the epoch's best.

    Args:
        checkpointer: writes the checkpoint.
        config: when to leave before the time limit.
        is_near: tells whether the job's time is over in so many seconds; None: it has no end.
        take_over: called when the signals are this callback's.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        config: PreemptConfig | None = None,
        is_near: Callable[[float], bool] | None = None,
        take_over: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.checkpointer = checkpointer
        self.config = config if config is not None else PreemptConfig()
        self.requested: str | None = None
        self._is_near = is_near
        self._take_over = take_over
        self._longest_step_s = 0.0
        self._asked_s: float | None = None
        self._consensus: Consensus | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over; Lightning has set its own handlers just before."""
        self._consensus = Consensus()
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        if self._take_over is not None:
            self._take_over()
        _silence_lightnings_sigterm_broadcast(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Vote at each step boundary; the epoch's last step leaves it to what comes behind it."""
        position = Position.of(trainer)
        if position.is_step_boundary and not position.at_epoch_start:
            self._vote(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Vote here too: an evaluation may take longer than who asks will wait.

        All ranks have as many batches. The checkpoint says that the evaluation is due, and the
        resumed run begins with it.
        """
        if not trainer.sanity_checking and self._consensus is not None:
            self._vote(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Vote behind the validation, so that a resumed run does not miss it."""
        assert self._consensus is not None
        asked = self._consensus.settle(int(self._is_asked()))
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
        path = self.checkpointer.save(trainer, pl_module, stopping=True)
        self.checkpointer.settle(trainer)
        reason = self.requested or "another rank's request"
        raise Preempted(f"stopped by {reason} at step {trainer.global_step}; saved {path}")

    def _vote(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._consensus is not None
        # A save that failed in the background is a reason to leave too: rank 0 alone knows of it.
        wants = self._is_asked() or self.checkpointer.has_failed
        if self._consensus.cast(int(wants)):
            self._leave(trainer, pl_module)

    def _is_asked(self) -> bool:
        """A signal has come, or the job's time is nearly over."""
        now_s = time.monotonic()
        if self._asked_s is not None:
            self._longest_step_s = max(self._longest_step_s, now_s - self._asked_s)
        self._asked_s = now_s
        if self.requested is None and self._is_near is not None:
            longest_save_s = self.checkpointer.longest_save_s
            if self._is_near(margin_s_of(self.config, longest_save_s, self._longest_step_s)):
                print(f"{TIME_LIMIT} is near: stopping", file=sys.stderr, flush=True)
                self.requested = TIME_LIMIT
        return self.requested is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and self.requested is not None:
            # The second Ctrl-C is meant: give up at once.
            self._restore()
            raise KeyboardInterrupt
        if self.requested is None:
            hint = "; Ctrl-C again to give up at once" if number == signal.SIGINT else ""
            # Not print: this may have come in the middle of one, whose buffer is locked.
            os.write(2, f"{name}: stopping at the next step boundary{hint}\n".encode())
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
