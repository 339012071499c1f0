"""Where training stands: one number, from which Lightning's loop counters follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Position:
    """A place in training.

    Args:
        global_step: optimizer steps done.
        steps_per_epoch: optimizer steps in an epoch.
        accumulate: micro-batches per optimizer step and rank.
        is_step_boundary: no micro-batch of an unfinished step has been seen.
    """

    global_step: int
    steps_per_epoch: int
    accumulate: int
    is_step_boundary: bool = True

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.global_step // self.steps_per_epoch

    @property
    def step_in_epoch(self) -> int:
        """Optimizer steps done in the epoch under way."""
        return self.global_step % self.steps_per_epoch

    @property
    def at_epoch_start(self) -> bool:
        """Nothing of an epoch has been seen."""
        return self.step_in_epoch == 0

    @classmethod
    def of(cls, trainer: Trainer) -> Position:
        """Read the position off a trainer that is fitting."""
        accumulate = trainer.accumulate_grad_batches
        batches = int(trainer.num_training_batches)
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return cls(
            trainer.global_step,
            max(1, batches // accumulate),
            accumulate,
            ready % accumulate == 0,
        )


def rewrite_loops(fit_loop: dict[str, Any], position: Position) -> None:
    """Set the counters in a checkpoint's fit loop to `position`, in place.

    Lightning stores how many batches *this rank* had seen, at a point of the loop that depends on
    which callback saved; both are replaced by what a run that stands exactly there would say.
    """
    epoch, step = position.epoch, position.step_in_epoch
    under_way = epoch + (step > 0)
    for scope in ("total", "current"):
        fit_loop["epoch_progress"][scope].update(
            ready=under_way, started=under_way, processed=epoch, completed=epoch
        )
    batches = fit_loop["epoch_loop.batch_progress"]
    total, current = position.global_step * position.accumulate, step * position.accumulate
    for scope, count in (("total", total), ("current", current)):
        batches[scope].update(ready=count, started=count, processed=count, completed=count)
    batches["is_last_batch"] = False
    optimizer = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for progress in optimizer.values():
        for scope, count in (("total", position.global_step), ("current", step)):
            progress[scope].update(dict.fromkeys(progress[scope], count))
    scheduler = fit_loop["epoch_loop.scheduler_progress"]
    for scope, count in (("total", position.global_step), ("current", step)):
        scheduler[scope].update(dict.fromkeys(scheduler[scope], count))
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = position.global_step
    # The loader goes on from the samples seen, on any number of ranks.
    fit_loop["state_dict"].pop("combined_loader", None)
