"""What each augmentation of the device costs on a CPU: milliseconds of CPU time per image.

    python benchmarks/augment_cost.py
    python benchmarks/augment_cost.py --image_size 32 --batch_size 128 --rounds 9

One thread. Flip and normalisation, which every run does, are the first row; what the others add to
it is their cost, drawing on the host included. The rows take turns and the median over rounds is
printed: CPU time, so that other processes disturb little. A GPU has its own figures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from resscale.data.dataset import Batch
from resscale.training.classifier import ImageClassifier
from resscale.training.erasing import ErasingConfig
from resscale.training.losses import LossConfig, Targets, training_loss
from resscale.training.mixing import MixingConfig
from resscale.training.policies import PolicyConfig

CLASSES = 1000


def random_batch(rows: int, side_px: int) -> Batch:
    """Return a micro-batch of noise, which costs what photographs cost."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (rows, side_px, side_px, 3), dtype=torch.uint8, generator=generator
    )
    return Batch(
        image=pixels.permute(0, 3, 1, 2),
        label=torch.randint(0, CLASSES, (rows,), generator=generator),
        flip=torch.arange(rows) % 2 == 0,
        id=torch.arange(rows),
        copy=torch.zeros(rows, dtype=torch.int64),
        epoch=0,
        step=0,
        bad=[],
    )


def chain(batch: Batch, **options: object) -> Callable[[int], object]:
    """Return a function of the epoch that augments the batch as a classifier does."""
    classifier = ImageClassifier(nn.Identity(), CLASSES, **options)  # type: ignore[arg-type]

    def run(epoch: int) -> object:
        now: Batch = {**batch, "epoch": epoch}
        return classifier.augment(now, classifier.prepare)

    return run


def loss(batch: Batch, config: LossConfig, mixed: bool) -> Callable[[int], object]:
    """Return a function that computes a loss of random logits, and their gradient."""
    logits = torch.randn(len(batch["label"]), CLASSES, requires_grad=True)
    targets = Targets(batch["label"])
    if mixed:
        targets = Targets(batch["label"], batch["label"].roll(1), 0.7)
    return lambda epoch: training_loss(logits, targets, config).backward()  # type: ignore[no-untyped-call]


def contenders(batch: Batch) -> dict[str, Callable[[int], object]]:
    """Return what is measured, by name."""
    timm = "rand-m7-mstd0.5-inc1"
    return {
        "flip and normalise": chain(batch),
        "+ TrivialAugment": chain(batch, policy=PolicyConfig("trivial_augment_wide")),
        "+ TrivialAugment, bilinear": chain(
            batch, policy=PolicyConfig("trivial_augment_wide", interpolation="bilinear")
        ),
        "+ RandAugment, 2 operations": chain(batch, policy=PolicyConfig("rand_augment")),
        f"+ {timm}, bilinear": chain(batch, policy=PolicyConfig(timm, interpolation="bilinear")),
        "+ erasing of 25%, zero": chain(batch, erasing=ErasingConfig(0.25)),
        "+ erasing of 25%, noise": chain(batch, erasing=ErasingConfig(0.25, value="noise")),
        "+ mixup": chain(batch, mixing=MixingConfig(mixup_alpha=0.2)),
        "+ cutmix": chain(batch, mixing=MixingConfig(cutmix_alpha=1.0)),
        "cross entropy, hard labels": loss(batch, LossConfig(label_smoothing=0.1), mixed=False),
        "cross entropy, mixed": loss(batch, LossConfig(label_smoothing=0.1), mixed=True),
        "bce, mixed": loss(batch, LossConfig("bce", 0.1), mixed=True),
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", type=int, default=224, help="Pixels per side.")
    parser.add_argument("--batch_size", type=int, default=32, help="Images of a micro-batch.")
    parser.add_argument("--rounds", type=int, default=15, help="Turns of each row.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = contenders(random_batch(options.batch_size, options.image_size))
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(-1, options.rounds):
        for name, run in made.items():
            started = time.process_time()
            run(turn + 1)
            if turn >= 0:
                times[name].append(time.process_time() - started)
    each = {
        name: statistics.median(spent) / options.batch_size * 1e3 for name, spent in times.items()
    }
    base = each["flip and normalise"]
    print("| step | ms per image | of which added |\n| --- | --- | --- |")
    for name, spent_ms in each.items():
        added = f"{spent_ms - base:.3f}" if name.startswith("+") else ""
        print(f"| {name.removeprefix('+ ')} | {spent_ms:.3f} | {added} |")


if __name__ == "__main__":
    main()
