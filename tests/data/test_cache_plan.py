"""How a cache is used: whole shards, a part that stays, or none; by numbers alone."""

import dataclasses

import pytest

from resscale.data.cache_plan import DataUse, plan_cache, share_touched

GB = 10**9
# ImageNet as packed: 1,281 shards of 1,000 samples of 110 kB.
IMAGENET = DataUse(
    num_bytes=141 * GB,
    num_shards=1281,
    num_samples=1_281_000,
    shuffle="window",
    window=65_536,
    partitions=1,
    nodes=1,
)


@pytest.mark.parametrize(
    ("partitions", "readers", "share"),
    [
        (1, 1, 1.0),
        (1, 8, 1.0),  # all nodes read from all shards
        (8, 8, 1 / 8),  # each has a partition of its own
        (16, 8, 1 / 8),
        (4, 8, 1 / 4),  # two nodes share a partition
        (8, 3, 0.5),  # a third of 8 is 2.67 partitions, which lie in 4 at most
        (3, 2, 1.0),
    ],
)
def test_the_share_of_the_shards_that_a_node_reads_from(
    partitions: int, readers: int, share: float
) -> None:
    assert share_touched(partitions, readers) == share


def test_what_fits_is_cached_whole() -> None:
    plan = plan_cache(IMAGENET, 157 * GB)  # 0.9 × 157 = 141.3
    assert (plan.use, plan.ahead_bytes) == ("whole", int(0.9 * 157 * GB))
    assert plan.reason == "all 141 GB that this node reads fit"


def test_a_window_that_fits_is_downloaded_ahead() -> None:
    # A window holds 65,536 / 1,281,000 of 141 GB = 7.21 GB, and begins and ends within a shard of
    # 0.11 GB: 7.43 GB.
    plan = plan_cache(IMAGENET, 9 * GB)
    assert plan.use == "whole"
    assert plan.reason == "7.43 GB of 141 GB are read from at a time"
    assert plan_cache(IMAGENET, 8 * GB).use == "keep"  # 0.9 × 8 = 7.2


def test_a_full_shuffle_keeps_what_fits() -> None:
    plan = plan_cache(dataclasses.replace(IMAGENET, shuffle="full"), 50 * GB)
    assert (plan.use, plan.ahead_bytes) == ("keep", 45 * GB)
    # 45 of 141 GB; 141 / 0.9 = 156.7, and a hundredth more
    assert "32% of the shards are kept" in plan.reason
    assert "data.cache_gb=158 would hold what is needed" in plan.reason


def test_many_nodes_without_partitions_read_ranges() -> None:
    # Each of 8 nodes reads 125 samples of a shard: 125 × (110 kB + 262 kB) = 46 MB of 110 MB.
    plan = plan_cache(dataclasses.replace(IMAGENET, nodes=8), 9 * GB)
    assert plan.use == "ranges"
    assert "data.partitions=8 would give it shards of its own" in plan.reason
    # With two nodes 500 × 372 kB = 186 MB: more than the shard.
    assert plan_cache(dataclasses.replace(IMAGENET, nodes=2), 9 * GB).use == "whole"


def test_partitions_give_each_node_its_own_shards() -> None:
    use = dataclasses.replace(IMAGENET, nodes=8, partitions=8)
    assert use.read_of_shard == 1.0
    assert plan_cache(use, 9 * GB).use == "whole"
    # All that it reads: 141 / 8 = 17.6 GB.
    assert plan_cache(use, 20 * GB).reason == "all 17.6 GB that this node reads fit"


def test_small_samples_are_not_worth_a_request_each() -> None:
    # 50,000 samples of 3 kB in 50 shards: 1,000 / 8 × (3 kB + 262 kB) = 33 MB for a shard of 3 MB.
    small = DataUse(150_000_000, 50, 50_000, "window", 65_536, 1, 8)
    assert plan_cache(small, 100_000_000).use == "keep"


def test_an_order_without_shuffle_reads_few_shards_at_a_time() -> None:
    use = dataclasses.replace(IMAGENET, shuffle="none")
    assert plan_cache(use, 1 * GB).use == "whole"  # two shards of 0.11 GB


@pytest.mark.parametrize(("repeats", "use"), [(1, "ranges"), (4, "whole")])
def test_copies_of_a_sample_are_worth_a_shard_of_its_own(repeats: int, use: str) -> None:
    # Of 8 nodes that read from all shards, one reads 1/8 of each by ranges, and with 4 copies 4/8:
    # 500 requests of 0.26 MB and 55 MB are more than the 110 MB of the shard.
    data = dataclasses.replace(IMAGENET, nodes=8, repeats=repeats)
    assert data.read_of_shard == repeats / 8
    assert plan_cache(data, 50 * GB).use == use
