"""What a model card says of a run: what was recorded of these weights, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from resscale.data import Manifest
from resscale.data.builtin import resolve
from resscale.report.card_facts import (
    Accuracy,
    class_names,
    data_rows,
    measured_accuracy,
    training_rows,
)
from resscale.report.export_source import Source
from resscale.training.rundir import RunDir

CONFIG: dict[str, Any] = {
    "seed_everything": 3,
    "model": {
        "model": "resnet18",
        "label_smoothing": 0.1,
        "optimizer": {"name": "sgd", "lr": 0.1, "lr_batch_size": 256, "nesterov": True},
        "schedule": {"name": "cosine", "warmup_epochs": 2},
    },
    "data": {
        "train": "shards/train",
        "global_batch_size": 512,
        "micro_batch_size": 64,
        "train_crop": "pad",
        "image_size": 32,
        "flip": True,
    },
    "trainer": {
        "max_epochs": 20,
        "precision": "bf16-mixed",
        "strategy": "deepspeed_2",
        "devices": 8,
        "num_nodes": 2,
    },
    "ema": {"decay": 0.9999, "warmup": True},
}
STATE = {"global_step": 30, "global_batch_size": 512, "num_samples": 1600, "manifest": "ab12"}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    for step in (10, 20, 30, 40):
        # 20% at step 10, 40% at 20, ...
        row = {"epoch": 0, "step": step, "val/loss": 1.0, "val/top1": step / 50, "val/top5": 0.95}
        run.append_metrics({"epoch": 0, "step": step, "train/top1": 0.99})
        run.append_metrics({**row, "val/ema_top1": step / 50 + 0.01} if step == 30 else row)
    run.write_summary({"command": "resscale fit --config a.yaml --config=b.yaml", "val_top1": 0.8})
    return run


def source(run: RunDir | None = None, **more: Any) -> Source:
    facts = {"state": STATE, "config": CONFIG, "averaged": {"w": torch.ones(1)}, **more}
    return Source(Path("a.ckpt"), raw={}, run=run, **facts)


def test_the_accuracy_is_that_of_the_checkpoints_own_step(run: RunDir) -> None:
    found = measured_accuracy(source(run))
    # 30 / 50, and neither the run's last, 80%, nor its best.
    assert found["raw"] == Accuracy(pytest.approx(0.6), pytest.approx(0.95))
    assert found["EMA"] == Accuracy(pytest.approx(0.61), None)


def test_a_step_without_an_evaluation_was_not_measured(run: RunDir) -> None:
    state = {**STATE, "global_step": 35}
    assert measured_accuracy(source(run, state=state))["raw"] == Accuracy(None, None)
    assert measured_accuracy(source(run))["raw"] != Accuracy(None, None)


@pytest.mark.parametrize("state", [{}, STATE])
def test_without_a_run_or_a_step_nothing_was_measured(run: RunDir, state: dict[str, Any]) -> None:
    found = measured_accuracy(source(run if not state else None, state=state))
    assert found == {"raw": Accuracy(), "EMA": Accuracy()}


def test_the_recipe_is_what_the_run_recorded(run: RunDir) -> None:
    assert dict(training_rows(source(run))) == {
        "recipe": "`b.yaml`, `a.yaml`",
        "command": "`resscale fit --config a.yaml --config=b.yaml`",
        "optimizer": "sgd: lr 0.1, lr_batch_size 256, nesterov true",
        "learning rate": "0.1 × 512/256 = 0.2",
        "schedule": "cosine: warmup_epochs 2",
        "label smoothing": "0.1",
        # 1,600 // 512 = 3 steps an epoch; 30 / 3 = 10; 30 · 512 = 15,360
        "epochs": "10 of 20 planned: 30 optimizer steps, 15,360 images",
        "global batch": "512",
        "micro-batch": "64",
        "training crop": "pad, 32 pixels, mirrored by half",
        "precision": "bf16-mixed",
        "strategy": "deepspeed_2, devices 8, nodes 2",
        "EMA": "decay 0.9999, warmup true",
        "seed": "3",
        "begun from weights": "none",
    }


def test_images_that_grow_and_samples_that_are_repeated_are_told() -> None:
    changes = {"progressive": {"from_size": 24, "until_epoch": 3}, "repeats": 2, "flip": False}
    config = {**CONFIG, "data": {**CONFIG["data"], **changes}}
    rows = dict(training_rows(source(config=config)))
    assert rows["training crop"] == "pad, 24 growing to 32 pixels, 2 copies of each in a batch"


def test_a_rate_that_scales_by_the_square_root_is_told_so() -> None:
    optimizer = {"name": "lamb", "lr": 0.005, "lr_batch_size": 2048, "lr_scaling": "sqrt"}
    config = {**CONFIG, "model": {**CONFIG["model"], "optimizer": optimizer}}
    # √(512/2048) = 1/2
    assert dict(training_rows(source(config=config)))["learning rate"] == (
        "0.005 × √(512/2048) = 0.0025"
    )


def test_what_was_not_recorded_is_said_to_be_so() -> None:
    rows = [*training_rows(source(state={}, config={}, averaged=None))]
    rows += data_rows(source(state={}, config={}))
    assert {value for _, value in rows} == {"not recorded"}


def test_a_strategy_with_options_is_told_with_them() -> None:
    strategy = {"class_path": "DDPStrategy", "init_args": {"static_graph": True}}
    config = {**CONFIG, "trainer": {"strategy": strategy, "devices": 2, "num_nodes": 1}}
    assert dict(training_rows(source(config=config)))["strategy"] == (
        "class_path DDPStrategy, init_args.static_graph true, devices 2, nodes 1"
    )


def test_epochs_are_not_computed_for_epochs_that_were_cut_short() -> None:
    config = {**CONFIG, "trainer": {**CONFIG["trainer"], "limit_train_batches": 2}}
    rows = dict(training_rows(source(config=config)))
    assert rows["epochs"] == "30 optimizer steps, 15,360 images"


def test_without_averaged_weights_there_is_no_ema() -> None:
    assert dict(training_rows(source(averaged=None)))["EMA"] == "none"


def test_the_data_are_told_by_place_size_and_fingerprint() -> None:
    config = {**CONFIG, "data": {**CONFIG["data"], "val": None}}
    assert dict(data_rows(source(config=config))) == {
        "training data": "shards/train",
        "training samples": "1,600",
        "fingerprint of the manifest": "`ab12`",
        "validation data": "none",
    }


def test_class_names_are_those_of_the_very_data_that_was_trained_on() -> None:
    manifest = Manifest.load(resolve("builtin:digits/train"))
    config = {"data": {"train": "builtin:digits/train"}}
    same = source(config=config, state={"manifest": manifest.fingerprint})
    assert class_names(same) == tuple("0123456789")
    assert class_names(source(config=config, state={"manifest": "another"})) == ()
    assert class_names(source(config={"data": {"train": "gone/train"}})) == ()
    assert class_names(source(config={})) == ()
