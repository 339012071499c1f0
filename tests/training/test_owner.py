"""A later start of a job takes the run directory over from an earlier one that still lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from resscale.errors import ResscaleError, UserInputError
from resscale.training.owner import Owner, owner_file, read_owner, write_owner
from resscale.training.rundir import RunDir

FIRST = Owner("4711", 0, "n1", 10)
SECOND = Owner("4711", 1, "n2", 20)
# Holds the run directory as the job's first start, and leaves when a later one has taken it over.
HOLDER = """
import sys, time
from resscale.training.owner import Owner
from resscale.training.rundir import RunDir
run = RunDir(sys.argv[1])
run.take(Owner("4711", 0))
print("taken", flush=True)
while run.lost_to() is None:
    time.sleep(0.05)
print(f"lost to start {run.lost_to().restart_count}", flush=True)
"""


def test_a_later_start_of_the_same_job_follows() -> None:
    assert SECOND.follows(FIRST)
    assert not FIRST.follows(SECOND)
    assert not FIRST.follows(FIRST)
    assert not SECOND.follows(None)


def test_another_job_never_follows() -> None:
    assert not Owner("4712", 5).follows(FIRST)
    assert not Owner(None, 1).follows(Owner(None, 0))


def test_the_owner_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_owner(tmp_path) is None
    write_owner(tmp_path, FIRST)
    assert read_owner(tmp_path) == FIRST
    owner_file(tmp_path).write_text('{"job_id": "47')
    assert read_owner(tmp_path) is None


def test_a_node_that_slurm_has_lost_gives_the_run_to_the_next_start(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    run = RunDir(tmp_path)
    run.take(SECOND, patience_s=30)
    assert holder.communicate(timeout=30)[0] == "lost to start 1\n"
    assert run.lost_to() is None
    run.leave()


@pytest.mark.parametrize("other", [Owner(), Owner("4712", 7), FIRST], ids=["none", "job", "same"])
def test_nobody_else_takes_a_run_that_is_trained(tmp_path: Path, other: Owner) -> None:
    run = RunDir(tmp_path)
    run.take(FIRST)
    with pytest.raises(UserInputError, match=r"process 10 on n1, job 4711.*wait for its end"):
        RunDir(tmp_path).take(other, patience_s=30)
    assert run.lost_to() is None
    run.leave()


def test_a_start_that_does_not_end_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.take(FIRST)
    # No user's error (2), which would end the job for good.
    with pytest.raises(ResscaleError, match=r"still locked \(process 10 on n1") as raised:
        RunDir(tmp_path).take(SECOND, patience_s=0.2)
    assert raised.value.exit_code == 1
    # It has been told all the same.
    assert run.lost_to() == SECOND
    run.leave()


def test_an_abandoned_run_is_free_for_anybody(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.take(FIRST)
    run.leave()
    other = RunDir(tmp_path)
    other.take(Owner("4712", 0))
    other.leave()


def test_every_rank_can_see_that_its_start_is_over(tmp_path: Path) -> None:
    # A machine whose network is cut, but not its disk, hears of nothing else.
    other_rank = RunDir(tmp_path)
    other_rank.belong_to(FIRST)
    assert other_rank.lost_to() is None
    write_owner(tmp_path, SECOND)
    assert other_rank.lost_to() == SECOND
