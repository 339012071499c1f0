"""The cache of a node: each shard downloaded once and checked, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, serve

from resscale.data.cache import Fetched, ShardCache
from resscale.data.cache_entry import CacheSource, boot_mark
from resscale.data.remote_counts import counts
from resscale.data.remote_options import RemoteOptions
from resscale.errors import DataFormatError

SIZE = 300_000
CONTENTS = [bytes((number + n) % 251 for n in range(1000)) * 300 for number in range(6)]
QUICK = RemoteOptions(read_timeout_s=0.3, give_up_s=10, first_wait_s=0.01)
fork_quietly = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    """Six shards of 300,000 bytes."""
    folder = tmp_path_factory.mktemp("served")
    for number, content in enumerate(CONTENTS):
        (folder / f"{number}.tar").write_bytes(content)
    with serve(folder) as running:
        yield running


def source(server: FaultServer, number: int, sha256: str | None = None) -> CacheSource:
    digest = hashlib.sha256(CONTENTS[number]).hexdigest() if sha256 is None else sha256
    return CacheSource(f"{server.url}/{number}.tar", SIZE, digest or "etag", digest)


def cached(cache: ShardCache, wanted: CacheSource) -> bytes | None:
    descriptor = cache.open(wanted)
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".room.lock")


def test_a_shard_is_downloaded_once_and_whole(server: FaultServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 10 * SIZE, QUICK)
    assert cached(cache, source(server, 2)) is None
    server.next_faults = ["drop", "busy", "stall"]
    assert cache.fetch(source(server, 2)) is Fetched.THERE
    assert cache.fetch(source(server, 2)) is Fetched.THERE
    assert cached(cache, source(server, 2)) == CONTENTS[2]
    assert server.whole_downloads() == ["/2.tar"]
    assert visible(cache.folder) == [source(server, 2).file_name]


def fetch_all(folder: Path, wanted: list[CacheSource], results: Any) -> None:
    cache = ShardCache(folder, 100 * SIZE, QUICK)
    results.put([cache.fetch(each) is Fetched.THERE for each in wanted])


@fork_quietly
def test_four_processes_download_six_shards_six_times(server: FaultServer, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    wanted = [source(server, number) for number in range(6)]
    processes = [
        context.Process(target=fetch_all, args=(tmp_path / "cache", wanted, results))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in processes] == [[True] * 6] * 4
    for process in processes:
        process.join(60)
    assert server.whole_downloads() == [f"/{number}.tar" for number in range(6)]
    assert len(server.asked) == 6


def test_who_does_not_wait_is_told_that_another_downloads(
    server: FaultServer, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path, 10 * SIZE, QUICK)
    server.next_faults = ["stall"]
    first = threading.Thread(target=cache.fetch, args=(source(server, 0),))
    first.start()
    while not cache.read_part(source(server, 0), 0, 10):
        pass  # until the first bytes have come
    assert ShardCache(tmp_path, 10 * SIZE).fetch(source(server, 0), wait=False) is Fetched.BUSY
    # What has come already can be read; what has not, cannot.
    assert cache.read_part(source(server, 0), 5, 9) == CONTENTS[0][5:14]
    assert cache.read_part(source(server, 0), SIZE - 5, 5) is None
    first.join()
    assert cached(cache, source(server, 0)) == CONTENTS[0]
    assert cache.read_part(source(server, 0), 0, 1) is None


def stall_in_fetch(folder: Path, wanted: CacheSource) -> None:
    ShardCache(folder, 10 * SIZE, RemoteOptions(read_timeout_s=60)).fetch(wanted)


@fork_quietly
def test_a_download_that_was_killed_goes_on_from_its_last_byte(
    server: FaultServer, tmp_path: Path
) -> None:
    wanted = source(server, 3)
    server.next_faults = ["stall"]
    child = multiprocessing.get_context("fork").Process(
        target=stall_in_fetch, args=(tmp_path, wanted)
    )
    child.start()
    part = tmp_path / wanted.part_name()
    while not (part.exists() and part.stat().st_size == SIZE // 2):
        assert child.is_alive()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    cache = ShardCache(tmp_path, 10 * SIZE, QUICK)
    assert cache.open(wanted) is None  # a part is never taken for the whole
    assert cache.fetch(wanted) is Fetched.THERE
    assert cached(cache, wanted) == CONTENTS[3]
    assert server.starts("3.tar") == [0, 150_000]  # SIZE / 2
    assert visible(tmp_path) == [wanted.file_name]


def test_without_a_checksum_a_part_of_an_earlier_start_of_the_machine_is_not_gone_on_with(
    server: FaultServer, tmp_path: Path
) -> None:
    etag = (server.folder / "1.tar").stat()
    version = f"{etag.st_mtime_ns:x}-{etag.st_size:x}"
    wanted = CacheSource(f"{server.url}/1.tar", SIZE, version)
    # As a power failure leaves them: the length is there, the bytes are not.
    torn = [tmp_path / wanted.part_name(who) for who in ("", "boot-of-long-ago")]
    for part in torn:
        part.write_bytes(bytes(1000))
    own = tmp_path / wanted.part_name(boot_mark())
    cache = ShardCache(tmp_path, 10 * SIZE, QUICK)
    assert not torn[1].exists()
    assert cache.read_part(wanted, 0, 10) is None
    assert cache.fetch(wanted) is Fetched.THERE
    assert cached(cache, wanted) == CONTENTS[1]
    # One that a killed process of this start has left is gone on with.
    cache.drop(wanted)
    own.write_bytes(CONTENTS[1][:200_000])
    assert ShardCache(tmp_path, 10 * SIZE, QUICK).fetch(wanted) is Fetched.THERE
    assert cached(cache, wanted) == CONTENTS[1]
    assert server.starts("1.tar") == [0, 200_000]


def test_a_part_with_wrong_bytes_is_downloaded_anew(server: FaultServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10 * SIZE, QUICK)
    (tmp_path / source(server, 1).part_name()).write_bytes(b"x" * 1000)  # as a crash may leave
    (tmp_path / source(server, 2).part_name()).write_bytes(b"x" * (SIZE + 1))
    before = counts()
    assert cache.fetch(source(server, 1)) is Fetched.THERE
    assert cache.fetch(source(server, 2)) is Fetched.THERE
    assert cached(cache, source(server, 1)) == CONTENTS[1]
    assert cached(cache, source(server, 2)) == CONTENTS[2]
    assert server.starts("1.tar") == [1000, 0]
    assert (counts() - before).retries == 1


def test_a_wrong_checksum_is_an_error_after_a_second_download(
    server: FaultServer, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path, 10 * SIZE, QUICK)
    wrong = "0" * 64
    with pytest.raises(DataFormatError) as error:
        cache.fetch(source(server, 4, wrong))
    found = hashlib.sha256(CONTENTS[4]).hexdigest()
    assert str(error.value).startswith(
        f"{server.url}/4.tar has other bytes than its manifest says: SHA-256 {found}, expected "
        f"{wrong}; downloaded twice."
    )
    assert server.starts("4.tar") == [0, 0]
    assert visible(tmp_path) == []


def test_a_download_goes_on_at_a_mirror_where_the_checksum_is_known(
    server: FaultServer, tmp_path: Path
) -> None:
    server.mirrors = 2  # the same bytes under two ETags, in turns
    cache = ShardCache(tmp_path, 10 * SIZE, QUICK)
    server.next_faults = ["truncate"]
    assert cache.fetch(source(server, 0)) is Fetched.THERE
    assert cached(cache, source(server, 0)) == CONTENTS[0]
    assert server.starts("0.tar") == [0, 150_000]  # SIZE / 2
    etag = (server.folder / "1.tar").stat()
    version = f"{etag.st_mtime_ns:x}-{etag.st_size:x}-1"  # of the mirror that answers next
    server.next_faults = ["truncate"]
    with pytest.raises(DataFormatError, match=r"1\.tar has changed while it was read .*-1 of .*-0"):
        cache.fetch(CacheSource(f"{server.url}/1.tar", SIZE, version))


def test_another_version_is_another_entry(server: FaultServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10 * SIZE, QUICK)
    etag = (server.folder / "0.tar").stat()
    old = CacheSource(f"{server.url}/0.tar", SIZE, f"{etag.st_mtime_ns:x}-{etag.st_size:x}")
    assert cache.fetch(old) is Fetched.THERE
    os.utime(server.folder / "0.tar", (1e9, 1e9))
    new = CacheSource(old.url, SIZE, f"{10**18:x}-{SIZE:x}")
    assert cached(cache, new) is None
    assert cache.fetch(new) is Fetched.THERE
    with pytest.raises(DataFormatError, match="has changed while it was read"):
        cache.fetch(CacheSource(old.url, SIZE, "a version of long ago"))
    assert visible(tmp_path) == sorted([old.file_name, new.file_name])


def test_a_limit_smaller_than_the_data_evicts_the_longest_unused(
    server: FaultServer, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path, 2 * SIZE, QUICK)
    for number in (0, 1):
        assert cache.fetch(source(server, number)) is Fetched.THERE
        os.utime(tmp_path / source(server, number).file_name, (1e9 + number, 1e9 + number))
    assert cached(cache, source(server, 0)) == CONTENTS[0]  # used later than 1
    assert cache.fetch(source(server, 2)) is Fetched.THERE
    assert [number for number in range(6) if cache.has(source(server, number))] == [0, 2]


def test_a_shard_larger_than_the_cache_is_not_cached(server: FaultServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, SIZE - 1, QUICK)
    assert cache.fetch(source(server, 0)) is Fetched.FULL
    assert visible(tmp_path) == []
    assert server.asked == []


def test_two_jobs_with_two_limits_share_one_cache(server: FaultServer, tmp_path: Path) -> None:
    large, small = ShardCache(tmp_path, 10 * SIZE, QUICK), ShardCache(tmp_path, 2 * SIZE, QUICK)
    for number in range(4):
        assert large.fetch(source(server, number)) is Fetched.THERE
    assert small.fetch(source(server, 3)) is Fetched.THERE  # it is there: nothing to do
    assert len(visible(tmp_path)) == 4
    assert small.fetch(source(server, 5)) is Fetched.THERE
    assert len(visible(tmp_path)) == 2
    assert large.fetch(source(server, 0)) is Fetched.THERE
    assert cached(large, source(server, 0)) == CONTENTS[0]


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_full_disk_is_survived(
    server: FaultServer, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = ShardCache(small_disk, 10 * SIZE, QUICK)  # 3 MB on a disk of 1 MB
    assert [cache.fetch(source(server, number)) for number in range(3)] == [Fetched.THERE] * 3
    # The fourth does not fit beside them (4 × 0.3 MB): the longest unused goes.
    assert cache.fetch(source(server, 3)) is Fetched.THERE
    assert cached(cache, source(server, 3)) == CONTENTS[3]
    assert not cache.has(source(server, 0))
    # What others have written there cannot go.
    for number in range(6):
        cache.drop(source(server, number))
    (small_disk / "other").write_bytes(bytes(900_000))
    assert cache.fetch(source(server, 4)) is Fetched.OFF
    assert cache.fetch(source(server, 5)) is Fetched.OFF
    assert visible(small_disk) == ["other"]
    said = capfd.readouterr().err
    assert said.count("cannot be written (No space left on device)") == 1
    assert "shards are read from where they lie" in said


def test_a_folder_that_cannot_be_is_survived(
    server: FaultServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = ShardCache(tmp_path / "file" / "cache", 10 * SIZE, QUICK)
    assert cache.fetch(source(server, 0)) is Fetched.OFF
    assert cache.open(source(server, 0)) is None
    assert cache.small(source(server, 0), lambda: b"small") == b"small"
    assert "cannot be written (Not a directory)" in capfd.readouterr().err


def test_a_folder_that_is_removed_meanwhile_is_survived(
    server: FaultServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = ShardCache(tmp_path / "cache", 10 * SIZE, QUICK)
    (tmp_path / "cache").rmdir()
    assert cache.fetch(source(server, 0)) is Fetched.OFF
    assert "cannot be written (No such file or directory)" in capfd.readouterr().err


def test_small_files_are_kept_too(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10 * SIZE)
    wanted = CacheSource("https://host/0.index.npz", 0, "of a shard")
    loads: list[int] = []

    def load() -> bytes:
        loads.append(1)
        return b"index"

    assert [cache.small(wanted, load) for _ in range(3)] == [b"index"] * 3
    assert len(loads) == 1


def test_a_local_shard_is_copied(server: FaultServer, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    digest = hashlib.sha256(CONTENTS[1]).hexdigest()
    local = CacheSource(str(server.folder / "1.tar"), SIZE, digest, digest)
    assert cache.fetch(local) is Fetched.THERE
    assert cached(cache, local) == CONTENTS[1]
