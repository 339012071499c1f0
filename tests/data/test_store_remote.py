"""Shards on servers through the store: from the cache, from what is on its way, or by range."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, serve

from resscale.data.cache import ShardCache
from resscale.data.cache_entry import CacheSource
from resscale.data.manifest import Manifest, sha256_of
from resscale.data.remote_counts import ReadCounts, counts
from resscale.data.remote_options import RemoteOptions
from resscale.data.samples import ShardSamples, read_each
from resscale.data.shard_index import build_shard_index
from resscale.data.shard_table import ShardInfo
from resscale.data.store import ShardStore
from resscale.errors import DataFormatError

CONTENT = bytes(range(251)) * 1000
QUICK = RemoteOptions(read_timeout_s=0.3, give_up_s=10, first_wait_s=0.01)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    folder = tmp_path_factory.mktemp("served")
    for number in range(3):
        (folder / f"{number}.tar").write_bytes(bytes([number]) + CONTENT[1:])
    with serve(folder) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    return ShardStore(cache=ShardCache(tmp_path / "cache", 10**6, QUICK), remote=QUICK)


def source(server: FaultServer, store: ShardStore, number: int) -> CacheSource:
    content = bytes([number]) + CONTENT[1:]
    url = f"{server.url}/{number}.tar"
    return store.source(url, len(content), hashlib.sha256(content).hexdigest())


def test_without_a_cache_ranges_are_read_from_the_server(server: FaultServer) -> None:
    store = ShardStore(remote=QUICK)
    assert store.read(f"{server.url}/1.tar", 250, 3) == bytes([250, 0, 1])
    assert store.read(f"{server.url}/1.tar", 0, 2, source(server, store, 1)) == bytes([1, 1])
    assert [(each.start, each.stop) for each in server.asked] == [(250, 253), (0, 2)]


def test_what_the_cache_has_is_read_from_it(server: FaultServer, store: ShardStore) -> None:
    wanted = source(server, store, 2)
    assert store.cache is not None
    before = counts()
    assert store.read(wanted.url, 5, 3, wanted) == bytes([5, 6, 7])
    assert (counts() - before).direct == 1
    store.cache.fetch(wanted)
    server.asked.clear()
    assert store.read(wanted.url, 5, 3, wanted) == bytes([5, 6, 7])
    assert store.read(wanted.url, 0, 1, wanted) == bytes([2])
    assert server.asked == []
    assert (counts() - before).hits == 2


def test_a_shard_on_its_way_is_read_as_far_as_it_has_come(
    server: FaultServer, store: ShardStore
) -> None:
    wanted, cache = source(server, store, 0), store.cache
    assert cache is not None
    server.next_faults = ["stall"]
    download = threading.Thread(target=cache.fetch, args=(wanted,))
    download.start()
    while cache.read_part(wanted, 1000, 10) is None:
        pass
    assert store.read(wanted.url, 1000, 10, wanted) == CONTENT[1000:1010]
    assert [each.start for each in server.asked] == [0]
    # Behind it, the server is asked: nobody waits for the whole.
    assert store.read(wanted.url, 250_000, 10, wanted) == CONTENT[250_000:250_010]
    assert server.asked[1].start == 250_000
    download.join()


def test_a_server_without_ranges_is_read_once_and_whole(
    server: FaultServer, store: ShardStore
) -> None:
    server.ranges = False
    wanted = source(server, store, 1)
    for offset in range(0, 250_000, 25_000):
        assert store.read(wanted.url, offset + 5, 9, wanted) == CONTENT[offset + 5 : offset + 14]
    # One read shows that ranges are ignored; the next fetches the shard into the cache.
    assert len(server.asked) == 2


def test_an_evicted_shard_is_closed_so_that_the_disk_gets_its_bytes_back(
    server: FaultServer, store: ShardStore
) -> None:
    cache = store.cache
    assert cache is not None
    first, second = source(server, store, 0), source(server, store, 1)
    cache.fetch(first)
    store.read(first.url, 0, 1, first)
    cache.drop(first)
    assert store.read(first.url, 0, 1, first) == bytes([0])  # still open
    cache.fetch(second)
    store.read(second.url, 0, 1, second)
    held = [str(os.path.realpath(link)) for link in Path("/proc/self/fd").iterdir()]
    assert [name for name in held if str(cache.folder) in name and "deleted" in name] == []


def test_the_version_is_asked_for_once_where_the_checksum_is_unknown(
    server: FaultServer, store: ShardStore
) -> None:
    url = f"{server.url}/1.tar"
    wanted = store.source(url, len(CONTENT), "")
    assert store.source(url, len(CONTENT), "") == wanted
    assert len(server.asked) == 1
    assert wanted.version
    (server.folder / "1.tar").write_bytes(CONTENT)
    with pytest.raises(DataFormatError, match="has changed while it was read"):
        store.read(url, 0, 3, wanted)
    with pytest.raises(DataFormatError, match=r"0\.tar has 251000 bytes, its manifest says 7"):
        store.source(f"{server.url}/0.tar", 7, "")


def test_a_shard_of_another_size_than_the_manifest_says_is_refused(
    server: FaultServer, store: ShardStore
) -> None:
    url = f"{server.url}/1.tar"
    with pytest.raises(DataFormatError, match=r"of 999 bytes, now .* of 251000"):
        store.read(url, 0, 3, store.source(url, 999, "ab"))


def test_local_shards_are_cached_where_that_is_asked_for(
    server: FaultServer, tmp_path: Path
) -> None:
    path = str(server.folder / "1.tar")
    cache = ShardCache(tmp_path, 10**6)
    plain, slow = ShardStore(cache=cache), ShardStore(cache=cache, cache_local=True)
    assert not plain.is_remote(path)
    assert slow.is_remote(path)
    wanted = slow.source(path, len(CONTENT), sha256_of(path))
    before = counts()
    assert slow.read(path, 0, 1, wanted) == bytes([1])
    assert (counts() - before) == ReadCounts(direct=1)
    cache.fetch(wanted)
    Path(path).unlink()
    assert slow.read(path, 9, 1, wanted) == bytes([9])
    # Without a cache there is nothing to do.
    assert not ShardStore(cache_local=True).is_remote(path)


def test_a_copy_reads_with_threads_and_files_of_its_own(
    server: FaultServer, store: ShardStore
) -> None:
    wanted = source(server, store, 2)
    ahead = store.read_ahead.map(lambda offset: store.read(wanted.url, offset, 1), [3, 4])
    assert list(ahead) == [bytes([3]), bytes([4])]
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read(wanted.url, 0, 1, wanted) == bytes([2])
    assert copy.read_ahead is not store.read_ahead


@pytest.fixture
def shards(foreign_shards: Path) -> Manifest:
    """Three shards of four photographs with their indices, not yet on a server."""
    rows = []
    for path in sorted(foreign_shards.glob("*.tar")):
        build_shard_index(path).save(path.with_suffix(".index.npz"))
        rows.append(ShardInfo(path.name, 4, path.stat().st_size, sha256_of(path)))
    return Manifest((), tuple(rows), (), root=str(foreign_shards))


def test_samples_on_a_server_are_those_of_the_folder(shards: Manifest, tmp_path: Path) -> None:
    local = ShardSamples(shards)
    order = [11, 0, 5, 5, 7, 1, 2, 3, 4, 6, 8, 9, 10]
    with serve(Path(shards.root)) as server:
        server.rates = {"drop": 0.1, "busy": 0.1}
        there = Manifest((), tuple(shards.shards), (), root=server.url)
        cache = ShardCache(tmp_path / "cache", 10**7, QUICK)
        for _ in range(2):
            remote = ShardSamples(there, ShardStore(cache=cache, remote=QUICK))
            assert list(read_each(remote, order)) == [local.read(number) for number in order]
            assert remote.key(5) == local.key(5)
            assert remote.origin(5) == f"{server.url}/{shards.shards[1].name}"
            asked = [each for each in server.asked if each.path.endswith(".npz")]
            # Threads that want the same index load it once; the second copy finds it in the cache.
            assert sum(each.status == 206 and not each.fault for each in asked) == 3


def test_an_index_that_is_torn_in_the_cache_is_loaded_anew(
    shards: Manifest, tmp_path: Path
) -> None:
    with serve(Path(shards.root)) as server:
        there = Manifest((), tuple(shards.shards), (), root=server.url)
        cache = ShardCache(tmp_path / "cache", 10**7, QUICK)
        for _ in range(2):
            remote = ShardSamples(there, ShardStore(cache=cache, remote=QUICK))
            assert remote.key(5) == ShardSamples(shards).key(5)
            for file in cache.folder.glob("*.npz"):
                file.write_bytes(b"")  # as a power failure may leave it
        (server.folder / there.shards[1].index_name).write_bytes(b"no index")
        with pytest.raises(DataFormatError, match="is not a readable shard index"):
            ShardSamples(there, ShardStore(cache=cache, remote=QUICK)).key(5)


def without_checksums(shards: Manifest, url: str) -> Manifest:
    rows = [dataclasses.replace(row, sha256="") for row in shards.shards]
    return Manifest((), tuple(rows), (), root=url)


def read_all_of(there: Manifest, folder: Path, results: Any) -> None:
    """A rank, or one of its reading processes: it shares the folder of the cache alone."""
    samples = ShardSamples(there, ShardStore(cache=ShardCache(folder, 10**7, QUICK), remote=QUICK))
    results.put([samples.read(number)[1] for number in range(12)])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_without_checksums_a_node_asks_once_for_each_index_and_version(
    shards: Manifest, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    with serve(Path(shards.root)) as server:
        there, results = without_checksums(shards, server.url), context.Queue()
        readers = [
            context.Process(target=read_all_of, args=(there, tmp_path / "cache", results))
            for _ in range(2)
        ]
        for reader in readers:
            reader.start()
        labels = [number // 4 for number in range(12)]
        assert [results.get(timeout=60) for _ in readers] == [labels] * 2
        for reader in readers:
            reader.join(60)
        asked = [each.path.rpartition(".")[2] for each in server.asked if each.stop in (1, None)]
        assert sorted(asked) == ["npz"] * 3 + ["tar"] * 3


def test_a_version_that_has_changed_is_asked_for_anew_by_the_next_start(
    shards: Manifest, tmp_path: Path
) -> None:
    with serve(Path(shards.root)) as server:
        there = without_checksums(shards, server.url)
        cache = ShardCache(tmp_path / "cache", 10**7, QUICK)
        samples = ShardSamples(there, ShardStore(cache=cache, remote=QUICK))
        data = samples.read(0)
        os.utime(server.folder / there.shards[0].name, (1e9, 1e9))  # the same bytes, a new version
        with pytest.raises(DataFormatError, match="has changed while it was read"):
            samples.read(1)
        started_again = ShardSamples(there, ShardStore(cache=cache, remote=QUICK))
        assert started_again.read(0) == data


def test_a_version_on_record_is_not_believed_for_ever(shards: Manifest, tmp_path: Path) -> None:
    with serve(Path(shards.root)) as server:
        there = without_checksums(shards, server.url)
        cache = ShardCache(tmp_path / "cache", 10**7, QUICK)

        def version() -> str:
            return ShardSamples(there, ShardStore(cache=cache, remote=QUICK)).source(0).version

        first = version()
        os.utime(server.folder / there.shards[0].name, (1e9, 1e9))
        assert version() == first
        for record in cache.folder.glob("*.tar"):
            os.utime(record, (time.time() - 601, time.time() - 601))  # it holds for 600 s
        assert version() != first
        os.utime(next(cache.folder.glob("*.tar")), (2e9, 2e9))  # a clock that went back
        assert version() != first
