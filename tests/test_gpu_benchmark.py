"""`benchmarks/gpu.py`, on the CPU: a row per case, each trained in a process of its own."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
TINY = ("--device", "cpu", "--model", "resnet8_cifar", "--num_classes", "10")
TINY += ("--image_size", "16", "--batch_size", "8", "--steps", "3", "--warm_up", "0")
TINY += ("--timed_steps", "2", "--compile", "false")


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_difference_is_the_largest_relative_one(gpu: ModuleType) -> None:
    # |2.2 - 2| / 2 = 0.1, |3.6 - 4| / 4 = 0.1, |1 - 0.8| / 0.8 = 0.25
    assert gpu.largest_relative_difference([2.2, 3.6, 1.0], [2.0, 4.0, 0.8]) == pytest.approx(0.25)


@pytest.mark.parametrize("losses", [[math.nan, 1.0], [1.0, math.nan], [1.0, math.inf]])
def test_a_loss_that_is_not_finite_is_no_small_difference(
    gpu: ModuleType, losses: list[float]
) -> None:
    assert math.isnan(gpu.largest_relative_difference(losses, [1.0, 1.0]))


def test_runs_of_other_lengths_are_not_compared(gpu: ModuleType) -> None:
    with pytest.raises(ValueError, match="zip"):
        gpu.largest_relative_difference([1.0], [1.0, 1.0])


def test_the_reference_is_the_first_case_and_stands_once(gpu: ModuleType) -> None:
    everything = gpu.choose_cases(gpu.STRATEGIES, gpu.PRECISIONS, [False, True])
    assert everything[0] == gpu.REFERENCE
    assert len(everything) == len(set(everything)) == 5 * 3 * 2
    assert gpu.choose_cases(["ddp"], ["16-mixed"], [True]) == [
        gpu.REFERENCE,
        ("ddp", "16-mixed", True),
    ]


def test_a_row_says_gibibytes_and_the_difference_from_the_reference(gpu: ModuleType) -> None:
    reference = gpu.Outcome([2.0, 1.0], 100.0, None)
    outcome = gpu.Outcome([2.0, 1.5], 1234.4, 3 * 2**29)
    row = gpu.table_row(gpu.Case("ddp", "bf16-mixed", True), outcome, reference)
    assert row == "| ddp | bf16-mixed | yes | 1.5000 | 5.0e-01 | 1,234 | 1.50 |"


def test_zero_2_on_one_cpu_rank_loses_what_a_single_device_loses() -> None:
    pytest.importorskip("deepspeed", reason="the extra [deepspeed] is not installed")
    cases = ["--strategies", "deepspeed_2", "--precisions", "32-true"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *TINY, *cases], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    single, zero = (row for row in rows if row and row[0] in ("auto", "deepspeed_2"))
    assert single[:3] == ["auto", "32-true", "no"]
    assert zero[:3] == ["deepspeed_2", "32-true", "no"]
    assert float(single[4]) == 0
    assert float(zero[4]) < 1e-5
    # images/s are written with a thousands separator
    assert float(zero[5].replace(",", "")) > 0
