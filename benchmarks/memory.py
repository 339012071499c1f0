"""What training a net keeps in memory: states by strategy, and activations per image.

    python benchmarks/memory.py                        # both tables, computed, under a minute
    python benchmarks/memory.py --measure resnet50 --dtypes fp32 bf16   # against a real process

Nothing is allocated for the tables. The states are arithmetic on the number of parameters
(`states_on`). The activations are what autograd keeps from forward to backward: the net runs on
tensors without values, each storage that is saved for backward is counted once, and parameters are
left out. That is the floor of a step's memory; the maps that are in work come on top.

`--measure` runs a real step on the CPU in fresh processes (Linux), at two batch sizes, and prints
by how much the process grew per image: behind the forward pass, where the computed number must
appear, and at the peak.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from resscale.models import create_model
from resscale.report.plan_activations import Saved, saved_for_backward
from resscale.report.plan_memory import states_on

NETS = (
    *("resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
RANKS = (1, 8, 64)
BATCH = 64
"""Images per GPU in the last column of the activations' table."""

MIB = 2**20


def saved_by(name: str, image_size: int, *, bf16: bool) -> Saved:
    """Return what the cross entropy of a named net saves, computed without values."""
    dtype = torch.bfloat16 if bf16 else None
    return saved_for_backward(partial(create_model, name), image_size, dtype=dtype)


def resident_bytes(status: str, field: str) -> int:
    """Return a field of `/proc/self/status`, as `VmRSS:   1024 kB`, in bytes."""
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def grow(name: str, batch: int, image_size: int, bf16: bool) -> tuple[int, int]:
    """Run two steps in this process; return by how many bytes it grew in the second.

    The first step brings the code and the gradients into memory.

    Returns:
        Growth behind forward, and at the peak.
    """
    torch.set_num_threads(1)
    net = create_model(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, image_size, image_size).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.long)
    status = Path("/proc/self/status")

    def forward(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return functional.cross_entropy(net(images), labels)

    forward(images[:2], labels[:2]).backward()  # type: ignore[no-untyped-call]
    # Resets VmHWM, the peak of this process (Linux, proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes(status.read_text(), "VmRSS")
    loss = forward(images, labels)
    behind = resident_bytes(status.read_text(), "VmRSS")
    loss.backward()  # type: ignore[no-untyped-call]
    return behind - before, resident_bytes(status.read_text(), "VmHWM") - before


def measure_per_image(
    name: str, image_size: int, *, bf16: bool, batches: tuple[int, int]
) -> tuple[float, float]:
    """Return measured bytes per image: behind forward, and at the peak, each in fresh processes."""
    # glibc keeps freed blocks of its heap; above this size every tensor is mapped and unmapped.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        small, large = (
            pool.submit(grow, name, batch, image_size, bf16).result() for batch in batches
        )
    images = batches[1] - batches[0]
    return (large[0] - small[0]) / images, (large[1] - small[1]) / images


def states_table(names: Sequence[str]) -> list[str]:
    """Return the Markdown table of states, MiB per rank."""
    cases: list[tuple[str, int, dict[str, bool]]] = [
        ("ZeRO-1", 1, {}),
        ("ZeRO-2", 2, {}),
        ("ZeRO-3", 3, {}),
        ("ZeRO-3, released", 3, {"release_gathered": True}),
        ("ZeRO-2, offload", 2, {"offload_optimizer": True}),
    ]
    lines = [_row(["net", "parameters, M", "DDP", *(title for title, *_ in cases)])]
    lines += [_rule(3 + len(cases))]
    for name in names:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in create_model(name).parameters())
        cells = [f"{count / 1e6:.2f}", f"{states_on(count, 1, 0).on_device / MIB:.0f}"]
        for _, stage, options in cases:
            sizes = [states_on(count, ranks, stage, **options).on_device for ranks in RANKS]
            # What does not depend on the ranks stands once.
            texts = list(dict.fromkeys(f"{size / MIB:.0f}" for size in sizes))
            cells.append(" / ".join(texts))
        lines.append(_row([name, *cells]))
    return lines


def activations_table(names: Sequence[str], image_size: int) -> list[str]:
    """Return the Markdown table of activations per image."""
    titles = ["net", "fp32, MiB/image", "bf16-mixed, MiB/image"]
    titles += ["bf16 weight copies, MiB", f"{BATCH} images bf16-mixed, GiB", "DDP states, GiB"]
    lines = [_row(titles), _rule(len(titles))]
    for name in names:
        fp32, bf16 = (saved_by(name, image_size, bf16=mixed) for mixed in (False, True))
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in create_model(name).parameters())
        batch = (BATCH * bf16.per_image + bf16.fixed) / 2**30
        cells = [f"{fp32.per_image / MIB:.1f}", f"{bf16.per_image / MIB:.1f}"]
        cells += [f"{bf16.fixed / MIB:.0f}", f"{batch:.2f}"]
        lines.append(_row([name, *cells, f"{states_on(count, 1, 0).on_device / 2**30:.2f}"]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return f"|{' --- |' * columns}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the tables, or the measurement."""
    parser = argparse.ArgumentParser(description="Memory of training, computed and measured.")
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--image_size", type=int, default=224, help="pixels (%(default)s)")
    parser.add_argument("--measure", metavar="NET", help="measure this net instead")
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--batches", nargs=2, type=int, default=(4, 12), help="(4 12)")
    options = parser.parse_args(arguments)
    if options.measure is None:
        ranks = " / ".join(map(str, RANKS))
        print(f"MiB on each GPU without activations, of ZeRO on {ranks} ranks:\n")
        print(*states_table(options.nets), sep="\n", end="\n\n")
        print(f"Saved for backward at {options.image_size} pixels:\n")
        print(*activations_table(options.nets, options.image_size), sep="\n")
        return
    small, large = options.batches
    if not 2 <= small < large:
        parser.error(f"--batches {small} {large}: two growing numbers from 2 up are needed.")
    print(_row(["net", "dtype", "computed", "behind forward", "at the peak", "peak/computed"]))
    print(_rule(6))
    for dtype in options.dtypes:
        mixed = dtype == "bf16"
        computed = saved_by(options.measure, options.image_size, bf16=mixed).per_image
        behind, peak = measure_per_image(
            options.measure, options.image_size, bf16=mixed, batches=(small, large)
        )
        cells = [f"{value / MIB:.1f}" for value in (computed, behind, peak)]
        print(_row([options.measure, dtype, *cells, f"{peak / computed:.2f}"]), flush=True)


if __name__ == "__main__":
    main()
