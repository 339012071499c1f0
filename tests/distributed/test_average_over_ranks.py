"""The average of weights over real ranks: that of one process, saved whole, taken up by others."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from rank_server import RankServer

COMMON = (
    "--config=configs/demo.yaml",
    "--model.model=resnet8_cifar",
    # A rate that does not depend on where the run is to end.
    "--model.schedule.name=constant",
    "--model.schedule.warmup_epochs=0",
    "--model.optimizer.lr=0.02",
    "--data.micro_batch_size=32",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--ema.decay=0.9",
    "--checkpoint.keep_last=9",
)
pytestmark = pytest.mark.timeout(600)

# The legs of one run: what it goes on under, an epoch each.
LEGS = ("ddp", "deepspeed_3", "deepspeed_2")


def fit(rank_server: RankServer, repository: Path, run_dir: Path, *options: str) -> str:
    """Train for 5 steps an epoch; return what was said."""
    ended = rank_server.run("fit", f"--run_dir={run_dir}", *options, cwd=repository)
    assert ended.code == 0, ended.said
    return ended.said


def alone(epochs: int) -> tuple[str, ...]:
    """One process that accumulates two micro-batches a step."""
    return (
        "--trainer.strategy=auto",
        "--trainer.devices=1",
        "--trainer.limit_train_batches=10",
        f"--trainer.max_epochs={epochs}",
    )


def together(strategy: str, epochs: int) -> tuple[str, ...]:
    """Two ranks with one micro-batch a step each."""
    return (
        f"--trainer.strategy={strategy}",
        "--trainer.devices=2",
        "--trainer.limit_train_batches=5",
        f"--trainer.max_epochs={epochs}",
    )


def saved(run_dir: Path, epoch: int) -> dict[str, Any]:
    (path,) = (run_dir / "checkpoints").glob(f"epoch-{epoch:04d}-*.ckpt")
    return torch.load(path, weights_only=True)


def ema_top1(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open() as file:
        return [float(row["val/ema_top1"]) for row in csv.DictReader(file) if row["val/top1"]]


@pytest.fixture(scope="module")
def one(
    rank_server: RankServer, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of one process."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    fit(rank_server, repository, run_dir, *COMMON, *alone(len(LEGS) + 1))
    return run_dir


@pytest.fixture(scope="module")
def many(
    rank_server: RankServer, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same run on two ranks, under one strategy after the other, and on one at the end."""
    run_dir = tmp_path_factory.mktemp("many") / "run"
    said = fit(rank_server, repository, run_dir, *COMMON, *together(LEGS[0], 1))
    assert "averaged weights: decay 0.9, reached at update 80" in said
    for epochs, strategy in enumerate(LEGS[1:], 2):
        fit(rank_server, repository, run_dir, "--ckpt_path=auto", *together(strategy, epochs))
    fit(rank_server, repository, run_dir, "--ckpt_path=auto", *alone(len(LEGS) + 1))
    return run_dir


@pytest.mark.parametrize(
    "epoch", range(1, len(LEGS) + 2), ids=[f"{leg} x 2" for leg in LEGS] + ["one process"]
)
def test_the_average_is_that_of_one_process_under_any_strategy_and_behind_each_change(
    one: Path, many: Path, epoch: int
) -> None:
    expected, found = saved(one, epoch), saved(many, epoch)
    assert found["callbacks"]["WeightAverage"] == {"updates": 5 * epoch}
    averages = found["ema_state_dict"]
    assert list(averages) == list(expected["ema_state_dict"]) == list(found["state_dict"])
    for name, value in expected["ema_state_dict"].items():
        assert averages[name].dtype == value.dtype
        # The same micro-batches: only the order of sums differs.
        torch.testing.assert_close(averages[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_ranks_measure_the_average_that_one_process_measures(one: Path, many: Path) -> None:
    # Of 360 images; sums in another order may move one over the edge.
    assert ema_top1(many) == pytest.approx(ema_top1(one), abs=1.5 / 360)
    assert len(ema_top1(many)) == len(LEGS) + 1
