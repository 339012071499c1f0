"""The run directory: its files, its table's columns, and cutting it back to a checkpoint."""

import csv
import json
import re
from pathlib import Path

import pytest

from resscale.errors import UserInputError
from resscale.training.rundir import METRIC_COLUMNS, SPEED_COLUMNS, RunDir, append_line


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def log_samples(run: RunDir, rank: int, places: list[tuple[int, int]]) -> None:
    """Log batches consumed at these (epoch, step)."""
    for epoch, step in places:
        entry = {"epoch": epoch, "step": step, "ids": [rank]}
        append_line(run.samples(rank), json.dumps(entry))


def places(run: RunDir, rank: int) -> list[tuple[int, int]]:
    """The (epoch, step) of each line of a rank's log."""
    entries = [json.loads(line) for line in run.samples(rank).read_text().splitlines()]
    return [(entry["epoch"], entry["step"]) for entry in entries]


def test_the_files_of_a_run_are_where_the_contract_says(run: RunDir) -> None:
    names = {
        str(path.relative_to(run.path))
        for path in (run.checkpoints, run.metrics, run.summary, run.events, run.config)
    }
    assert names == {"checkpoints", "metrics.csv", "summary.json", "events.jsonl", "config.yaml"}
    assert run.samples(3) == run.path / "samples" / "rank-3.jsonl"


def test_the_table_has_exactly_the_contracts_columns(run: RunDir) -> None:
    run.append_metrics({"epoch": 0, "step": 1, "train/loss": 2.5, "unknown": 7})
    header = run.metrics.read_text().splitlines()[0]
    assert header == (
        "epoch,step,train/loss,train/top1,val/loss,val/top1,val/top5,val/ema_top1,lr,"
        "images_per_s,data_wait"
    )
    assert header == ",".join(METRIC_COLUMNS)


def test_rows_are_appended_under_one_header_and_gaps_stay_empty(run: RunDir) -> None:
    run.append_metrics({"epoch": 0, "step": 1, "train/loss": 1 / 3})
    RunDir(run.path).append_metrics({"epoch": 0, "step": 2, "val/top1": 0.5})  # a restart
    with run.metrics.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["step"], first["train/loss"], first["val/top1"]) == ("1", "0.333333333", "")
    assert (second["step"], second["train/loss"], second["val/top1"]) == ("2", "", "0.5")


def test_speed_and_memory_stand_in_a_table_of_their_own(run: RunDir) -> None:
    run.append_speed({"epoch": 0, "step": 5, "memory_bytes": 1.5e9, "skipped_steps": 0.0})
    RunDir(run.path).append_speed({"epoch": 0, "step": 10, "step_s_p50": 0.25})  # a restart
    with run.speed.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert tuple(first) == SPEED_COLUMNS
    assert (first["step"], first["memory_bytes"], first["mfu"]) == ("5", "1.5e+09", "")
    assert (second["step"], second["memory_bytes"], second["step_s_p50"]) == ("10", "", "0.25")
    assert not run.metrics.exists()


def test_events_are_one_json_object_a_line(run: RunDir) -> None:
    run.append_event("bad_sample", id=7, key="a")
    run.append_event("ended", status="done")
    first, second = (json.loads(line) for line in run.events.read_text().splitlines())
    assert (first["event"], first["id"], first["key"]) == ("bad_sample", 7, "a")
    assert (second["event"], second["status"]) == ("ended", "done")
    assert first["time"].startswith("20")


def test_events_of_a_kind_are_read_back_past_a_torn_line(run: RunDir) -> None:
    assert run.read_events("bad_sample") == []
    run.append_event("bad_sample", key="a")
    append_line(run.events, '{"event": "bad_sam')
    run.append_event("ended", status="done")
    run.append_event("bad_sample", key="b")
    assert [event["key"] for event in run.read_events("bad_sample")] == ["a", "b"]


def test_the_summary_is_replaced_whole(run: RunDir) -> None:
    assert run.read_summary() == {}
    run.write_summary({"status": "running", "epoch": 1})
    run.write_summary({"status": "done"})
    assert run.read_summary() == {"status": "done"}
    assert [path.name for path in run.path.iterdir()] == ["summary.json"]


def test_a_torn_summary_reads_as_none(run: RunDir) -> None:
    run.write_summary({"status": "done"})
    run.summary.write_text('{"status": "do')
    assert run.read_summary() == {}


def test_what_was_logged_behind_the_checkpoint_is_dropped_on_every_rank(run: RunDir) -> None:
    written = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    for rank in (0, 1):
        log_samples(run, rank, written)
    # The checkpoint stands behind step 0 of epoch 1: the next step is 1 of epoch 1.
    run.cut_back(epoch=1, step_in_epoch=1, global_step=3)
    for rank in (0, 1):
        assert places(run, rank) == [(0, 0), (0, 1), (1, 0)]


def test_at_the_start_of_an_epoch_only_whole_epochs_stay(run: RunDir) -> None:
    log_samples(run, 0, [(0, 0), (0, 1), (1, 0)])
    run.cut_back(epoch=1, step_in_epoch=0, global_step=2)
    assert places(run, 0) == [(0, 0), (0, 1)]


def test_rows_of_the_tables_behind_the_checkpoint_are_dropped(run: RunDir) -> None:
    for step in (1, 2, 3, 4):
        run.append_metrics({"epoch": 0, "step": step, "train/loss": float(step)})
        run.append_speed({"epoch": 0, "step": step, "memory_bytes": 100.0 * step})
    run.cut_back(epoch=0, step_in_epoch=2, global_step=2)
    with run.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]  # and the header is still there
    assert [row["train/loss"] for row in rows] == ["1", "2"]
    with run.speed.open(newline="") as file:
        speed = [(row["step"], row["memory_bytes"]) for row in csv.DictReader(file)]
    assert speed == [("1", "100"), ("2", "200")]


@pytest.mark.parametrize("torn", ['{"epoch": 0, "st', "{", "[1, 2", '{"epoch": 0}'])
def test_a_torn_last_line_of_the_sample_log_goes_too(run: RunDir, torn: str) -> None:
    log_samples(run, 0, [(0, 0), (0, 1)])
    with run.samples(0).open("a") as file:
        file.write(torn)
    run.cut_back(epoch=0, step_in_epoch=2, global_step=2)
    assert places(run, 0) == [(0, 0), (0, 1)]
    log_samples(run, 0, [(0, 2)])  # the next line begins on a line of its own
    assert places(run, 0)[-1] == (0, 2)


def test_a_torn_last_row_of_the_table_goes_too(run: RunDir) -> None:
    run.append_metrics({"epoch": 0, "step": 1, "train/loss": 1.0})
    with run.metrics.open("a") as file:
        file.write("0")
    run.cut_back(epoch=0, step_in_epoch=1, global_step=1)
    run.append_metrics({"epoch": 0, "step": 2, "train/loss": 2.0})
    with run.metrics.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_run_without_logs_can_be_cut_back(run: RunDir) -> None:
    run.cut_back(epoch=0, step_in_epoch=1, global_step=1)
    assert not run.path.exists()


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    append_line(path, "a")
    append_line(path, "b")
    assert path.read_text() == "a\nb\n"


def test_one_process_at_a_time_trains_in_a_run_directory(run: RunDir) -> None:
    run.take()
    run.config.write_text("seed_everything: 0\n")  # the lock stays with a file that is rewritten
    other = RunDir(run.path)
    with pytest.raises(UserInputError, match=r"another process trains in .* another --run_dir"):
        other.take()
    run.leave()
    other.take()
    assert other.config.read_text() == "seed_everything: 0\n"
    other.leave()


def test_the_columns_of_the_table_of_speed_are_all_described(repository: Path) -> None:
    page = (repository / "docs" / "training.md").read_text()
    section = page.partition("\n## speed.csv\n")[2].partition("\n## ")[0]
    firsts = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert tuple(re.findall(r"`(\w+)`", " ".join(firsts))) == SPEED_COLUMNS
