"""How far 1 process, DDP and DeepSpeed ZeRO 1 to 3 differ on the same run: order, losses, weights.

    python benchmarks/parity.py                      # every strategy, fp32 and bf16-mixed
    python benchmarks/parity.py --variants lars      # the same with LARS; lamb, adamw

One process accumulates 4 micro-batches of 32, two ranks 2 each. Prints a Markdown table; each
figure is the largest relative difference from the single process of the same precision.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
STRATEGIES = ("single", "ddp", "deepspeed_1", "deepspeed_2", "deepspeed_3")
PRECISIONS = ("32-true", "bf16-mixed")
# Two epochs of 11 steps. The rate is low enough for the run not to be chaotic: at the demo's own,
# a difference in the eighth digit grows tenfold every other step (docs/distributed.md).
COMMON = (
    "--config=configs/demo.yaml",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--model.model=resnet8_cifar",
    "--model.optimizer.lr=0.01",
    "--model.schedule.name=constant",
    "--model.schedule.warmup_epochs=0",
    "--data.global_batch_size=128",
    "--data.micro_batch_size=32",
    "--data.log_sample_ids=true",
    "--ema.decay=0.9",
)
VARIANTS = {
    "sgd": (),
    "clip": ("--trainer.gradient_clip_val=0.1", "--model.optimizer.lr=0.002"),
    "lars": ("--model.optimizer.name=lars", "--model.optimizer.lr=0.02"),
    "lamb": ("--model.optimizer.name=lamb", "--model.optimizer.lr=0.0005"),
    "adamw": ("--model.optimizer.name=adamw", "--model.optimizer.lr=0.0002"),
}


@dataclass(frozen=True)
class Outcome:
    """What a run left behind: losses by step, sample ids by (epoch, step), the last checkpoint."""

    losses: dict[int, float]
    samples: dict[tuple[int, int], list[int]]
    checkpoint: dict[str, Any]

    @property
    def sample_hash(self) -> str:
        """A hash of all ids in the order of steps and micro-batches."""
        text = json.dumps(sorted(self.samples.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def momentum(self) -> dict[str, Tensor]:
        """The optimizer's momentum, or its moments, by number of parameter."""
        state = self.checkpoint["optimizer_states"][0]["state"]
        return {
            f"{number} {key}": value
            for number, entry in state.items()
            for key, value in entry.items()
        }


def strategy_arguments(strategy: str) -> tuple[str, ...]:
    """Return the options of one process, or of two ranks under a strategy."""
    if strategy == "single":
        return ()
    return ("--trainer.devices=2", f"--trainer.strategy={strategy}")


def train(run_dir: Path, *arguments: str, timeout_s: float = 400) -> Outcome:
    """Train by the command line, as a user does; raise with what it said if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "resscale", "fit", f"--run_dir={run_dir}", *COMMON, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return load_outcome(run_dir)


def load_outcome(run_dir: Path) -> Outcome:
    """Read what a run left behind."""
    with (run_dir / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    samples: dict[tuple[int, int], list[int]] = {}
    for log in sorted((run_dir / "samples").glob("rank-*.jsonl")):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            # Ranks one behind the other, each with its micro-batches in order: the global batch.
            samples.setdefault((entry["epoch"], entry["step"]), []).extend(entry["ids"])
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    losses = {int(row["step"]): float(row["train/loss"]) for row in rows}
    return Outcome(losses, samples, checkpoint)


def loss_difference(one: Outcome, other: Outcome, num_steps: int = 20) -> float:
    """Return the largest relative difference of the losses that both have of the first steps."""
    steps = [step for step in one.losses if step <= num_steps and step in other.losses]
    return max(abs(other.losses[step] / one.losses[step] - 1.0) for step in steps)


def tensor_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference of a tensor's elements, relative to its largest element."""
    assert one.keys() == other.keys()
    largest = 0.0
    for name, tensor in one.items():
        scale = tensor.double().abs().max().item()
        difference = (other[name].double() - tensor.double()).abs().max().item()
        largest = max(largest, difference / scale if scale else difference)
    return largest


def compare(one: Outcome, other: Outcome) -> dict[str, float]:
    """Return the differences of losses, weights with BatchNorm, momentum and average."""
    return {
        "losses": loss_difference(one, other),
        "weights": tensor_difference(one.checkpoint["state_dict"], other.checkpoint["state_dict"]),
        "momentum": tensor_difference(one.momentum, other.momentum),
        "average": tensor_difference(
            one.checkpoint["ema_state_dict"], other.checkpoint["ema_state_dict"]
        ),
    }


def main() -> None:
    """Train the matrix and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["sgd"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES[1:], default=STRATEGIES[1:])
    options = parser.parse_args()
    names = ("losses", "weights", "momentum", "average")
    print(f"| variant | precision | strategy | sample order | {' | '.join(names)} |")
    print("| --- | --- | --- | --- |" + " --- |" * len(names))
    for variant in options.variants:
        for precision in options.precisions:
            more = (*VARIANTS[variant], f"--trainer.precision={precision}")
            with tempfile.TemporaryDirectory() as folder:
                single = train(Path(folder) / "single", *more)
                for strategy in options.strategies:
                    run_dir = Path(folder) / strategy
                    outcome = train(run_dir, *more, *strategy_arguments(strategy))
                    order = "equal" if outcome.sample_hash == single.sample_hash else "DIFFERENT"
                    found = compare(single, outcome)
                    cells = " | ".join(f"{found[name]:.1e}" for name in names)
                    row = f"| {variant} | {precision} | {strategy} x 2 | {order} | {cells} |"
                    print(row, flush=True)


if __name__ == "__main__":
    main()
