"""The average of weights in real runs: beside the weights, in checkpoints, over restarts."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from resscale.cli import main
from resscale.report.metrics import epoch_curves, read_rows
from resscale.training.ema import WeightAverage
from resscale.training.ema_checkpoint import EMA_KEY
from resscale.training.ema_decay import EmaConfig
from resscale.training.monitor import Monitor
from resscale.training.rundir import RunDir

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    "ignore:.*callbacks used to create the checkpoint:UserWarning",
)
CONFIG: dict[str, Any] = {
    "model": {
        "model": "resnet8_cifar",
        "num_classes": 10,
        "mean": [0.3],
        "std": [0.4],
        "schedule": {"name": "constant"},
    },
    "data": {
        "train": "builtin:digits/train",
        "val": "builtin:digits/test",
        "test": "builtin:digits/test",
        "predict": "builtin:digits/test",
        "channels": 1,
        "image_size": 8,
        "train_crop": "center",
        "global_batch_size": 64,
        "eval_batch_size": 100,  # 360 images: the last batch is padded
        "num_workers": 0,
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "limit_train_batches": 3},
    "checkpoint": {"every_n_steps": 1, "keep_last": 20},
}
AVERAGED = ("--ema.decay", "0.5", "--ema.warmup", "false")


def fit(folder: Path, name: str, *options: str) -> tuple[RunDir, str]:
    """Train in this process; return the run and what was printed."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    arguments = ["--config", f"{folder}/tiny.yaml", "--run_dir", f"{folder}/{name}", *options]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv("RESSCALE_RUN_DIR", "")  # the run sets it; taken back behind this block
        assert main(["fit", *arguments]) == 0
    return RunDir(folder / name), said.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ema")


@pytest.fixture(scope="module")
def run(folder: Path) -> RunDir:
    """2 epochs of 3 steps with an average of decay 0.5."""
    return fit(folder, "run", *AVERAGED)[0]


@pytest.fixture(scope="module")
def bare(folder: Path) -> RunDir:
    """The same without an average."""
    return fit(folder, "bare")[0]


def checkpoint(run: RunDir, step: int) -> dict[str, Any]:
    (path,) = run.checkpoints.glob(f"epoch-*-step-{step:08d}.ckpt")
    return torch.load(path, weights_only=True)


def validations(run: RunDir) -> list[dict[str, str]]:
    with run.metrics.open() as file:
        return [row for row in csv.DictReader(file) if row["val/top1"]]


def test_the_average_is_that_of_the_weights_after_each_step(run: RunDir) -> None:
    weights = [checkpoint(run, step)["state_dict"] for step in range(1, 7)]
    averages = [checkpoint(run, step)[EMA_KEY] for step in range(1, 7)]
    for before, after, now in zip(averages[:-1], averages[1:], weights[1:], strict=True):
        for name, value in after.items():
            if name.endswith("num_batches_tracked"):
                assert torch.equal(value, now[name])
            else:
                expected = 0.5 * before[name] + 0.5 * now[name]
                torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)


def test_training_is_the_same_with_and_without_an_average(run: RunDir, bare: RunDir) -> None:
    with_average, without = checkpoint(run, 6), checkpoint(bare, 6)
    assert EMA_KEY not in without
    assert list(with_average[EMA_KEY]) == list(with_average["state_dict"])
    for name, value in without["state_dict"].items():
        assert torch.equal(value, with_average["state_dict"][name]), name


def test_both_accuracies_stand_in_the_table_the_summary_and_the_report(run: RunDir) -> None:
    rows = validations(run)
    assert [row["step"] for row in rows] == ["3", "6"]
    raw, averaged = ([float(row[f"val/{k}top1"]) for row in rows] for k in ("", "ema_"))
    assert all(0 <= value <= 1 for value in averaged)
    assert raw != averaged
    summary = run.read_summary()
    assert summary["val_ema_top1"] == pytest.approx(averaged[-1], rel=1e-6)
    assert summary["val_top1"] == pytest.approx(raw[-1], rel=1e-6)
    curve = epoch_curves(read_rows(run.metrics))["ema_error_pct"]
    assert curve == pytest.approx({1: 100 * (1 - averaged[0]), 2: 100 * (1 - averaged[1])})


def test_without_an_average_nothing_is_said_of_one(bare: RunDir) -> None:
    assert {row["val/ema_top1"] for row in validations(bare)} == {""}
    assert "val_ema_top1" not in bare.read_summary()


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_averaged_weights_of_a_checkpoint_are_measured(
    run: RunDir, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [stage, "--run_dir", str(run.path), "--ckpt_path", "auto"]
    assert main([*arguments, "--use_ema", "true"]) == 0
    said = capsys.readouterr().out
    assert f"top-1 {float(validations(run)[-1]['val/ema_top1']):.2%}" in said
    assert "step-00000006.ckpt (averaged weights)" in said
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"top-1 {float(validations(run)[-1]['val/top1']):.2%}" in said
    assert "averaged" not in said


def test_predictions_are_those_of_the_averaged_weights(run: RunDir, tmp_path: Path) -> None:
    arguments = ["predict", "--run_dir", str(run.path), "--ckpt_path", "auto"]
    tables = []
    for number, use in enumerate(("false", "true")):
        file = tmp_path / f"{number}.csv"
        with contextlib.redirect_stdout(io.StringIO()):
            assert main([*arguments, "--use_ema", use, "--output", str(file)]) == 0
        tables.append(file.read_text())
    assert tables[0].count("\n") == tables[1].count("\n") == 361  # a heading and 360 images
    assert tables[0] != tables[1]


def test_a_checkpoint_without_an_average_is_not_measured_as_if_it_had_one(
    bare: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--run_dir", str(bare.path), "--use_ema", "true"]) == 2
    said = capsys.readouterr().err
    assert "best.ckpt holds no averaged weights, as it was trained without ema.decay" in said


@pytest.mark.parametrize("step", [2, 3], ids=["in the middle of an epoch", "between epochs"])
def test_a_resumed_average_is_that_of_the_run_that_was_never_stopped(
    folder: Path, run: RunDir, step: int
) -> None:
    (path,) = run.checkpoints.glob(f"epoch-*-step-{step:08d}.ckpt")
    resumed, said = fit(folder, f"resumed-{step}", *AVERAGED, "--ckpt_path", str(path))
    assert "averaged weights: decay 0.5\n" in said
    whole, parts = checkpoint(run, 6), checkpoint(resumed, 6)
    assert parts["callbacks"]["WeightAverage"] == {"updates": 6}
    for key in (EMA_KEY, "state_dict"):
        for name, value in whole[key].items():
            assert torch.equal(value, parts[key][name]), name
    assert validations(resumed)[-1] == validations(run)[-1]


def test_an_average_switched_on_in_mid_run_begins_with_the_loaded_weights(
    folder: Path, bare: RunDir
) -> None:
    (path,) = bare.checkpoints.glob("epoch-*-step-00000004.ckpt")
    resumed, said = fit(folder, "switched-on", *AVERAGED, "--ckpt_path", str(path))
    assert "averaged weights: decay 0.5; the checkpoint has none, so the average begins" in said
    name = "model.conv1.weight"
    first, second, third = (checkpoint(bare, step)["state_dict"][name] for step in (4, 5, 6))
    last = checkpoint(resumed, 6)
    expected = 0.25 * first + 0.25 * second + 0.5 * third
    torch.testing.assert_close(last[EMA_KEY][name], expected, rtol=1e-6, atol=1e-7)
    assert last["callbacks"]["WeightAverage"] == {"updates": 2}


def test_an_average_switched_off_in_mid_run_is_dropped_and_said_to_be(
    folder: Path, run: RunDir
) -> None:
    (path,) = run.checkpoints.glob("epoch-*-step-00000005.ckpt")
    resumed, said = fit(folder, "switched-off", "--ckpt_path", str(path))
    assert "averaged weights: those of the checkpoint are dropped, ema.decay is not set" in said
    assert EMA_KEY not in checkpoint(resumed, 6)
    assert "val_ema_top1" not in resumed.read_summary()


def test_the_average_moves_once_per_optimizer_step_and_not_per_micro_batch(folder: Path) -> None:
    options = ("--data.micro_batch_size", "32", "--trainer.limit_train_batches", "6")
    accumulated, said = fit(folder, "accumulated", *AVERAGED, *options)
    assert "32/rank × 1 rank × 2 accum = 64 global" in said
    last = checkpoint(accumulated, 6)
    assert last["callbacks"]["WeightAverage"] == {"updates": 6}
    name = "model.conv1.weight"
    before, now = checkpoint(accumulated, 5)[EMA_KEY][name], last["state_dict"][name]
    torch.testing.assert_close(last[EMA_KEY][name], 0.5 * before + 0.5 * now, rtol=1e-6, atol=1e-7)


def test_a_validation_before_the_first_step_measures_the_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []
    real = Monitor.on_validation_end

    def note(monitor: Monitor, trainer: Any, pl_module: Any) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        seen.append({**values, "step": trainer.global_step})
        real(monitor, trainer, pl_module)

    monkeypatch.setattr(Monitor, "on_validation_end", note)
    # The first of two micro-batches has moved BatchNorm's statistics, and no weight.
    fit(
        folder, "early", *AVERAGED, "--data.micro_batch_size=32", "--trainer.val_check_interval=1",
        "--trainer.max_epochs=1", "--trainer.limit_train_batches=4",
    )  # fmt: skip
    assert [values["step"] for values in seen] == [0, 1, 1, 2]
    for name in ("loss", "top1", "top5"):
        assert seen[0][f"val/ema_{name}"] == seen[0][f"val/{name}"]
    assert seen[1]["val/ema_loss"] != seen[1]["val/loss"]


def test_the_decay_warms_up_unless_it_is_told_not_to(folder: Path) -> None:
    one_step = ("--trainer.max_epochs=1", "--trainer.max_steps=1")
    states = [
        checkpoint(fit(folder, f"warm-{warmup}", *one_step, "--ema.decay=0.9999", warmup)[0], 1)
        for warmup in ("--ema.warmup=true", "--ema.warmup=false")
    ]
    name = "model.fc.weight"
    now = states[0]["state_dict"][name]
    warm, cold = (state[EMA_KEY][name] for state in states)
    # With w0 the first weights: warm - now = (2/11)(w0 - now), cold - now = 0.9999 (w0 - now).
    torch.testing.assert_close((warm - now) * 0.9999, (cold - now) * 2 / 11, rtol=1e-4, atol=1e-7)
    assert float((cold - now).abs().max()) > 1e-3


def test_an_impossible_decay_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    arguments = ["--config", f"{folder}/tiny.yaml", "--run_dir", f"{folder}/refused"]
    assert main(["fit", *arguments, "--ema.decay", "1.5"]) == 2
    assert "ema.decay=1.5 must be from 0 up to 1" in capsys.readouterr().err
    assert not (folder / "refused").exists()


def test_the_average_is_saved_with_the_configuration_of_the_run(run: RunDir) -> None:
    assert yaml.safe_load(run.config.read_text())["ema"] == {"decay": 0.5, "warmup": False}
    assert checkpoint(run, 6)["resscale"]["config"]["ema"]["decay"] == 0.5
    assert json.loads(run.summary.read_text())["status"] == "done"


def test_a_trainer_that_only_measures_has_no_average_to_measure() -> None:
    average = WeightAverage(EmaConfig(0.5))
    average.setup(None, None, "validate")  # type: ignore[arg-type]
    average.on_validation_epoch_start(None, None)  # type: ignore[arg-type]
    average.on_validation_epoch_end(None, None)  # type: ignore[arg-type]
    assert average.state_dict() == {"updates": 0}
