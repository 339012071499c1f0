"""What a device could do at most, and which share of it training uses (MFU)."""

from __future__ import annotations

import re

# Floating-point operations per second, dense (no sparsity), bf16 with fp32 accumulation; fp16 for
# what has no bf16 (V100, T4). From NVIDIA's data sheets and white papers of each device; where a
# sheet states the sparse rate alone, half of it. A name ends at a word: A10 is not A100.
_PEAKS_PER_S = {
    "B200": 2250e12,  # DGX B200 data sheet: 36e15 sparse for 8
    "GH200": 989.4e12,  # Grace Hopper data sheet: 1979e12 sparse
    "H200": 989e12,  # H200 data sheet, SXM: 1979e12 sparse
    "H200 NVL": 835.5e12,  # same sheet: 1671e12 sparse
    "H100": 989.4e12,  # H100 data sheet, SXM ("H100 80GB HBM3"): 1979e12 sparse
    "H100 NVL": 835.5e12,  # same sheet: 1671e12 sparse
    "H100 PCIe": 756e12,  # H100 PCIe data sheet: 1513e12 sparse
    "A100": 312e12,  # A100 data sheet, SXM and PCIe
    "A40": 149.7e12,  # A40 data sheet
    "A30": 165e12,  # A30 data sheet
    "A10": 125e12,  # A10 data sheet
    "L40S": 362.05e12,  # L40S data sheet
    "L40": 181.05e12,  # L40 data sheet
    "L4": 121e12,  # L4 data sheet: 242e12 sparse
    "V100": 125e12,  # V100 data sheet, SXM2, fp16
    "V100-PCIE": 112e12,  # same sheet, fp16
    "T4": 65e12,  # T4 data sheet, fp16
    "RTX 4090": 165.2e12,  # Ada white paper, fp32 accumulation
    "RTX 3090": 71e12,  # GA102 white paper, fp32 accumulation
}
# Parts of a chip, and chips slowed down: their names hold that of the whole one.
_LESS_THAN_NAMED = re.compile(r"\b(MIG|Laptop|Max-Q)\b|RTX 4090 D\b", re.IGNORECASE)

# A backward pass costs two forward passes: gradients of the weights and of the inputs.
_PASSES = 3
# A multiply-accumulate is one multiply and one add.
_FLOPS_PER_MAC = 2


def find_peak_flops_per_s(device_name: str) -> float | None:
    """Return a device's dense 16-bit peak by the name that torch gives it; None where unknown.

    Args:
        device_name: `torch.cuda.get_device_name()`, as "NVIDIA A100-SXM4-80GB".
    """
    if _LESS_THAN_NAMED.search(device_name):
        return None
    matching = [
        name
        for name in _PEAKS_PER_S
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", device_name, re.IGNORECASE)
    ]
    return _PEAKS_PER_S[max(matching, key=len)] if matching else None


def training_flops(macs: int) -> int:
    """Return the operations of training on one image, of `macs` multiply-adds forward."""
    return _PASSES * _FLOPS_PER_MAC * macs


def compute_mfu(flops: float, elapsed_s: float, peak_flops_per_s: float) -> float:
    """Return the share of a device's peak that was used: "model FLOPs utilisation", 0 to 1.

    Args:
        flops: operations that the model needs for what was trained on this device.
        elapsed_s: seconds that it took.
        peak_flops_per_s: the device's peak.
    """
    return flops / elapsed_s / peak_flops_per_s if elapsed_s else 0.0
