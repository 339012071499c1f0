"""With every augmentation on, two ranks see and lose what one process sees and loses."""

from __future__ import annotations

from pathlib import Path

import pytest
from parity import ROOT, Outcome, load_outcome, loss_difference

from rank_server import RankServer

pytestmark = pytest.mark.timeout(600)
# One epoch of 5 steps of two micro-batches: one process takes both, or each of two ranks one.
OPTIONS = (
    *("--config=configs/demo.yaml", "--model.model=resnet8_cifar", "--model.optimizer.lr=0.01"),
    *("--model.schedule.warmup_epochs=0", "--data.flip=true", "--data.num_workers=0"),
    *("--data.global_batch_size=256", "--data.micro_batch_size=128", "--trainer.max_epochs=1"),
    *("--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--data.val=null"),
    "--data.log_sample_ids=true",
)
EVERYTHING = (
    *("--model.policy.name=trivial_augment_wide", "--model.erasing.probability=0.5"),
    *("--model.erasing.value=noise", "--model.label_smoothing=0.1"),
    *("--model.mixing.mixup_alpha=0.2", "--model.mixing.cutmix_alpha=1"),
)


def train(rank_server: RankServer, run_dir: Path, *arguments: str) -> Outcome:
    ended = rank_server.run("fit", f"--run_dir={run_dir}", *OPTIONS, *arguments, cwd=ROOT)
    assert ended.code == 0, ended.said
    return load_outcome(run_dir)


def test_two_ranks_augment_as_one_process_does(rank_server: RankServer, tmp_path: Path) -> None:
    one = train(rank_server, tmp_path / "one", *EVERYTHING)
    ddp = ("--trainer.devices=2", "--trainer.strategy=ddp")
    two = train(rank_server, tmp_path / "two", *EVERYTHING, *ddp)
    assert one.samples == two.samples
    assert len(one.losses) == 5
    assert loss_difference(one, two) < 1e-5
    # Without augmentation the losses are others, by far more than that.
    assert loss_difference(train(rank_server, tmp_path / "plain"), one) > 1e-2
