"""How well orders mix, measured: the worst case of shards sorted by class included."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fault_server import serve

from resscale.data.manifest import Manifest, ShardInfo
from resscale.data.order import EpochOrder
from resscale.data.samples import ShardSamples
from resscale.data.shard_index import ShardIndex
from resscale.data.shuffle_quality import describe_shuffle, measure_shuffle

SHARDS, EACH, CLASSES = 100, 50, 20  # 5,000 samples, 5 shards of each class where sorted
SIZES = np.full(SHARDS, EACH)
BY_CLASS = np.arange(SHARDS * EACH) * CLASSES // (SHARDS * EACH)
SHUFFLED = np.random.default_rng(1).permutation(BY_CLASS)
COUNTS = np.bincount(BY_CLASS).tolist()


def order(shuffle: str = "window", window: int = 500, partitions: int = 1) -> EpochOrder:
    return EpochOrder(
        SIZES, global_batch_size=200, shuffle=shuffle, window=window, partitions=partitions
    )


def measure(some: EpochOrder, labels: np.ndarray, micro: int | None = None):
    return measure_shuffle(some, labels.__getitem__, COUNTS, micro, SHARDS)


@pytest.mark.parametrize("labels", [SHUFFLED, BY_CLASS])
def test_a_full_shuffle_has_all_the_entropy_there_is(labels: np.ndarray) -> None:
    quality = measure(order("full"), labels)
    assert quality.batch is not None
    assert not quality.batch.is_poor
    # 200 samples of 20 equal classes: a little under log2(20) = 4.32 bits.
    assert 4.2 < quality.batch.ideal_bits < 4.32
    assert quality.batch.fraction == pytest.approx(1, abs=0.02)
    # Two of a full shuffle's samples share one of 100 shards with a chance of 49/4,999.
    assert quality.ideal_shards == pytest.approx(4_999 / 49)
    assert quality.shards == pytest.approx(100, rel=0.1)


def test_shuffled_shards_need_no_large_window() -> None:
    quality = measure(order(window=200), SHUFFLED)
    assert quality.batch is not None
    assert not quality.batch.is_poor
    assert quality.shards < 6  # a window of 200 lies in 4 shards of 50, or parts of 5


def test_sorted_shards_are_poor_until_the_window_holds_enough_of_them() -> None:
    fractions = []
    for window in (200, 1_000, 5_000):
        quality = measure(order(window=window), BY_CLASS)
        assert quality.batch is not None
        fractions.append(quality.batch.fraction)
        assert quality.batch.is_poor == (window < 5_000)
    assert fractions[0] < 0.55  # 4 shards are 4 classes at most: 2 of 4.3 bits, and chance
    assert fractions[0] < fractions[1] < fractions[2]


def test_without_a_shuffle_sorted_shards_give_batches_of_one_class() -> None:
    quality = measure(order("none"), BY_CLASS)
    assert quality.batch is not None
    assert quality.batch.bits <= 1  # 200 in a row of 250 of a class: one class, or two
    assert quality.batch.is_poor


def test_partitions_of_sorted_shards_mix_batches_but_not_micro_batches() -> None:
    quality = measure(order("full", partitions=20), BY_CLASS, micro=10)
    assert quality.batch is not None
    assert quality.micro_batch is not None
    # 10 neighbours of the batch are of one partition of 5 shards: 5 classes at most, of 20.
    assert quality.batch.fraction > 0.9
    assert quality.micro_batch.samples == 10
    assert quality.micro_batch.is_poor


def test_a_single_class_is_never_poor() -> None:
    quality = measure_shuffle(order("none"), np.zeros(5_000, np.int64).__getitem__, [5_000])
    assert quality.batch is not None
    assert quality.batch.fraction == 1
    assert not quality.batch.is_poor


def test_labels_of_a_bounded_number_of_shards_are_asked_for() -> None:
    asked: list[np.ndarray] = []

    def labels(ids: np.ndarray) -> np.ndarray:
        asked.append(ids)
        return SHUFFLED[ids]

    quality = measure_shuffle(order("full"), labels, COUNTS, most_shards=7)
    assert len(asked) == 6  # 3 batches, and a micro-batch of each
    assert {len(np.unique(ids // EACH)) for ids in asked} == {7}
    assert quality.batch is not None
    assert not quality.batch.is_poor  # compared with as few samples of a full shuffle


def test_without_labels_shards_are_counted_alone() -> None:
    quality = measure_shuffle(order("none"), None, [])
    assert quality.batch is quality.micro_batch is None
    assert quality.shards == pytest.approx(200 * 199 / (4 * 50 * 49))  # 4 whole shards a batch


def test_a_million_shards_are_measured_from_few_samples() -> None:
    large = EpochOrder(np.full(1_000_000, 1000), global_batch_size=4096)
    asked: list[int] = []

    def labels(ids: np.ndarray) -> np.ndarray:
        asked.append(len(ids))
        return ids % 1000

    quality = measure_shuffle(large, labels, [1_000_000] * 1000)
    assert quality.batch is not None
    assert not quality.batch.is_poor
    assert sum(asked) <= 6 * 4096
    assert quality.shards == pytest.approx(65, abs=5)  # 65,536 / 1,000


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[[np.ndarray], Manifest]:
    """A function that writes the offset indices of 100 shards with these labels."""

    def write(labels: np.ndarray) -> Manifest:
        zeros, keys = np.zeros(EACH, np.int64), np.array([b"k"] * EACH)
        for number, some in enumerate(labels.reshape(SHARDS, EACH)):
            ShardIndex(keys, zeros, zeros, some).save(tmp_path / f"{number:03d}.index.npz")
        shards = [ShardInfo(f"{number:03d}.tar", EACH, 0, "") for number in range(SHARDS)]
        Manifest((), shards, tuple(COUNTS)).save(tmp_path)
        return Manifest.load(tmp_path)

    return write


def test_a_good_mix_is_said_in_one_line(manifest: Callable[[np.ndarray], Manifest]) -> None:
    text = describe_shuffle(order("full"), manifest(SHUFFLED))
    assert text is not None
    assert text.startswith("shuffle: full; a batch draws from ")
    assert " shards, a full shuffle from 102; " in text  # 4,999 / 49
    assert text.endswith("%)")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"shuffle": "none"}, "Set --data.shuffle window."),
        (
            {"window": 200},
            "Set --data.window 800 or more, or --data.shuffle full, or pack the data set again "
            "(`resscale pack` shuffles).",
        ),
        (
            {"shuffle": "full", "partitions": 20},
            "Set a lower --data.partitions than 20, or pack the data set again "
            "(`resscale pack` shuffles).",
        ),
    ],
)
def test_a_poor_mix_is_warned_of_with_its_remedy(
    manifest: Callable[[np.ndarray], Manifest], options: dict, remedy: str
) -> None:
    text = describe_shuffle(order(**options), manifest(BY_CLASS), micro_batch_size=10)
    assert text is not None
    line, warning = text.split("\n")
    assert line.startswith("shuffle: ")
    assert warning.startswith("warning: the samples of a ")
    assert warning.endswith(f"). {remedy}")


def test_on_a_server_few_indices_are_read_and_none_that_are_large(
    manifest: Callable[[np.ndarray], Manifest], tmp_path: Path
) -> None:
    local = manifest(BY_CLASS)
    with serve(tmp_path) as server:
        there = dataclasses.replace(local, root=server.url)
        text = describe_shuffle(order("none"), there, micro_batch_size=10)
        assert text is not None
        assert "bits of label entropy" in text
        assert "warning: the samples of a batch are of few classes" in text
        assert describe_shuffle(order("full"), there, micro_batch_size=10) is not None
        indices = [each.path for each in server.asked]
        # 3 batches and 3 micro-batches, of 32 shards at most, in each of the two orders.
        assert 32 < len(indices) <= 2 * 6 * 32
        samples = ShardSamples(there)
        server.asked.clear()
        assert samples.labels(np.arange(200)).tolist() == BY_CLASS[:200].tolist()
        assert len(server.asked) == 4  # 200 / 50 of a shard
        large = dataclasses.replace(
            there, shards=[dataclasses.replace(s, samples=20_001) for s in there.shards]
        )
        server.asked.clear()
        text = describe_shuffle(order("full"), large)
        assert text is not None
        assert text.endswith("; labels unknown")
        assert server.asked == []


def test_an_epoch_without_a_step_is_not_described(
    manifest: Callable[[np.ndarray], Manifest],
) -> None:
    none = EpochOrder(SIZES, global_batch_size=5_001)
    assert describe_shuffle(none, manifest(SHUFFLED)) is None
