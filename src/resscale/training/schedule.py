"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from resscale.errors import UserInputError


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves.

    Args:
        name: "cosine" to 0 (Loshchilov and Hutter 2016, without restarts), "step" (He et al.
            2015: divided by 10 at intervals) or "constant".
        warmup_epochs: epochs of linear warm-up from 0 (Goyal et al. 2017, section 2.2).
        step_epochs: epochs between the drops of "step".
        step_at_epochs: the epochs of the drops of "step", in place of equal intervals: `[82, 123]`
            of 164 is the course of He et al. 2015, section 4.2.
        gamma: factor of each drop of "step".
    """

    name: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    step_epochs: float = 30.0
    gamma: float = 0.1
    step_at_epochs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        at = list(self.step_at_epochs)
        if not all(0 <= first < second for first, second in pairwise([*at, math.inf])):
            raise UserInputError(
                f"model.schedule.step_at_epochs={at} must be epochs from 0 on, each later than the "
                f"one before."
            )
        if at and self.name != "step":
            raise UserInputError(
                f"model.schedule.step_at_epochs={at} is for the schedule 'step', and "
                f"model.schedule.name is {self.name!r}: set the name to step, or leave it out."
            )


def lr_at(
    step: int, config: ScheduleConfig, *, base_lr: float, steps_per_epoch: int, total_steps: int
) -> float:
    """Return the learning rate of optimizer step `step` (0 is the first).

    Args:
        step: optimizer step, from 0.
        config: the schedule.
        base_lr: the rate behind the warm-up.
        steps_per_epoch: optimizer steps in an epoch.
        total_steps: optimizer steps of the whole run.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        # The first step moves already: a rate of exactly 0 would waste it.
        return base_lr * (step + 1) / warmup_steps
    if config.name == "cosine":
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return base_lr * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    if config.name == "step":
        # The drops are counted from the start of training, warm-up included.
        epoch = step / steps_per_epoch
        drops = sum(epoch >= at for at in config.step_at_epochs)
        if not config.step_at_epochs:
            drops = int(epoch / config.step_epochs)
        return float(base_lr * config.gamma**drops)
    return base_lr
