"""The ladder of ingredients on Fashion-MNIST: the baseline, and each ingredient on top of it.

    python benchmarks/ladder.py --jobs 2
    python benchmarks/ladder.py --table

Each rung and seed is one `resscale fit` of configs/fashion_mnist/ladder.yaml in
`runs/ladder/<rung>-s<seed>`. What is done is passed over; what was stopped goes on from its
checkpoint. The order is seed by seed, so that a queue that is cut short has every rung. `--table`
trains nothing: it prints what the finished runs have reached, as Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from run_queue import status, work_off

CONFIG = "configs/fashion_mnist/ladder.yaml"
BASELINE = "baseline"

# rung -> what is given on top of the baseline
RUNGS: dict[str, tuple[str, ...]] = {
    BASELINE: (),
    "decay of norms and biases": ("--model.optimizer.decay_norm_and_bias=true",),
    "label smoothing 0.1": ("--model.label_smoothing=0.1",),
    "BCE": ("--model.loss=bce",),
    "mixup 0.2": ("--model.mixing.mixup_alpha=0.2",),
    "cutmix 1.0": ("--model.mixing.cutmix_alpha=1.0",),
    "mixup 0.2 or cutmix 1.0": (
        "--model.mixing.mixup_alpha=0.2",
        "--model.mixing.cutmix_alpha=1.0",
    ),
    "random erasing 0.25": ("--model.erasing.probability=0.25",),
    "TrivialAugment": ("--model.policy.name=trivial_augment_wide",),
    "RandAugment 2, 5": (
        "--model.policy.name=rand_augment",
        "--model.policy.magnitude=5",
    ),
    "repeated augmentation 4": ("--data.repeats=4",),
    "averaged weights 0.995": ("--ema.decay=0.995",),
    "stochastic depth 0.1": ("--model.model_options.drop_path=0.1",),
    "blur-pool": ("--model.model_options.blurpool=true",),
    "growing images, 12 to 16": (
        "--data.progressive.from_size=12",
        "--data.progressive.from_epoch=8",
        "--data.progressive.until_epoch=12",
        "--data.progressive.multiple=4",
    ),
    "LAMB 0.005": (
        "--model.optimizer.name=lamb",
        "--model.optimizer.lr=0.005",
        "--model.optimizer.weight_decay=0.02",
    ),
}


@dataclass(frozen=True)
class Reached:
    """What the finished seeds of a rung have reached, in percent and images per second."""

    top1: list[float]
    train_loss: list[float]
    images_per_s: list[float]


def folder_name(rung: str, seed: int) -> str:
    """Return the name of a run's directory."""
    return f"{'-'.join(rung.replace('.', '').replace('+', '').split())}-s{seed}"


def read(folder: Path, rung: str, seeds: list[int]) -> Reached:
    """Return what the finished runs of a rung say of themselves.

    The better of raw and averaged weights would flatter: averaged ones count where there are any.
    """
    reached = Reached([], [], [])
    for seed in seeds:
        run = folder / folder_name(rung, seed)
        if status(run) == "done":
            facts = json.loads((run / "summary.json").read_text())
            reached.top1.append(100 * facts.get("val_ema_top1", facts["val_top1"]))
            reached.images_per_s.append(facts["images_per_s"])
            losses = [
                row.split(",")[2] for row in (run / "metrics.csv").read_text().splitlines()[1:]
            ]
            reached.train_loss.append(float([loss for loss in losses if loss][-1]))
    return reached


def table(folder: Path, seeds: list[int]) -> str:
    """Return the finished rungs as Markdown: mean, spread, and difference from the baseline."""
    base = read(folder, BASELINE, seeds)
    lines = [
        "| rung | seeds | top-1, % | against the baseline | training loss |",
        "| --- | --- | --- | --- | --- |",
    ]
    for rung in RUNGS:
        found = read(folder, rung, seeds)
        if not found.top1 or not base.top1:
            continue
        mean = statistics.mean(found.top1)
        spread = f" ± {statistics.stdev(found.top1):.2f}" if len(found.top1) > 1 else ""
        gain = "" if rung == BASELINE else f"{mean - statistics.mean(base.top1):+.2f}"
        loss = statistics.mean(found.train_loss)
        lines.append(f"| {rung} | {len(found.top1)} | {mean:.2f}{spread} | {gain} | {loss:.3f} |")
    return "\n".join(lines)


def main() -> int:
    """Read the command line; train, or print the table."""
    parser = argparse.ArgumentParser(description="Train the ladder of ingredients.")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--only", nargs="+", choices=RUNGS, metavar="RUNG")
    parser.add_argument("--overlay", nargs="+", default=[], help="configs laid over, such as data")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs/ladder"), help="(%(default)s)")
    parser.add_argument("--table", action="store_true", help="print what is done; train nothing")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs} must be at least 1")
    if options.table:
        print(table(options.runs_dir, options.seeds))
        return 0
    configs = [word for path in (CONFIG, *options.overlay) for word in ("--config", path)]
    runs = [
        ([*configs, *RUNGS[rung]], seed, options.runs_dir / folder_name(rung, seed))
        for seed in options.seeds
        for rung in options.only or RUNGS
    ]
    return work_off(runs, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
