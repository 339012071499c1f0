"""Byte ranges of shards: right after forks and copies, with few descriptors, or a clear error."""

import errno
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from resscale.data.store import ShardStore
from resscale.errors import DataFormatError

CONTENT = bytes(range(256)) * 4  # byte n of a file is n modulo 256


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Five files; file n begins with the byte n."""
    paths = [tmp_path / f"{number}.tar" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) + CONTENT[1:])
    return paths


def open_descriptors(folder: Path) -> int:
    """How many files of `folder` this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += link.readlink().is_relative_to(folder)
        except OSError:
            continue  # the descriptor that listed the folder
    return count


def test_any_range_is_read(shards: list[Path]) -> None:
    store = ShardStore()
    assert store.read(shards[3], 0, 3) == bytes([3, 1, 2])
    assert store.read(shards[1], 250, 10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])
    assert store.read(shards[3], 1020, 4) == bytes([252, 253, 254, 255])  # the last four of 1,024
    assert store.read(shards[0], 7, 0) == b""


def test_no_more_files_are_open_than_allowed(shards: list[Path]) -> None:
    store = ShardStore(max_open_files=2)
    for number in (0, 1, 2, 3, 4, 0, 4, 2):
        assert store.read(shards[number], 0, 1) == bytes([number])
        assert open_descriptors(shards[0].parent) <= 2
    store.close()
    assert open_descriptors(shards[0].parent) == 0
    assert store.read(shards[1], 0, 1) == bytes([1])  # a closed store opens again
    del store
    assert open_descriptors(shards[0].parent) == 0


def test_the_least_recently_used_file_is_closed_first(shards: list[Path]) -> None:
    store = ShardStore(max_open_files=2)
    for number in (0, 1, 0, 2):  # 1 has been idle longest when 2 is opened
        store.read(shards[number], 0, 1)
    for path in shards[:3]:
        path.unlink()
    assert store.read(shards[0], 0, 1) == bytes([0])  # still open: reads go on after unlinking
    assert store.read(shards[2], 0, 1) == bytes([2])
    with pytest.raises(DataFormatError, match="No such file"):
        store.read(shards[1], 0, 1)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError) as error:
        ShardStore().read(tmp_path / "none.tar", 0, 1)
    assert str(error.value) == (
        f"{tmp_path / 'none.tar'} cannot be read ({os.strerror(errno.ENOENT)})."
    )


def test_a_folder_in_a_shards_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"cannot be read \(Is a directory\)"):
        ShardStore().read(tmp_path, 0, 1)


def test_a_shard_that_ends_early_is_named_with_both_ends(shards: list[Path]) -> None:
    with pytest.raises(DataFormatError) as error:
        ShardStore().read(shards[0], 1000, 100)
    assert str(error.value) == (
        f"{shards[0]} ends at byte 1024, its index says 1100: truncated or changed while in use."
    )


def test_a_copy_has_no_descriptors_of_the_original(shards: list[Path]) -> None:
    store = ShardStore(max_open_files=3)
    store.read(shards[0], 0, 1)
    copy = pickle.loads(pickle.dumps(store))
    assert open_descriptors(shards[0].parent) == 1
    assert copy.max_open_files == 3
    assert copy.read(shards[0], 0, 1) == store.read(shards[0], 0, 1) == bytes([0])
    assert open_descriptors(shards[0].parent) == 2
    del copy
    assert open_descriptors(shards[0].parent) == 1
    assert store.read(shards[0], 1, 1) == bytes([1])


def positions(folder: Path) -> list[int]:
    """Where the kernel stands in each open file of `folder`; forked processes share it."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and str(os.path.realpath(link)).startswith(f"{folder}/"):
            found.append(os.lseek(int(link.name), 0, os.SEEK_CUR))
    return found


def read_often(store: ShardStore, path: Path, offset: int, barrier: Any, results: Any) -> None:
    barrier.wait(timeout=60)
    results.put(sum(store.read(path, offset, 1) != bytes([offset]) for _ in range(3000)))


# Forking is what this test is about; the parent's threads (if any) hold no lock that matters here.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_readers_of_one_descriptor_do_not_disturb_each_other(shards: list[Path]) -> None:
    store = ShardStore()
    store.read(shards[0], 200, 10)  # opened before the fork: all share its position
    assert positions(shards[0].parent) == [0]  # which reading does not move
    context = multiprocessing.get_context("fork")
    results, barrier = context.Queue(), context.Barrier(2)
    children = [
        context.Process(target=read_often, args=(store, shards[0], offset, barrier, results))
        for offset in (10, 20)
    ]
    for child in children:
        child.start()
    assert [results.get(timeout=60) for _ in children] == [0, 0]
    for child in children:
        child.join(timeout=60)
    assert [child.exitcode for child in children] == [0, 0]
    assert positions(shards[0].parent) == [0]
    assert store.read(shards[0], 40, 1) == bytes([40])  # their end closed only their own copies
