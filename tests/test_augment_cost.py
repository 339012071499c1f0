"""`benchmarks/augment_cost.py`: a row per augmentation, with what it adds."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "augment_cost.py"


def test_each_augmentation_has_a_row_with_its_cost() -> None:
    quick = ["--image_size", "32", "--batch_size", "4", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *quick],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    header, rule, *rows = done.stdout.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert header.count("|") == rule.count("|") == 4
    names = [row[0] for row in cells]
    assert names[0] == "flip and normalise"
    assert {"mixup", "cutmix", "TrivialAugment", "bce, mixed"} <= set(names)
    base = float(cells[0][1])
    for name, spent_ms, added_ms in cells:
        assert float(spent_ms) > 0
        if added_ms:
            assert abs(float(spent_ms) - base - float(added_ms)) < 2e-3, name
