"""`resscale runs`: a table of what the directories and SLURM say."""

import json
from pathlib import Path

import pytest

from resscale.cli_runs import run_runs
from resscale.cluster.job_record import JobRecord, write_job
from resscale.errors import UserInputError
from resscale.training.owner import Owner, write_owner
from resscale.training.rundir import RunDir


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, one of a job, and one that was only submitted; no SLURM."""
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    for name, status, epoch in (("a", "done", 20), ("sweep/b", "preempted", 3)):
        run = RunDir(folder / name)
        run.path.mkdir(parents=True)
        run.config.write_text("trainer: {max_epochs: 20}\n")
        run.write_summary(
            {"status": status, "epoch": epoch, "val_top1": 0.98, "best_val_top1": 0.985}
        )
    write_owner(folder / "sweep/b", Owner("7_1", restart_count=2))
    write_job(folder / "c", JobRecord("9", "", "", [], {}, "", "", 1, 1, 0))
    return folder


def test_each_run_is_a_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_runs([]) == 0
    title, *rows, hint = capsys.readouterr().out.splitlines()
    assert title.split() == ["run", "state", "epoch", "top-1", "best", "job", "restarts"]
    assert [row.split() for row in rows] == [
        ["a", "done", "20/20", "98.00%", "98.50%", "-", "-"],
        ["sweep/b", "preempted", "3/20", "98.00%", "98.50%", "7_1", "2"],
        ["c", "submitted?", "0", "-", "-", "9", "0"],
    ]
    assert hint.startswith("whether the jobs are still there is not known: there is no scontrol")


def test_a_sweep_or_a_run_may_be_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_runs(["runs/sweep"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("b ")
    assert run_runs(["runs/a"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("a ")
    assert len(said) == 2  # no job, so nothing is said of SLURM


def test_the_table_is_to_be_had_as_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_runs(["--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["path"] == "runs/a"
    assert (first["state"], first["epochs_done"], first["top1"]) == ("done", 20, 0.98)


def test_a_folder_without_runs_is_refused(runs: Path) -> None:
    with pytest.raises(UserInputError, match=r"^run holds no runs.* Did you mean 'runs'\?"):
        run_runs(["run"])


def test_help_is_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_runs(["--help"]) == 0
    assert "resscale runs --json" in capsys.readouterr().out
