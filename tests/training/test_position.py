"""Where training stands, and Lightning's loop counters rewritten to stand there."""

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from resscale.training.position import Position, rewrite_loops

pytestmark = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.*your dataloader is not resumable",
)
MICRO_BATCHES, ACCUMULATE = 6, 2  # 3 optimizer steps an epoch


class Toy(LightningModule):
    """Notes which micro-batches it sees, where it stands behind each, and a checkpoint."""

    def __init__(self, checkpoint_behind: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.checkpoint_behind = checkpoint_behind
        self.seen: list[tuple[int, int]] = []
        self.positions: list[Position] = []
        self.checkpoint: dict[str, Any] = {}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append((self.trainer.current_epoch, batch_idx))
        return self.layer(batch).mean()

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        self.positions.append(Position.of(self.trainer))
        if self.checkpoint_behind == (self.trainer.current_epoch, batch_idx):
            dumped = self.trainer._checkpoint_connector.dump_checkpoint()
            self.checkpoint = copy.deepcopy(dumped)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def fit(module: Toy, ckpt_path: str | None = None) -> None:
    """Train for three epochs."""
    trainer = Trainer(
        max_epochs=3,
        accumulate_grad_batches=ACCUMULATE,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    loader = DataLoader(torch.ones(MICRO_BATCHES, 1), batch_size=1)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True)


@pytest.fixture(scope="module")
def trained() -> Toy:
    """A run with a checkpoint in mid-epoch: behind 2 of epoch 1's 6 micro-batches."""
    module = Toy(checkpoint_behind=(1, 1))
    fit(module)
    return module


@pytest.mark.parametrize(
    ("global_step", "epoch", "step_in_epoch", "at_start"),
    [(0, 0, 0, True), (1, 0, 1, False), (3, 1, 0, True), (7, 2, 1, False)],
)
def test_epoch_and_step_follow_from_the_steps_done(
    global_step: int, epoch: int, step_in_epoch: int, at_start: bool
) -> None:
    position = Position(global_step, steps_per_epoch=3, accumulate=2)
    found = (position.epoch, position.step_in_epoch, position.at_epoch_start)
    assert found == (epoch, step_in_epoch, at_start)


def test_a_trainers_position_is_a_boundary_behind_each_whole_step(trained: Toy) -> None:
    first_epoch = trained.positions[:MICRO_BATCHES]
    assert [p.is_step_boundary for p in first_epoch] == [False, True] * 3
    assert [p.global_step for p in first_epoch] == [0, 1, 1, 2, 2, 3]
    assert {(p.steps_per_epoch, p.accumulate) for p in trained.positions} == {(3, 2)}


def test_rewriting_to_where_the_checkpoint_stands_gives_consistent_counters(
    trained: Toy,
) -> None:
    loop = copy.deepcopy(trained.checkpoint["loops"]["fit_loop"])
    rewrite_loops(loop, Position(global_step=4, steps_per_epoch=3, accumulate=2))
    batches = loop["epoch_loop.batch_progress"]
    # 4 steps = 1 whole epoch and 1 step: 4 · 2 = 8 micro-batches, 1 · 2 of this epoch.
    every = ("ready", "started", "processed", "completed")
    assert batches["total"] == dict.fromkeys(every, 8)
    assert batches["current"] == dict.fromkeys(every, 2)
    assert not batches["is_last_batch"]
    begun_and_done = {"ready": 2, "started": 2, "processed": 1, "completed": 1}
    assert loop["epoch_progress"] == {"total": begun_and_done, "current": begun_and_done}
    progress = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for name in ("step", "zero_grad"):
        assert set(progress[name]["total"].values()) == {4}
        assert set(progress[name]["current"].values()) == {1}
    assert loop["epoch_loop.scheduler_progress"]["total"] == {"ready": 4, "completed": 4}
    assert loop["epoch_loop.state_dict"]["_batches_that_stepped"] == 4


def test_an_epoch_whose_validation_is_due_is_not_over(trained: Toy) -> None:
    loop = copy.deepcopy(trained.checkpoint["loops"]["fit_loop"])
    position = Position(global_step=3, steps_per_epoch=3, accumulate=2)
    rewrite_loops(loop, position, validation_due=True)
    begun_and_done = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    assert loop["epoch_progress"]["total"] == begun_and_done
    batches = loop["epoch_loop.batch_progress"]
    assert set(batches["current"].values()) == {6}  # 3 · 2: all of the epoch
    assert batches["is_last_batch"]
    # Lightning counts a step behind its validation.
    assert loop["epoch_loop.state_dict"]["_batches_that_stepped"] == 2
    validation = loop["epoch_loop.val_loop.batch_progress"]
    # One batch begun and none done is what it takes for a validation that was cut off.
    assert validation["total"] == {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    assert set(validation["current"].values()) == {0}


def test_at_an_epochs_start_no_epoch_is_under_way(trained: Toy) -> None:
    loop = copy.deepcopy(trained.checkpoint["loops"]["fit_loop"])
    rewrite_loops(loop, Position(global_step=6, steps_per_epoch=3, accumulate=2))
    assert set(loop["epoch_progress"]["current"].values()) == {2}
    assert loop["epoch_loop.batch_progress"]["total"]["ready"] == 12  # 6 · 2
    assert loop["epoch_loop.batch_progress"]["current"]["ready"] == 0


def test_a_loaders_own_state_is_left_out(trained: Toy) -> None:
    loop = copy.deepcopy(trained.checkpoint["loops"]["fit_loop"])
    loop["state_dict"]["combined_loader"] = ["of rank 0"]
    rewrite_loops(loop, Position(global_step=4, steps_per_epoch=3, accumulate=2))
    assert "combined_loader" not in loop["state_dict"]


@pytest.mark.parametrize(
    ("global_step", "expected"),
    [
        (4, [(1, batch) for batch in (2, 3, 4, 5)] + [(2, batch) for batch in range(6)]),
        (6, [(2, batch) for batch in range(6)]),
        (8, [(2, batch) for batch in (4, 5)]),  # 8 - 6 = 2 steps = 4 micro-batches done
    ],
)
def test_lightning_goes_on_at_exactly_that_micro_batch(
    trained: Toy, tmp_path: Any, global_step: int, expected: list[tuple[int, int]]
) -> None:
    checkpoint = copy.deepcopy(trained.checkpoint)
    rewrite_loops(checkpoint["loops"]["fit_loop"], Position(global_step, 3, ACCUMULATE))
    torch.save(checkpoint, tmp_path / "there.ckpt")
    module = Toy()
    fit(module, str(tmp_path / "there.ckpt"))
    assert module.seen == expected
    assert module.positions[-1].global_step == 9  # 3 epochs · 3 steps
