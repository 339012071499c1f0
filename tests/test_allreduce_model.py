"""`benchmarks/allreduce_model.py`: the tables of the scaling model."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "allreduce_model.py"


def test_the_script_prints_a_row_per_link_in_three_tables() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--model", "resnet18"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("| 8 × 400 Gb/s |")]
    assert len(rows) == 3
    assert "44.6 MiB of fp32 gradients" in done.stdout  # 11,689,512 values of 4 bytes
