"""How long training stands still for a checkpoint: written at once, and in the background.

    python benchmarks/checkpoint.py --folder /scratch/try
    python benchmarks/checkpoint.py resnet152 --device cuda --folder /scratch/try

Trains a net by SGD with momentum and saves between steps, by the writers that `resscale fit` uses,
in turns. Printed are medians over rounds: the stall is the time from the call to its return; the
steps behind a save show what a background writer costs them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD

from resscale.models import create_model
from resscale.training.checkpoint_background import BackgroundCheckpointIO
from resscale.training.checkpoint_io import AtomicCheckpointIO, PendingSave


class Training:
    """A net in training on random images."""

    def __init__(self, name: str, device: torch.device, batch_size: int, image_size: int) -> None:
        self.device = device
        self.net: nn.Module = create_model(name).to(device)
        self.optimizer = SGD(self.net.parameters(), lr=0.01, momentum=0.9)
        self.images = torch.randn(batch_size, 3, image_size, image_size, device=device)
        self.labels = torch.randint(0, 1000, (batch_size,), device=device)

    def steps_s(self, count: int) -> float:
        """Train some steps; return the seconds of one."""
        started = time.perf_counter()
        for _ in range(count):
            self.optimizer.zero_grad()
            functional.cross_entropy(self.net(self.images), self.labels).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.settle()
        return (time.perf_counter() - started) / count

    def checkpoint(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "state_dict": self.net.state_dict(),
            "optimizer_states": [self.optimizer.state_dict()],
        }

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def stall_s(
    writer: AtomicCheckpointIO, training: Training, path: Path
) -> tuple[float, PendingSave]:
    """Save; return the seconds until training may go on, and the save."""
    pending = PendingSave(lambda: None)
    training.settle()
    started = time.perf_counter()
    writer.save_checkpoint(training.checkpoint(), path, pending)
    return time.perf_counter() - started, pending


def main() -> None:
    """Read the command line, measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description="Stall of training by a checkpoint.")
    parser.add_argument("model", nargs="?", default="resnet50", help="(%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--image_size", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="between saves (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of training (%(default)s)")
    parser.add_argument("--folder", type=Path, default=None, help="where to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    training = Training(
        options.model, torch.device(options.device), options.batch_size, options.image_size
    )
    training.steps_s(2)
    writers = {"at once": AtomicCheckpointIO(), "in the background": BackgroundCheckpointIO()}
    stalls: dict[str, list[float]] = {name: [] for name in writers}
    behind: dict[str, list[float]] = {name: [] for name in writers}
    undisturbed: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "epoch-0000-step-00000000.ckpt"
        # The first round warms up: pages of memory and of the file are new.
        for number in range(options.rounds + 1):
            undisturbed.append(training.steps_s(options.steps))
            for name, writer in writers.items():
                stall, pending = stall_s(writer, training, path)
                step = training.steps_s(options.steps)
                if (error := pending.wait()) is not None:
                    raise error
                if number:
                    stalls[name].append(stall)
                    behind[name].append(step)
        size = path.stat().st_size
    alone = statistics.median(undisturbed[1:])
    first = statistics.median(stalls["at once"])
    print(f"{options.model}: {size / 1e6:.0f} MB a checkpoint, {alone:.3f} s a step without one\n")
    print("| written | stall, median | range | ratio | a step behind it |")
    print("| --- | --- | --- | --- | --- |")
    for name, values in stalls.items():
        median = statistics.median(values)
        spread = f"{min(values):.3f} to {max(values):.3f} s"
        step = statistics.median(behind[name])
        print(f"| {name} | {median:.3f} s | {spread} | {median / first:.2f} | {step:.3f} s |")


if __name__ == "__main__":
    main()
