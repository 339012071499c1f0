"""Puts together what was measured of a step, what it had to do, and what the device can do."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from resscale.bench.floor import StepCost, floors
from resscale.bench.peaks import measure_peaks
from resscale.bench.step_report import StepResult
from resscale.bench.traffic import estimate_traffic
from resscale.bench.turns import Turns, medians
from resscale.models import ResNet


def measured_step(turns: Turns, what: str, size: int) -> StepResult:
    """Return the result of turns that are over; the device's peaks are measured here.

    Args:
        turns: with at least one round.
        what: the network and its setting, for people.
        size: pixels per side.
    """
    plain = turns.plain
    assert plain is not None, "the plain loop has had its turns"
    module, device = plain.module, plain.device
    rows = len(plain.batches[0]["label"])
    dtype = plain.dtype or torch.float32
    peaks = measure_peaks(device, dtype)
    macs, found = module.num_macs(size), {}
    if macs is not None and isinstance(module.model, ResNet):
        cost = StepCost(
            rows=rows,
            macs=macs,
            traffic=estimate_traffic(module.model, size, module.in_channels, dtype.itemsize),
            batch_bytes=plain.batches[0]["image"].numel(),
            num_parameters=module.num_parameters,
            num_states=plain.num_states,
        )
        found = floors(cost, peaks)
    return StepResult(
        what=what,
        device=device_name(device),
        rows=rows,
        macs=macs,
        seconds=medians(turns.rounds),
        floors=found,
        peaks=peaks,
        memory_bytes=turns.memory_bytes,
        rounds=len(turns.rounds),
    )


def device_name(device: torch.device) -> str:
    """Return a device's name, of a CPU with the cores that torch uses and those there are.

    Args:
        device: which.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if "model name" in key), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {torch.get_num_threads()} of {cores} cores"
