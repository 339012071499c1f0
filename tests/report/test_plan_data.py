"""`resscale.report.plan_data`: cores, bytes per second, downloads."""

import numpy as np
import pytest

from resscale.data.order import EpochOrder
from resscale.report.plan_data import (
    IMAGENET_TRAIN,
    Images,
    cpu_ms_per_image,
    imagenet,
    plan_data,
    scaled_images,
)

SIZES = np.full(8, 100, dtype=np.int64)
IMAGES = Images(800, 800 * 1000, SIZES, SIZES * 1000)


def order(partitions: int = 1) -> EpochOrder:
    return EpochOrder(SIZES, global_batch_size=40, partitions=partitions)


def test_imagenet_has_its_images_and_bytes() -> None:
    images = imagenet()
    assert images.is_assumed
    assert images.count == images.shard_sizes.sum() == IMAGENET_TRAIN
    assert len(images.shard_sizes) == 1282
    # 147.9 GB over 1,281,167 images are 115.4 kB each.
    assert images.num_bytes / images.count == pytest.approx(115_440, rel=1e-4)
    assert scaled_images(2000).shard_sizes.tolist() == [1000, 1000]


@pytest.mark.parametrize(
    ("decoder", "stored", "expected"),
    [
        ("native", None, 1.14),
        ("native", 512, 1.14),
        ("native", 500, 0.69),
        ("native", 256, 0.67),
        ("pillow", None, 2.42),
        ("pillow", 256, 2.42),  # not measured: that of originals, which is more
    ],
)
def test_smaller_images_cost_less_cpu(decoder: str, stored: int | None, expected: float) -> None:
    assert cpu_ms_per_image(decoder, stored) == expected


def test_cores_and_bytes_follow_from_the_rate() -> None:
    data = plan_data(IMAGES, order(), 5000.0, 2, 4, 1000.0, is_measured=True)
    # 2,500 images/s per node at 1,000 per core: 2.5 cores, 3 whole ones.
    assert data.cores_per_node == 3
    assert data.cores_per_gpu == pytest.approx(2.5 / 4)
    assert data.bytes_per_image == 1000
    assert data.bytes_per_s == pytest.approx(5e6)
    assert data.node_bytes_per_s == pytest.approx(2.5e6)


def test_partitions_keep_a_node_to_its_share_of_the_shards() -> None:
    one = plan_data(IMAGES, order(), 100.0, 2, 4, 1000.0, is_measured=False)
    assert one.suggested_partitions == 2
    assert one.cache_bytes == pytest.approx(800_000)
    assert one.suggested_cache_bytes == pytest.approx(400_000)
    two = plan_data(IMAGES, order(2), 100.0, 2, 4, 1000.0, is_measured=False)
    assert two.cache_bytes == pytest.approx(400_000)
    assert two.times_read == pytest.approx(1)
