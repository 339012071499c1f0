"""How much of an average of weights each update keeps: the option, and its course."""

from __future__ import annotations

import math
from dataclasses import dataclass

from resscale.errors import UserInputError


@dataclass(frozen=True)
class EmaConfig:
    """An exponential moving average of the weights, evaluated beside them.

    Args:
        decay: share of the average that each step keeps, such as 0.9999; None: no average.
        warmup: keep less at first, so that the first weights are soon forgotten.

    Raises:
        UserInputError: a decay below 0, or of 1 and more.
    """

    decay: float | None = None
    warmup: bool = True

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 <= self.decay < 1:
            raise UserInputError(
                f"ema.decay={self.decay} must be from 0 up to 1, such as 0.9999: it is the share "
                f"of the average that each step keeps. Leave it out for no average."
            )


def decay_at(update: int, decay: float) -> float:
    """Return the share of the average that an update keeps: min(decay, (1 + n) / (10 + n)).

    The rule is that of TensorFlow's `tf.train.ExponentialMovingAverage` with `num_updates`. Until
    `decay` takes over, the average reaches back over about a ninth of the updates so far, since
    1 - (1 + n)/(10 + n) = 9/(10 + n): it forgets the first weights in a run of any length. Adam's
    correction of the start would make it the mean of all weights so far, the first ones included.

    Args:
        update: number of the update, from 1.
        decay: what the share rises to.
    """
    return min(decay, (1 + update) / (10 + update))


def warmup_updates(decay: float) -> int:
    """Return the first update that keeps `decay`: where (1 + n)/(10 + n) reaches it."""
    # (1 + n)/(10 + n) = d  <=>  n = (10 d - 1)/(1 - d); the small term takes rounding back.
    return max(1, math.ceil((10 * decay - 1) / (1 - decay) - 1e-6))
