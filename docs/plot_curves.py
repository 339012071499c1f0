"""Draw val/top1 and train/loss over epochs from the metrics.csv of one or more runs.

    python docs/plot_curves.py RUN [RUN ...] OUT.png

RUN is a run directory; `label=RUN` gives it a name of its own in the picture.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

Points = tuple[list[float], list[float]]


def read_points(run: Path, column: str) -> Points:
    """Return (epochs done, values) of a column of the run's metrics.csv, empty cells left out."""
    summary = json.loads((run / "summary.json").read_text())
    steps_per_epoch = summary["global_step"] / summary["epoch"]
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[column]]
    epochs = [int(row["step"]) / steps_per_epoch for row in rows]
    return epochs, [float(row[column]) for row in rows]


def draw(runs: dict[str, Path], out: Path) -> None:
    """Write one picture: a row per run, train/loss on the left, val/top1 on the right."""
    figure, axes = plt.subplots(len(runs), 2, figsize=(9, 2.6 * len(runs)), squeeze=False)
    for (label, run), (left, right) in zip(runs.items(), axes, strict=True):
        left.plot(*read_points(run, "train/loss"), color="tab:blue", linewidth=1.2)
        left.set(ylabel="train/loss", ylim=(0, None))
        epochs, top1 = read_points(run, "val/top1")
        right.plot(epochs, [100 * value for value in top1], "o-", color="tab:orange", markersize=3)
        right.set(ylabel="val/top1, %")
        right.annotate(
            f"{100 * top1[-1]:.2f}%",
            (epochs[-1], 100 * top1[-1]),
            textcoords="offset points",
            xytext=(0, -14),
            ha="right",
        )
        for axis in (left, right):
            axis.set(xlabel="epoch", title=label)
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=90)


def main(arguments: list[str]) -> None:
    """Read the command line and draw."""
    if len(arguments) < 2:
        sys.exit(__doc__)
    runs = {}
    for argument in arguments[:-1]:
        label, _, folder = argument.rpartition("=")
        runs[label or Path(folder).name] = Path(folder)
    draw(runs, Path(arguments[-1]))


if __name__ == "__main__":
    main(sys.argv[1:])
