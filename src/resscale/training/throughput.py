"""Step times and the slowest rank: measured without waiting for the device, compared purely.

Ranks wait for each other in the backward pass, where gradients are reduced, so all have the same
step time. A rank's own time is the part of a step outside it: batch, callbacks, forward pass (not
the forward pass where ranks wait for each other in it, too: under ZeRO-3 or SyncBatchNorm).
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

# Times kept between two readings: more would only cost memory where the interval is very long.
_KEPT = 4096
# A rank is said to hold the others up when it is this much slower than the median rank ...
_SLOW_RATIO = 1.2
# ... and that costs this share of a step: a millisecond of noise may be a large ratio.
_SLOW_SHARE = 0.1
# A process's first steps start readers, choose kernels and arrange the buckets of gradients: which
# rank takes longest over that says nothing of the steps to come.
_WARM_UP_STEPS = 3


class Clock(Protocol):
    """Marks moments; the time between two is asked for later."""

    def mark(self) -> Any:
        """Return this moment."""
        ...

    def between_s(self, first: Any, second: Any) -> float:
        """Return the seconds between two marks."""
        ...


class HostClock:
    """The process's clock."""

    def mark(self) -> float:
        """Return this moment."""
        return time.perf_counter()

    def between_s(self, first: float, second: float) -> float:
        """Return the seconds between two marks."""
        return second - first


class CudaClock:
    """The device's clock: events in its stream, as the host runs ahead of it.

    What starves the device counts as well: an event passes when the host gets to record it.
    """

    def mark(self) -> torch.cuda.Event:
        """Put an event into the current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between_s(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        """Return the seconds between two events; both must have passed."""
        milliseconds: float = first.elapsed_time(second)
        return milliseconds / 1000


@dataclass(frozen=True)
class Times:
    """Times of an interval: each step's, and a step's mean of the rank's own part, in seconds."""

    steps_s: tuple[float, ...]
    own_s: float

    @property
    def mean_s(self) -> float:
        """A step's mean; 0 without steps."""
        return statistics.fmean(self.steps_s) if self.steps_s else 0.0


class StepTimer:
    """Collects marks at each micro-batch and turns them into times when they are taken.

    Args:
        clock: of the host or the device.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._steps: deque[tuple[Any, Any]] = deque(maxlen=_KEPT)
        self._own: deque[tuple[Any, Any]] = deque(maxlen=_KEPT)
        self._step_start: Any = None
        self._own_start: Any = None
        self._own_end: Any = None
        self._cold_steps = 0

    def warm_up(self) -> None:
        """Leave the own time of the next few steps out: they are the first of the process."""
        self._cold_steps = _WARM_UP_STEPS

    def begin(self) -> None:
        """Begin a stretch of steps: what lies between the last one and now is nobody's time."""
        self._step_start = self._own_start = self.clock.mark()

    def note_own_end(self) -> None:
        """Note that this micro-batch may wait for other ranks now; the first call counts."""
        if self._own_end is None:
            self._own_end = self.clock.mark()

    def end_micro_batch(self, *, is_step_boundary: bool) -> None:
        """Note the end of a micro-batch, and of a step where it is the last one."""
        now = self.clock.mark()
        if self._own_end is not None and not self._cold_steps:
            self._own.append((self._own_start, self._own_end))
        if is_step_boundary:
            self._cold_steps = max(0, self._cold_steps - 1)
            self._steps.append((self._step_start, now))
            self._step_start = now
        self._own_start, self._own_end = now, None

    def take(self, micro_batches_per_step: int) -> Times:
        """Return the times since the last call; the device must have passed all marks."""
        steps_s = tuple(self.clock.between_s(*pair) for pair in self._steps)
        own_s = [self.clock.between_s(*pair) for pair in self._own]
        self._steps.clear()
        self._own.clear()
        return Times(steps_s, statistics.fmean(own_s) * micro_batches_per_step if own_s else 0.0)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that is not exceeded by `share` (0 to 1] of the values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def step_percentiles(times_s: Sequence[float]) -> dict[str, float]:
    """Return p50, p90 and p99 of step times, in seconds; empty where there are none."""
    if not times_s:
        return {}
    return {f"p{100 * share:.0f}": percentile(times_s, share) for share in (0.5, 0.9, 0.99)}


@dataclass(frozen=True)
class Slowest:
    """The rank with the most time of its own.

    Args:
        rank: which.
        own_s: its own time per step.
        median_s: the median rank's (of an even number, the lower of the two in the middle).
        step_s: a whole step.
    """

    rank: int
    own_s: float
    median_s: float
    step_s: float

    @property
    def ratio(self) -> float:
        """Its own time over the median rank's."""
        return self.own_s / self.median_s if self.median_s else 1.0

    @property
    def holds_others_up(self) -> bool:
        """It is so much slower that it costs the others a part of each step that matters."""
        lost_s = self.own_s - self.median_s
        return self.ratio > _SLOW_RATIO and lost_s > _SLOW_SHARE * self.step_s


def find_slowest(own_s: Sequence[float], step_s: float) -> Slowest:
    """Return the rank with the most own time.

    Args:
        own_s: own time per step of each rank, by rank.
        step_s: mean time of a whole step.
    """
    rank = max(range(len(own_s)), key=lambda number: own_s[number])
    return Slowest(rank, own_s[rank], statistics.median_low(own_s), step_s)
