"""A rank that cannot begin ends all of its start, and nobody of another."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from resscale.cluster.environment import SlurmJob, read_slurm
from resscale.cluster.refusal import Refusal

# Waits inside a library (a lock that it holds), as ranks do for each other.
WAITS = """
import ctypes, sys
from pathlib import Path
from resscale.cluster.environment import read_slurm
from resscale.cluster.refusal import Refusal
refusal = Refusal(Path(sys.argv[1]), read_slurm({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}))
refusal.watch()
if sys.argv[2] == "trains":
    refusal.over()
print("waits", flush=True)
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)
"""


def job(**more: str) -> SlurmJob:
    found = read_slurm({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", **more})
    assert found is not None
    return found


def start(folder: Path, how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(folder), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_ranks_that_wait_inside_a_library_end_with_the_code_of_the_one_that_refuses(
    tmp_path: Path,
) -> None:
    process = start(tmp_path, "waits")
    Refusal(tmp_path, job()).tell(2)
    process.communicate(timeout=30)
    assert process.returncode == 2


@pytest.mark.parametrize("how", ["trains", "of another start"])
def test_who_trains_or_is_of_another_start_is_left_alone(tmp_path: Path, how: str) -> None:
    process = start(tmp_path, how)
    mine = job() if how == "trains" else job(SLURM_RESTART_COUNT="1")
    Refusal(tmp_path, mine).tell(2)
    time.sleep(2.5)  # two rounds of its watch
    assert process.poll() is None
    end(process)


def test_the_first_to_refuse_is_the_one_that_counts(tmp_path: Path) -> None:
    first, second = Refusal(tmp_path, job()), Refusal(tmp_path, job())
    first.tell(75)
    second.tell(2)
    (said,) = (tmp_path / "ranks").iterdir()
    assert said.read_text() == '{"code": 75}'


def test_once_training_has_begun_nobody_refuses(tmp_path: Path) -> None:
    refusal = Refusal(tmp_path, job())
    refusal.over()
    refusal.tell(2)
    assert not (tmp_path / "ranks").exists()


def test_where_nobody_can_write_a_refusal_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "ranks").write_text("no folder")
    Refusal(tmp_path, job()).tell(2)
