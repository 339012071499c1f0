"""What this device can do at most: multiply-adds, memory, and copies from the host.

A GPU's peak of arithmetic is that of its data sheet where the sheet is known; everything else is
measured here and now, so that what is compared with it met the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from resscale.training.peak_flops import find_peak_flops_per_s

_TRIALS = 5


@dataclass(frozen=True)
class Peaks:
    """A device's rates.

    Args:
        flops_per_s: floating-point operations.
        flops_source: where that is from, for people.
        memory_bytes_per_s: read and written together, in a copy within the device.
        transfer_bytes_per_s: from page-locked memory of the host; None: there is no such copy.
    """

    flops_per_s: float
    flops_source: str
    memory_bytes_per_s: float
    transfer_bytes_per_s: float | None = None


def measure_peaks(
    device: torch.device,
    dtype: torch.dtype,
    *,
    side: int | None = None,
    num_bytes: int | None = None,
) -> Peaks:
    """Return a device's peaks: of several trials the best, for what is sought is a bound.

    Args:
        device: where.
        dtype: that the network computes in.
        side: of the square matrices that are multiplied; None: 8192 on a GPU, 1024 elsewhere.
        num_bytes: of the memory that is copied; None: 1 GiB on a GPU, 256 MiB elsewhere.
    """
    on_gpu = device.type == "cuda"
    side = side or (8192 if on_gpu else 1024)
    num_bytes = num_bytes or (1 << 30 if on_gpu else 256 << 20)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty(side, side, device=device, dtype=dtype)
    product_s = _best_s(lambda: torch.mm(left, right, out=product), device)
    known = None
    if on_gpu and dtype in (torch.bfloat16, torch.float16):
        known = find_peak_flops_per_s(torch.cuda.get_device_name(device))
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), device)
    transfer = None
    if on_gpu:
        host = torch.zeros(num_bytes, dtype=torch.uint8).pin_memory()
        transfer = num_bytes / _best_s(lambda: target.copy_(host, non_blocking=True), device)
    measured = f"measured: product of {side} x {side} in {str(dtype).removeprefix('torch.')}"
    return Peaks(
        flops_per_s=known or 2 * side**3 / product_s,
        flops_source="data sheet, dense" if known else measured,
        # Each byte is read once and written once.
        memory_bytes_per_s=2 * num_bytes / copy_s,
        transfer_bytes_per_s=transfer,
    )


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    """Return the least seconds of some trials; the first one only warms up."""
    best = float("inf")
    for trial in range(_TRIALS + 1):
        wait_for(device)
        started = time.perf_counter()
        work()
        wait_for(device)
        if trial:
            best = min(best, time.perf_counter() - started)
    return best


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given; elsewhere there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
