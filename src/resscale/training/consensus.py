"""Lets ranks agree on something at a step boundary without waiting for each other.

Each rank casts a vote at each optimizer step; the sum comes back at the next one. The all-reduce
runs beside the step, on host memory (gloo), so no step waits for it and no device is synchronised.
All ranks read the same sum at the same step.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


class Consensus:
    """Collects one integer per rank and step; `cast` returns the sum of the step before.

    With one process the answer is immediate. Must be built, and called, by every rank alike.
    """

    def __init__(self) -> None:
        self._group: distributed.ProcessGroup | None = None
        self._pending: tuple[distributed.Work, Tensor] | None = None
        if distributed.is_available() and distributed.is_initialized():
            # A group of its own: the votes must not queue behind gradients.
            self._group = distributed.new_group(backend="gloo")

    def cast(self, vote: int) -> int:
        """Give this rank's vote; return the previous step's sum (this one's where alone)."""
        if self._group is None:
            return vote
        total = self._collect()
        tensor = torch.tensor([vote], dtype=torch.int64)
        work = distributed.all_reduce(tensor, group=self._group, async_op=True)
        assert work is not None
        self._pending = (work, tensor)
        return total

    def settle(self, vote: int) -> int:
        """Give a vote and wait for its sum; for the ends of epochs."""
        if self._group is None:
            return vote
        return self.cast(vote) + self._collect()

    def _collect(self) -> int:
        if self._pending is None:
            return 0
        work, tensor = self._pending
        self._pending = None
        work.wait()
        return int(tensor)
