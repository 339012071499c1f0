"""GPUs: memory, rates and links from data sheets, and published training rates of ResNet-50.

Nothing here was measured by this project. `images_per_s` is what Lambda published for ResNet-50 at
224 pixels (github.com/lambdal/deeplearning-benchmark, `pytorch/pytorch-train-throughput-fp16.csv`
and `-fp32.csv`): NVIDIA's PyTorch script on synthetic data in mixed precision, one script for all
GPUs, so that they can be compared. It is cautious: the same script run by NVIDIA in channels_last
reached 1,200 on a V100 and 2,470 on an A100 (DeepLearningExamples, resnet50v1.5/README.md), and
timm reached 1,218 on an RTX 3090 (results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from resscale.errors import UserInputError, nearest
from resscale.training.peak_flops import find_peak_flops_per_s

GB = 10**9
LAMBDA = "Lambda's deeplearning-benchmark, PyTorch, fp16"

# Bytes per second of one GPU in each direction. NVIDIA's sheets give the sum of both directions;
# PCIe's 16 lanes at 8, 16 and 32 Gb/s, 128 of each 130 bits.
LINKS = {
    "nvlink1": 80e9,  # P100 white paper: 160 GB/s
    "nvlink2": 150e9,  # V100 data sheet: 300 GB/s
    "nvlink3": 300e9,  # A100 data sheet: 600 GB/s
    "nvlink4": 450e9,  # H100 data sheet: 900 GB/s
    "nvlink5": 900e9,  # DGX B200 data sheet: 14.4 TB/s for 8
    "pcie3": 15.75e9,
    "pcie4": 31.5e9,
    "pcie5": 63e9,
}


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Args:
        name: as `--gpu` takes it.
        title: as torch names it, so far as it matters.
        memory_bytes: of the data sheet, a gigabyte being 10^9 bytes: CUDA reports a little more.
        bandwidth_bytes_per_s: of its memory.
        link: to the other GPUs of a node, of `LINKS`.
        images_per_s: published for ResNet-50 at 224 pixels in mixed precision; None: nowhere found.
        images_per_s_fp32: the same with float32 weights and maps (TF32 where the GPU has it).
        like: the GPU whose rate is scaled where there is none of its own.
        source: of the rates.
    """

    name: str
    title: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    link: str
    images_per_s: float | None = None
    images_per_s_fp32: float | None = None
    like: str | None = None
    source: str = LAMBDA

    @property
    def peak_flops_per_s(self) -> float:
        """Dense 16-bit operations per second."""
        peak = find_peak_flops_per_s(self.title)
        assert peak is not None
        return peak


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("v100", "V100", 16 * GB, 900e9, "nvlink2", 833, 369),
        Gpu("v100-32gb", "V100", 32 * GB, 900e9, "nvlink2", 833, 369),
        Gpu("a100-40gb", "A100", 40 * GB, 1555e9, "nvlink3", like="a100"),
        Gpu("a100", "A100", 80 * GB, 2039e9, "nvlink3", 1582, 1066),
        Gpu("a100-pcie", "A100", 80 * GB, 1935e9, "pcie4", 1527, 1014),
        Gpu("a10", "A10", 24 * GB, 600e9, "pcie4", 638, 349),
        Gpu("l4", "L4", 24 * GB, 300e9, "pcie4", like="a10"),
        Gpu("l40s", "L40S", 48 * GB, 864e9, "pcie4", like="rtx4090"),
        Gpu("rtx3090", "RTX 3090", 24 * GB, 936e9, "pcie4", 905, 513),
        Gpu("rtx4090", "RTX 4090", 24 * GB, 1008e9, "pcie4", 1301, 721),
        Gpu("h100", "H100", 80 * GB, 3350e9, "nvlink4", 2791, 1893),
        Gpu("h100-pcie", "H100 PCIe", 80 * GB, 2000e9, "pcie5", 1866, 1197),
        Gpu("h200", "H200", 141 * GB, 4800e9, "nvlink4", like="h100"),
        Gpu("b200", "B200", 180 * GB, 8000e9, "nvlink5", like="h100"),
    )
}


def find_gpu(name: str) -> Gpu:
    """Return the GPU that a user means: `H100`, `a100-80gb`, `RTX 4090` and `4090` are known.

    Raises:
        UserInputError: no such GPU in the table.
    """
    plain = re.sub(r"nvidia|geforce|tesla|[\s_-]", "", name.lower())
    plain = re.sub(r"sxm\d?", "", plain)
    known = {gpu.replace("-", ""): gpu for gpu in GPUS}
    known |= {f"{gpu}80gb": gpu for gpu in ("a100", "h100")} | {"v10016gb": "v100"}
    known |= {"4090": "rtx4090", "3090": "rtx3090", "h200141gb": "h200"}
    if plain not in known:
        raise UserInputError(
            f"--gpu {name} is not one of {', '.join(GPUS)}.{nearest(name.lower(), GPUS)} For "
            f"another, name the most similar and give what you have measured by --images-per-s."
        )
    return GPUS[known[plain]]


def find_link(name: str) -> float:
    """Return the bytes per second, in each direction, of a link inside a node.

    Raises:
        UserInputError: no such link.
    """
    if name not in LINKS:
        raise UserInputError(
            f"--gpu-link {name} is not one of {', '.join(LINKS)}.{nearest(name, LINKS)}"
        )
    return LINKS[name]
