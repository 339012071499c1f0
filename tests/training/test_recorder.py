"""The recorder: summary, metrics table and sample log, however a run ends."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resscale.cli import main
from resscale.data.decoders import choose_decoder
from resscale.errors import Preempted, TrainingStopped
from resscale.training.monitor import Monitor
from resscale.training.recorder import MetricsTable, Recorder, SampleLog
from resscale.training.rundir import RunDir, append_line

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
CONFIG = """
model: {model: resnet20_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, val: builtin:digits/test, channels: 1, image_size: 8,
       train_crop: center, global_batch_size: 64, eval_batch_size: 360, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 2, limit_train_batches: 2}
"""
CONTRACT = {
    "status", "epoch", "global_step", "samples_seen", "val_top1", "val_top5", "images_per_s",
    "num_parameters", "command", "resumed_from", "bad_samples",
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def trainer(run: RunDir) -> Any:
    """A trainer behind step 7 of epochs of 3, global batch 64."""
    progress = SimpleNamespace(current=SimpleNamespace(ready=1))
    return SimpleNamespace(
        default_root_dir=str(run.path),
        is_global_zero=True,
        global_rank=0,
        world_size=1,
        accumulate_grad_batches=1,
        num_training_batches=3,
        global_step=7,
        current_epoch=2,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        datamodule=SimpleNamespace(
            global_batch_size=64, train_crop=SimpleNamespace(size=8), decoder_name="pillow"
        ),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        strategy=SimpleNamespace(barrier=lambda name: None),
    )


MODULE: Any = SimpleNamespace(num_parameters=1234, num_macs=lambda size: 100 * size)


def test_a_real_run_leaves_a_summary_with_the_contracts_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESSCALE_RUN_DIR", "")  # the run sets it; taken back behind the test
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    arguments = ["--config", f"{tmp_path}/tiny.yaml", "--run_dir", f"{tmp_path}/run"]
    assert main(["fit", *arguments, "--data.log_sample_ids", "true"]) == 0
    run = RunDir(tmp_path / "run")
    summary = run.read_summary()
    assert set(summary) >= CONTRACT
    assert summary["status"] == "done"
    # 2 epochs of 2 steps of 64.
    places = (summary["epoch"], summary["global_step"], summary["samples_seen"])
    assert places == (2, 4, 256)
    assert summary["images_per_s"] > 0
    assert 0 <= summary["val_top1"] <= summary["val_top5"] <= 1
    assert summary["best_val_top1"] >= summary["val_top1"]
    assert summary["command"].startswith(f"resscale fit --config {tmp_path}/tiny.yaml --run_dir")
    assert summary["decoder"] == choose_decoder()
    assert (summary["resumed_from"], summary["bad_samples"]) == (None, 0)
    last_event = json.loads(run.events.read_text().splitlines()[-1])
    assert (last_event["event"], last_event["status"], last_event["step"]) == ("ended", "done", 4)
    # A line per batch, epoch by epoch, 64 ids each, none twice in an epoch.
    log = [json.loads(line) for line in run.samples(0).read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in log] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for first, second in (log[:2], log[2:]):
        assert len({*first["ids"], *second["ids"]}) == 128
    assert log[0]["ids"] != log[2]["ids"]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Preempted("stopped by SIGTERM"), "preempted", "stopped by SIGTERM"),
        (TrainingStopped("the loss is nan"), "stopped", "the loss is nan"),
        (ValueError("a bug"), "failed", "a bug"),
        (KeyboardInterrupt(), "stopped", "given up by the user (Ctrl-C)"),
    ],
)
def test_the_summary_says_how_a_run_ended(
    run: RunDir, trainer: Any, error: BaseException, status: str, reason: str
) -> None:
    recorder = Recorder(Monitor(), "resscale fit")
    recorder.on_train_start(trainer, MODULE)
    recorder.on_exception(trainer, MODULE, error)
    summary = run.read_summary()
    assert (summary["status"], summary["reason"]) == (status, reason)
    assert set(summary) >= CONTRACT
    assert (summary["global_step"], summary["samples_seen"]) == (7, 7 * 64)
    assert summary["num_parameters"] == 1234
    assert summary["num_macs"] == 100 * 8  # at the size of the training crop
    assert json.loads(run.events.read_text())["status"] == status


def test_the_summary_says_running_from_the_first_step_on(run: RunDir, trainer: Any) -> None:
    Recorder(Monitor(), "resscale fit").on_train_start(trainer, MODULE)
    assert run.read_summary()["status"] == "running"
    assert not run.events.exists()


def test_the_summary_holds_the_newest_and_the_best_accuracy(run: RunDir, trainer: Any) -> None:
    monitor = Monitor()
    recorder = Recorder(monitor, "resscale fit")
    for top1 in (0.5, 0.75, 0.625):
        monitor.latest.update({"val/top1": top1, "val/top5": 0.875})
        recorder.on_validation_end(trainer, MODULE)
    summary = run.read_summary()
    found = (summary["val_top1"], summary["val_top5"], summary["best_val_top1"])
    assert found == (0.625, 0.875, 0.75)


def test_the_summary_holds_what_the_newest_evaluation_visited(run: RunDir, trainer: Any) -> None:
    monitor = Monitor()
    monitor.latest.update({"val/top1": 0.5, "val/samples": 360.0, "val/masked": 24.0, "val/bad": 2})
    Recorder(monitor, "resscale fit").on_validation_end(trainer, MODULE)
    summary = run.read_summary()
    assert [summary[f"val_{name}"] for name in ("samples", "masked", "bad")] == [360, 24, 2]
    # A later start that has not evaluated yet keeps them, as it keeps the accuracy.
    Recorder(Monitor(), "resscale fit").on_train_start(trainer, MODULE)
    summary = run.read_summary()
    assert [summary[f"val_{name}"] for name in ("samples", "masked", "bad")] == [360, 24, 2]


def test_the_averages_accuracy_stands_beside_the_one_measured_with_it(
    run: RunDir, trainer: Any
) -> None:
    run.write_summary({"val_top1": 0.5, "val_ema_top1": 0.625})
    monitor = Monitor()
    recorder = Recorder(monitor, "resscale fit", Path("some.ckpt"))
    recorder.on_train_start(trainer, MODULE)
    assert run.read_summary()["val_ema_top1"] == 0.625  # until the next evaluation
    monitor.latest.update({"val/top1": 0.75, "val/ema_top1": 0.875})
    recorder.on_validation_end(trainer, MODULE)
    assert run.read_summary()["val_ema_top1"] == 0.875
    # A resume without an average measures none.
    other = Monitor()
    other.latest["val/top1"] = 0.75
    Recorder(other, "resscale fit", Path("some.ckpt")).on_validation_end(trainer, MODULE)
    assert "val_ema_top1" not in run.read_summary()


def test_a_resumed_run_goes_on_with_its_history(run: RunDir, trainer: Any) -> None:
    before = {"bad_samples": 3, "best_val_top1": 0.75, "val_top1": 0.5, "val_top5": 0.9}
    run.write_summary({"status": "preempted", **before})
    # The checkpoint is behind step 7: epoch 2, step 1 of 3; a line more was written.
    for epoch, step in ((2, 0), (2, 1)):
        append_line(run.samples(0), json.dumps({"epoch": epoch, "step": step, "ids": []}))
    for step in (6, 7, 8):
        run.append_metrics({"step": step})
    monitor = Monitor()
    monitor.bad_samples = 1
    recorder = Recorder(monitor, "resscale fit", Path("some.ckpt"))
    recorder.on_train_start(trainer, MODULE)
    summary = run.read_summary()
    assert summary["resumed_from"] == "some.ckpt"
    assert summary["bad_samples"] == 4  # 3 before and 1 now
    found = (summary["val_top1"], summary["val_top5"], summary["best_val_top1"])
    assert found == (0.5, 0.9, 0.75)  # until the next evaluation
    assert len(run.samples(0).read_text().splitlines()) == 1
    assert [line.split(",")[1] for line in run.metrics.read_text().splitlines()] == [
        "step", "6", "7",
    ]  # fmt: skip
    event = json.loads(run.events.read_text())
    assert (event["event"], event["path"], event["step"]) == ("resumed", "some.ckpt", 7)


def test_only_the_first_rank_writes_but_all_wait(run: RunDir, trainer: Any) -> None:
    waited: list[str] = []
    trainer.is_global_zero = False
    trainer.strategy.barrier = waited.append
    recorder = Recorder(Monitor(), "resscale fit", Path("some.ckpt"))
    recorder.on_train_start(trainer, MODULE)
    recorder.on_validation_end(trainer, MODULE)
    recorder.on_train_end(trainer, MODULE)
    recorder.on_exception(trainer, MODULE, ValueError("x"))
    assert waited == ["recorder"]
    assert not run.path.exists()


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_measuring_a_run_does_not_change_its_summary(run: RunDir, trainer: Any, stage: str) -> None:
    trainer.state.fn = stage
    recorder = Recorder(Monitor(), "resscale validate")
    recorder.on_validation_end(trainer, MODULE)
    recorder.on_exception(trainer, MODULE, ValueError("x"))
    assert not run.path.exists()


def test_the_sample_log_has_a_line_per_batch(run: RunDir, trainer: Any) -> None:
    trainer.global_rank = 1
    batch: Any = {"epoch": 0, "step": 17, "id": torch.tensor([5, 3])}
    for _ in range(2):
        SampleLog().on_train_batch_end(trainer, MODULE, None, batch, 0)
    assert run.samples(1).read_text() == '{"epoch": 0, "step": 17, "ids": [5, 3]}\n' * 2


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ({"train/loss": 0.5}, True),
        ({"lr": 0.1}, True),
        ({"epoch": 1.0}, False),
    ],
)
def test_the_table_takes_rows_with_values_only(
    run: RunDir, values: dict[str, float], written: bool
) -> None:
    table = MetricsTable(run)
    table.log_metrics(values, step=4)
    table.log_hyperparams({"lr": 1})
    assert run.metrics.exists() == written
    assert (table.name, table.version) == ("metrics", "run")


def test_what_is_known_of_speed_goes_into_its_own_table(run: RunDir) -> None:
    table = MetricsTable(run)
    table.log_metrics({"val/top1": 0.5, "epoch": 1}, step=3)  # an evaluation has no speed
    assert not run.speed.exists()
    table.log_metrics({"train/loss": 1.5, "speed/memory_bytes": 2048.0, "epoch": 1}, step=4)
    with run.speed.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {name: cell for name, cell in row.items() if cell} == {
        "epoch": "1",
        "step": "4",
        "memory_bytes": "2048",
    }
