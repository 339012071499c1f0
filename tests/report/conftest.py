"""Run directories with known numbers, written by the same code that training writes them with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from resscale.report.mistakes_file import Measured, Shown, thumbnail
from resscale.report.runs import Run, load_run
from resscale.training.rundir import RunDir

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that writes a run of 10 steps an epoch, logged every 5, and returns its path.

    Training error falls by 1 point an epoch from 40%, test error from 50%, both less 1 per seed.
    """

    def make(
        name: str = "run",
        *,
        epochs: int = 3,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> Path:
        run = RunDir(tmp_path / name)
        run.path.mkdir(parents=True)
        config: dict[str, Any] = {
            "seed_everything": seed,
            "model": {"model": "resnet20_cifar", "model_options": None, "optimizer": {"lr": 0.1}},
            "data": {"train": "shards/train"},
            "trainer": {"max_epochs": epochs},
        }
        for key, value in (options or {}).items():
            inner = config
            *parents, leaf = key.split(".")
            for parent in parents:
                inner[parent] = inner.get(parent) or {}
                inner = inner[parent]
            inner[leaf] = value
        run.config.write_text(yaml.safe_dump(config))
        for epoch in range(epochs):
            train_top1, val_top1 = (60 + epoch + seed) / 100, (50 + epoch + seed) / 100
            for step in (5, 10):
                run.append_metrics(
                    {
                        "epoch": epoch,
                        "step": 10 * epoch + step,
                        "train/loss": 2 - train_top1,
                        "train/top1": train_top1,
                        "lr": 0.1,
                        "images_per_s": 100.0,
                        "data_wait": 0.25,
                    }
                )
            run.append_metrics(
                {"epoch": epoch, "step": 10 * epoch + 10, "val/loss": 1.5, "val/top1": val_top1}
            )
        facts = {
            "status": "done",
            "epoch": epochs,
            "num_parameters": 269434,
            "world_size": 1,
            "command": f"resscale fit --run_dir {name}",
        }
        run.write_summary({**facts, **(summary or {})})
        return run.path

    return make


@pytest.fixture
def made(make_run: MakeRun) -> Callable[..., Run]:
    """A function that writes a run as `make_run` does and loads it."""

    def make(name: str, label: str | None = None, **options: Any) -> Run:
        return load_run(make_run(name, **options), label)

    return make


@pytest.fixture
def measured() -> Measured:
    """Of 4 cats none is mistaken; of 5 dogs two are taken for cats and one for a fox; of 6 foxes
    two for dogs.
    """
    picture, _ = thumbnail(np.zeros((8, 8, 1), dtype=np.uint8))
    return Measured(
        checkpoint="checkpoints/best.ckpt",
        identity="sha256 0",
        global_step=30,
        averaged=False,
        why="",
        images="shards/val",
        fingerprint="f",
        crop_px=8,
        precision="32-true",
        samples=(4, 5, 6),
        hits=(4, 2, 4),
        hits_top5=(4, 5, 6),
        pairs=((1, 0, 2), (1, 2, 1), (2, 1, 2)),
        classes=("cat", "dog", "fox"),
        confident=(
            Shown("val-7", 1, 0, 0.987, 0.01, picture, True),
            Shown("val-3", 2, 1, 0.5, None, picture, True),
        ),
        bad=(),
        num_bad=0,
        date="2026-11-24 10:00",
    )
