"""On a GPU: DDP and ZeRO on one rank lose what a single device loses, in each precision."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none here"),
    pytest.mark.timeout(1500),
]
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"
TINY = ("--model", "resnet20_cifar", "--num_classes", "10", "--image_size", "32")
TINY += ("--batch_size", "64", "--steps", "10", "--warm_up", "0", "--timed_steps", "1")
STRATEGIES = ("auto", "ddp", "deepspeed_1", "deepspeed_2", "deepspeed_3")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# Relative, of the losses of 10 steps. Without TF32, float32 differs by the order of sums: ZeRO's
# weights are in another memory layout, and cuDNN takes other kernels. bf16 has 8 significant bits
# and fp16 11; fp16 also skips steps until its loss scale fits.
TOLERANCE = {"32-true": 1e-4, "bf16-mixed": 5e-2, "16-mixed": 5e-2}


@pytest.fixture(scope="module")
def differences() -> dict[tuple[str, str], float]:
    """Largest relative difference from the single device in float32, by strategy and precision."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *TINY, "--compile", "false"],
        capture_output=True,
        text=True,
        timeout=1400,
        env={**os.environ, "NVIDIA_TF32_OVERRIDE": "0"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    return {(row[0], row[1]): float(row[4]) for row in rows if row and row[0] in STRATEGIES}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_on_the_gpu_are_those_of_a_single_device_in_float32(
    differences: dict[tuple[str, str], float], strategy: str, precision: str
) -> None:
    assert differences[strategy, precision] <= TOLERANCE[precision]
