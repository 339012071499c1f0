"""One GPU: single device, DDP and ZeRO 1 to 3, in each precision, compiled or not.

    python benchmarks/gpu.py                                       # resnet50, all 30 cases
    python benchmarks/gpu.py --strategies auto ddp --precisions bf16-mixed --compile false
    python benchmarks/gpu.py --device cpu --model resnet20_cifar --image_size 32 --batch_size 8 \
        --steps 3 --timed_steps 3 --precisions 32-true bf16-mixed --compile false

Each case trains in a process of its own, through the trainer, strategies and precisions of
`resscale fit`, with one rank. The batches are random uint8 images that lie on the device, the same
in each case: no disk and no decoding. Per case a line of Markdown: the loss of the last of the
first steps, the largest relative difference of those steps' losses from the first case (single
device, float32, not compiled), images per second over further steps between two waits for the
device, and the most memory that torch has allocated, from before the net is made.
The exit code is 1 if a case fails.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

REFERENCE = ("auto", "32-true", False)
STRATEGIES = ("auto", "ddp", "deepspeed_1", "deepspeed_2", "deepspeed_3")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Case(NamedTuple):
    """What is compared."""

    strategy: str
    precision: str
    compiled: bool


class Outcome(NamedTuple):
    """What one case gives."""

    losses: list[float]
    images_per_s: float
    peak_bytes: int | None
    """None on a CPU."""


def largest_relative_difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Return the largest |loss - reference| / |reference|; NaN if a loss is not finite.

    Raises:
        ValueError: not as many losses.
    """
    differences = [abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True)]
    # max() would pass over a NaN that is not the first.
    return max(differences) if all(map(math.isfinite, differences)) else math.nan


def choose_cases(
    strategies: Sequence[str], precisions: Sequence[str], compiled: Sequence[bool]
) -> list[Case]:
    """Return the cases to run, the reference first."""
    chosen = [Case(*parts) for parts in product(strategies, precisions, compiled)]
    reference = Case(*REFERENCE)
    return [reference, *(case for case in chosen if case != reference)]


def table_row(case: Case, outcome: Outcome, reference: Outcome) -> str:
    """Return one line of the Markdown table."""
    difference = largest_relative_difference(outcome.losses, reference.losses)
    memory = "-" if outcome.peak_bytes is None else f"{outcome.peak_bytes / 2**30:.2f}"
    cells = (
        *_names(case),
        *(f"{outcome.losses[-1]:.4f}", f"{difference:.1e}"),
        *(f"{outcome.images_per_s:,.0f}", memory),
    )
    return f"| {' | '.join(cells)} |"


def _names(case: Case) -> tuple[str, str, str]:
    return case.strategy, case.precision, "yes" if case.compiled else "no"


def run_case(case: Case, options: argparse.Namespace) -> Outcome:
    """Train in this process; return what was measured."""
    import torch
    from lightning.pytorch import Trainer, seed_everything

    from resscale.cli_train import quiet_third_parties
    from resscale.training.classifier import ImageClassifier
    from resscale.training.optim import OptimizerConfig
    from resscale.training.precision import build_precision, precision_name
    from resscale.training.strategy import choose_strategy, register_strategies, uses_deepspeed

    quiet_third_parties()
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    register_strategies()
    seed_everything(0, verbose=False)
    on_gpu = options.device == "cuda"
    strategy = choose_strategy(case.strategy)
    plugin = build_precision(
        precision_name(case.precision), options.device, deepspeed=uses_deepspeed(strategy)
    )
    module = ImageClassifier(
        options.model,
        num_classes=options.num_classes,
        optimizer=OptimizerConfig(lr=options.lr, lr_batch_size=None),
        global_batch_size=options.batch_size,
        compile="inductor" if case.compiled else None,
    )
    probe = make_probe(options.steps, options.warm_up, options.batch_size)
    trainer = Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        strategy=strategy,
        plugins=[plugin],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[probe],
    )
    trainer.fit(module, datamodule=make_data(options))
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    return Outcome(probe.losses(), probe.images_per_s, peak)


def make_data(options: argparse.Namespace) -> Any:
    """Return a data module whose batches lie on the device already."""
    import torch
    from lightning.pytorch import LightningDataModule

    class Rows:
        """An iterable of our own, as that of `resscale fit`: Lightning reorders a DataLoader."""

        def __init__(self, batches: list[dict[str, Any]], steps: int) -> None:
            self.batches, self.steps = batches, steps

        def __len__(self) -> int:
            return self.steps

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return (self.batches[step % len(self.batches)] for step in range(self.steps))

    class Synthetic(LightningDataModule):
        """The same few batches over and over."""

        def train_dataloader(self) -> Rows:
            """Return as many batches as there are steps; four of them differ."""
            generator = torch.Generator().manual_seed(1)
            size = (options.batch_size, 3, options.image_size, options.image_size)
            batches = []
            for number in range(4):
                image = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
                label = torch.randint(0, options.num_classes, size[:1], generator=generator)
                flip = torch.randint(0, 2, size[:1], generator=generator).bool()
                batches.append(
                    {
                        "image": image.to(options.device, memory_format=torch.channels_last),
                        "label": label.to(options.device),
                        "flip": flip.to(options.device),
                        "id": torch.arange(size[0]) + number * size[0],
                        "copy": torch.zeros(size[0], dtype=torch.int64),
                        **{"epoch": 0, "step": number, "bad": []},
                    }
                )
            steps = options.steps + options.warm_up + options.timed_steps
            return Rows(batches, steps)

        def transfer_batch_to_device(
            self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
        ) -> dict[str, Any]:
            """Leave a batch where it is."""
            return batch

    return Synthetic()


def make_probe(steps: int, warm_up: int, batch_size: int) -> Any:
    """Return a callback that keeps the first losses, and times the steps behind the warm-up."""
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer

    class Probe(Callback):
        """Waits for the device twice: where timing begins, and where it ends."""

        def __init__(self) -> None:
            self.kept: list[torch.Tensor] = []
            self.images_per_s = math.nan
            self.begin_s = 0.0
            self.done = 0

        def losses(self) -> list[float]:
            """Return the losses of the first steps."""
            return [float(loss) for loss in self.kept]

        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
        ) -> None:
            """Keep the loss on the device, or begin to time."""
            if len(self.kept) < steps:
                self.kept.append(outputs["loss"].detach().float().clone())
            self.done += 1
            if self.done == steps + warm_up:
                _wait(pl_module.device)
                self.begin_s = time.perf_counter()

        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            """Take the time."""
            _wait(pl_module.device)
            images = (self.done - steps - warm_up) * batch_size
            self.images_per_s = images / (time.perf_counter() - self.begin_s)

    def _wait(device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return Probe()


def describe(device: str) -> str:
    """Return the device and the versions, for people."""
    import lightning
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}, lightning {lightning.__version__}"


def _run_apart(case: Case, argv: Sequence[str], timeout_s: float) -> Outcome:
    """Run a case in a fresh process: DeepSpeed keeps settings of one engine for the next."""
    command = [sys.executable, __file__, *argv, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"exit code {done.returncode}: {last}")
    return Outcome(*json.loads(done.stdout.strip().splitlines()[-1]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Strategies and precisions on one device.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--num_classes", type=int, default=1000)
    parser.add_argument("--image_size", type=int, default=224, help="pixels (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=256, help="images (%(default)s)")
    parser.add_argument("--lr", type=float, default=0.01, help="of SGD (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="whose losses are compared")
    parser.add_argument("--warm_up", type=int, default=10, help="further steps, untimed")
    parser.add_argument("--timed_steps", type=int, default=50, help="(%(default)s)")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    both = ("false", "true")
    parser.add_argument("--compile", nargs="+", choices=both, default=both, help="(false true)")
    parser.add_argument("--case_timeout_s", type=float, default=600.0, help="(%(default)s)")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run the cases and print a table; return the exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(argv)
    for name in ("steps", "timed_steps", "batch_size", "image_size"):
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name} {value} must be at least 1.")
    if options.case is not None:
        print(json.dumps(run_case(Case(*options.case), options)))
        return 0
    print(
        f"{describe(options.device)}; {options.model} at {options.image_size} pixels, batches of "
        f"{options.batch_size}\n"
    )
    titles = f"loss of step {options.steps} | difference | images/s | peak GiB"
    print(f"| strategy | precision | compiled | {titles} |\n|{' --- |' * 7}", flush=True)
    reference: Outcome | None = None
    failed = 0
    for case in choose_cases(
        options.strategies, options.precisions, [word == "true" for word in options.compile]
    ):
        try:
            outcome = _run_apart(case, argv, options.case_timeout_s)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failed += 1
            print(f"| {' | '.join(_names(case))} | failed: {error} | | | |", flush=True)
            if reference is None:
                return 1
            continue
        reference = reference or outcome
        print(table_row(case, outcome, reference), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
