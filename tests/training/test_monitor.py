"""The monitor: its arithmetic with a clock of the test's, and what it does in a real run."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from resscale import ImageClassifier
from resscale.cli import main
from resscale.data import Manifest
from resscale.data.builtin import resolve
from resscale.data.shard_index import ShardIndex
from resscale.errors import UserInputError
from resscale.training import monitor as module
from resscale.training import throughput
from resscale.training.interval import Interval, RankSums
from resscale.training.monitor import Monitor
from resscale.training.rundir import RunDir

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
CONFIG = """
model: {model: resnet20_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, val: builtin:digits/test, channels: 1, image_size: 8,
       train_crop: center, global_batch_size: 64, eval_batch_size: 360, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 1, limit_train_batches: 4, log_every_n_steps: 2}
"""
Fit = Callable[..., tuple[int, Path]]
LOSS: Any = {"loss": torch.tensor(1.0)}


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """A function that trains on the digits and returns the exit code and the run directory."""
    monkeypatch.setenv("RESSCALE_RUN_DIR", "")  # the run sets it; taken back behind the test
    (tmp_path / "tiny.yaml").write_text(CONFIG)

    def run(*options: str) -> tuple[int, Path]:
        arguments = ["--config", f"{tmp_path}/tiny.yaml", "--run_dir", f"{tmp_path}/run"]
        return main(["fit", *arguments, *options]), tmp_path / "run"

    return run


def rows(run_dir: Path) -> list[dict[str, str]]:
    """The metrics table."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Sums(ImageClassifier):
    """A classifier whose sums are given."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.sums = torch.zeros(3, dtype=torch.float64)

    def take_sums(self) -> Tensor:
        return self.sums


class Log:
    """A logger that keeps what it gets."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    monkeypatch.setattr(throughput, "time", made)
    return made


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """A trainer in an epoch of 10 steps of 2 micro-batches, global batch 64, logging each 2."""
    progress = SimpleNamespace(current=SimpleNamespace(ready=0))
    return SimpleNamespace(
        accumulate_grad_batches=2,
        num_training_batches=20,
        global_step=0,
        current_epoch=0,
        log_every_n_steps=2,
        world_size=1,
        global_rank=0,
        is_global_zero=True,
        default_root_dir=str(tmp_path / "run"),
        sanity_checking=False,
        training=True,
        validating=False,
        callback_metrics={},
        loggers=[Log()],
        strategy=SimpleNamespace(root_device=torch.device("cpu"), model=None),
        precision_plugin=SimpleNamespace(),
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.4}])],
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        datamodule=SimpleNamespace(
            wait_s=5.0,
            global_batch_size=64,
            max_bad_fraction=0.01,
            size_at=lambda epoch: 8 + 8 * epoch,
            manifest=lambda split: SimpleNamespace(num_samples=1000),
        ),
    )


def micro_batches(monitor: Monitor, trainer: Any, sums: Sums, count: int) -> None:
    """Let `count` micro-batches pass, none of them damaged."""
    loop = trainer.fit_loop.epoch_loop.batch_progress.current
    for _ in range(count):
        batch: Any = {"bad": [], "epoch": 0, "step": trainer.global_step}
        monitor.on_train_batch_start(trainer, None, batch, 0)
        monitor.on_before_backward(trainer, sums, LOSS["loss"])
        loop.ready += 1
        trainer.global_step = loop.ready // trainer.accumulate_grad_batches
        monitor.on_train_batch_end(trainer, sums, LOSS, batch, 0)


def test_an_intervals_numbers_are_those_of_its_time_and_samples(clock: Clock, trainer: Any) -> None:
    monitor, sums = Monitor(), Sums()
    monitor.on_train_start(trainer, sums)
    sums.sums = torch.tensor([256.0, 32.0, 128.0], dtype=torch.float64)
    clock.now += 0.5
    trainer.datamodule.wait_s += 0.125
    micro_batches(monitor, trainer, sums, 4)
    expected = {
        "train/loss": 2.0,  # 256/128
        "train/top1": 0.25,  # 32/128
        "lr": 0.4,
        "images_per_s": 256.0,  # 2 steps · 64 samples in 0.5 s
        "data_wait": 0.25,  # 0.125 s of 0.5 s
    }
    assert monitor.latest == expected
    [(step, row)] = trainer.loggers[0].rows
    assert step == 2
    assert {name: row[name] for name in expected} == expected
    assert row["epoch"] == 0
    # The second interval begins where the first has ended.
    clock.now += 2.0
    trainer.datamodule.wait_s += 2.0
    micro_batches(monitor, trainer, sums, 4)
    assert monitor.latest["images_per_s"] == 64.0  # 128 samples in 2 s
    assert monitor.latest["data_wait"] == 1.0
    rate = monitor.summary()["images_per_s"]
    assert rate == pytest.approx(256 / 2.5)  # both: 256 samples in 2.5 s


def test_nothing_is_logged_between_intervals_or_in_the_middle_of_a_step(
    clock: Clock, trainer: Any
) -> None:
    monitor = Monitor()
    monitor.on_train_start(trainer, Sums())
    clock.now += 1.0
    micro_batches(monitor, trainer, Sums(), 3)  # 1.5 of 2 steps
    assert trainer.loggers[0].rows == []
    micro_batches(monitor, trainer, Sums(), 4)  # 3.5 steps
    assert [step for step, _ in trainer.loggers[0].rows] == [2]


def test_the_last_step_of_an_epoch_is_logged_whatever_the_interval(
    clock: Clock, trainer: Any
) -> None:
    trainer.log_every_n_steps = 1000
    monitor = Monitor()
    monitor.on_train_start(trainer, Sums())
    clock.now += 1.0
    micro_batches(monitor, trainer, Sums(), 20)
    assert [step for step, _ in trainer.loggers[0].rows] == [10]


def test_the_rate_logged_is_the_one_that_the_step_used(clock: Clock, trainer: Any) -> None:
    monitor = Monitor()
    monitor.on_train_start(trainer, Sums())
    clock.now += 1.0
    group = trainer.optimizers[0].param_groups[0]
    batch: Any = {"bad": [], "epoch": 0, "step": 1}
    trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress.current.ready = 2, 4
    group["lr"] = 0.3
    monitor.on_train_batch_start(trainer, None, batch, 0)
    group["lr"] = 0.2  # the schedule moves on before the batch ends
    monitor.on_train_batch_end(trainer, Sums(), LOSS, batch, 0)
    assert monitor.latest["lr"] == 0.3


def test_evaluation_is_no_training_time(clock: Clock, trainer: Any) -> None:
    monitor = Monitor()
    monitor.on_train_start(trainer, Sums())
    clock.now += 0.25
    micro_batches(monitor, trainer, Sums(), 2)
    monitor.on_validation_start(trainer, Sums())
    clock.now += 30.0
    trainer.callback_metrics = {"val/top1": torch.tensor(0.5), "other": torch.tensor(1.0)}
    monitor.on_validation_end(trainer, Sums())
    assert trainer.loggers[0].rows == [(1, {"val/top1": 0.5, "epoch": 0})]
    clock.now += 0.25
    micro_batches(monitor, trainer, Sums(), 2)
    # An evaluation in the middle of an interval: 2 steps · 64 samples in 0.25 + 0.25 s.
    assert monitor.latest["images_per_s"] == 256.0
    assert monitor.latest["val/top1"] == 0.5
    times = monitor.summary()["step_time_s"]
    assert times == {"p50": 0.25, "p90": 0.25, "p99": 0.25}


def test_the_sums_of_all_ranks_count(
    clock: Clock, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(own: RankSums, nonfinite: Any, trainer: Any) -> Interval:
        return Interval((own, own), 0, ())

    monkeypatch.setattr(module, "exchange", twice)
    monkeypatch.setattr(module, "gather_hosts", lambda world_size: ["node-a", "node-b"])
    trainer.world_size = 2
    monitor, sums = Monitor(), Sums()
    monitor.on_train_start(trainer, sums)
    sums.sums = torch.tensor([64.0, 16.0, 64.0], dtype=torch.float64)  # each rank's half
    clock.now += 0.5
    trainer.datamodule.wait_s += 0.125
    micro_batches(monitor, trainer, sums, 4)
    assert monitor.latest["train/loss"] == 1.0  # 128/128
    assert monitor.latest["images_per_s"] == 256.0  # the global batch counts all ranks already
    assert monitor.latest["data_wait"] == 0.25  # the ranks' mean
    assert monitor.summary()["images_per_s_per_rank"] == 128.0  # 256 / 2 ranks


def test_a_run_writes_a_row_each_interval_and_one_per_evaluation(fit: Fit) -> None:
    code, run_dir = fit("--trainer.max_epochs", "2")
    assert code == 0
    table = rows(run_dir)
    # 2 epochs of 4 steps, a row each 2 steps, and the evaluation behind each epoch.
    assert [(row["epoch"], row["step"]) for row in table] == [
        ("0", "2"), ("0", "4"), ("0", "4"), ("1", "6"), ("1", "8"), ("1", "8"),
    ]  # fmt: skip
    for row in table:
        if row["val/loss"]:
            assert row["train/loss"] == row["images_per_s"] == ""
            assert 0 <= float(row["val/top1"]) <= float(row["val/top5"]) <= 1
        else:
            assert 0 <= float(row["train/top1"]) <= 1
            assert float(row["train/loss"]) > 0
            assert float(row["images_per_s"]) > 0
            assert 0 <= float(row["data_wait"]) <= 1
    # Cosine over 8 steps from 0.1 · 64/256 = 0.025; the row of step 2 shows the rate of the second.
    assert float(table[0]["lr"]) == pytest.approx(0.0125 * (1 + math.cos(math.pi / 8)), rel=1e-6)


def test_a_rank_that_holds_the_others_up_is_told_of_once_per_epoch(
    clock: Clock,
    trainer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def slow_second(own: RankSums, nonfinite: Any, trainer: Any) -> Interval:
        return Interval((own, replace(own, own_s=own.own_s + 0.2)), 0, ())

    monkeypatch.setattr(throughput, "_WARM_UP_STEPS", 0)
    monkeypatch.setattr(module, "exchange", slow_second)
    monkeypatch.setattr(module, "gather_hosts", lambda world_size: ["node-a", "node-b"])
    trainer.world_size = 2
    monitor, sums = Monitor(), Sums()
    monitor.on_train_start(trainer, sums)
    for _ in range(2):
        for _ in range(4):
            clock.now += 0.125  # before the backward pass: all of it own
            micro_batches(monitor, trainer, sums, 1)
    ledger = RunDir(trainer.default_root_dir).read_events("straggler")
    assert [(entry["rank"], entry["host"], entry["global_step"]) for entry in ledger] == [
        (1, "node-b", 2)
    ]
    # A step is 2 · 0.125 s; rank 1 has 0.2 s more: (0.25 + 0.2) / 0.25 = 1.8.
    assert ledger[0]["ratio"] == 1.8
    assert (ledger[0]["median_own_s"], ledger[0]["step_s"]) == (0.25, 0.25)
    said = capsys.readouterr().err
    assert said == (
        "rank 1 on node-b holds the others up: 0.45 s of its own per step (data, callbacks, "
        "forward pass), the median rank 0.25 s, a whole step 0.25 s.\n"
    )
    assert monitor.summary()["slowest_rank"] == {"rank": 1, "host": "node-b", "ratio": 1.8}
    # The next epoch tells it anew.
    monitor.on_train_epoch_start(trainer, sums)
    clock.now += 0.5
    micro_batches(monitor, trainer, sums, 4)
    assert len(RunDir(trainer.default_root_dir).read_events("straggler")) == 2


def test_the_first_steps_of_a_process_name_no_rank(
    clock: Clock, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_second(own: RankSums, nonfinite: Any, trainer: Any) -> Interval:
        return Interval((own, replace(own, own_s=3 * own.own_s)), 0, ())

    monkeypatch.setattr(module, "exchange", slow_second)
    monkeypatch.setattr(module, "gather_hosts", lambda world_size: ["node-a", "node-b"])
    trainer.world_size = 2
    monitor, sums = Monitor(), Sums()
    monitor.on_train_start(trainer, sums)
    for _ in range(2 * 4):
        clock.now += 0.125
        micro_batches(monitor, trainer, sums, 1)
    # Of the intervals of 2 steps each, the first lies within the 3 steps that are left out.
    ledger = RunDir(trainer.default_root_dir).read_events("straggler")
    assert [entry["global_step"] for entry in ledger] == [4]


@pytest.mark.parametrize(("waits_forward", "own_s"), [(False, 1.0), (True, 0.2)])
def test_own_time_ends_where_ranks_may_wait_for_each_other(
    clock: Clock,
    trainer: Any,
    waits_forward: bool,
    own_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throughput, "_WARM_UP_STEPS", 0)
    sums = Sums()
    if waits_forward:
        sums.model = nn.SyncBatchNorm(1).eval()
    monitor = Monitor()
    monitor.on_train_start(trainer, sums)
    loop = trainer.fit_loop.epoch_loop.batch_progress.current
    for number in range(4):
        clock.now += 0.1
        sums(torch.zeros(2, 1, 2, 2))
        clock.now += 0.4
        sums(torch.zeros(2, 1, 2, 2))  # within a strategy's wrapper there are two calls
        monitor.on_before_backward(trainer, sums, LOSS["loss"])
        clock.now += 1.0
        loop.ready = number + 1
        trainer.global_step = loop.ready // 2
        batch: Any = {"bad": [], "epoch": 0, "step": number // 2}
        monitor.on_train_batch_end(trainer, sums, LOSS, batch, number)
    assert monitor.speed.slowest is not None
    # Two micro-batches a step: 2 · (0.1 + 0.4) s up to the backward pass, or 2 · 0.1 s.
    assert monitor.speed.slowest.own_s == pytest.approx(own_s)
    assert monitor.speed.slowest.step_s == pytest.approx(3.0)
    monitor.on_train_end(trainer, sums)
    assert not sums._forward_pre_hooks


def test_a_real_run_says_how_fast_it_was(fit: Fit) -> None:
    # 1e9 operations per second; resnet20_cifar on one channel at 8 px takes 2,516,608 MACs.
    code, run_dir = fit("--monitor.peak_flops_per_s", "1e9")
    assert code == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["images_per_s_per_rank"] == summary["images_per_s"] > 0
    times = summary["step_time_s"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"]
    # A resident set with torch in it: more than 100 MB, less than this machine.
    assert 1e8 < summary["memory_bytes"] < 1e12
    expected = summary["images_per_s"] * 3 * 2 * 2_516_608 / 1e9
    assert summary["mfu"] == pytest.approx(expected)
    assert summary["slowest_rank"] is None  # one rank
    assert (summary["skipped_steps"], summary["nonfinite_losses"]) == (0, 0)
    [board] = (run_dir / "tensorboard").glob("events.*")
    tags = EventAccumulator(str(board)).Reload().Tags()["scalars"]
    speed = ("images_per_s_per_rank", "memory_bytes", "mfu", "step_s_p50", "step_s_p99")
    assert {f"speed/{name}" for name in speed} <= set(tags)


def test_a_peak_that_is_no_number_above_zero_is_refused() -> None:
    with pytest.raises(
        UserInputError, match=r"monitor.peak_flops_per_s=0.0 must be above 0: state .*or leave it"
    ):
        Monitor(peak_flops_per_s=0.0)


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[str, set[int]]:
    """A copy of the training digits with 20 JPEGs blotted out, and their ids."""
    folder = tmp_path / "damaged"
    shutil.copytree(resolve("builtin:digits/train"), folder)
    manifest = Manifest.load(folder)
    index = ShardIndex.load(manifest.index_path(0))
    ids = np.arange(0, 1000, 50)
    with manifest.shard_path(0).open("r+b") as shard:
        for sample in ids:
            shard.seek(int(index.offsets[sample]))
            shard.write(bytes(int(index.sizes[sample])))
    return str(folder), set(ids.tolist())


def test_damaged_samples_are_counted_and_named(fit: Fit, damaged: tuple[str, set[int]]) -> None:
    folder, ids = damaged
    whole_epoch = ["--trainer.limit_train_batches", "1.0", "--data.log_sample_ids", "true"]
    code, run_dir = fit("--data.train", folder, "--data.max_bad_fraction", "0.02", *whole_epoch)
    assert code == 0
    lines = (run_dir / "samples" / "rank-0.jsonl").read_text().splitlines()
    consumed = {sample for line in lines for sample in json.loads(line)["ids"]}
    ledger = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    bad = [entry for entry in ledger if entry["event"] == "bad_sample"]
    # 29 of 1,437 samples are left over in an epoch, damaged ones perhaps among them.
    assert {entry["id"] for entry in bad} == ids & consumed
    assert len(bad) == len(ids & consumed) > 0
    assert json.loads((run_dir / "summary.json").read_text())["bad_samples"] == len(bad)
    for entry in bad:
        assert entry["rank"] == 0
        assert entry["shard"] == Manifest.load(folder).shards[0].name
        assert entry["replaced_by"] in consumed - ids


def test_more_damage_than_the_budget_ends_the_run_with_70_and_the_list(
    fit: Fit, damaged: tuple[str, set[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    whole_epoch = ["--trainer.limit_train_batches", "1.0"]
    # 0.002 · 1,437 = 2.9 samples
    budget = ["--data.max_bad_fraction", "0.002"]
    code, run_dir = fit("--data.train", damaged[0], *budget, *whole_epoch)
    assert code == 70
    said = capsys.readouterr().err
    assert "more than data.max_bad_fraction=0.002 of 1437 allows" in said
    assert str(run_dir / "events.jsonl") in said
    ledger = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    keys = [entry["key"] for entry in ledger if entry["event"] == "bad_sample"]
    assert said.startswith(f"resscale: {len(keys)} damaged samples in this epoch")
    assert ", ".join(keys) in said
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "stopped"
