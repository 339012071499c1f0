"""`benchmarks/overhead.py`: both loops train in turns, and the ratio is printed."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "overhead.py"
TINY = ["--model", "resnet8_cifar", "--image_size", "8", "--batch_size", "4", "--steps", "2"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *TINY, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_both_loops_have_a_row_and_the_overhead_is_their_ratio() -> None:
    done = run("--rounds", "3")
    assert done.returncode == 0, done.stderr
    header, rule, fit, plain, ratio = done.stdout.splitlines()[-5:]
    assert header.count("|") == rule.count("|") == 5
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (fit, plain)]
    assert [row[0] for row in cells] == ["resscale fit", "plain"]
    for _, *numbers in cells:
        median, lowest, highest = map(float, numbers)
        assert 0 < lowest <= median <= highest
    said = re.match(r"overhead ([+-][\d.]+)%, ([+-]?[\d.]+) ms per step", ratio)
    assert said, ratio
    medians = [float(row[1]) for row in cells]
    # Two decimals of the table: within a hundredth of a millisecond.
    assert abs(float(said[2]) - (medians[0] - medians[1])) <= 0.011
    assert abs(float(said[1]) / 100 - (medians[0] / medians[1] - 1)) < 0.05
