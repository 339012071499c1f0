"""When the job's time is nearly over."""

import dataclasses
import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from resscale.cluster.deadline import Deadline, ask_slurm, parse_end
from resscale.cluster.environment import SlurmJob, read_slurm


def job(end_time_s: float | None) -> SlurmJob:
    found = read_slurm({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"})
    assert found is not None
    return dataclasses.replace(found, end_time_s=end_time_s)


def test_the_end_is_near_within_the_margin() -> None:
    deadline = Deadline(job(1000.0), lambda: 1000.0)
    assert not deadline.is_near(60.0, now_s=939.0)
    assert deadline.is_near(60.0, now_s=940.0)


def test_a_limit_that_was_moved_is_heard_of_in_time() -> None:
    deadline = Deadline(job(1000.0), lambda: 5000.0)
    assert not deadline.is_near(60.0, now_s=990.0)
    assert deadline.is_near(60.0, now_s=4940.0)


def test_slurm_is_asked_once_a_minute_at_most() -> None:
    asked: list[float] = []

    def ask() -> float:
        asked.append(0.0)
        # Nearer each time than the margin: as an end that is moved by little.
        return 1010.0

    deadline = Deadline(job(1000.0), ask)
    for now_s in range(940, 950):
        deadline.is_near(80.0, now_s=float(now_s))
    assert len(asked) == 1


def test_an_end_that_slurm_did_not_put_into_the_environment_is_asked_for() -> None:
    assert Deadline(job(None), lambda: 1000.0).is_near(60.0, now_s=990.0)


def test_a_job_without_a_limit_has_no_end() -> None:
    deadline = Deadline(job(None), lambda: None)
    assert not deadline.is_near(60.0, now_s=time.time())
    assert not deadline.is_near(60.0, now_s=1e12)


def test_slurm_s_answer_is_of_this_machine_s_zone() -> None:
    expected = datetime(2026, 11, 23, 20, 30).timestamp()
    assert parse_end("2026-11-23T20:30:00\n") == expected


@pytest.mark.parametrize("answer", ["", "N/A\n", "NONE", "Unknown"])
def test_no_answer_is_no_end(answer: str) -> None:
    assert parse_end(answer) is None


def test_where_there_is_no_slurm_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    assert ask_slurm("7") is None


def test_an_end_that_a_busy_slurm_did_not_tell_is_asked_for_again() -> None:
    answers = iter([None, 100_000.0])
    deadline = Deadline(job(None), lambda: next(answers))
    now_s = time.time()
    assert not deadline.is_near(60.0, now_s=now_s)
    # Ten minutes later; 100,000 is long ago.
    assert deadline.is_near(60.0, now_s=now_s + 601)
