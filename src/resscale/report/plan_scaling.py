"""Gradients on the wire against backward: what a data-parallel step waits for. Pure arithmetic.

DDP's buckets become ready one after the other while backward runs, each is averaged by one
all-reduce as soon as the one before it is done, and what is left behind the end of backward delays
the step (Li et al. 2020, PyTorch Distributed, section 3.2). When a layer is ready follows from the
multiply-accumulates of the layers above it: half of a ResNet's parameters lie in its last stage,
which backward computes first.

An all-reduce goes over two levels. Inside a node each GPU gets its share of the sum over NVLink,
between nodes the shares are summed over the node's network, then they are gathered inside the node
again. Between nodes it is a ring or a pair of trees, whichever is faster, as NCCL has both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

GIGABIT = 1e9 / 8
"""Bytes per second of one Gb/s."""

LARGEST_BATCH = 65_536


@dataclass(frozen=True)
class Cluster:
    """Nodes of several GPUs each, and what links them.

    Args:
        num_nodes: nodes.
        node_bytes_per_s: what a node sends, and receives at the same time, over all its adapters.
        gpus_per_node: ranks per node.
        gpu_bytes_per_s: what a GPU sends inside its node.
        network_delay_s: per message between nodes.
        gpu_delay_s: per message inside a node.
    """

    num_nodes: int
    node_bytes_per_s: float
    gpus_per_node: int = 8
    gpu_bytes_per_s: float = 360e9
    network_delay_s: float = 10e-6
    gpu_delay_s: float = 3e-6


@dataclass(frozen=True)
class Layer:
    """A layer with parameters: what it adds to the gradients and to backward."""

    num_parameters: int
    macs: int


def ring_s(num_bytes: float, num_ranks: int, bytes_per_s: float, delay_s: float) -> float:
    """Return the seconds of a ring all-reduce.

    2(n - 1) steps, n - 1 to sum and n - 1 to hand the sums on; in each, every rank sends 1/n.
    """
    steps = 2 * (num_ranks - 1)
    return steps * (num_bytes / num_ranks / bytes_per_s + delay_s)


def trees_s(num_bytes: float, num_ranks: int, bytes_per_s: float, delay_s: float) -> float:
    """Return the seconds of an all-reduce by two trees, half of the bytes in each.

    A rank is inside one tree and a leaf of the other. So it sends every byte once on the way up
    and once on the way down, and the depth counts once each way.
    """
    if num_ranks == 1:
        return 0.0
    return 2 * (num_bytes / bytes_per_s + math.ceil(math.log2(num_ranks)) * delay_s)


def all_reduce_s(num_bytes: float, cluster: Cluster) -> float:
    """Return the seconds to sum `num_bytes` over all GPUs of a cluster."""
    gpus = cluster.gpus_per_node
    # Reduce-scatter and all-gather inside the node: the two halves of a ring.
    inside = ring_s(num_bytes, gpus, cluster.gpu_bytes_per_s, cluster.gpu_delay_s)
    # Its GPUs' shares, one behind the other or at once: together they are all bytes.
    link = (num_bytes, cluster.num_nodes, cluster.node_bytes_per_s, cluster.network_delay_s)
    return inside + min(ring_s(*link), trees_s(*link))


def fill_buckets(
    sizes: Sequence[float], first_bytes: float = 2**20, cap_bytes: float = 25 * 2**20
) -> list[list[int]]:
    """Return the positions that share a bucket, as DDP fills them.

    A bucket is closed by the gradient that makes it reach its size: 1 MiB for the first, so that
    sending begins early, 25 MiB for the others.

    Args:
        sizes: bytes of each gradient, in the order in which backward makes them.
        first_bytes: size of the first bucket.
        cap_bytes: size of the others.
    """
    buckets: list[list[int]] = [[]]
    filled = 0.0
    for position, size in enumerate(sizes):
        buckets[-1].append(position)
        filled += size
        if filled >= (first_bytes if len(buckets) == 1 else cap_bytes):
            buckets.append([])
            filled = 0.0
    return [bucket for bucket in buckets if bucket]


def exposed_s(ready_s: Sequence[float], durations_s: Sequence[float], backward_s: float) -> float:
    """Return the seconds by which communication outlasts backward.

    Args:
        ready_s: when each bucket is complete, from the start of backward, in order.
        durations_s: of each bucket's all-reduce; one runs at a time.
        backward_s: when backward ends.
    """
    now = 0.0
    for ready, duration in zip(ready_s, durations_s, strict=True):
        now = max(now, ready) + duration
    return max(0.0, now - backward_s)


@dataclass(frozen=True)
class Step:
    """Seconds of one training step."""

    compute: float
    """Forward and backward."""

    communication: float
    """All buckets, hidden or not."""

    exposed: float
    last_bucket: float

    @property
    def efficiency(self) -> float:
        """Share of the rate that as many separate GPUs would have."""
        return self.compute / (self.compute + self.exposed)

    @property
    def hidden(self) -> bool:
        """Whether all but the last bucket is sent when backward ends."""
        return self.exposed <= self.last_bucket * (1 + 1e-9)


def model_step(
    layers: Sequence[Layer],
    batch_size: int,
    cluster: Cluster,
    *,
    flops_per_s: float,
    value_bytes: int = 4,
) -> Step:
    """Return the seconds of a step of a net whose gradients are averaged by DDP.

    Args:
        layers: in the order of forward.
        batch_size: images per GPU.
        cluster: how many GPUs, and what links them.
        flops_per_s: of a GPU, what training really gets.
        value_bytes: per value on the wire: 4 for float32, 2 for bf16 compression.
    """
    # A multiply-accumulate is 2 operations; backward has two for each of forward.
    forward_s = 2 * batch_size * sum(layer.macs for layer in layers) / flops_per_s
    backward_s = 2 * forward_s
    ready, now = [], 0.0
    for layer in reversed(layers):
        now += 4 * batch_size * layer.macs / flops_per_s
        ready.append(now)
    counts = [layer.num_parameters for layer in reversed(layers)]
    # Buckets are filled with float32 gradients; compression halves what is sent of them.
    buckets = fill_buckets([4.0 * count for count in counts])
    durations = [
        all_reduce_s(value_bytes * sum(counts[i] for i in bucket), cluster) for bucket in buckets
    ]
    exposed = exposed_s([ready[bucket[-1]] for bucket in buckets], durations, backward_s)
    return Step(forward_s + backward_s, sum(durations), exposed, durations[-1])


def break_even_batch(
    layers: Sequence[Layer], cluster: Cluster, *, flops_per_s: float, value_bytes: int = 4
) -> int | None:
    """Return the fewest images per GPU at which all but the last bucket is hidden.

    More images make backward longer, and leave what is sent as it is. None: over 65,536.
    """

    def hidden(batch_size: int) -> bool:
        step = model_step(
            layers, batch_size, cluster, flops_per_s=flops_per_s, value_bytes=value_bytes
        )
        return step.hidden

    if not hidden(LARGEST_BATCH):
        return None
    low, high = 0, LARGEST_BATCH
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if hidden(middle) else (middle, high)
    return high


def layers_of(net: nn.Module, image_size: int, in_channels: int = 3) -> list[Layer]:
    """Return the layers of a net in the order of forward; a BatchNorm counts to its convolution.

    Args:
        net: on the meta device, see `create_on_meta`; its forward pass runs on shapes.
        image_size: pixels per side.
        in_channels: channels of the input.
    """
    layers: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        count = sum(parameter.numel() for parameter in module.parameters())
        macs = 0
        if isinstance(module, nn.Conv2d | nn.Linear):
            # Every weight is used once per image and output pixel.
            macs = module.weight.numel() * output[0].numel() // output.shape[1]
        if macs or not layers:
            layers.append(Layer(count, macs))
        else:
            layers[-1] = Layer(layers[-1].num_parameters + count, layers[-1].macs)

    hooks = [
        module.register_forward_hook(note)
        for module in net.modules()
        if not any(module.children()) and any(True for _ in module.parameters())
    ]
    with torch.no_grad():
        net(torch.empty(2, in_channels, image_size, image_size, device="meta"))
    for hook in hooks:
        hook.remove()
    return layers
