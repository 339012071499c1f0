"""How fast a run is: intervals added up over this process's life."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from resscale.training.interval import Interval
from resscale.training.peak_flops import compute_mfu, training_flops
from resscale.training.throughput import Slowest, Times, find_slowest, step_percentiles

# Step times that an epoch's percentiles are taken of: the newest.
_EPOCH_STEPS = 100_000


class Speed:
    """Rate, step times, MFU, memory and the slowest rank.

    Args:
        hosts: host name of each rank.
        peak_flops_per_s: of a rank's device; None: unknown, so there is no MFU.
    """

    def __init__(self, hosts: Sequence[str], peak_flops_per_s: float | None = None) -> None:
        self.hosts = list(hosts)
        self.peak_flops_per_s = peak_flops_per_s
        self.slowest: Slowest | None = None
        self._samples = 0
        self._elapsed_s = 0.0
        self._flops = 0.0
        self._memory_bytes = 0
        # Own time of each rank over all steps, and the whole time of these steps.
        self._own_s = [0.0] * len(self.hosts)
        self._steps_s = 0.0
        self._epoch_times_s: deque[float] = deque(maxlen=_EPOCH_STEPS)

    @property
    def images_per_s(self) -> float:
        """Over all ranks, evaluation left out."""
        return self._samples / self._elapsed_s if self._elapsed_s else 0.0

    def begin_epoch(self) -> None:
        """Begin the epoch's step times anew."""
        self._epoch_times_s.clear()

    def add(
        self, interval: Interval, times: Times, samples: int, elapsed_s: float, macs: int | None
    ) -> dict[str, float]:
        """Add an interval; return its values by name, for TensorBoard.

        Args:
            interval: of all ranks.
            times: of this rank.
            samples: trained on, over all ranks.
            elapsed_s: how long it took.
            macs: multiply-accumulates of one image's forward pass, where they are known.
        """
        world_size = len(self.hosts)
        own_s = [rank.own_s for rank in interval.ranks]
        flops = training_flops(macs or 0) * samples / world_size
        self.slowest = find_slowest(own_s, times.mean_s)
        self._samples += samples
        self._elapsed_s += elapsed_s
        self._flops += flops
        self._memory_bytes = max(self._memory_bytes, interval.memory_bytes)
        self._epoch_times_s.extend(times.steps_s)
        self._steps_s += sum(times.steps_s)
        for rank, seconds in enumerate(own_s):
            self._own_s[rank] += seconds * len(times.steps_s)
        rate = samples / elapsed_s if elapsed_s else 0.0
        values = {
            "speed/images_per_s_per_rank": rate / world_size,
            "speed/memory_bytes": float(interval.memory_bytes),
            "speed/slowest_rank": float(self.slowest.rank),
            "speed/slowest_ratio": self.slowest.ratio,
        }
        for name, seconds in step_percentiles(times.steps_s).items():
            values[f"speed/step_s_{name}"] = seconds
        mfu = self._mfu(flops, elapsed_s)
        return values if mfu is None else {**values, "speed/mfu": mfu}

    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` says: step times of the newest epoch, the rest over all."""
        slowest = None
        if len(self.hosts) > 1:
            found = find_slowest(self._own_s, self._steps_s)
            slowest = {
                "rank": found.rank,
                "host": self.hosts[found.rank],
                "ratio": round(found.ratio, 3),
            }
        return {
            "images_per_s": self.images_per_s,
            "images_per_s_per_rank": self.images_per_s / len(self.hosts),
            "step_time_s": step_percentiles(self._epoch_times_s) or None,
            "mfu": self._mfu(self._flops, self._elapsed_s),
            "memory_bytes": self._memory_bytes or None,
            "slowest_rank": slowest,
        }

    def _mfu(self, flops: float, elapsed_s: float) -> float | None:
        if self.peak_flops_per_s is None or not flops:
            return None
        return compute_mfu(flops, elapsed_s, self.peak_flops_per_s)
