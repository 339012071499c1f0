"""The loss scale of float16: torch's rule under every strategy, saved, and moved between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from resscale.cli import main
from resscale.training import loss_scale
from resscale.training.loss_scale import (
    INIT_SCALE,
    LossScale,
    read_loss_scale,
    skipped_steps,
    write_loss_scale,
)
from resscale.training.precision import CountingGradScaler, build_precision

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
# 6 steps of 64 samples an epoch, in 4 micro-batches.
OPTIONS = (
    *("--config=configs/demo.yaml", "--model.model=resnet8_cifar", "--model.optimizer.lr=0.01"),
    *("--model.schedule.name=constant", "--model.schedule.warmup_epochs=0", "--data.val=null"),
    *("--data.micro_batch_size=16", "--data.num_workers=0", "--trainer.accelerator=cpu"),
    *("--trainer.limit_train_batches=24", "--trainer.log_every_n_steps=1"),
    "--checkpoint.keep_last=9",
)
Fit = Callable[..., Path]


def half_trainer() -> Trainer:
    plugin = build_precision("16-mixed", "cpu", deepspeed=False)
    return Trainer(
        accelerator="cpu",
        plugins=[plugin],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_the_scale_of_zero_is_torchs_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    torchs = CountingGradScaler("cpu", init_scale=INIT_SCALE, growth_interval=3)
    ours = LossScale()
    scales = []
    for overflow in (0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0):
        optimizer.zero_grad()
        loss = (weight * (float("inf") if overflow else 1.0)).sum()
        torchs.scale(loss).backward()
        torchs.step(optimizer)
        torchs.update()
        ours.update_scale(bool(overflow))
        assert ours.loss_scale == torchs.get_scale()
        assert ours.good_steps == torchs.state_dict()["_growth_tracker"]
        scales.append(int(ours.cur_scale / 2**12))
    # 2^16 = 16 · 2^12: doubled behind each third step without an overflow, halved behind one.
    expected = [16, 16, 32, 32, 16, 16, 16, 8, 4, 4, 4, 8, 8, 8, 16, 8, 8, 8, 16]
    assert scales == expected
    assert ours.scale_loss(torch.tensor(0.5)).item() == 0.5 * 16 * 2**12


def test_torchs_scaler_begins_and_grows_as_ours_does() -> None:
    state = CountingGradScaler("cpu").state_dict()
    assert (state["scale"], state["growth_interval"]) == (INIT_SCALE, loss_scale.GROWTH_INTERVAL)


def test_a_scale_is_read_as_it_was_written() -> None:
    trainer = half_trainer()
    assert read_loss_scale(trainer) == {"scale": INIT_SCALE, "good_steps": 0}
    write_loss_scale(trainer, {"scale": 512.0, "good_steps": 7})
    assert read_loss_scale(trainer) == {"scale": 512.0, "good_steps": 7}
    assert skipped_steps(trainer) == 0


def test_a_run_without_float16_has_no_scale_and_takes_none() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert read_loss_scale(trainer) is None
    write_loss_scale(trainer, {"scale": 512.0, "good_steps": 7})
    assert read_loss_scale(trainer) is None


@pytest.fixture
def fit(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Train in this process, watched by the observer; return the run directory."""
    monkeypatch.chdir(repository)
    monkeypatch.syspath_prepend(repository / "tests" / "distributed")

    def run(name: str, *options: str) -> Path:
        run_dir = tmp_path / name
        watched = "--trainer.callbacks+=observer.Observer"
        assert main(["fit", *OPTIONS, f"--run_dir={run_dir}", watched, *options]) == 0
        return run_dir

    return run


def test_overflows_skip_steps_and_halve_the_scale(fit: Fit) -> None:
    halves = "--trainer.precision=16-mixed"
    run_dir = fit("run", halves, "--trainer.max_epochs=1", "--trainer.callbacks.loss_scale=4194304")
    seen = json.loads((run_dir / "observed-0.json").read_text())
    count = seen["skipped"][-1]
    # 2^22 overflows at first, and 2^(22 - 5) no longer does; of 6 steps, some are taken.
    assert 0 < count < 6
    assert seen["skipped"] == [*range(count + 1), *[count] * (6 - count)]
    assert seen["scales"] == [2.0 ** (22 - number) for number in seen["skipped"]]
    # Weights before the first step and behind each of those skipped are the same, others are not.
    assert len(set(seen["weights"][: count + 1])) == 1
    assert len(set(seen["weights"])) == 7 - count
    assert json.loads((run_dir / "summary.json").read_text())["skipped_steps"] == count


def test_the_scale_goes_on_from_a_checkpoint(fit: Fit) -> None:
    halves = "--trainer.precision=16-mixed"
    one = "--trainer.max_epochs=1"
    first = fit("first", halves, one, "--trainer.callbacks.loss_scale=256")
    path = first / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["resscale"]["loss_scale"] == {"scale": 256.0, "good_steps": 6.0}
    # Lightning's own copy is restored behind ours; they say the same.
    assert saved["MixedPrecision"]["scale"] == 256.0
    assert saved["MixedPrecision"]["_growth_tracker"] == 6
    second = fit("second", halves, "--trainer.max_epochs=2", f"--ckpt_path={path}")
    seen = json.loads((second / "observed-0.json").read_text())
    assert seen["scales"] == [256.0] * 7
    behind = torch.load(second / "checkpoints" / "last.ckpt", weights_only=True)
    assert behind["resscale"]["loss_scale"] == {"scale": 256.0, "good_steps": 12.0}


def test_runs_go_on_with_float16_or_without(fit: Fit) -> None:
    full = fit("full", "--trainer.max_epochs=1") / "checkpoints" / "last.ckpt"
    assert torch.load(full, weights_only=True)["resscale"]["loss_scale"] is None
    halves = fit("half", "--trainer.precision=16", "--trainer.max_epochs=2", f"--ckpt_path={full}")
    path = halves / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["resscale"]["loss_scale"] is not None
    back = fit("back", "--trainer.max_epochs=3", f"--ckpt_path={path}")
    behind = torch.load(back / "checkpoints" / "last.ckpt", weights_only=True)
    assert behind["resscale"]["loss_scale"] is None
    assert behind["global_step"] == 3 * 6
