"""The disk that checkpoints go to."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from resscale.cluster.doctor.storage import (
    StorageFacts,
    check_storage,
    existing_parent,
    file_system,
    probe_storage,
)

RUNS = Path("runs")
MB = 10**6
# keep_last=2 of 100 MB each, the best and the one being written: 4 × 100 MB.
NEEDED = 400 * MB


def level(facts: StorageFacts) -> str:
    (found,) = check_storage(facts, 100 * MB, 2)
    return found.level


def test_a_disk_with_room_is_well() -> None:
    (found,) = check_storage(StorageFacts(RUNS, "ext4", NEEDED, 10**6), 100 * MB, 2)
    assert found.level == "ok"
    assert found.text == "runs: 400.0 MB free; 4 checkpoints need 400.0 MB, ext4"


def test_a_disk_that_fills_up_is_warned_of_and_a_full_one_fails() -> None:
    assert level(StorageFacts(RUNS, free=NEEDED - 1)) == "warn"
    # Not even the newest and the one being written.
    assert level(StorageFacts(RUNS, free=200 * MB - 1)) == "fail"


def test_a_file_system_that_does_not_say_what_is_free_is_not_blamed() -> None:
    assert level(StorageFacts(RUNS, free=None)) == "ok"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EDQUOT, "the quota of this user has no room for a checkpoint of 100.0 MB"),
        (errno.ENOSPC, "the disk has no room for a checkpoint of 100.0 MB"),
        (errno.EACCES, "cannot be written to: Permission denied"),
    ],
)
def test_what_writing_met_fails(number: int, said: str) -> None:
    (found,) = check_storage(StorageFacts(RUNS, refused=number), 100 * MB, 2)
    assert found.level == "fail"
    assert said in found.text


def test_few_inodes_and_a_disk_in_memory_are_warned_of() -> None:
    assert level(StorageFacts(RUNS, free=NEEDED, free_files=5)) == "warn"
    assert level(StorageFacts(RUNS, "tmpfs", free=NEEDED)) == "warn"


def test_the_probe_leaves_nothing_behind_and_makes_no_folder(tmp_path: Path) -> None:
    facts = probe_storage(tmp_path / "runs" / "a", 3 * MB)
    assert (facts.refused, list(tmp_path.iterdir())) == (None, [])
    volume = os.statvfs(tmp_path)
    assert facts.free is not None
    assert abs(facts.free - volume.f_bavail * volume.f_frsize) < 10**9


def test_the_probe_meets_a_disk_that_is_too_small(tmp_path: Path) -> None:
    # A limit of this process's files stands for a quota: the kernel refuses in the same call.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MB, hard))
        assert probe_storage(tmp_path, 3 * MB).refused == errno.EFBIG
        assert probe_storage(tmp_path, MB).refused is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_folder_that_is_not_there_is_looked_for_above(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    assert existing_parent(tmp_path) == tmp_path


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    mounts = (
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "30 22 0:30 / /data rw shared:1 - nfs4 server:/data rw\n"
        "31 30 0:31 / /data/my\\040scratch rw - tmpfs tmpfs rw\n"
    )
    assert file_system(Path("/home/a"), mounts) == "ext4"
    assert file_system(Path("/data/runs"), mounts) == "nfs4"
    assert file_system(Path("/database"), mounts) == "ext4"
    assert file_system(Path("/data/my scratch/runs"), mounts) == "tmpfs"
