"""What is sent, and what is left where it cannot be sent; tests/slurm sends it."""

from pathlib import Path

import pytest

from resscale.cli_submit_send import Submission, refuse_queued, send
from resscale.cluster.job_record import JobRecord, write_job
from resscale.cluster.sweep import plan_sweep
from resscale.errors import UserInputError


def submission(folder: Path, *sweeps: str) -> Submission:
    """A job in a folder, or a sweep."""
    tasks = plan_sweep(sweeps) if sweeps else []
    log = folder / ("slurm-%A_%a.out" if tasks else "slurm-%j.out")
    script = str(folder / "train.sbatch")
    record = JobRecord("", "now", "resscale submit", [], {}, script, str(log), 1, 1, 0)
    run_dirs = [folder / task.label for task in tasks] or [folder]
    return Submission(folder, run_dirs, tasks, ["sbatch", script], {}, "#!/bin/bash\n", record)


@pytest.fixture(autouse=True)
def _without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))


def test_a_job_and_a_task_have_logs_of_their_own(tmp_path: Path) -> None:
    assert submission(Path("runs/a")).log_of("12") == "runs/a/slurm-12.out"
    assert submission(Path("runs/a"), "seed=0,1").log_of("12_1") == "runs/a/slurm-12_1.out"


def test_nothing_is_left_of_what_could_not_be_sent(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="there is no sbatch"):
        send(submission(tmp_path / "runs" / "a", "seed=0,1"))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_that_was_there_stays_when_its_job_could_not_be_sent(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").touch()
    with pytest.raises(UserInputError, match="there is no sbatch"):
        send(submission(tmp_path / "a"))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.yaml",
        "train.sbatch",
    ]


def test_where_slurm_cannot_be_asked_a_recorded_job_is_no_hindrance(tmp_path: Path) -> None:
    refuse_queued(tmp_path)
    write_job(tmp_path, JobRecord("12", "", "", [], {}, "", "", 1, 1, 0))
    refuse_queued(tmp_path)
