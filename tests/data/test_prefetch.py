"""Prefetching: what is needed next, within the bytes there are, is in the cache before its use."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fault_server import FaultServer, serve

from resscale.data.batching import plan_batches
from resscale.data.cache import ShardCache
from resscale.data.cache_lease import leased_keys
from resscale.data.dataset import BatchRequest
from resscale.data.manifest import Manifest, sha256_of
from resscale.data.order import EpochOrder
from resscale.data.permutation import Int64
from resscale.data.prefetch import Ahead, FixedCourse, ListCourse, Prefetcher, TrainCourse
from resscale.data.remote_options import RemoteOptions
from resscale.data.repeats import RepeatedOrder, TrainOrder
from resscale.data.samples import ShardSamples
from resscale.data.shard_table import ShardInfo
from resscale.data.store import ShardStore
from resscale.errors import DataFormatError

QUICK = RemoteOptions(read_timeout_s=0.3, give_up_s=10, first_wait_s=0.01)


class Listed:
    """A course by a list: the shards of each position."""

    def __init__(self, *positions: list[int]) -> None:
        self.positions = positions

    def shards(self, position: int) -> Int64 | None:
        if position >= len(self.positions):
            return None
        return np.array(self.positions[position], dtype=np.int64)


def ahead(course: Listed, limit: int, behind: int = 0, most_steps: int = 100) -> Ahead:
    return Ahead(course, np.full(10, 100, dtype=np.int64), limit, most_steps, behind)


def test_needs_go_as_far_as_the_bytes_reach() -> None:
    needs = ahead(Listed([3, 1], [1, 2], [3, 4], [5]), 350)
    assert needs.move_to(0)
    assert needs.shards() == [3, 1, 2]  # 4 would be the fourth: 400 bytes
    assert needs.is_complete
    assert not needs.move_to(0)
    assert not needs.move_to(1)  # shard 3 is used again at position 2
    assert needs.shards() == [3, 1, 2]
    assert needs.move_to(2)
    assert needs.shards() == [3, 4, 5]
    assert needs.move_to(4)
    assert needs.shards() == []


def test_reading_lags_behind_asking() -> None:
    needs = ahead(Listed([1], [2], [3], [4]), 300, behind=1)
    needs.move_to(0)
    assert needs.shards() == [1, 2, 3]
    assert not needs.move_to(1)  # position 0 is still being read
    needs.move_to(2)
    assert needs.shards() == [2, 3, 4]


def test_one_step_that_is_larger_than_the_bytes_gets_a_part() -> None:
    needs = ahead(Listed([1, 2, 3], [4]), 200)
    needs.move_to(0)
    assert needs.shards() == [1, 2]


def test_going_back_or_far_on_begins_anew() -> None:
    needs = ahead(Listed(*([n % 10] for n in range(50))), 200)
    needs.move_to(20)
    assert needs.shards() == [0, 1]
    needs.move_to(3)
    assert needs.shards() == [3, 4]
    needs.move_to(37)
    assert needs.shards() == [7, 8]


def test_the_horizon_is_bounded_in_steps() -> None:
    needs = ahead(Listed(*([n % 10] for n in range(50))), 10_000, most_steps=3)
    needs.move_to(0)
    assert needs.shards() == [0, 1, 2]


@pytest.fixture
def remote_samples(tmp_path: Path) -> Iterator[tuple[FaultServer, ShardSamples, ShardCache]]:
    """Ten shards of ten samples of 1,000 bytes on a server, with no need for their indices."""
    folder = tmp_path / "served"
    folder.mkdir()
    rows = []
    for number in range(10):
        path = folder / f"{number}.tar"
        path.write_bytes(bytes([number]) * 1000)
        rows.append(ShardInfo(path.name, 10, 1000, sha256_of(path)))
    with serve(folder) as server:
        manifest = Manifest((), tuple(rows), (), root=server.url)
        cache = ShardCache(tmp_path / "cache", 3500, QUICK)
        yield server, ShardSamples(manifest, ShardStore(cache=cache, remote=QUICK)), cache


def until(condition: object) -> None:
    """Wait for what threads do; the test's own time limit ends it."""
    assert callable(condition)
    while not condition():
        time.sleep(0.01)


def there(samples: ShardSamples, cache: ShardCache) -> list[int]:
    return [n for n in range(10) if cache.has(samples.source(n))]


def sizes(samples: ShardSamples) -> Int64:
    return samples.manifest.table.bytes


def test_shards_come_ahead_of_use_and_go_behind_it(
    remote_samples: tuple[FaultServer, ShardSamples, ShardCache],
) -> None:
    server, samples, cache = remote_samples
    requests = [BatchRequest(np.arange(n, n + 5, dtype=np.int64)) for n in range(0, 100, 5)]
    course = ListCourse(samples, requests)
    prefetcher = Prefetcher(samples, cache, Ahead(course, sizes(samples), 3000, 100), 2)
    assert server.asked == []  # nothing begins before the first batch is asked for
    prefetcher.at(0)
    until(lambda: there(samples, cache) == [0, 1, 2])
    assert leased_keys(cache.folder) == {samples.source(n).key for n in (0, 1, 2)}
    prefetcher.at(4)  # shards 0 and 1 are behind
    until(lambda: {2, 3, 4} <= set(there(samples, cache)))
    assert sum(path.stat().st_size for path in cache.folder.glob("*.tar")) <= 3500
    prefetcher.close(wait_s=60)
    assert leased_keys(cache.folder) == set()
    assert len(server.whole_downloads()) == 5


def test_two_processes_of_a_node_share_the_work(
    remote_samples: tuple[FaultServer, ShardSamples, ShardCache],
) -> None:
    server, samples, cache = remote_samples
    cache.limit_bytes = 20_000
    both = []
    for _ in range(2):
        needs = Ahead(FixedCourse(np.arange(10)), sizes(samples), 10_000, 1)
        both.append(Prefetcher(samples, ShardCache(cache.folder, 20_000, QUICK), needs, 3))
    for prefetcher in both:
        prefetcher.at(0)
    until(lambda: there(samples, cache) == list(range(10)))
    for prefetcher in both:
        prefetcher.close(wait_s=60)
    assert server.whole_downloads() == [f"/{number}.tar" for number in range(10)]


def test_what_another_process_did_not_finish_is_taken_over(
    remote_samples: tuple[FaultServer, ShardSamples, ShardCache],
) -> None:
    _, samples, cache = remote_samples
    part = cache.folder / samples.source(0).part_name()
    holder = os.open(part, os.O_CREAT | os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    needs = Ahead(FixedCourse(np.arange(2)), sizes(samples), 3000, 1)
    prefetcher = Prefetcher(samples, cache, needs, 1)
    prefetcher.at(0)
    until(lambda: there(samples, cache) == [1])
    os.close(holder)  # it was killed
    until(lambda: there(samples, cache) == [0, 1])
    prefetcher.close(wait_s=60)


def test_shards_without_a_checksum_are_known_by_their_version(
    remote_samples: tuple[FaultServer, ShardSamples, ShardCache],
) -> None:
    server, samples, cache = remote_samples
    rows = [dataclasses.replace(row, sha256="") for row in samples.manifest.shards]
    unknown = ShardSamples(Manifest((), tuple(rows), (), root=server.url), samples.store)
    assert unknown.known_source(0) is None
    prefetcher = Prefetcher(unknown, cache, Ahead(Listed([0, 1]), sizes(samples), 3000, 9), 2)
    prefetcher.at(0)
    until(lambda: len(server.whole_downloads()) == 2 and len(leased_keys(cache.folder)) == 2)
    etag = (server.folder / "1.tar").stat()
    known = unknown.known_source(1)
    assert known is not None
    assert known.version == f"{etag.st_mtime_ns:x}-{etag.st_size:x}"
    until(lambda: cache.has(known))
    prefetcher.close(wait_s=60)
    assert sorted(each.path for each in server.asked if each.stop == 1) == ["/0.tar", "/1.tar"]


def test_a_wrong_shard_ends_the_run_with_its_error(
    remote_samples: tuple[FaultServer, ShardSamples, ShardCache],
) -> None:
    server, samples, cache = remote_samples
    (server.folder / "1.tar").write_bytes(bytes(1000))
    needs = Ahead(FixedCourse(np.arange(2)), sizes(samples), 3000, 1)
    prefetcher = Prefetcher(samples, cache, needs, 1)
    prefetcher.at(0)
    for thread in prefetcher._threads:
        thread.join(60)
    with pytest.raises(DataFormatError, match=r"1\.tar has other bytes than its manifest says"):
        prefetcher.at(1)
    prefetcher.close()


def test_a_thread_that_looks_ahead_while_its_prefetcher_is_closed_leaves_no_lease(
    remote_samples: tuple[FaultServer, ShardSamples, ShardCache],
) -> None:
    _, samples, cache = remote_samples
    looks, go_on = threading.Event(), threading.Event()

    class Slow(Listed):
        def shards(self, position: int) -> Int64 | None:
            looks.set()
            go_on.wait(60)
            return super().shards(position)

    prefetcher = Prefetcher(samples, cache, Ahead(Slow([0], [1]), sizes(samples), 3000, 9), 1)
    prefetcher.at(0)
    assert looks.wait(60)
    closing = threading.Thread(target=prefetcher.close)
    closing.start()
    closing.join(0.3)  # it waits for the thread, or is done already
    go_on.set()
    closing.join(60)
    for thread in prefetcher._threads:
        thread.join(60)
    left = {path.suffix for path in cache.folder.iterdir()}
    assert left <= {".lock"}  # no .live or .needs, and no shard that nobody needs any more


def test_no_thread_outlives_its_prefetcher(
    remote_samples: tuple[FaultServer, ShardSamples, ShardCache],
) -> None:
    _, samples, cache = remote_samples
    before = set(threading.enumerate())
    prefetcher = Prefetcher(samples, cache, Ahead(Listed([0]), sizes(samples), 3000, 1), 3)
    prefetcher.at(0)
    prefetcher.close(wait_s=60)
    left = [each for each in set(threading.enumerate()) - before if "prefetch" in each.name]
    assert left == []


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_course_of_training_goes_over_the_epochs_end(
    remote_samples: tuple[FaultServer, ShardSamples, ShardCache], repeats: int
) -> None:
    _, samples, _ = remote_samples
    order: TrainOrder = EpochOrder([10] * 10, global_batch_size=20 // repeats, window=30, seed=3)
    if repeats > 1:
        order = RepeatedOrder(order, repeats)  # a shard is needed once for all copies
    plan = plan_batches(20, None, 2)
    course = TrainCourse(samples, order, plan, rank=1, steps_per_epoch=4)
    for position in (0, 3, 4, 9, 1):
        epoch, step = divmod(position, 4)
        ids = order.at_epoch(epoch).rank_batch(step, 1, 2)
        found = course.shards(position)
        assert found is not None
        assert found.tolist() == list(dict.fromkeys((ids // 10).tolist()))
