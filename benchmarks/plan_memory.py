"""The memory that `resscale plan` computes against real training steps on the CPU.

    OMP_NUM_THREADS=1 python benchmarks/plan_memory.py
    OMP_NUM_THREADS=1 python benchmarks/plan_memory.py --nets resnet18 --batches 8 16 --size 112

Each case trains two steps of the real `ImageClassifier` with its real
optimizer, in Lightning's order (forward, give up the gradients of the step before, backward, step),
on real tensors. Two measures of the second step, neither of which knows what is computed:

- allocator: the most bytes that torch's CPU allocator had given out, by torch's profiler, from the
  building of the net on. oneDNN's own scratch memory is not among them.
- resident: by how much the process grew from before the net was built to its peak (VmHWM, Linux),
  with everything: the allocator's rounding, oneDNN's scratch and code that is used first.

CUDA's allocator, cuDNN's workspaces and NCCL are not measured here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from resscale.data.dataset import Batch
from resscale.models import create_model
from resscale.report.plan_activations import simulate_step
from resscale.training.classifier import ImageClassifier
from resscale.training.optim import build_optimizer

NETS = ("resnet18", "resnet50", "resnext50_32x4d", "seresnet50")
BATCHES = (4, 16)
MIB = 2**20
_MARK = "measured step"


@dataclass(frozen=True)
class Case:
    """A step that is measured.

    Args:
        net: its name.
        batch: images of a pass.
        size: pixels per side.
        is_bf16: under bfloat16 autocast.
        is_channels_last: the layout.
    """

    net: str
    batch: int
    size: int
    is_bf16: bool
    is_channels_last: bool


def computed_bytes(case: Case) -> int:
    """Return the peak of a step, computed without values."""
    step = simulate_step(
        partial(create_model, case.net),
        case.batch,
        case.size,
        dtype=torch.bfloat16 if case.is_bf16 else None,
    )
    return step.peak


def _batch(case: Case) -> Batch:
    images = torch.zeros(case.batch, 3, case.size, case.size, dtype=torch.uint8)
    ids = torch.arange(case.batch)
    batch = {"image": images, "label": torch.zeros(case.batch, dtype=torch.long), "id": ids}
    batch |= {"flip": torch.zeros(case.batch, dtype=torch.bool), "copy": torch.zeros_like(ids)}
    return batch | {"epoch": 0, "step": 0, "bad": []}  # type: ignore[return-value]


def train(case: Case, between: list[int] | None = None) -> None:
    """Train two steps in Lightning's order.

    Args:
        case: what.
        between: gets the resident bytes of before the second step.
    """
    module = ImageClassifier(case.net, channels_last=case.is_channels_last)
    optimizer = build_optimizer(module.model, module.optimizer_config, 256)
    module.train()

    def step() -> None:
        batch = _batch(case)
        with torch.autocast("cpu", torch.bfloat16, enabled=case.is_bf16):
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    step()
    if between is not None:
        between.append(_status("VmRSS"))
    with torch.profiler.record_function(_MARK):
        step()


def allocator_bytes(case: Case) -> int:
    """Return the most bytes that the allocator had given out in the second step."""
    torch.set_num_threads(1)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        train(case)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    begins = next(event["ts"] for event in events if event.get("name") == _MARK)
    return max(
        event["args"]["Total Allocated"]
        for event in events
        if event.get("name") == "[memory]" and event["ts"] >= begins
    )


def resident_bytes(case: Case) -> int:
    """Return by how many bytes the process grows from before the net to the peak."""
    torch.set_num_threads(1)
    # The code that a step uses is in memory before anything is counted.
    train(Case("resnet18", 2, 32, case.is_bf16, case.is_channels_last))
    before = _status("VmRSS")
    # Resets VmHWM, the peak of this process (Linux, proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    train(case)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def measure(case: Case) -> tuple[int, int]:
    """Return the allocator's and the resident bytes of a case, the latter of a fresh process."""
    # glibc keeps freed blocks of its heap; above this size every tensor is mapped and unmapped.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        resident = pool.submit(resident_bytes, case).result()
    return allocator_bytes(case), resident


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line; print a row per case, and the largest differences."""
    parser = argparse.ArgumentParser(description="Computed memory against real steps on the CPU.")
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--size", type=int, default=224, help="pixels (%(default)s)")
    parser.add_argument(
        "--layouts", nargs="+", choices=("nchw", "channels_last"), default=["channels_last"]
    )
    options = parser.parse_args(arguments)
    print("| net | images | precision | layout | computed, MiB | allocator | resident |")
    print(f"|{' --- |' * 7}")
    worst = [0.0, 0.0]
    for net in options.nets:
        for batch in options.batches:
            for layout in options.layouts:
                for is_bf16 in (False, True):
                    case = Case(net, batch, options.size, is_bf16, layout == "channels_last")
                    computed = computed_bytes(case)
                    cells = []
                    for number, found in enumerate(measure(case)):
                        error = computed / found - 1
                        worst[number] = max(worst[number], abs(error))
                        cells.append(f"{found / MIB:.1f} ({error:+.1%})")
                    precision = "bf16-mixed" if is_bf16 else "fp32"
                    print(
                        f"| {net} | {batch} | {precision} | {layout} | {computed / MIB:.1f} "
                        f"| {' | '.join(cells)} |",
                        flush=True,
                    )
    print(f"\nlargest difference: allocator {worst[0]:.1%}, resident {worst[1]:.1%}")


if __name__ == "__main__":
    main()
