"""The scaling model of `resscale plan` against published runs: the same constants for all rows.

    python benchmarks/plan_published.py

What is taken from each publication: the GPU's rate, images per GPU, links, and bytes per gradient.
What is calibrated: `STEP_SPREAD` alone, on the single nodes of 8 GPUs (the rows marked so, fp16
on synthetic data and with NVIDIA's loader). The rows of several nodes are predictions. Efficiency
is relative to the smaller cluster that each row names.

Published:
  NVIDIA  DeepLearningExamples, PyTorch, resnet50v1.5/README.md: 1 and 8 GPUs in mixed precision
  Lambda  lambdal/deeplearning-benchmark, pytorch-train-throughput-fp16.csv: the same script
  Goyal   Goyal et al. 2017, arXiv 1706.02677, section 5.3: "about 90%" from 8 to 256 GPUs; nodes of
          8 P100 over 50 Gb/s ethernet, 32 images per GPU; 29 hours on 8 (90 epochs)
  MLPerf  time to 75.9% on 8, 16 and 64 H100, strong scaling; 400, 200 and 50 images per GPU
          (mlcommons/training_results_v3.1, MXNet), 8 adapters of 400 Gb/s, float16 gradients
  Sony    Mikami et al. 2018, arXiv 1811.05233: 4 V100 per node, 2 adapters of 100 Gb/s, 32 images
          per GPU, float16 gradients
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from resscale.models.meta import create_on_meta
from resscale.report.plan_gpus import LINKS
from resscale.report.plan_network import build_cluster, parse_network
from resscale.report.plan_scaling import Layer, layers_of
from resscale.report.plan_step import micro_batch_s, step_time

TOLERANCE = 0.15


@dataclass(frozen=True)
class Point:
    """A published efficiency.

    Args:
        source: who published it.
        what: GPUs from and to.
        published: efficiency, relative to the smaller cluster.
        images_per_s: of one GPU.
        few: nodes, GPUs of each and images per GPU of the smaller cluster.
        many: of the larger one.
        link: inside a node.
        network: between nodes.
        value_bytes: per gradient on the wire.
        is_calibration: the row that `STEP_SPREAD` was chosen for.
    """

    source: str
    what: str
    published: float
    images_per_s: float
    few: tuple[int, int, int]
    many: tuple[int, int, int]
    link: str
    network: str | None = None
    value_bytes: int = 4
    is_calibration: bool = False


_ONE = (1, 1, 256)
_EIGHT = (1, 8, 256)
# 90 epochs of 1,281,167 images on 8 GPUs in 29 hours.
_P100 = 90 * 1_281_167 / (29 * 3600) / 8
# MLPerf, 8 H100: 56,400 images/s.
_H100 = 56_400 / 8
POINTS = (
    Point("NVIDIA", "1 → 8 V100", 8322 / 1200 / 8, 1200, _ONE, _EIGHT, "nvlink2", None, 4, True),
    Point("NVIDIA", "1 → 8 A100", 16621 / 2470 / 8, 2470, _ONE, _EIGHT, "nvlink3", None, 4, True),
    Point("Lambda", "1 → 8 V100", 6174 / 833 / 8, 833, _ONE, _EIGHT, "nvlink2", None, 4, True),
    Point("Lambda", "1 → 8 A100", 11439 / 1582 / 8, 1582, _ONE, _EIGHT, "nvlink3", None, 4, True),
    Point("Lambda", "1 → 8 H100", 22088 / 2791 / 8, 2791, _ONE, _EIGHT, "nvlink4", None, 4, True),
    Point(
        "Lambda", "1 → 8 H100 PCIe", 14713 / 1866 / 8, 1866, _ONE, _EIGHT, "pcie5", None, 4, True
    ),
    Point("Lambda", "1 → 2 RTX 4090", 2468 / 1301 / 2, 1301, _ONE, (1, 2, 256), "pcie4"),
    Point("Goyal", "8 → 256 P100", 0.90, _P100, (1, 8, 32), (32, 8, 32), "nvlink1", "50Gb"),
    Point("MLPerf", "8 → 16 H100", 0.89, _H100, (1, 8, 400), (2, 8, 200), "nvlink4", "8x400Gb", 2),
    Point("MLPerf", "8 → 64 H100", 0.70, _H100, (1, 8, 400), (8, 8, 50), "nvlink4", "8x400Gb", 2),
    Point(
        "Sony", "4 → 1,088 V100", 0.9162, 1200, (1, 4, 32), (272, 4, 32), "nvlink2", "2x100Gb", 2
    ),
)


def images_per_s_per_gpu(
    point: Point, layers: Sequence[Layer], shape: tuple[int, int, int]
) -> float:
    """Return the modelled rate of each GPU of a cluster.

    Args:
        point: what was published.
        layers: of the net.
        shape: nodes, GPUs of each, images per GPU.
    """
    nodes, gpus, batch = shape
    network = parse_network(point.network) if point.network is not None else None
    cluster = build_cluster(nodes, gpus, LINKS[point.link], network)
    # Frameworks of static graphs, or batches that keep the GPU busy: the host is not in the way.
    pass_s, _ = micro_batch_s(
        len(layers), batch, point.images_per_s, is_measured=False, is_compiled=True
    )
    step = step_time(layers, batch, 1, cluster, pass_s, value_bytes=point.value_bytes)
    return batch / step.total


def modelled_efficiency(point: Point, layers: Sequence[Layer]) -> float:
    """Return the efficiency that the model gives for a published point."""
    many = images_per_s_per_gpu(point, layers, point.many)
    return many / images_per_s_per_gpu(point, layers, point.few)


def published_table(layers: Sequence[Layer]) -> tuple[list[str], float]:
    """Return the Markdown table of all points, and the largest error.

    Args:
        layers: of ResNet-50 at 224 pixels.
    """
    lines = ["| source | GPUs | published | model | error | |", f"|{' --- |' * 6}"]
    worst = 0.0
    for point in POINTS:
        model = modelled_efficiency(point, layers)
        error = model / point.published - 1
        worst = max(worst, abs(error))
        note = "calibrated on" if point.is_calibration else "predicted"
        lines.append(
            f"| {point.source} | {point.what} | {point.published:.1%} | {model:.1%} "
            f"| {error:+.1%} | {note} |"
        )
    return lines, worst


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 where a row is off by more than the tolerance."""
    argparse.ArgumentParser(description="The scaling model against published runs.").parse_args(
        arguments
    )
    lines, worst = published_table(layers_of(create_on_meta("resnet50"), 224))
    print(*lines, sep="\n")
    print(f"\nlargest error {worst:.1%}, to be within {TOLERANCE:.0%}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
