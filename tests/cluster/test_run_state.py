"""How it goes with a run: its directory's word, and SLURM's."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from resscale.cluster.job_record import JobRecord, write_job
from resscale.cluster.run_state import RunFacts, find_job, find_run_dirs, read_run, state_of
from resscale.cluster.slurm import JobInfo
from resscale.training.owner import Owner, owner_file, write_owner
from resscale.training.rundir import RunDir


def make_run(path: Path, **summary: Any) -> RunDir:
    """A run directory as `fit` leaves it behind."""
    run = RunDir(path)
    run.path.mkdir(parents=True)
    run.config.write_text("trainer:\n  max_epochs: 20\n")
    if summary:
        run.write_summary(summary)
    return run


def submitted(path: Path, job_id: str) -> None:
    """A run directory as `submit` leaves it behind."""
    write_job(path, JobRecord(job_id, "", "", [], {}, "", "", 1, 1, 0))


def job(state: str, **more: Any) -> dict[str, JobInfo]:
    return {"7": JobInfo("7", state, **more)}


def test_a_run_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", status="running", epoch=3, val_top1=0.5, best_val_top1=0.75)
    write_owner(run.path, Owner("7", restart_count=2))
    assert read_run(run.path) == RunFacts(
        run.path, "running", 3, 20, 0.5, 0.75, "7", restarts=2, is_held=False
    )
    assert read_run(run.path).progress == "epoch 3 of 20, top-1 50.0%"


def test_an_empty_directory_says_nothing(tmp_path: Path) -> None:
    assert read_run(tmp_path) == RunFacts(tmp_path)
    assert read_run(tmp_path).progress == "epoch 0"


def test_the_table_is_ahead_of_the_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", status="running", epoch=3)
    run.append_metrics({"epoch": 4, "step": 90, "train/loss": 1.0})
    assert read_run(run.path).epochs_done == 4  # 0 to 3
    run.append_metrics({"epoch": 4, "step": 110, "val/loss": 1.0})
    assert read_run(run.path).epochs_done == 5  # the validation ends it
    with run.metrics.open("a") as file:
        file.write("5,11")  # torn
    assert read_run(run.path).epochs_done == 5


def test_who_trains_is_the_newest_job(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", status="preempted")
    submitted(run.path, "7")
    write_owner(run.path, Owner("8", restart_count=1))
    os.utime(run.path / "job.json", (100, 100))
    os.utime(owner_file(run.path), (200, 200))
    facts = read_run(run.path)
    assert (facts.job_id, facts.restarts) == ("8", 1)  # started by hand, behind job 7
    os.utime(run.path / "job.json", (300, 300))
    facts = read_run(run.path)
    assert (facts.job_id, facts.restarts) == ("7", 0)  # submitted again


def test_a_process_that_trains_is_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", status="running")
    run.take()
    assert read_run(run.path).is_held
    assert state_of(read_run(run.path), None) == "running"
    run.leave()
    assert not read_run(run.path).is_held
    assert state_of(read_run(run.path), None) == "gone"


def test_looking_at_a_run_leaves_its_lock_free(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    read_run(run.path)
    with run.config.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("status", "held", "jobs", "state"),
    [
        (None, None, job("PENDING", reason="Resources"), "waits (Resources)"),
        (None, None, job("PENDING"), "waits"),
        ("preempted", False, job("PENDING", reason="BeginTime"), "requeued, waits (BeginTime)"),
        (None, False, job("PENDING", restarts=1), "requeued, waits"),
        (None, None, job("RUNNING"), "starting"),
        ("preempted", False, job("RUNNING"), "starting"),
        ("preempted", True, job("RUNNING"), "running"),
        ("running", False, job("RUNNING"), "running"),
        ("running", True, job("COMPLETING"), "ending"),
        ("done", False, job("COMPLETED"), "done"),
        ("done", False, {}, "done"),
        ("failed", False, job("FAILED"), "failed"),
        ("preempted", False, job("CANCELLED"), "preempted (job CANCELLED)"),
        ("preempted", False, {}, "preempted"),
        ("running", False, job("NODE_FAIL"), "gone (job NODE_FAIL)"),
        ("running", False, {}, "gone"),
        (None, None, job("CANCELLED"), "never began (job CANCELLED)"),
        (None, None, {}, "never began"),
        ("running", True, {}, "running"),
        (None, True, {}, "starting"),
        ("running", None, None, "running?"),
        (None, None, None, "submitted?"),
        ("done", None, None, "done"),
    ],
)
def test_the_state_is_what_run_and_job_say_together(
    status: str | None, held: bool | None, jobs: dict[str, JobInfo] | None, state: str
) -> None:
    run = RunFacts(Path("a"), status=status, job_id="7", is_held=held)
    assert state_of(run, jobs) == state


def test_a_run_without_a_job_needs_no_slurm() -> None:
    run = RunFacts(Path("a"), status="running", is_held=None)
    assert state_of(run, {}) == "running?"  # a file system without locks


def test_a_task_of_an_array_is_found_among_those_that_wait_together() -> None:
    jobs = {name: JobInfo(name, "PENDING") for name in ("10_0", "10_2-4,8%2", "101_5")}
    assert find_job(jobs, "10_0") is jobs["10_0"]
    for name in ("10_2", "10_4", "10_8"):
        assert find_job(jobs, name) is jobs["10_2-4,8%2"]
    for name in ("10_5", "10_1", "10", "11_2"):
        assert find_job(jobs, name) is None


def test_runs_are_found_in_sweeps_too_and_the_oldest_is_first(tmp_path: Path) -> None:
    for number, name in enumerate(("c", "sweep/1-b", "sweep/0-b", "a")):
        run = make_run(tmp_path / name)
        os.utime(run.config, (number, number))
    submitted(tmp_path / "queued", "7")
    make_run(tmp_path / "too" / "deep" / "run")
    (tmp_path / "no-run").mkdir()
    (tmp_path / "latest").symlink_to("c")
    found = [str(path.relative_to(tmp_path)) for path in find_run_dirs(tmp_path)]
    assert found == ["c", "sweep/1-b", "sweep/0-b", "a", "queued"]
    assert find_run_dirs(tmp_path / "c") == [tmp_path / "c"]
    assert find_run_dirs(tmp_path / "nowhere") == []


def test_a_damaged_summary_does_not_hide_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.summary.write_text("{")
    run.config.write_text(": [")
    facts = read_run(run.path)
    assert (facts.status, facts.epochs_planned) == (None, None)
    run.config.write_text(json.dumps(["no mapping"]))
    assert read_run(run.path).epochs_planned is None
