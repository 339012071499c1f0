"""`benchmarks/net_rate.py`: a row per net, with the ratio to the first."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "net_rate.py"


def test_each_net_has_a_row_with_its_size_rate_and_ratio() -> None:
    arguments = ["resnet8_cifar", "plain14_cifar:norm=none", "--image_size", "8"]
    quick = ["--rounds", "1", "--steps", "1", "--batch_size", "4"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, *quick],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    header, rule, *rows = done.stdout.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert header.count("|") == rule.count("|") == 6
    assert [row[0] for row in cells] == ["resnet8_cifar", "plain14_cifar:norm=none"]
    # Stem 16 · 9 + 5 · 16 · 16 · 9 per pixel of 64, and 640: 0.75 million multiply-adds.
    assert cells[0][2] == "0.75"
    assert cells[0][4] == "1.00"
    assert float(cells[1][3].replace(",", "")) > 0
