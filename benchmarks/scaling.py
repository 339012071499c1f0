"""What two processes allow here: DDP against processes that do not talk, and DDP of `fit`.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --model resnet50 --image_size 64 --batch_size 8

Two ranks with one thread each, over gloo, train copies of a net in four ways, in turns, block by
block, so that whatever else the machine does meets all four:

- alone: one process trains, the other waits;
- apart: both train, and exchange nothing: what two cores give at most here;
- plain DDP: a loop of ten lines around torch's DistributedDataParallel;
- resscale fit: the whole of it, with every callback it has, under `ddp`.

All take the same batches from memory, prepare them with the same function, and have the same
optimizer and the same DDP options; the plain loops have no schedule, no metrics and no log. Printed
are medians over blocks of images per second by the clock, and of CPU seconds of all processes per
image, which others on the machine disturb less. The first round is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from overhead import PlainLoop
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from resscale.bench.synthetic import SyntheticLoader, synthetic_batches
from resscale.cli_train import Session
from resscale.training.classifier import ImageClassifier

RANKS = 2
WAYS = ("alone", "apart", "plain DDP", "resscale fit")
# The built-in digits stand for the data that `fit` asks for at its start.
STAND_IN = ("builtin:digits/train", 1437)


class Block(NamedTuple):
    """What one block of steps took."""

    images: int
    """Over all ranks that trained."""

    wall_s: float
    cpu_s: float
    """Of all processes."""


class Stopwatch:
    """Measures a block between two meetings of the ranks."""

    def __init__(self) -> None:
        distributed.barrier()
        self._wall_s = time.perf_counter()
        self._cpu_s = time.process_time()

    def stop(self, images: int) -> Block:
        """Return the block's times; `images` is this rank's share."""
        # Before the meeting: waiting costs CPU time too, and is no part of the work.
        cpu_s = time.process_time() - self._cpu_s
        distributed.barrier()
        wall_s = time.perf_counter() - self._wall_s
        sums = torch.tensor([images, cpu_s], dtype=torch.float64)
        distributed.all_reduce(sums)
        return Block(int(sums[0]), wall_s, float(sums[1]))


class Turns(Callback):
    """Times blocks of steps of `fit`, and gives the other ways their turns between them.

    Args:
        module: what `fit` trains.
        loader: the batches.
        options: of the command line.
    """

    def __init__(
        self, module: ImageClassifier, loader: SyntheticLoader, options: argparse.Namespace
    ) -> None:
        self.blocks: dict[str, list[Block]] = {way: [] for way in WAYS}
        self.steps = options.steps
        self.images = options.steps * options.batch_size
        # Rank 0 takes more of them than `fit` does.
        endless = SyntheticLoader(loader.batches, sys.maxsize)
        self.apart = PlainLoop(module, endless, options.precision)
        self.together = PlainLoop(module, endless, options.precision)
        self.watch: Stopwatch | None = None

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Wrap the plain loop's net, now that the ranks know each other."""
        # The options that resscale's own strategy sets: no buffers sent at each forward.
        self.together.net = DistributedDataParallel(
            self.together.net, gradient_as_bucket_view=True, forward_sync_buffers=False
        )

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Begin the first block."""
        self.watch = Stopwatch()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a block of `fit` and run one of each other way."""
        if (batch_idx + 1) % self.steps:
            return
        assert self.watch is not None
        self.blocks["resscale fit"].append(self.watch.stop(self.images))
        first = distributed.get_rank() == 0
        self._run("alone", self.apart.run, takes_part=first)
        self._run("apart", self.apart.run)
        self._run("plain DDP", self.together.run)
        self.watch = Stopwatch()

    def _run(self, way: str, run: Callable[[int], None], takes_part: bool = True) -> None:
        watch = Stopwatch()
        if takes_part:
            run(self.steps)
        self.blocks[way].append(watch.stop(self.images if takes_part else 0))


def measure(options: argparse.Namespace, run_dir: str) -> tuple[Session, Turns]:
    """Train all four ways in turns; return the session and the times."""
    total = options.steps * (options.rounds + 1)
    arguments = {
        "run_dir": run_dir,
        "num_threads": 1,
        "model.model": options.model,
        "model.num_classes": options.num_classes,
        "data.train": STAND_IN[0],
        "data.image_size": options.image_size,
        "data.global_batch_size": RANKS * options.batch_size,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.devices": RANKS,
        "trainer.strategy": "ddp",
        "trainer.precision": options.precision,
        "trainer.limit_train_batches": total,
        "trainer.log_every_n_steps": options.steps,
    }
    session = Session("fit", [f"--{name}={value}" for name, value in arguments.items()])
    batches = synthetic_batches(options.batch_size, options.image_size, 3, options.num_classes)
    loader = SyntheticLoader(batches, total)
    session.data.train_dataloader = lambda: loader  # type: ignore[assignment, method-assign, return-value]
    session.data._train_loader = loader  # type: ignore[assignment]
    turns = Turns(session.model, loader, options)
    # Last, so that what all others do at a batch's end is in the block.
    session.trainer.callbacks.append(turns)  # type: ignore[attr-defined]
    session.trainer.fit(session.model, session.data)
    return session, turns


def report(blocks: dict[str, list[Block]]) -> str:
    """Return the Markdown table of medians, and the ratios, of blocks behind the first round."""
    rates = {way: [block.images / block.wall_s for block in blocks[way][1:]] for way in blocks}
    costs = {way: [block.cpu_s / block.images for block in blocks[way][1:]] for way in blocks}
    lines = ["| way | images/s | lowest | highest | CPU ms per image |", f"|{' --- |' * 5}"]
    for way, found in rates.items():
        cells = [f"{statistics.median(found):.1f}", f"{min(found):.1f}", f"{max(found):.1f}"]
        lines.append(f"| {way} | {' | '.join(cells)} | {1e3 * statistics.median(costs[way]):.2f} |")
    lines.append("")
    for title, one, other, factor in (
        ("plain DDP / apart", "plain DDP", "apart", 1),
        ("plain DDP / twice alone", "plain DDP", "alone", 2),
        ("resscale fit / plain DDP", "resscale fit", "plain DDP", 1),
    ):
        by_clock = _median_ratio(rates[one], rates[other]) / factor
        by_cpu = _median_ratio(costs[other], costs[one])
        lines.append(f"{title}: {by_clock:.3f} by the clock, {by_cpu:.3f} by CPU time")
    return "\n".join(lines)


def _median_ratio(ones: list[float], others: list[float]) -> float:
    """Return the median of the ratios of blocks that ran one after the other."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description="DDP on two processes, and that of `fit`.")
    parser.add_argument("--model", default="resnet18", help="(%(default)s)")
    parser.add_argument("--image_size", type=int, default=64, help="pixels (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=16, help="images a rank (%(default)s)")
    parser.add_argument("--num_classes", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="blocks of each (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="per block (%(default)s)")
    parser.add_argument(
        "--precision", choices=("32-true", "bf16-mixed"), default="32-true", help="(%(default)s)"
    )
    options = parser.parse_args()
    most = STAND_IN[1] // (RANKS * options.batch_size) // options.steps - 1
    if not 1 <= options.rounds <= most:
        parser.error(f"--rounds {options.rounds} must be from 1 to {most} at this size")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        session, turns = measure(options, f"{folder}/run")
        first = session.trainer.is_global_zero
        session.wait_for_ranks()
    if first:
        print(report(turns.blocks))


if __name__ == "__main__":
    main()
