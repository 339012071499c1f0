"""`benchmarks/scaling.py`: the ratios' arithmetic, and a run of two real processes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPT = FOLDER / "scaling.py"


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which is no part of the package, beside the one that it takes its loop from."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("scaling_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_ratios_are_of_neighbouring_blocks_and_the_first_round_is_left_out(
    scaling: ModuleType,
) -> None:
    block = scaling.Block
    first = block(8, 1000.0, 1000.0)
    blocks = {
        # 4 images in 1 s of the clock and of the CPU
        "alone": [first, block(4, 1.0, 1.0), block(4, 1.0, 1.0), block(4, 1.0, 1.0)],
        # 8 images in 1 s on two cores; the middle block on a busy machine takes twice as long
        "apart": [first, block(8, 1.0, 2.0), block(8, 2.0, 2.0), block(8, 1.0, 2.0)],
        # 8 images in 1.25 s, 2.5 s of both CPUs
        "plain DDP": [first, block(8, 1.25, 2.5), block(8, 2.5, 2.5), block(8, 1.25, 2.5)],
        "resscale fit": [first, block(8, 1.25, 5.0), block(8, 2.5, 5.0), block(8, 1.25, 5.0)],
    }
    lines = scaling.report(blocks).splitlines()
    assert lines[2] == "| alone | 4.0 | 4.0 | 4.0 | 250.00 |"
    assert lines[4] == "| plain DDP | 6.4 | 3.2 | 6.4 | 312.50 |"
    # 1 / 1.25 = 0.8 in each pair; CPU 2 / 2.5 s
    assert lines[-3] == "plain DDP / apart: 0.800 by the clock, 0.800 by CPU time"
    # 6.4 / (2 · 4) = 0.8; 250 / 312.5 ms
    assert lines[-2] == "plain DDP / twice alone: 0.800 by the clock, 0.800 by CPU time"
    assert lines[-1] == "resscale fit / plain DDP: 1.000 by the clock, 0.500 by CPU time"


def test_two_processes_train_in_all_four_ways() -> None:
    quick = ("--model", "resnet8_cifar", "--num_classes", "10", "--image_size", "8")
    quick += ("--batch_size", "2", "--rounds", "1", "--steps", "1")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *quick],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    rates = {row[1].strip(): float(row[2].replace(",", "")) for row in rows[2:]}
    assert set(rates) == {"alone", "apart", "plain DDP", "resscale fit"}
    assert min(rates.values()) > 0
    assert done.stdout.count(" by CPU time") == 3
