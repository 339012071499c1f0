"""How fast one GPU trains a net: a published rate of ResNet-50, carried over to other nets.

An image costs operations and bytes. In mixed precision a ResNet is bound by both: its convolutions
by the peak, BatchNorm, ReLU and sums by the memory. With the bytes that autograd saves for backward
as the measure of all maps,

    seconds = A × 6 × MACs / peak + B × saved bytes / bandwidth

A and B are fitted once, to timm's published rates of 38 nets of this family on an RTX 3090
(`benchmarks/plan_rates.py`: 5% off in the mean, 18% at most). They are used for ratios alone: a
GPU's rate for ResNet-50 is published, and another net or image size is slower or faster by the
ratio of its seconds to ResNet-50's on the same GPU. For the 38 nets the ratio is corrected by what
was published; other nets go by the two terms alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from resscale.report.plan_gpus import GPUS, Gpu
from resscale.training.peak_flops import training_flops

# Fitted by benchmarks/plan_rates.py.
OPERATIONS = 0.821
"""A: of the peak's time for the net's operations."""

BYTES = 12.98
"""B: how often a saved byte is read or written in a step."""

REFERENCE_MACS = 4_089_184_256
"""ResNet-50 at 224 pixels."""

REFERENCE_SAVED_BYTES = 43_761_576
"""The same, saved for backward per image under bfloat16 autocast."""

REFERENCE_BATCH = 256
"""Images per pass that published rates are taken to be for: large ones."""


# Published over modelled rate on an RTX 3090, relative to ResNet-50's: what operations and bytes do
# not explain, such as slow grouped convolutions. Printed by benchmarks/plan_rates.py.
FACTORS = {
    "resnet18": 0.934,
    "resnet26": 1.014,
    "resnet34": 0.918,
    "resnet50": 1.0,
    "resnet101": 0.987,
    "resnet152": 0.943,
    "resnet200": 0.929,
    "resnet18d": 0.94,
    "resnet26d": 0.945,
    "resnet34d": 0.923,
    "resnet50d": 0.956,
    "resnet101d": 0.948,
    "resnet152d": 0.909,
    "resnet200d": 0.929,
    "resnetv2_50": 0.989,
    "resnetv2_101": 0.978,
    "resnetv2_152": 0.98,
    "resnext50_32x4d": 0.999,
    "resnext50d_32x4d": 0.951,
    "resnext101_32x4d": 0.966,
    "resnext101_64x4d": 0.937,
    "resnext101_32x8d": 0.825,
    "wide_resnet50_2": 0.974,
    "wide_resnet101_2": 0.908,
    "seresnet18": 0.902,
    "seresnet34": 0.893,
    "seresnet50": 0.936,
    "seresnet101": 0.915,
    "seresnet152": 0.842,
    "seresnet152d": 0.847,
    "seresnext50_32x4d": 0.929,
    "seresnext101_32x4d": 0.87,
    "seresnext101_32x8d": 0.797,
    "resnetrs50": 0.88,
    "resnetrs101": 0.845,
    "resnetrs152": 0.84,
    "resnetrs200": 0.833,
    "resnetrs270": 0.78,
}


@dataclass(frozen=True)
class ImageCost:
    """What one image costs.

    Args:
        macs: multiply-accumulates of forward.
        saved_bytes: that autograd keeps under 16-bit autocast.
    """

    macs: int
    saved_bytes: int

    def seconds_on(self, gpu: Gpu) -> float:
        """Return the modelled seconds of training on it."""
        operations = OPERATIONS * training_flops(self.macs) / gpu.peak_flops_per_s
        return operations + BYTES * self.saved_bytes / gpu.bandwidth_bytes_per_s


REFERENCE = ImageCost(REFERENCE_MACS, REFERENCE_SAVED_BYTES)


@dataclass(frozen=True)
class Rate:
    """Images per second of one GPU that nothing keeps waiting, and where they are from."""

    images_per_s: float
    source: str
    is_measured: bool = False
    """By the user, for this very net, size and micro-batch."""


def tabulated_rate(name: str, cost: ImageCost, gpu: Gpu, *, is_fp32: bool) -> Rate:
    """Return the rate of a net on a GPU from published figures.

    Args:
        name: of the net.
        cost: of an image at the size that is trained on.
        gpu: of the table.
        is_fp32: weights and maps in float32.
    """
    base = GPUS[gpu.like] if gpu.like is not None else gpu
    published = base.images_per_s_fp32 if is_fp32 else base.images_per_s
    assert published is not None
    script = base.source.replace("fp16", "float32 or TF32") if is_fp32 else base.source
    source = f"{published:,.0f} published for resnet50 at 224 on {base.name} ({script})"
    rate = published * REFERENCE.seconds_on(base) / cost.seconds_on(gpu)
    if gpu.like is not None:
        source += f"; none for {gpu.name}, scaled by peak and memory bandwidth"
    if cost != REFERENCE:
        source += "; scaled by operations and bytes"
        if name in FACTORS:
            rate *= FACTORS[name]
            source += f", {FACTORS[name]:.2f} of it by timm's rates on an RTX 3090"
        else:
            source += " from resnet50, as none is published for this net"
    return Rate(rate, source)
