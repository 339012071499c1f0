"""What training asks of CPUs, disks and the network for its images. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from resscale.data.download_plan import plan_downloads, suggest_partitions
from resscale.data.order import EpochOrder
from resscale.data.permutation import Int64

IMAGENET_TRAIN = 1_281_167
IMAGENET_VAL = 50_000
IMAGENET_BYTES = 147_897_477_120
"""Of ILSVRC2012_img_train.tar."""

_ASSUMED_SHARD = 1000

# CPU milliseconds per image with one thread or process, by decoder: docs/data.md, measured on
# 2026-11-24 on two shared cores of an AMD EPYC: originals of ImageNet's sizes to crops of 224.
CPU_MS = {"native": 1.14, "nvimgcodec": 1.30, "simplejpeg": 1.50, "pillow": 2.42}
# The same where `pack --resize` has made them at most so large; other decoders: not measured.
CPU_MS_500 = {"native": 0.69, "nvimgcodec": 0.93}
CPU_MS_320 = {"native": 0.67, "nvimgcodec": 0.86}


@dataclass(frozen=True)
class Images:
    """The training images.

    Args:
        count: of an epoch.
        num_bytes: of all of them, as stored.
        shard_sizes: samples of each shard, int64 (num_shards,).
        shard_bytes: bytes of each, int64 (num_shards,).
        stored_size: shorter side that `pack --resize` brought them down to, pixels; None: never.
        is_assumed: there is no manifest, and these are ImageNet's.
    """

    count: int
    num_bytes: int
    shard_sizes: Int64
    shard_bytes: Int64
    stored_size: int | None = None
    is_assumed: bool = False


def imagenet() -> Images:
    """Return ImageNet's training images in shards of a thousand."""
    return scaled_images(IMAGENET_TRAIN)


def scaled_images(count: int) -> Images:
    """Return so many images that are as large as ImageNet's, in shards of a thousand.

    Args:
        count: of an epoch.
    """
    full, rest = divmod(count, _ASSUMED_SHARD)
    sizes = np.array([_ASSUMED_SHARD] * full + [rest] * bool(rest), dtype=np.int64)
    sizes_bytes: Int64 = sizes * IMAGENET_BYTES // IMAGENET_TRAIN
    num_bytes = count * IMAGENET_BYTES // IMAGENET_TRAIN
    return Images(count, num_bytes, sizes, sizes_bytes, is_assumed=True)


def cpu_ms_per_image(decoder: str, stored_size: int | None) -> float:
    """Return the CPU milliseconds that reading and decoding an image takes.

    Args:
        decoder: one of `CPU_MS`.
        stored_size: shorter side that images were brought down to; None: originals.
    """
    if stored_size is not None and stored_size <= 320:
        return CPU_MS_320.get(decoder, CPU_MS[decoder])
    if stored_size is not None and stored_size <= 500:
        return CPU_MS_500.get(decoder, CPU_MS[decoder])
    return CPU_MS[decoder]


@dataclass(frozen=True)
class DataPlan:
    """What the images of a step ask for.

    Args:
        images_per_s_per_core: that one CPU core reads and decodes.
        is_measured: by the user; else by this project, on another machine.
        cores_per_node: that keep a node's GPUs busy.
        cores_per_gpu: for each of them.
        bytes_per_image: as stored.
        bytes_per_s: of all nodes together.
        node_bytes_per_s: of one node.
        num_bytes: of the data set.
        partitions: `data.partitions`.
        suggested_partitions: with which a node keeps to its own shards.
        epoch_bytes: that a node downloads in its first epoch, where shards lie on servers.
        times_read: bytes that all nodes download in an epoch, over those of the data set.
        cache_bytes: of a node with which nothing is downloaded twice in the whole run.
        suggested_cache_bytes: the same with the suggested partitions.
    """

    images_per_s_per_core: float
    is_measured: bool
    cores_per_node: int
    cores_per_gpu: float
    bytes_per_image: float
    bytes_per_s: float
    node_bytes_per_s: float
    num_bytes: int
    partitions: int
    suggested_partitions: int
    epoch_bytes: float
    times_read: float
    cache_bytes: float
    suggested_cache_bytes: float


def plan_data(
    images: Images,
    order: EpochOrder,
    images_per_s: float,
    nodes: int,
    gpus_per_node: int,
    images_per_s_per_core: float,
    *,
    is_measured: bool,
) -> DataPlan:
    """Return what the images of a run ask for.

    Args:
        images: they.
        order: of any epoch. With `data.repeats` a node downloads no more than without.
        images_per_s: of all GPUs together, at the size that is trained on fastest.
        nodes: number of nodes.
        gpus_per_node: GPUs of each.
        images_per_s_per_core: that one core reads and decodes.
        is_measured: that was measured by the user.

    Raises:
        UserInputError: the global batch does not divide by the nodes.
    """
    per_image = images.num_bytes / max(1, images.count)
    downloads = plan_downloads(order, images.shard_bytes, nodes)
    suggested = suggest_partitions(order.global_batch_size, nodes, gpus_per_node)
    better = downloads
    if suggested != order.partitions:
        better = plan_downloads(
            EpochOrder(
                order.shard_sizes,
                global_batch_size=order.global_batch_size,
                seed=order.seed,
                shuffle=order.shuffle,
                window=order.window,
                partitions=suggested,
            ),
            images.shard_bytes,
            nodes,
        )
    node_images_per_s = images_per_s / nodes
    cores = node_images_per_s / images_per_s_per_core
    return DataPlan(
        images_per_s_per_core=images_per_s_per_core,
        is_measured=is_measured,
        cores_per_node=math.ceil(cores),
        cores_per_gpu=cores / gpus_per_node,
        bytes_per_image=per_image,
        bytes_per_s=per_image * images_per_s,
        node_bytes_per_s=per_image * node_images_per_s,
        num_bytes=images.num_bytes,
        partitions=order.partitions,
        suggested_partitions=suggested,
        epoch_bytes=downloads.epoch_bytes,
        times_read=downloads.times_read,
        cache_bytes=downloads.all_bytes,
        suggested_cache_bytes=better.all_bytes,
    )
