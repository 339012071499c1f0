"""A model of data-parallel scaling: gradients on the wire against backward. Computed, not measured.

    python benchmarks/allreduce_model.py
    python benchmarks/allreduce_model.py --model resnet152 --mfu 0.25 --batch_size 128

What is modelled: DDP's buckets become ready one after the other while backward runs, each is
averaged by one all-reduce as soon as the one before it is done, and what is left behind the end of
backward delays the step. When a layer is ready follows from the multiply-accumulates of the layers
above it: half of a ResNet's parameters lie in its last stage, which backward computes first.

An all-reduce goes over two levels. Inside a node each GPU gets its share of the sum over NVLink,
between nodes the shares are summed over the node's network, then they are gathered inside the node
again. Between nodes it is a ring or a pair of trees, whichever is faster, as NCCL has both.

Assumed, and options: the GPU's peak, the share of it that training uses (MFU), NVLink's rate, the
delay per message, and the share of a link's rate that data get. Neglected: that communication
takes compute units and memory bandwidth from backward, the optimizer, BatchNorm, stragglers, and
waiting for data. So a real cluster is slower than this.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from resscale.models.meta import create_on_meta
from resscale.report.plan_scaling import (
    GIGABIT,
    Cluster,
    break_even_batch,
    layers_of,
    model_step,
)

LINKS = {
    "10 GbE": 10,
    "25 Gb/s": 25,
    "100 Gb/s": 100,
    "200 Gb/s": 200,
    "400 Gb/s": 400,
    "8 × 400 Gb/s": 3200,
}
"""Rates of a node's network in each direction, Gb/s."""

NODES = (1, 2, 4, 8, 16, 32, 64, 128)


def table(title: str, cells: dict[tuple[str, int], str]) -> list[str]:
    """Return a Markdown table: a row per link, a column per number of nodes."""
    lines = [f"| {title} | {' | '.join(str(n) for n in NODES)} |"]
    lines += [f"|{' --- |' * (1 + len(NODES))}"]
    for link in LINKS:
        lines.append(f"| {link} | {' | '.join(cells[link, n] for n in NODES)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser(description="All-reduce against backward, computed.")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image_size", type=int, default=224, help="pixels (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="images per GPU (%(default)s)")
    parser.add_argument(
        "--peak_tflops", type=float, default=989.0, help="H100 and H200, bf16 dense (%(default)s)"
    )
    parser.add_argument("--mfu", type=float, default=0.15, help="share of it used (%(default)s)")
    parser.add_argument("--link_efficiency", type=float, default=0.8, help="(%(default)s)")
    parser.add_argument("--gpus_per_node", type=int, default=8, help="(%(default)s)")
    options = parser.parse_args(arguments)
    for name in ("batch_size", "peak_tflops", "mfu", "link_efficiency", "gpus_per_node"):
        if (value := getattr(options, name)) <= 0:
            parser.error(f"--{name} {value} must be above 0.")
    layers = layers_of(create_on_meta(options.model), options.image_size)
    flops_per_s = options.peak_tflops * 1e12 * options.mfu
    images_per_s = flops_per_s / (6 * sum(layer.macs for layer in layers))
    gradients = 4 * sum(layer.num_parameters for layer in layers)
    print(
        f"{options.model}: {gradients / 2**20:.1f} MiB of fp32 gradients, "
        f"{sum(layer.macs for layer in layers) / 1e9:.2f} GMACs at {options.image_size} pixels; "
        f"{options.mfu:.0%} of {options.peak_tflops:g} TFLOP/s is {images_per_s:,.0f} images/s "
        f"per GPU. Nodes of {options.gpus_per_node} GPUs.\n"
    )
    times, shares, batches = {}, {}, {}
    for link, gigabits in LINKS.items():
        for nodes in NODES:
            rate = gigabits * GIGABIT * options.link_efficiency
            cluster = Cluster(nodes, rate, options.gpus_per_node)
            steps, fewest = [], []
            for width in (4, 2):
                steps.append(
                    model_step(
                        layers,
                        options.batch_size,
                        cluster,
                        flops_per_s=flops_per_s,
                        value_bytes=width,
                    )
                )
                batch = break_even_batch(
                    layers, cluster, flops_per_s=flops_per_s, value_bytes=width
                )
                fewest.append("never" if batch is None else str(batch))
            times[link, nodes] = f"{steps[0].communication * 1e3:.1f}"
            shares[link, nodes] = " / ".join(f"{step.efficiency:.0%}" for step in steps)
            batches[link, nodes] = " / ".join(fewest)
    print(*table("all-reduce of fp32 gradients, ms", times), sep="\n", end="\n\n")
    backward_ms = options.batch_size / images_per_s * 2 / 3 * 1e3
    print(f"Backward of {options.batch_size} images takes {backward_ms:.1f} ms.\n")
    title = f"efficiency at {options.batch_size} per GPU, fp32 / bf16"
    print(*table(title, shares), sep="\n", end="\n\n")
    print(*table("break-even batch per GPU, fp32 / bf16", batches), sep="\n")


if __name__ == "__main__":
    main()
