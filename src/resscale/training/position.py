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


def validation_due(trainer: Trainer) -> bool:
    """Tell whether a run that stops here, at a step boundary, must begin again with a validation.

    Either one is under way, or, in mid-epoch, the step just done is one that has a validation
    behind it (`trainer.val_check_interval`).
    """
    if trainer.validating:
        return True
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is None or Position.of(trainer).at_epoch_start:
        return False
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def rewrite_loops(
    fit_loop: dict[str, Any], position: Position, *, validation_due: bool = False
) -> None:
    """Set the counters in a checkpoint's fit loop to `position`, in place.

    Lightning stores how many batches *this rank* had seen, at a point of the loop that depends on
    which callback saved; both are replaced by what a run that stands exactly there would say.

    Args:
        fit_loop: as Lightning wrote it.
        position: where training goes on.
        validation_due: the validation behind the last step was not finished; it comes first.
    """
    epoch, step = position.epoch, position.step_in_epoch
    if validation_due and position.at_epoch_start:
        # The epoch is not over before its validation is.
        epoch, step = epoch - 1, position.steps_per_epoch
    under_way = epoch + (step > 0)
    for scope in ("total", "current"):
        fit_loop["epoch_progress"][scope].update(
            ready=under_way, started=under_way, processed=epoch, completed=epoch
        )
    batches = fit_loop["epoch_loop.batch_progress"]
    total, current = position.global_step * position.accumulate, step * position.accumulate
    for scope, count in (("total", total), ("current", current)):
        batches[scope].update(ready=count, started=count, processed=count, completed=count)
    batches["is_last_batch"] = step == position.steps_per_epoch
    optimizer = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for progress in optimizer.values():
        for scope, count in (("total", position.global_step), ("current", step)):
            progress[scope].update(dict.fromkeys(progress[scope], count))
    scheduler = fit_loop["epoch_loop.scheduler_progress"]
    for scope, count in (("total", position.global_step), ("current", step)):
        scheduler[scope].update(dict.fromkeys(scheduler[scope], count))
    # Lightning counts a batch behind its validation.
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = (
        position.global_step - validation_due
    )
    _rewrite_validation(fit_loop["epoch_loop.val_loop.batch_progress"], validation_due)
    # The loader goes on from the samples seen, on any number of ranks.
    fit_loop["state_dict"].pop("combined_loader", None)


def _rewrite_validation(batches: dict[str, Any], due: bool) -> None:
    """Let the validation begin anew where it is due: one batch begun and none done."""
    for scope, begun in (("total", int(due)), ("current", 0)):
        batches[scope].update(ready=begun, started=begun, processed=0, completed=0)
    batches["is_last_batch"] = False
