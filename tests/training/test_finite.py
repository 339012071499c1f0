"""Weights that are not finite stop a run in place of being saved."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from resscale.errors import TrainingStopped
from resscale.training.finite import refuse_to_save, weights_are_finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_element_that_is_not_finite_is_found(value: float) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert weights_are_finite(module)
    module[1].weight.data[2] = value
    assert not weights_are_finite(module)
    with pytest.raises(TrainingStopped, match="not finite at step 12"):
        refuse_to_save(module, 12)


def test_large_weights_are_finite() -> None:
    module = nn.Linear(2, 2)
    module.weight.data.fill_(1e30)  # 1e30² is beyond float32
    assert weights_are_finite(module)
    refuse_to_save(module, 1)


def test_a_module_without_weights_is_finite() -> None:
    assert weights_are_finite(nn.ReLU())


def test_a_diverged_run_ends_with_70_and_keeps_only_good_checkpoints(
    resscale, repository: Path, tmp_path: Path
) -> None:
    # A rate of 1e30 spoils the weights at the first steps; each step would save a checkpoint, and
    # the guard of losses, which looks at the interval's end, comes too late.
    done = resscale(
        "fit",
        "--config=configs/demo.yaml",
        f"--run_dir={tmp_path / 'run'}",
        "--model.optimizer.lr=1e30",
        "--model.schedule.warmup_epochs=0",
        "--trainer.log_every_n_steps=22",
        "--checkpoint.every_n_steps=1",
        "--trainer.accelerator=cpu",
        cwd=repository,
    )
    assert done.returncode == 70, done.stdout + done.stderr
    assert "the weights are not finite at step" in done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"
    for path in (tmp_path / "run" / "checkpoints").glob("epoch-*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())
