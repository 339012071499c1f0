"""Shared memory and open files."""

import os
import resource

from resscale.cluster.doctor.limits import (
    Batches,
    check_open_files,
    check_shared_memory,
    probe_open_files,
    probe_shared_memory,
)

# 8 ranks × 4 workers × (4 waiting + 1 being written) × 10 MB = 1.6 GB
BATCHES = Batches(per_node=8, num_workers=4, prefetch=4, batch_bytes=10_000_000, world_size=16)
MB, GB = 10**6, 10**9


def test_shared_memory_that_batches_fit_into_is_well() -> None:
    (found,) = check_shared_memory(2 * GB, 2 * GB, BATCHES)
    assert found.level == "ok"
    assert found.text.endswith("8 ranks × 20 batches of 10.0 MB need 1.6 GB")


def test_the_shared_memory_of_a_container_fails() -> None:
    (found,) = check_shared_memory(64 * MB, 64 * MB, BATCHES)
    assert found.level == "fail"
    assert "--shm-size" in found.remedy
    assert "--data.num_workers (now 4)" in found.remedy


def test_little_shared_memory_is_warned_of_where_no_configuration_says_what_is_needed() -> None:
    assert check_shared_memory(64 * MB, 64 * MB, None)[0].level == "warn"
    assert check_shared_memory(8 * GB, 8 * GB, None)[0].level == "ok"


def test_open_files_of_batches_and_ranks_are_counted() -> None:
    # 256 + 20 batches × 4 tensors + 2 × 16 ranks
    assert BATCHES.open_files == 256 + 80 + 32
    assert check_open_files(368, 4096, BATCHES)[0].level == "ok"


def test_too_few_open_files_fail_with_what_can_be_done_here() -> None:
    (found,) = check_open_files(367, 4096, BATCHES)
    assert (found.level, found.text) == ("fail", "up to 367, and a rank needs about 368")
    assert found.remedy == "put `ulimit -n 4096` before the command"
    assert "administrator" in check_open_files(300, 300, BATCHES)[0].remedy


def test_the_probes_read_this_process_s_limits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        assert probe_open_files()[0] == soft - 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    free, total = probe_shared_memory()
    volume = os.statvfs("/dev/shm")
    assert total == volume.f_blocks * volume.f_frsize
    assert 0 <= free <= total
