"""A request to stop that comes during a validation does not wait for its end, and loses nothing."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from resscale.cli import main
from resscale.training.rundir import RunDir

# 1,437 digits in batches of 64: 22 steps an epoch, and 2 epochs; 360 in batches of 32 are 12.
OPTIONS = (
    "--config=configs/demo.yaml",
    "--data.num_workers=0",
    "--data.log_sample_ids=true",
    "--data.eval_batch_size=32",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
)


pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    # torch 2.13 deprecates what Lightning 2.6 calls.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


class SignalsItself(Callback):
    """Sends this process SIGTERM behind a batch of the first validation.

    Args:
        behind: number of the batch, from 0.
    """

    def __init__(self, behind: int) -> None:
        self.behind = behind

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ask for a stop."""
        if batch_idx == self.behind:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def _in_the_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def stopped_behind(batch: int) -> str:
    callback = f'{{"class_path": "{__name__}.SignalsItself", "init_args": {{"behind": {batch}}}}}'
    return f"--trainer.callbacks=[{callback}]"


def fit(run_dir: Path, *more: str) -> int:
    return main(["fit", *OPTIONS, f"--run_dir={run_dir}", *more])


def rows(run_dir: Path) -> list[list[str]]:
    """Epoch, step, train/loss, train/top1, val/loss, val/top1, val/top5 of each line."""
    with RunDir(run_dir).metrics.open() as file:
        return [row[:7] for row in csv.reader(file)]


def state(run_dir: Path, name: str = "last.ckpt") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(RunDir(run_dir).checkpoints / name, weights_only=True)
    return found


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    assert RunDir(one).samples(0).read_text() == RunDir(other).samples(0).read_text()
    for name in ("last.ckpt", "best.ckpt"):
        first, second = state(one, name), state(other, name)
        assert first["global_step"] == second["global_step"]
        for key, tensor in first["state_dict"].items():
            assert torch.equal(tensor, second["state_dict"][key]), (name, key)


@pytest.mark.parametrize(
    "more",
    [(), ("--ema.decay=0.99",), ("--trainer.val_check_interval=11",)],
    ids=["at the end of an epoch", "with an average", "in the middle of an epoch"],
)
def test_a_run_stopped_in_its_validation_begins_again_with_it(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    assert fit(tmp_path / "whole", *more) == 0
    assert fit(tmp_path / "run", *more, stopped_behind(3)) == 75
    # No row of the validation that was cut off.
    assert all(row[4] == "" for row in rows(tmp_path / "run")[1:])
    assert fit(tmp_path / "run", *more, "--ckpt_path=auto") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_validation_may_be_stopped_again_and_again(tmp_path: Path) -> None:
    assert fit(tmp_path / "whole") == 0
    assert fit(tmp_path / "run", stopped_behind(3)) == 75
    for batch in (0, 11, 5):
        assert fit(tmp_path / "run", "--ckpt_path=auto", stopped_behind(batch)) == 75
        assert state(tmp_path / "run")["resscale"]["global_step"] in (22, 44)
    assert fit(tmp_path / "run", "--ckpt_path=auto") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
