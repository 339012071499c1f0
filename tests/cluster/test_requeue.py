"""Which ends of a job lead back into the queue, and what the ledger says of it."""

import json
import os
from pathlib import Path

import pytest

from resscale.cluster.requeue import _has_hung, decide, find_run_dir, main, may_requeue, newest_step
from resscale.cluster.slurm import JobInfo


def test_a_stop_on_request_is_always_requeued() -> None:
    assert decide(75, step=0, failed_at=[0] * 50).requeue
    # 50 stops, each of them further than the one before.
    assert decide(75, step=50, failed_at=[], stopped_at=range(50)).requeue


@pytest.mark.parametrize("code", [0, 2, 70, 130])
def test_what_would_happen_again_is_not_requeued(code: int) -> None:
    assert not decide(code, step=1000, failed_at=[]).requeue


@pytest.mark.parametrize("code", [1, 137, 143, 139])
def test_a_fault_is_requeued(code: int) -> None:
    assert decide(code, step=0, failed_at=[]).requeue


def test_faults_without_progress_are_requeued_three_times() -> None:
    answers = [decide(1, step=40, failed_at=[40] * earlier).requeue for earlier in range(5)]
    assert answers == [True, True, True, False, False]


def test_faults_are_requeued_for_ever_as_long_as_the_run_gets_on() -> None:
    assert decide(137, step=41, failed_at=range(41)).requeue
    # Three at step 40, and then a checkpoint at step 60.
    assert decide(137, step=60, failed_at=[40, 40, 40]).requeue


def test_a_checkpoint_that_was_lost_is_no_progress() -> None:
    assert not decide(137, step=20, failed_at=[40, 40, 20]).requeue


def test_the_reason_names_the_code_and_the_count() -> None:
    assert "requeued at step 40 before: 2 of 3 times" in decide(1, 40, [40, 40]).reason
    assert "exit code 1 for the 4th time" in decide(1, 40, [40, 40, 40]).reason


@pytest.mark.parametrize(
    ("state", "run_time_s", "ours"),
    [
        ("RUNNING", 10, True),
        ("COMPLETING", 10, False),  # cancelled by the user, or requeued by SLURM already
        ("COMPLETING", 60, True),  # the time limit: nobody else requeues it
        ("TIMEOUT", 61, True),
        ("CANCELLED", 61, False),
        ("PENDING", 0, False),  # requeued by SLURM
    ],
)
def test_a_job_that_was_cancelled_or_requeued_by_slurm_is_left_alone(
    state: str, run_time_s: int, ours: bool
) -> None:
    assert may_requeue(JobInfo("1", state, run_time_s=run_time_s, time_limit_s=60)) == ours


def test_a_cancelled_job_without_a_time_limit_is_left_alone() -> None:
    assert not may_requeue(JobInfo("1", "COMPLETING", run_time_s=10**6, time_limit_s=None))


def test_progress_is_the_newest_checkpoints_step(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in (
        "epoch-0000-step-00000009.ckpt",
        "epoch-0001-step-00000012.ckpt",
        "epoch-0002-step-00000020.ckpt.tmp",  # half written
        "last.ckpt",
    ):
        (folder / name).touch()
    assert newest_step(tmp_path) == 12


def test_the_run_directory_is_the_one_that_the_arguments_name(tmp_path: Path) -> None:
    assert find_run_dir(["--config", "a.yaml", "--run_dir", str(tmp_path)], "7") == tmp_path
    assert find_run_dir(["--run_dir=nowhere", f"--run_dir={tmp_path}"], "7") == tmp_path
    assert find_run_dir(["--run_dir", str(tmp_path / "never-made")], "7") is None


def test_without_a_name_the_run_directory_is_found_by_the_jobs_number(tmp_path: Path) -> None:
    for age, name in enumerate(("demo-job5_7-abc123", "demo-job7-abc123", "demo-job71-abc123")):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (age, age))
    runs_dir = ["--runs_dir", str(tmp_path)]
    assert find_run_dir(runs_dir, "7") == tmp_path / "demo-job7-abc123"
    assert find_run_dir(runs_dir, "5_7") == tmp_path / "demo-job5_7-abc123"
    assert find_run_dir(runs_dir, "8") is None


def test_of_runs_with_the_same_number_the_newest_is_meant(tmp_path: Path) -> None:
    for age, name in enumerate(("b-job7-abc123", "c-job7-abc123", "a-job7-abc123")):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (age, age))
    # A cluster that was set up anew counts from 1 again.
    assert find_run_dir(["--runs_dir", str(tmp_path)], "7") == tmp_path / "a-job7-abc123"


def test_outside_a_job_there_is_nothing_to_requeue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["75", "--config", "demo.yaml"]) == 1
    assert "no SLURM job" in capsys.readouterr().err


def test_an_end_for_good_needs_no_slurm_and_stands_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert main(["70", "--run_dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "resscale: job 4711 ends: a guard ended the run\n"
    (entry,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    del entry["time"]
    assert entry == {
        "event": "requeue", "code": 70, "step": 0, "job": "4711", "restart": 2,
        "requeued": False, "reason": "a guard ended the run",
    }  # fmt: skip


def test_a_job_that_is_done_leaves_no_word_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert main(["0", "--run_dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "resscale: job 4711 ends: the run is done\n"
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_cannot_be_requeued_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["75"]) == 1
    assert "job 4711 is not requeued: there is no scontrol on this machine" in (
        capsys.readouterr().err
    )


def test_a_run_of_unknown_place_is_requeued_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert main(["1", "--config", "demo.yaml"]) == 0
    assert "job 4711 ends: exit code 1 for the 4th time" in capsys.readouterr().out


def test_a_job_that_is_stopped_before_it_gets_anywhere_does_not_go_on_for_ever() -> None:
    assert decide(75, step=40, failed_at=[], stopped_at=[40] * 99).requeue
    ended = decide(75, step=40, failed_at=[], stopped_at=[40] * 100)
    assert not ended.requeue
    assert ended.reason == "stopped again, 100 times before without a newer checkpoint"


def test_ranks_that_stood_still_have_had_a_fault() -> None:
    assert not decide(70, step=40, failed_at=[]).requeue
    assert decide(70, step=40, failed_at=[], is_hang=True).requeue
    assert not decide(70, step=40, failed_at=[40] * 3, is_hang=True).requeue


def test_a_hang_of_an_earlier_start_is_no_hang_of_this_one() -> None:
    hang = {"time": "2026-11-23T10:00:00+0000", "kind": "hang"}
    gone = {"time": "2026-11-23T12:00:00+0000", "kind": "gone"}
    requeued = {"time": "2026-11-23T11:00:00+0000", "code": 70}
    assert _has_hung([hang], [])
    assert not _has_hung([hang], [requeued])
    assert not _has_hung([hang, gone], [])
    assert not _has_hung([], [])
