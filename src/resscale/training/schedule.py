"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from resscale.errors import UserInputError, nearest

_Name = Literal["cosine", "step", "linear", "polynomial", "constant"]
_NAMES: tuple[str, ...] = get_args(_Name)
# Those that fall to a final rate over the whole course.
_FALLING = ("cosine", "linear", "polynomial")
# Options that not every schedule has, and which have them.
_OWNERS: dict[str, tuple[str, ...]] = {
    "step_epochs": ("step",),
    "step_at_epochs": ("step",),
    "gamma": ("step",),
    "power": ("polynomial",),
    "final_lr_fraction": _FALLING,
    "course_from_start": _FALLING,
}


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves.

    An option that the schedule does not have must be left at its default.

    Args:
        name: "cosine" (Loshchilov and Hutter 2016, without restarts), "linear" (behind a warm-up a
            triangle, Smith 2015), "polynomial" (You et al. 2017), "step" (He et al. 2015: divided
            by 10 at intervals) or "constant".
        warmup_epochs: epochs of linear warm-up (Goyal et al. 2017, section 2.2).
        step_epochs: epochs between the drops of "step".
        step_at_epochs: the epochs of the drops of "step", in place of equal intervals: `[82, 123]`
            of 164 is the course of He et al. 2015, section 4.2.
        gamma: factor of each drop of "step".
        warmup_start_fraction: the rate of the first step, as a fraction of the base rate. None: a
            share of the warm-up's steps, so that the warm-up's last step has the base rate.
        final_lr_fraction: where "cosine", "linear" and "polynomial" end, as a fraction of the base
            rate.
        power: of "polynomial".
        course_from_start: count the course of "cosine", "linear" and "polynomial" from the first
            step, so that the warm-up hides its beginning, as timm does; else it begins behind the
            warm-up, as torchvision's does. "step" always counts from the first step.
    """

    name: _Name = "cosine"
    warmup_epochs: float = 0.0
    step_epochs: float = 30.0
    gamma: float = 0.1
    step_at_epochs: tuple[float, ...] = ()
    warmup_start_fraction: float | None = None
    final_lr_fraction: float = 0.0
    power: float = 2.0
    course_from_start: bool = False

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise UserInputError(
                f"model.schedule.name={self.name} must be one of {', '.join(_NAMES)}."
                f"{nearest(self.name, _NAMES)}"
            )
        self._check_numbers()
        for option, owners in _OWNERS.items():
            value = getattr(self, option)
            if self.name not in owners and value != type(self).__dataclass_fields__[option].default:
                listed = ", ".join(repr(owner) for owner in owners)
                raise UserInputError(
                    f"model.schedule.{option}={_plain(value)} is for the schedule {listed}, and "
                    f"model.schedule.name is {self.name!r}: set the name to {owners[0]}, or leave "
                    f"it out."
                )

    def _check_numbers(self) -> None:
        at = list(self.step_at_epochs)
        if not all(0 <= first < second for first, second in pairwise([*at, math.inf])):
            raise UserInputError(
                f"model.schedule.step_at_epochs={at} must be epochs from 0 on, each later than the "
                f"one before."
            )
        if not 0 <= self.warmup_epochs < math.inf:
            raise UserInputError(
                f"model.schedule.warmup_epochs={self.warmup_epochs} must be finite, 0 or more."
            )
        for name in ("step_epochs", "power"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UserInputError(f"model.schedule.{name}={value} must be finite, above 0.")
        for name in ("gamma", "final_lr_fraction"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserInputError(f"model.schedule.{name}={value} must be from 0 to 1.")
        start = self.warmup_start_fraction
        if start is None:
            return
        if not 0 < start <= 1:
            raise UserInputError(
                f"model.schedule.warmup_start_fraction={start} must be above 0, or the first step "
                f"would move nothing, and at most 1."
            )
        if self.warmup_epochs == 0:
            raise UserInputError(
                f"model.schedule.warmup_start_fraction={start} is for a warm-up, and "
                f"model.schedule.warmup_epochs is 0: set it, or leave the fraction out."
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
        start = config.warmup_start_fraction
        if start is None:
            # The first step moves already: a rate of exactly 0 would waste it.
            return base_lr * (step + 1) / warmup_steps
        return base_lr * (start + (1.0 - start) * step / warmup_steps)
    if config.name in _FALLING:
        begin = 0 if config.course_from_start else warmup_steps
        progress = min((step - begin) / max(1, total_steps - begin), 1.0)
        final = config.final_lr_fraction
        return base_lr * (final + (1.0 - final) * _height(progress, config))
    if config.name == "step":
        # The drops are counted from the start of training, warm-up included.
        epoch = step / steps_per_epoch
        drops = sum(epoch >= at for at in config.step_at_epochs)
        if not config.step_at_epochs:
            drops = int(epoch / config.step_epochs)
        return float(base_lr * config.gamma**drops)
    return base_lr


def _height(progress: float, config: ScheduleConfig) -> float:
    """Return how much of the way down is left, from 1 to 0, at a share of the course."""
    if config.name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    power = config.power if config.name == "polynomial" else 1.0
    return float((1.0 - progress) ** power)


def _plain(value: Any) -> str:
    """Return a value as a user writes it."""
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
