"""job.json: written whole, read back, and no hindrance where it is torn."""

from pathlib import Path

from resscale.cluster.job_record import JobRecord, read_job, write_job

RECORD = JobRecord(
    job_id="4711",
    submitted="2026-11-23T10:00:00+0000",
    command="resscale submit --nodes 2",
    sbatch=["sbatch", "x"],
    environment={"A": "1"},
    script="runs/a/train.sbatch",
    log="runs/a/slurm-4711.out",
    nodes=2,
    tasks_per_node=8,
    gpus_per_node=8,
)


def test_the_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    file = write_job(tmp_path / "run", RECORD)
    assert file == tmp_path / "run" / "job.json"
    assert read_job(tmp_path / "run") == RECORD
    assert [path.name for path in file.parent.iterdir()] == ["job.json"]


def test_without_a_record_there_is_none(tmp_path: Path) -> None:
    assert read_job(tmp_path) is None


def test_a_torn_or_foreign_record_is_none(tmp_path: Path) -> None:
    for text in ('{"job_id": "1"', '{"job_id": "1"}', '{"other": 1}', "[]"):
        (tmp_path / "job.json").write_text(text)
        assert read_job(tmp_path) is None
