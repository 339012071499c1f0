"""Peaks by device name, and the arithmetic of MFU."""

import pytest

from resscale.training.peak_flops import compute_mfu, find_peak_flops_per_s, training_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA A10", 125e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla V100-PCIE-32GB", 112e12),
        ("Tesla T4", 65e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
    ],
)
def test_a_device_is_known_by_its_whole_name(name: str, peak: float) -> None:
    assert find_peak_flops_per_s(name) == peak


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H20",  # not an H200
        "NVIDIA A1000",  # not an A100
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",  # a seventh of one
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "cpu",
        "",
    ],
)
def test_a_device_that_is_not_in_the_table_has_no_peak(name: str) -> None:
    assert find_peak_flops_per_s(name) is None


def test_training_costs_three_passes_of_two_operations_per_mac() -> None:
    # resnet50 at 224 px: 4.089e9 MACs; ·2 operations ·3 passes.
    assert training_flops(4_089_184_256) == 24_535_105_536


def test_mfu_is_the_share_of_the_peak_that_the_net_needs() -> None:
    # 1,000 images of 24.5e9 operations in 0.5 s are 49e12 per second: 5% of 980e12.
    assert compute_mfu(1000 * 24.5e9, 0.5, 980e12) == pytest.approx(0.05)
    assert compute_mfu(1.0, 0.0, 980e12) == 0.0  # nothing measured yet
