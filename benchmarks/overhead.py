"""What `resscale fit` costs over a plain PyTorch loop of the same step.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py
    OMP_NUM_THREADS=1 python benchmarks/overhead.py --model resnet8_cifar --image_size 8 \
        --steps 20 --rounds 20 --batch_size 2

One process trains two copies of a net in turns, block by block: the whole of `resscale fit` with
every callback it has, and a loop of ten lines. Both take the same batches from memory, prepare them
with the same function and have the same optimizer; the plain loop has no schedule, no metrics, no
log. Each block of `fit` ends with a logging interval. Times are CPU seconds of the process, so that
others on the machine disturb little; medians over the rounds, the first round left out.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional

from resscale.bench.synthetic import SyntheticLoader, synthetic_batches
from resscale.cli_train import Session
from resscale.training.classifier import ImageClassifier
from resscale.training.optim import build_optimizer

# The built-in digits stand for the data that `fit` asks for at its start.
_STAND_IN = ("builtin:digits/train", 1437)


class PlainLoop:
    """A training loop as one writes it by hand.

    Args:
        module: gives the net, which is copied, the optimizer's options, and the preparation.
        loader: the batches.
        precision: "32-true" or "bf16-mixed".
    """

    def __init__(self, module: ImageClassifier, loader: SyntheticLoader, precision: str) -> None:
        self.net: nn.Module = copy.deepcopy(module.model).train()
        self.optimizer = build_optimizer(
            self.net, module.optimizer_config, module.global_batch_size
        )
        self.prepare = module.prepare
        self.batches = iter(loader)
        self.autocast = precision == "bf16-mixed"

    def run(self, steps: int) -> None:
        """Train so many steps."""
        for _ in range(steps):
            batch = next(self.batches)
            images = self.prepare(batch["image"], batch["flip"])
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                loss = functional.cross_entropy(self.net(images), batch["label"])
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()


@dataclass
class Turns(Callback):
    """Times blocks of steps of `fit`, and runs the plain loop between them.

    Args:
        plain: the other loop.
        steps: per block.
    """

    plain: PlainLoop
    steps: int
    fit_s: list[float] = field(default_factory=list)
    plain_s: list[float] = field(default_factory=list)
    _since: float = 0.0

    def on_train_epoch_start(self, *args: Any) -> None:
        """Begin the first block."""
        self._since = time.process_time()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a block of `fit` and let the plain loop have its turn."""
        if (batch_idx + 1) % self.steps:
            return
        now = time.process_time()
        self.fit_s.append((now - self._since) / self.steps)
        self.plain.run(self.steps)
        self._since = time.process_time()
        self.plain_s.append((self._since - now) / self.steps)


def measure(options: argparse.Namespace, run_dir: str) -> Turns:
    """Train both loops in turns; return their times."""
    total = options.steps * (options.rounds + 1)
    arguments = {
        "run_dir": run_dir,
        "num_threads": options.num_threads,
        "model.model": options.model,
        "model.num_classes": options.num_classes,
        "data.train": _STAND_IN[0],
        "data.image_size": options.image_size,
        "data.global_batch_size": options.batch_size,
        "data.num_workers": 0,
        # Random pixels are learnt at no rate: a small one keeps the numbers finite.
        "model.optimizer.lr": 1e-4,
        "trainer.accelerator": "cpu",
        "trainer.precision": options.precision,
        "trainer.limit_train_batches": total,
        "trainer.log_every_n_steps": options.steps,
    }
    session = Session("fit", [f"--{name}={value}" for name, value in arguments.items()])
    batches = synthetic_batches(options.batch_size, options.image_size, 3, options.num_classes)
    loader = SyntheticLoader(batches, total)
    data: Any = session.data
    data.train_dataloader = lambda: loader
    data._train_loader = loader
    turns = Turns(PlainLoop(session.model, loader, options.precision), options.steps)
    # Last, so that what all others do at a batch's end is in the block.
    session.trainer.callbacks.append(turns)  # type: ignore[attr-defined]
    session.trainer.fit(session.model, session.data)
    return turns


def report(turns: Turns) -> str:
    """Return the Markdown table of medians, without the first round, and the ratio."""
    fit, plain = turns.fit_s[1:], turns.plain_s[1:]
    ratios = [one / other for one, other in zip(fit, plain, strict=True)]
    middle = statistics.median(fit), statistics.median(plain)
    lines = ["| loop | CPU ms per step | lowest | highest |", "| --- | --- | --- | --- |"]
    for name, times, median in (("resscale fit", fit, middle[0]), ("plain", plain, middle[1])):
        cells = (1000 * value for value in (median, min(times), max(times)))
        lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    lines.append(
        f"overhead {middle[0] / middle[1] - 1:+.2%}, {1000 * (middle[0] - middle[1]):.2f} ms per "
        f"step; pairs of blocks: median {statistics.median(ratios) - 1:+.2%}, from "
        f"{min(ratios) - 1:+.2%} to {max(ratios) - 1:+.2%}"
    )
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description="What `resscale fit` costs over a plain loop.")
    parser.add_argument("--model", default="resnet50", help="(%(default)s)")
    parser.add_argument("--image_size", type=int, default=224, help="pixels (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=16, help="images (%(default)s)")
    parser.add_argument("--num_classes", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="blocks of each (%(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="per block (%(default)s)")
    parser.add_argument(
        "--precision", choices=("32-true", "bf16-mixed"), default="bf16-mixed", help="(%(default)s)"
    )
    parser.add_argument("--num_threads", type=int, default=1, help="of torch (%(default)s)")
    options = parser.parse_args()
    most = _STAND_IN[1] // options.batch_size // options.steps - 1
    if not 1 <= options.rounds <= most:
        parser.error(f"--rounds {options.rounds} must be from 1 to {most} at this size")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        turns = measure(options, f"{folder}/run")
    print(report(turns))


if __name__ == "__main__":
    main()
