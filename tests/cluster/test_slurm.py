"""SLURM's answers, as 22.05 gives them, and its refusals."""

import subprocess
from pathlib import Path

import pytest

from resscale.cluster.slurm import (
    JobInfo,
    call,
    explain_refusal,
    find_jobs,
    parse_jobs,
    parse_time,
)
from resscale.errors import UserInputError

RUNNING = (
    "JobId=17658 JobName=rq UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=1 Nice=0 "
    "Account=(null) QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2 "
    "BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:01:30 TimeLimit=1-00:00:00 TimeMin=N/A "
    "StartTime=2026-11-23T20:22:46 EndTime=2026-11-24T20:22:46 Deadline=N/A "
    "ReqNodeList=(null) ExcNodeList=(null) NodeList=n[2-3] BatchHost=n2 NumNodes=2 NumCPUs=8 "
    "Command=/home/a b/train.sbatch --config c.yaml WorkDir=/home/a b StdOut=/home/a b/JobState=x\n"
)
TASKS = (
    "JobId=12 ArrayJobId=10 ArrayTaskId=1 JobName=s JobState=FAILED Reason=NonZeroExitCode "
    "ExitCode=2:0 RunTime=00:00:03 TimeLimit=UNLIMITED NodeList=n1\n"
    "JobId=11 ArrayJobId=10 ArrayTaskId=0 JobName=s JobState=FAILED Reason=RaisedSignal:9 "
    "ExitCode=0:9 RunTime=00:00:05 TimeLimit=UNLIMITED NodeList=n2\n"
)


def test_a_running_job_is_read() -> None:
    assert parse_jobs(RUNNING) == [
        JobInfo(
            job_id="17658",
            state="RUNNING",
            restarts=2,
            run_time_s=90,  # 1:30
            time_limit_s=86400,  # 1 day
            nodes="n[2-3]",
            start_time="2026-11-23T20:22:46",
        )
    ]


def test_the_tasks_of_an_array_are_jobs_of_their_own() -> None:
    second, first = parse_jobs(TASKS)
    assert (first.job_id, second.job_id) == ("10_0", "10_1")
    assert (first.exit_code, second.exit_code) == (137, 2)  # 128 + signal 9
    assert first.time_limit_s is None


@pytest.mark.parametrize(
    ("state", "over"),
    [("PENDING", False), ("RUNNING", False), ("COMPLETING", False), ("REQUEUED", False),
     ("COMPLETED", True), ("FAILED", True), ("TIMEOUT", True), ("CANCELLED", True)],
)  # fmt: skip
def test_a_job_is_over_when_slurm_will_not_start_it_again(state: str, over: bool) -> None:
    assert JobInfo("1", state).is_over == over


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:07", 7),
        ("01:02:03", 3723),  # 3600 + 2 × 60 + 3
        ("2-01:00:00", 176400),  # 49 × 3600
        ("90", 5400),  # minutes
        ("90:30", 5430),  # minutes and seconds
        ("1-12", 129600),  # a day and 12 hours
        ("1-00:30", 88200),  # a day and 30 minutes
        ("UNLIMITED", None),
        ("Partition_Limit", None),
    ],
)
def test_times_are_seconds(text: str, seconds: int | None) -> None:
    assert parse_time(text) == seconds


def test_a_refusal_is_one_sentence_in_slurms_words() -> None:
    answer = subprocess.CompletedProcess(
        ["sbatch", "x"], 1, "", "sbatch: error: invalid partition specified: gpu\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )  # fmt: skip
    assert explain_refusal(answer) == (
        "sbatch refuses: invalid partition specified: gpu; "
        "Batch job submission failed: Invalid partition name specified."
    )


def test_a_refusal_without_words_names_the_code() -> None:
    assert explain_refusal(subprocess.CompletedProcess(["sbatch"], 3, "", "")) == (
        "sbatch refuses: exit code 3."
    )


def test_a_machine_without_slurm_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserInputError, match=r"there is no sbatch on this machine.*login node"):
        call(["sbatch"])
    with pytest.raises(UserInputError, match="there is no scontrol"):
        find_jobs("1")
