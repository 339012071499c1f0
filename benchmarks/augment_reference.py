"""Compare our augmentation and losses with torchvision's and timm's, for the same draws.

Both live in an environment of their own (`python benchmarks/make_peers.py PEERS --only torch`), in
which this package is found by its path:

    PEERS/torch/bin/pip install --no-deps scikit-learn        # two photographs
    PYTHONPATH=src PEERS/torch/bin/python benchmarks/augment_reference.py

What they draw is replaced by what we have drawn, or the other way round. Prints a Markdown table
with the largest difference of each ingredient: in levels of 0 to 255 for operations on pixels, in
units of the numbers themselves elsewhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resscale.data.permutation import uniforms
from resscale.training.apply_policy import OPERATIONS, Layer, apply_layers
from resscale.training.erasing import ErasingConfig, draw_erasures, erase
from resscale.training.losses import LossConfig, Targets, soft_targets, training_loss
from resscale.training.mixing import Box, Mix, cut_box, mix
from resscale.training.policy_spaces import (
    INCREASING,
    Choice,
    increasing_values,
    rand_augment,
    trivial_augment_wide,
)

SIDE_PX = 224
FILL = (124, 116, 104)
INTERPOLATIONS = ("nearest", "bilinear")
Row = tuple[str, str, int, float]


def photographs() -> Tensor:
    """Return parts of scikit-learn's two photographs, uint8 (4, 3, 224, 224), channels_last."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps scikit-learn: its photographs are compared on")
    folder = Path(package.origin).parent / "datasets" / "images"
    made = []
    for name, corner in itertools.product(("china.jpg", "flower.jpg"), ((0, 0), (150, 300))):
        pixels = np.array(Image.open(folder / name))
        made.append(pixels[corner[0] :, corner[1] :][:SIDE_PX, :SIDE_PX])
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def ours(images: Tensor, operation: str, value: float, interpolation: str) -> Tensor:
    """Return our operation's result on all images."""
    count = len(images)
    numbers = np.full(count, OPERATIONS.index(operation))
    layer = Layer(numbers, np.full(count, value))
    fill = torch.tensor(FILL, dtype=torch.uint8)
    return apply_layers(images, [layer], bilinear=interpolation == "bilinear", fill=fill)


def difference(images: Tensor, result: Tensor, theirs: Callable[[Image.Image], Any]) -> float:
    """Return the largest difference in levels from a function on Pillow's images."""
    largest = 0.0
    for image, ours_of_it in zip(images, result, strict=True):
        expected = np.array(theirs(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())))
        found = ours_of_it.permute(1, 2, 0).numpy()
        largest = max(largest, float(np.abs(expected.astype(int) - found.astype(int)).max()))
    return largest


def torchvision_policy(images: Tensor, space: tuple[Choice, ...], policy: Any) -> tuple[int, float]:
    """Compare each operation, magnitude and sign of a space; return (cases, largest)."""
    from torchvision.transforms import InterpolationMode, autoaugment

    size = (SIDE_PX, SIDE_PX)
    arguments = (31,) if isinstance(policy, autoaugment.TrivialAugmentWide) else (31, size)
    theirs = policy._augmentation_space(*arguments)
    names = [name for name, _ in theirs.items()]
    assert [name.lower() for name in names] == [c.operation.replace("_", "") for c in space]
    cases, largest = 0, 0.0
    for choice, (name, (table, signed)) in zip(space, theirs.items(), strict=True):
        assert signed == choice.signed
        numbers = range(0, 31, 3) if table.ndim else range(1)
        for number, sign in itertools.product(numbers, (1.0, -1.0) if signed else (1.0,)):
            magnitude = sign * (float(table[number]) if table.ndim else 0.0)
            value = choice.base + sign * float(choice.table[number])
            for how in INTERPOLATIONS:
                mode = InterpolationMode(how)

                def apply(
                    image: Any, name: str = name, m: float = magnitude, mode: Any = mode
                ) -> Any:
                    return autoaugment._apply_op(image, name, m, mode, list(FILL))

                found = difference(images, ours(images, choice.operation, value, how), apply)
                cases, largest = cases + len(images), max(largest, found)
    return cases, largest


def timm_policy(images: Tensor) -> tuple[int, float]:
    """Compare each operation of rand-...-inc1 at levels and signs; return (cases, largest)."""
    from timm.data import auto_augment

    cases, largest = 0, 0.0
    pairs = zip(INCREASING, auto_augment._RAND_INCREASING_TRANSFORMS, strict=True)
    for operation, name in pairs:
        for level, sign, how in itertools.product(
            (0.0, 2.3, 5.0, 7.0, 7.49, 9.9), (1.0, -1.0), INTERPOLATIONS
        ):
            hyper = {"img_mean": FILL, "interpolation": Image.Resampling[how.upper()]}
            op = auto_augment.AugmentOp(name, prob=1.0, magnitude=level, hparams=hyper)
            (value,) = increasing_values(operation, np.array([level]), np.array([sign]), SIDE_PX)
            # Above 0.5 it negates.
            with mock.patch.object(random, "random", return_value=0.9 if sign < 0 else 0.1):
                found = difference(images, ours(images, operation, value, how), op)
            cases, largest = cases + len(images), max(largest, found)
    return cases, largest


def torchvision_mixing() -> Iterator[Row]:
    """Compare mixup, cutmix, its box, and the targets of both with torchvision's."""
    from torchvision.transforms import v2

    images, label = torch.randn(6, 3, 50, 60), torch.arange(6)
    largest = {"mixup": 0.0, "cutmix": 0.0, "targets": 0.0, "box": 0.0}
    mixup, cutmix = v2.MixUp(num_classes=7), v2.CutMix(num_classes=7)
    shares = torch.linspace(0.0, 1.0, 21).tolist()
    for number, share in enumerate(shares):
        y, x = (number * 13) % 50, (number * 29) % 60
        box = cut_box(share, y, x, 50, 60)
        centre = iter((torch.tensor([x]), torch.tensor([y])))
        with (
            mock.patch.object(torch, "randint", lambda *_, centre=centre, **__: next(centre)),
            mock.patch.object(
                cutmix, "_dist", mock.Mock(sample=lambda _, s=share: torch.tensor(s))
            ),
        ):
            drawn = cutmix.make_params([images])
        left, top, right, bottom = drawn["box"]
        gaps = (box.top - top, box.bottom - bottom, box.left - left, box.right - right)
        largest["box"] = max(largest["box"], *(float(abs(gap)) for gap in gaps))
        for name, theirs, plan in (
            ("mixup", mixup, Mix(share, 1, None)),
            ("cutmix", cutmix, Mix(drawn["lam_adjusted"], 1, Box(top, bottom, left, right))),
        ):
            params = {"labels": label, "batch_size": 6, "lam": plan.share, **drawn}
            found = images.clone()
            targets = mix(found, label, plan)
            expected = theirs.transform(images.clone(), params)
            largest[name] = max(largest[name], float((found - expected).abs().max()))
            dense = soft_targets(targets, 7, LossConfig())
            gap = (dense - theirs.transform(label, params)).abs().max()
            largest["targets"] = max(largest["targets"], float(gap))
    for name, value in largest.items():
        yield f"mixing: {name}", "torchvision", len(shares), value


def timm_mixing_and_losses() -> Iterator[Row]:
    """Compare mixup and cutmix of pairs, targets and losses with timm's."""
    from timm.data import mixup
    from timm.loss import (
        BinaryCrossEntropy,
        LabelSmoothingCrossEntropy,
        SoftTargetCrossEntropy,
    )

    images, label = torch.randn(2, 3, 50, 60), torch.tensor([3, 5])
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)) * 3
    largest = dict.fromkeys(("mixup", "cutmix", "cross entropy", "bce", "bce, threshold 0.2"), 0.0)
    shares = torch.linspace(0.0, 1.0, 21).tolist()
    for share, cut, smoothing in itertools.product(shares, (False, True), (0.0, 0.1)):
        theirs = mixup.Mixup(0.2, 1.0, label_smoothing=smoothing, num_classes=9)
        box = cut_box(share, 20, 50, 50, 60)
        kept = 1 - (box.bottom - box.top) * (box.right - box.left) / 3000
        plan = Mix(kept, 1, box) if cut else Mix(share, 1, None)
        with (
            mock.patch.object(theirs, "_params_per_batch", return_value=(share, cut)),
            mock.patch.object(mixup, "cutmix_bbox_and_lam", return_value=(box, kept)),
        ):
            expected, dense = theirs(images.clone(), label)
        found = images.clone()
        targets = mix(found, label, plan)
        name = "cutmix" if cut else "mixup"
        largest[name] = max(largest[name], float((found - expected).abs().max()))
        for loss, reference, config in (
            ("cross entropy", SoftTargetCrossEntropy(), LossConfig("cross_entropy", smoothing)),
            ("bce", BinaryCrossEntropy(), LossConfig("bce", smoothing)),
            (
                "bce, threshold 0.2",
                BinaryCrossEntropy(target_threshold=0.2),
                LossConfig("bce", smoothing, 0.2),
            ),
        ):
            gap = float((training_loss(logits, targets, config) - reference(logits, dense)).abs())
            largest[loss] = max(largest[loss], gap)
    for name, value in largest.items():
        yield f"mixing: {name}", "timm", 4 * len(shares), value
    for name, reference, config in (
        ("label smoothing 0.1", LabelSmoothingCrossEntropy(0.1), LossConfig(label_smoothing=0.1)),
        ("bce, smoothing 0.1", BinaryCrossEntropy(0.1), LossConfig("bce", 0.1)),
    ):
        gap = training_loss(logits, Targets(label), config) - reference(logits, label)
        yield name, "timm", 1, float(gap.abs())


class Fed:
    """Stands in for Python's `random`: gives the uniforms it was made with, in their order."""

    def __init__(self, draws: list[float]) -> None:
        self.draws = iter(draws)

    def random(self) -> float:
        """Return the next of them."""
        return next(self.draws)

    def uniform(self, low: float, high: float) -> float:
        """Return the next of them between two bounds."""
        return low + (high - low) * next(self.draws)

    def randint(self, low: int, high: int) -> int:
        """Return the next of them as a whole number, both ends included."""
        return low + int(next(self.draws) * (high - low + 1))


def timm_erasing(rows: int = 2000) -> tuple[int, float]:
    """Compare erased images for the same uniforms; return (cases, largest difference)."""
    from timm.data import random_erasing

    config = ErasingConfig(0.5, (0.02, 1 / 3), (0.3, 1 / 0.3))
    ids, key, height, width = np.arange(rows), 9, 48, 64
    draws = uniforms(ids, 23, key)
    images = torch.ones(rows, 3, height, width)
    found = erase(images.clone(), draw_erasures(config, ids, key, height, width), "zero", 0)
    theirs = random_erasing.RandomErasing(0.5, device="cpu")
    for row, drawn in enumerate(draws.tolist()):
        # Ours are drawn ahead: chance, top, left, then area and aspect of ten attempts. Theirs are
        # drawn on demand, the place behind the first attempt that fits.
        for attempts in range(1, 11):
            fed = [drawn[0], *drawn[3 : 3 + 2 * attempts], *drawn[1:3]]
            if drawn[0] >= config.probability or _fits(drawn, attempts, config, height, width):
                break
        with mock.patch.object(random_erasing, "random", Fed(fed)):
            theirs(images[row])
    return rows, float((images - found).abs().max())


def _fits(drawn: list[float], attempt: int, config: ErasingConfig, height: int, width: int) -> bool:
    """Tell whether the rectangle of an attempt, from 1, is smaller than the image."""
    area = config.area[0] + (config.area[1] - config.area[0]) * drawn[1 + 2 * attempt]
    low, high = np.log(config.aspect)
    aspect = np.exp(low + (high - low) * drawn[2 + 2 * attempt])
    tall, wide = (height * width * area * aspect) ** 0.5, (height * width * area / aspect) ** 0.5
    return bool(round(tall) < height and round(wide) < width)


def rows() -> Iterator[Row]:
    """Yield each comparison: ingredient, reference, cases, largest difference."""
    from torchvision.transforms import RandAugment, TrivialAugmentWide

    images = photographs()
    trivial = torchvision_policy(images, trivial_augment_wide(31), TrivialAugmentWide())
    yield "TrivialAugment-Wide, 14 operations", "torchvision", *trivial
    space = rand_augment(31, SIDE_PX, SIDE_PX)
    rand = torchvision_policy(images, space, RandAugment())
    yield "RandAugment, 14 operations", "torchvision", *rand
    yield "rand-...-inc1, 15 operations", "timm", *timm_policy(images)
    yield from torchvision_mixing()
    yield from timm_mixing_and_losses()
    yield "random erasing, zero", "timm", *timm_erasing()


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    print("| ingredient | reference | cases | largest difference |\n| --- | --- | --- | --- |")
    for name, reference, cases, largest in rows():
        print(f"| {name} | {reference} | {cases:,} | {largest:.1e} |", flush=True)


if __name__ == "__main__":
    main()
