"""Two real processes (gloo): the slow one is named; a loss that is no number ends both alike."""

from __future__ import annotations

import json
import math
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from rank_server import RankServer
from resscale.data import Manifest
from resscale.data.builtin import resolve
from resscale.data.samples import ShardSamples
from resscale.training.rundir import RunDir

# Epochs of 6 steps of 64 samples; each rank takes 32 of them as 2 micro-batches. One interval each.
CONFIG = """
model: {model: resnet8_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, channels: 1, image_size: 8, train_crop: center,
       global_batch_size: 64, micro_batch_size: 16, num_workers: 0, log_sample_ids: true}
trainer: {accelerator: cpu, devices: 2, strategy: ddp, max_epochs: 3, limit_train_batches: 12,
          log_every_n_steps: 1000, callbacks: [{class_path: test_watched_ranks.Disturbance}]}
guard: {max_nonfinite_losses: 3}
"""
SLEEP_S = 0.1


class Disturbance(Callback):
    """Epoch 0: rank 1 dawdles at each batch. Epoch 1: rank 0 reads slowly. Epoch 2: rank 1 has NaN.

    It comes in the second micro-batch of the fourth step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dataset = trainer.datamodule._train_loader.dataset  # type: ignore[attr-defined]
        read = dataset.read_batch

        def read_slowly(request: Any) -> Any:
            if request.epoch == 1 and trainer.global_rank == 0:
                time.sleep(SLEEP_S)
            return read(request)

        dataset.read_batch = read_slowly

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank != 1:
            return
        if batch["epoch"] == 0:
            time.sleep(2 * SLEEP_S)
        if (batch["epoch"], batch_idx) == (2, 7):
            pl_module.pixel_shift.fill_(math.nan)  # type: ignore[operator, union-attr]

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        print(f"rank {trainer.global_rank} stopped at {trainer.global_step}: {exception}")


@pytest.fixture(scope="module")
def disturbed(
    rank_server: RankServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, str, RunDir]:
    """A run of two processes under `Disturbance`: exit code, what all said, and the directory."""
    folder = tmp_path_factory.mktemp("disturbed")
    (folder / "tiny.yaml").write_text(CONFIG)
    ended = rank_server.run(
        *("fit", "--config", "tiny.yaml", "--run_dir=run", "--trainer.devices=2"),
        cwd=folder,
        environ={"PYTHONPATH": str(Path(__file__).parent)},
    )
    return ended.code, ended.said, RunDir(folder / "run")


def test_the_rank_that_sleeps_is_named_wherever_it_sleeps(
    disturbed: tuple[int, str, RunDir],
) -> None:
    _, said, run = disturbed
    slow = {event["epoch"]: event for event in run.read_events("straggler")}
    # Rank 1 in a callback, then rank 0 in its data.
    assert slow[0]["rank"] == 1, said
    assert slow[1]["rank"] == 0, said
    # Two micro-batches a step: 2 · 2 · 0.1 s, and 2 · 0.1 s.
    assert slow[0]["own_s"] >= 4 * SLEEP_S > slow[0]["median_own_s"]
    assert slow[1]["own_s"] >= 2 * SLEEP_S > slow[1]["median_own_s"]
    for event in slow.values():
        assert event["host"] == socket.gethostname()
        assert event["ratio"] > 1.2
        # All wait for the slow one, so nobody's step is shorter than its own time.
        assert event["step_s"] >= event["own_s"]
    assert f"rank 1 on {socket.gethostname()} holds the others up" in said


def test_the_summary_names_the_rank_that_was_slowest_over_all(
    disturbed: tuple[int, str, RunDir],
) -> None:
    _, said, run = disturbed
    slowest = run.read_summary()["slowest_rank"]
    # It slept for twice as long.
    assert (slowest["rank"], slowest["host"]) == (1, socket.gethostname()), said
    assert slowest["ratio"] > 1.0
    summary = run.read_summary()
    assert summary["images_per_s_per_rank"] == pytest.approx(summary["images_per_s"] / 2)


def test_both_ranks_stop_at_the_same_step_with_the_same_message(
    disturbed: tuple[int, str, RunDir],
) -> None:
    code, said, run = disturbed
    assert code == 70, said
    words = said.splitlines() + run.log(1).read_text().splitlines()
    words = [line for line in words if " stopped at " in line]
    assert {line[: len("rank 0 stopped at 18: ")] for line in words} == {
        "rank 0 stopped at 18: ",
        "rank 1 stopped at 18: ",
    }
    messages = {line.partition(": ")[2] for line in words}
    assert len(messages) == 1, messages
    assert run.read_summary()["reason"] in messages


def test_the_first_loss_that_is_no_number_is_named_with_its_rank_and_samples(
    disturbed: tuple[int, str, RunDir],
) -> None:
    _, said, run = disturbed
    # Epoch 2, batch 7: step 3 of the epoch, micro-batch 1; steps are counted from 1: 2 · 6 + 3 + 1.
    assert "not finite" in said
    assert "training there: nan at step 16 on rank 1 (samples " in said
    first = run.read_events("nonfinite_loss")[0]
    place = [first[name] for name in ("rank", "epoch", "step", "micro_batch", "global_step")]
    assert place == [1, 2, 3, 1, 16]
    log = [json.loads(line) for line in run.samples(1).read_text().splitlines()]
    entry = log[2 * 12 + 7]
    assert (entry["epoch"], entry["step"]) == (2, 3)
    samples = ShardSamples(Manifest.load(resolve("builtin:digits/train")))
    assert first["keys"] == [samples.key(sample) for sample in entry["ids"]]
    # Its gradients reach both ranks, so that all that follows is no number either: 2 ranks · 2
    # steps · 2 micro-batches, and the first.
    assert run.read_summary()["nonfinite_losses"] == 9
