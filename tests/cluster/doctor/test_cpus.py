"""CPUs of a rank against its reading processes."""

import os
from pathlib import Path

import pytest

from resscale.cluster.doctor.cpus import (
    CpuFacts,
    check_cpus,
    cpus_per_rank,
    probe_cpus,
    read_quota,
)


def test_reading_processes_that_have_cpus_are_well() -> None:
    (found,) = check_cpus(CpuFacts(64, 64), 8, 7, None)  # 64 / 8 = 8 = 7 + 1
    assert found.level == "ok"
    assert found.text == "8 of 64 CPUs of the machine for each rank, data.num_workers=7"


def test_more_reading_processes_than_cpus_are_warned_of() -> None:
    (found,) = check_cpus(CpuFacts(64, 64), 8, 12, None)
    assert found.level == "warn"
    assert "data.num_workers=12 and the rank itself want 13" in found.text
    assert found.remedy == (
        "give each node 104 CPUs (in SLURM: --cpus-per-task=13), or set --data.num_workers 7"
    )  # 13 × 8 ranks = 104


def test_the_one_cpu_that_srun_gives_unasked_is_warned_of() -> None:
    (found,) = check_cpus(CpuFacts(1, 64), 8, None, 1)
    assert found.level == "warn"
    assert "decoded between the steps" in found.text
    assert found.remedy == "ask SLURM for --cpus-per-task=4"


@pytest.mark.parametrize(
    ("facts", "per_node", "cpus_per_task", "share"),
    [
        (CpuFacts(64, 64), 8, None, 8),
        (CpuFacts(8, 64), 8, 8, 8),  # bound to its own
        (CpuFacts(64, 64), 8, 8, 8),  # not bound: shared with seven others
        (CpuFacts(64, 64, 16.5), 4, None, 4),  # 16 / 4
        (CpuFacts(2, 2), 4, None, 0),
    ],
)
def test_cpus_are_a_rank_s_own_or_shared(
    facts: CpuFacts, per_node: int, cpus_per_task: int | None, share: int
) -> None:
    assert cpus_per_rank(facts, per_node, cpus_per_task) == share


def test_the_quota_of_a_container_is_read(tmp_path: Path) -> None:
    assert read_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert read_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert read_quota(tmp_path) == 2.5


def test_the_quota_of_an_older_kernel_is_read(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("400000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert read_quota(tmp_path) == 4.0


def test_the_probe_counts_this_process_s_cpus() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert probe_cpus().allowed == 1
    finally:
        os.sched_setaffinity(0, before)
    assert probe_cpus().allowed == len(before)
