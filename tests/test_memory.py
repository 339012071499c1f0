"""`benchmarks/memory.py`: the arithmetic of states, and activations that a real process shows."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    """The script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("memory_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> list[list[str]]:
    """Run the script; return the cells of every line of its tables."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    lines = [
        line for line in done.stdout.splitlines() if line.startswith("| ") and "---" not in line
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_field_of_the_process_s_status_is_read_in_bytes(memory: ModuleType) -> None:
    assert (
        memory.resident_bytes("Name:\tpython\nVmHWM:\t   12 kB\nVmRSS:\t   3 kB\n", "VmRSS") == 3072
    )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc, as on Linux")
def test_a_real_process_grows_by_what_is_computed() -> None:
    cells = run("--measure", "plain8_cifar", "--image_size", "32", "--batches", "64", "320")[-1]
    computed, behind, peak = (float(cell) for cell in cells[2:5])
    assert behind == pytest.approx(computed, rel=0.15)
    assert peak >= 0.9 * computed


def test_the_tables_have_a_row_per_net() -> None:
    rows = run("--nets", "resnet50", "resnet18", "--image_size", "64")
    assert [row[0] for row in rows] == ["net", "resnet50", "resnet18"] * 2
    # 25,557,032 values of 4 bytes, three times, are 292 MiB (torchvision's count).
    assert rows[1][1:3] == ["25.56", "292"]
