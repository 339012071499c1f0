"""Seconds of an optimizer step on many GPUs: compute, the slowest rank, and what is not hidden.

Three constants beside the links. They are the same for all nets, GPUs and clusters;
`benchmarks/plan_published.py` shows what they give for published runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from resscale.report.plan_scaling import Cluster, Layer, all_reduce_s, model_step
from resscale.report.plan_speed import REFERENCE_BATCH

STEP_SPREAD = 0.06
"""Standard deviation of a rank's step time, as a share of it. Every rank waits for the slowest.
Calibrated on published single nodes of 8 GPUs alone, whose loss sending does not explain: the mean
of six such figures."""

KERNELS_PER_LAYER = 8
"""Kernels that a layer with weights starts in a step: convolution, BatchNorm and ReLU forward, four
backward, and its share of sums and of the optimizer."""

KERNEL_S = 5e-6
"""No kernel takes less, from its launch to the next one's: what a small batch cannot go below."""

HOST_S_PER_LAYER = 2 * 12.78e-3 / 54
"""Seconds that the host takes to launch a layer's kernels one by one, forward and backward. From
NVIDIA's README of ResNet-50: a forward pass of one image in mixed precision takes 12.78 ms on a
DGX-1, which is the host's time for 54 layers. Its CPUs are of 2016: later ones take less."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step over all ranks.

    Args:
        compute: of one rank by itself, all its micro-batches.
        slowest: of the slowest rank's compute.
        all_reduce: of the gradients, hidden or not.
        exposed: by which sending outlasts compute.
        is_host_bound: the GPU waits for the host to launch kernels.
    """

    compute: float
    slowest: float
    all_reduce: float
    exposed: float
    is_host_bound: bool = False

    @property
    def total(self) -> float:
        """All of it."""
        return self.slowest + self.exposed

    @property
    def efficiency(self) -> float:
        """Share of the rate that as many separate GPUs would have."""
        return self.compute / self.total


def expected_slowest(num_ranks: int, spread: float = STEP_SPREAD) -> float:
    """Return the mean of the slowest of so many ranks' step times, over the mean of one.

    The largest of n normal values, by Blom 1958: the quantile of (n - 0.375) / (n + 0.25).

    Args:
        num_ranks: ranks that wait for each other.
        spread: standard deviation of a step over its mean.
    """
    return 1 + spread * NormalDist().inv_cdf((num_ranks - 0.375) / (num_ranks + 0.25))


def micro_batch_s(
    layers: int, micro_batch_size: int, images_per_s: float, *, is_measured: bool, is_compiled: bool
) -> tuple[float, bool]:
    """Return the seconds of a pass forward and backward, and whether the host bounds it.

    Args:
        layers: with weights.
        micro_batch_size: images.
        images_per_s: of large batches; if measured, of this one.
        is_measured: it is.
        is_compiled: the host does not launch each kernel by itself.
    """
    if is_measured:
        return micro_batch_size / images_per_s, False
    least = layers * KERNELS_PER_LAYER * KERNEL_S
    per_image = max(0.0, 1 / images_per_s - least / REFERENCE_BATCH)
    device = least + micro_batch_size * per_image
    host = 0.0 if is_compiled else layers * HOST_S_PER_LAYER
    return max(device, host), host > device


def step_time(
    layers: Sequence[Layer],
    micro_batch_size: int,
    accumulate: int,
    cluster: Cluster,
    pass_s: float,
    *,
    stage: int = 0,
    value_bytes: int = 4,
    is_host_bound: bool = False,
) -> StepTime:
    """Return the seconds of an optimizer step.

    Args:
        layers: of the net, see `layers_of`.
        micro_batch_size: images of a pass.
        accumulate: passes of a step.
        cluster: the GPUs.
        pass_s: seconds of a pass forward and backward on one GPU.
        stage: 0 for DDP, 1 to 3 for ZeRO. What it gathers is taken as not hidden.
        value_bytes: per gradient on the wire.
        is_host_bound: handed on.
    """
    macs = sum(layer.macs for layer in layers)
    num_ranks = cluster.num_nodes * cluster.gpus_per_node
    compute = accumulate * pass_s
    slowest = compute * expected_slowest(num_ranks)
    if num_ranks == 1:
        return StepTime(compute, slowest, 0.0, 0.0, is_host_bound)
    one = model_step(
        layers,
        micro_batch_size,
        cluster,
        flops_per_s=6 * macs * micro_batch_size / pass_s,
        value_bytes=value_bytes,
    )
    # docs/distributed.md, "How gradients are reduced": which stage sends when.
    passes_that_send = accumulate if stage >= 2 else 1
    parameters = VALUE_BYTES * sum(layer.num_parameters for layer in layers)
    gather = all_reduce_s(parameters, cluster) / 2 if stage else 0.0
    # Stage 3 gathers the weights for forward and for backward of each pass.
    gathers = 2 * accumulate if stage == 3 else 1
    exposed = passes_that_send * one.exposed + gathers * gather
    return StepTime(compute, slowest, passes_that_send * one.communication, exposed, is_host_bound)


VALUE_BYTES = 4
"""Of a weight: ZeRO gathers float32."""
