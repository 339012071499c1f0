"""What is told of a job while it waits, runs and ends; the loop itself is tested on a cluster."""

from pathlib import Path

import pytest

from resscale.cluster.follow import LogTail, changes, describe, final_code, follow
from resscale.cluster.slurm import JobInfo
from resscale.errors import UserInputError


def test_a_log_is_told_once_and_in_whole_lines(tmp_path: Path) -> None:
    tail = LogTail(tmp_path / "log")
    assert tail.read() == ""  # not there yet
    (tmp_path / "log").write_text("one\ntw")
    assert tail.read() == "one\n"
    assert tail.read() == ""
    with (tmp_path / "log").open("a") as file:
        file.write("o\n")
    assert tail.read() == "two\n"


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (JobInfo("7", "PENDING"), "job 7: waits"),
        (JobInfo("7", "PENDING", "Priority", start_time="2026-11-24T01:00:00", restarts=2),
         "job 7: waits (Priority), to start about 2026-11-24T01:00:00, restart 2"),
        (JobInfo("7", "RUNNING", nodes="n[1-2]"), "job 7: RUNNING on n[1-2]"),
        (JobInfo("7", "COMPLETED", nodes="n1"), "job 7: COMPLETED, exit code 0"),
        (JobInfo("7", "FAILED", nodes="n1", exit_code=2), "job 7: FAILED, exit code 2"),
    ],
)  # fmt: skip
def test_a_state_is_a_line(job: JobInfo, line: str) -> None:
    assert describe(job) == line


def test_only_what_has_changed_is_told() -> None:
    first, second = JobInfo("7_0", "PENDING"), JobInfo("7_1", "RUNNING")
    assert len(changes({}, [second, first])) == 2
    told = {"7_0": first, "7_1": second}
    assert changes(told, [first, second]) == []
    assert changes(told, [JobInfo("7_0", "RUNNING"), JobInfo("7_1", "RUNNING", run_time_s=9)]) == [
        "job 7_0: RUNNING"
    ]
    again = JobInfo("7_1", "RUNNING", restarts=1)
    assert changes(told, [again]) == ["job 7_1: RUNNING, restart 1"]


def test_the_code_is_the_highest_of_the_jobs() -> None:
    assert final_code([JobInfo("1", "COMPLETED")]) == 0
    assert final_code([JobInfo("1", "COMPLETED"), JobInfo("2", "FAILED", exit_code=70)]) == 70
    assert final_code([JobInfo("1", "CANCELLED")]) == 1  # SLURM gives it the code 0
    assert final_code([]) == 0


def test_without_slurm_there_is_nothing_to_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserInputError, match="there is no scontrol"):
        follow("7", None, [], print, poll_s=0.01, patience_s=0.02)
