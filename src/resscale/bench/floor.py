"""The least time that the parts of a training step could take on a device: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resscale.bench.peaks import Peaks
from resscale.bench.traffic import Traffic

Bound = Literal["arithmetic", "memory", "transfer"]

# Per multiply-accumulate of the forward pass: one multiply and one add.
_FLOPS_PER_MAC = 2
# Backward computes gradients of the weights and of the inputs, and reads and writes as much again
# for each of them.
_BACKWARD = 2
_FLOAT32 = 4


@dataclass(frozen=True)
class StepCost:
    """What one step of training has to do.

    Args:
        rows: images.
        macs: multiply-accumulates of one image's forward pass.
        traffic: bytes of the forward pass, estimated.
        batch_bytes: of the images, as they come from the host.
        num_parameters: that are trained.
        num_states: numbers that the optimizer keeps for each of them: 1 for momentum.
    """

    rows: int
    macs: int
    traffic: Traffic
    batch_bytes: int
    num_parameters: int
    num_states: int


@dataclass(frozen=True)
class Floor:
    """The least time of a part.

    Args:
        seconds: that it takes at least.
        bound: what it is waiting for then.
    """

    seconds: float
    bound: Bound


def floors(cost: StepCost, peaks: Peaks) -> dict[str, Floor]:
    """Return the floor of each part that has one, by name.

    Args:
        cost: of the step.
        peaks: of the device.
    """
    flops = cost.rows * cost.macs * _FLOPS_PER_MAC
    moved = cost.rows * cost.traffic.activation_bytes + cost.traffic.weight_bytes
    # Weight, gradient and each state are read; weight and each state are written.
    updated = _FLOAT32 * cost.num_parameters * (3 + 2 * cost.num_states)
    found = {
        "forward": _larger(flops, moved, peaks),
        "backward": _larger(_BACKWARD * flops, _BACKWARD * moved, peaks),
        "optimizer": Floor(updated / peaks.memory_bytes_per_s, "memory"),
    }
    if peaks.transfer_bytes_per_s is None:
        return found
    transfer = Floor(cost.batch_bytes / peaks.transfer_bytes_per_s, "transfer")
    return {"host to device": transfer, **found}


def _larger(flops: float, moved_bytes: float, peaks: Peaks) -> Floor:
    """Return whichever takes longer: the arithmetic, or moving the bytes."""
    arithmetic_s = flops / peaks.flops_per_s
    memory_s = moved_bytes / peaks.memory_bytes_per_s
    if arithmetic_s >= memory_s:
        return Floor(arithmetic_s, "arithmetic")
    return Floor(memory_s, "memory")
