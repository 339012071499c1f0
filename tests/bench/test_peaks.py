"""A device's peaks are measured, and told with where they are from."""

import torch

from resscale.bench.peaks import measure_peaks


def test_peaks_of_a_cpu_are_measured() -> None:
    cpu = torch.device("cpu")
    found = measure_peaks(cpu, torch.bfloat16, side=64, num_bytes=1 << 16)
    assert found.flops_source == "measured: product of 64 x 64 in bfloat16"
    # From a slow emulation to more than any CPU has.
    assert 1e6 < found.flops_per_s < 1e15
    assert 1e6 < found.memory_bytes_per_s < 1e14
    assert found.transfer_bytes_per_s is None
