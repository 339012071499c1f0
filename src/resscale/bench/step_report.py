"""What `resscale bench step` has measured, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resscale.bench.floor import Floor
from resscale.bench.peaks import Peaks
from resscale.bench.turns import PARTS
from resscale.training.peak_flops import compute_mfu, training_flops

_NOTE = (
    "floor: the larger of operations over peak and bytes over bandwidth; the bytes are estimated\n"
    "(convolutions, pooling and linear layers read and write once, BatchNorm reads once, all else\n"
    "is fused). framework: what the trainer with all its callbacks adds to a plain loop."
)


@dataclass(frozen=True)
class StepResult:
    """A measured step.

    Args:
        what: the network and its setting, for people.
        device: its name.
        rows: images of a step.
        macs: multiply-accumulates of one image; None: unknown.
        seconds: of `medians`.
        floors: of `floors`, by part.
        peaks: of the device.
        memory_bytes: see `Turns`.
        rounds: of blocks.
    """

    what: str
    device: str
    rows: int
    macs: int | None
    seconds: Mapping[str, float]
    floors: Mapping[str, Floor]
    peaks: Peaks
    memory_bytes: int
    rounds: int

    @property
    def images_per_s(self) -> float:
        """Of the whole training loop, but for data."""
        return self.rows / self.seconds["fit"]

    @property
    def mfu(self) -> float | None:
        """Share of the peak that is used, 0 to 1; None for a network of unknown cost."""
        if self.macs is None:
            return None
        flops = training_flops(self.macs) * self.rows
        return compute_mfu(flops, self.seconds["fit"], self.peaks.flops_per_s)


def render_step(result: StepResult) -> str:
    """Return the table.

    Args:
        result: measured.
    """
    lines = [
        f"{result.what}; {result.device}; medians of {result.rounds} rounds",
        "",
        f"{'part':<16} {'ms/step':>10} {'share':>7} {'floor ms':>10} {'bound':<11} {'x floor':>7}",
    ]
    whole_s = result.seconds["fit"]
    for part in (*PARTS, "framework"):
        lines.append(_row(part, result.seconds[part], whole_s, result.floors.get(part)))
    lines.append(_row("whole step", whole_s, whole_s, _sum(list(result.floors.values()))))
    mfu = f", MFU {result.mfu:.1%}" if result.mfu is not None else ""
    lines += [
        "",
        f"{result.images_per_s:,.1f} images/s{mfu}, {result.memory_bytes / 2**30:.2f} GiB",
        f"peak {result.peaks.flops_per_s / 1e12:.3g} TFLOP/s ({result.peaks.flops_source}), "
        f"memory {result.peaks.memory_bytes_per_s / 1e9:.3g} GB/s (measured copy)"
        + _transfer(result.peaks),
        _NOTE,
    ]
    return "\n".join(lines)


def step_as_json(result: StepResult) -> dict[str, Any]:
    """Return everything measured, as plain values: seconds, bytes, rates.

    Args:
        result: measured.
    """
    return {**asdict(result), "images_per_s": result.images_per_s, "mfu": result.mfu}


def _row(part: str, seconds: float, whole_s: float, floor: Floor | None) -> str:
    text = f"{part:<16} {1000 * seconds:>10.2f} {seconds / whole_s:>7.1%}"
    if floor is None:
        return text
    ratio = f"{seconds / floor.seconds:>7.2f}" if floor.seconds else ""
    return f"{text} {1000 * floor.seconds:>10.2f} {floor.bound:<11} {ratio}"


def _sum(floors: Sequence[Floor]) -> Floor | None:
    if not floors:
        return None
    largest = max(floors, key=lambda floor: floor.seconds)
    return Floor(sum(floor.seconds for floor in floors), largest.bound)


def _transfer(peaks: Peaks) -> str:
    if peaks.transfer_bytes_per_s is None:
        return ""
    return f", from the host {peaks.transfer_bytes_per_s / 1e9:.3g} GB/s (measured)"
