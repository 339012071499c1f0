"""Operations and bytes against published rates of 38 nets: what `resscale plan` scales by.

    python benchmarks/plan_rates.py

The rates are timm's, of training steps on one RTX 3090 in mixed precision and channels_last
(huggingface/pytorch-image-models, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv).
For each net here: multiply-accumulates, and the bytes that autograd saves. Two factors are fitted
by least squares of relative errors; `report/plan_speed.py` has them as OPERATIONS and BYTES, and
what they leave of each net's rate, relative to ResNet-50's, as FACTORS.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from resscale.models import count_macs, create_model
from resscale.models.meta import create_on_meta
from resscale.report.plan_activations import saved_for_backward
from resscale.report.plan_gpus import GPUS
from resscale.report.plan_speed import ImageCost
from resscale.training.peak_flops import training_flops

GPU = GPUS["rtx3090"]

# (net, image size) -> images per second.
PUBLISHED = {
    ("resnet18", 224): 3481.78,
    ("resnet26", 224): 1962.0,
    ("resnet34", 224): 2036.51,
    ("resnet50", 224): 1218.01,
    ("resnet101", 224): 747.89,
    ("resnet152", 224): 501.44,
    ("resnet200", 224): 357.55,
    ("resnet18d", 224): 2875.3,
    ("resnet26d", 224): 1623.31,
    ("resnet34d", 224): 1813.16,
    ("resnet50d", 224): 1078.0,
    ("resnet101d", 256): 523.85,
    ("resnet152d", 256): 357.54,
    ("resnet200d", 256): 267.1,
    ("resnetv2_50", 224): 1288.61,
    ("resnetv2_101", 224): 772.45,
    ("resnetv2_152", 224): 536.63,
    ("resnext50_32x4d", 224): 1001.03,
    ("resnext50d_32x4d", 224): 894.57,
    ("resnext101_32x4d", 224): 609.01,
    ("resnext101_64x4d", 224): 363.79,
    ("resnext101_32x8d", 224): 312.8,
    ("wide_resnet50_2", 224): 668.78,
    ("wide_resnet101_2", 224): 358.56,
    ("seresnet18", 224): 3138.91,
    ("seresnet34", 224): 1837.21,
    ("seresnet50", 224): 971.79,
    ("seresnet101", 224): 590.42,
    ("seresnet152", 224): 379.38,
    ("seresnet152d", 256): 283.9,
    ("seresnext50_32x4d", 224): 814.69,
    ("seresnext101_32x4d", 224): 479.03,
    ("seresnext101_32x8d", 224): 278.13,
    ("resnetrs50", 160): 1686.45,
    ("resnetrs101", 192): 714.37,
    ("resnetrs152", 256): 282.26,
    ("resnetrs200", 256): 201.84,
    ("resnetrs270", 256): 144.14,
}


def cost_of(name: str, image_size: int) -> ImageCost:
    """Return what an image costs a net, computed without values."""
    saved = saved_for_backward(partial(create_model, name), image_size, dtype=torch.bfloat16)
    return ImageCost(count_macs(create_on_meta(name), image_size), saved.per_image)


def fit(costs: Mapping[tuple[str, int], ImageCost]) -> tuple[float, float]:
    """Return the factors of operations and of bytes with the least relative errors.

    Args:
        costs: of nets in `PUBLISHED`.
    """
    rows = [
        (
            training_flops(cost.macs) / GPU.peak_flops_per_s * PUBLISHED[key],
            cost.saved_bytes / GPU.bandwidth_bytes_per_s * PUBLISHED[key],
        )
        for key, cost in costs.items()
    ]
    factors, *_ = np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)
    return float(factors[0]), float(factors[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the fit and its errors."""
    argparse.ArgumentParser(description="Rates of nets from operations and bytes.").parse_args(
        arguments
    )
    costs = {key: cost_of(*key) for key in PUBLISHED}
    operations, size = fit(costs)
    print(f"OPERATIONS = {operations:.3f}, BYTES = {size:.2f}\n")
    print("| net | pixels | GMACs | saved, MiB | published | model | error | factor |")
    print(f"|{' --- |' * 8}")
    reference = PUBLISHED["resnet50", 224] * costs["resnet50", 224].seconds_on(GPU)
    errors, factors = [], {}
    for (name, pixels), cost in costs.items():
        published = PUBLISHED[name, pixels]
        model = 1 / cost.seconds_on(GPU)
        errors.append(abs(model / published - 1))
        factors[name] = round(published / model / reference, 3)
        print(
            f"| {name} | {pixels} | {cost.macs / 1e9:.2f} | {cost.saved_bytes / 2**20:.1f} "
            f"| {published:,.0f} | {model:,.0f} | {model / published - 1:+.1%} "
            f"| {factors[name]:.3f} |"
        )
    print(f"\nmean error {np.mean(errors):.1%}, largest {max(errors):.1%}")
    print(f"\nFACTORS = {factors}")


if __name__ == "__main__":
    main()
