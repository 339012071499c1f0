"""Writing in the background: what is saved is the moment of the call, one save at a time."""

import threading
from pathlib import Path

import pytest
import torch

from resscale.errors import CheckpointError
from resscale.training.checkpoint_background import BackgroundCheckpointIO
from resscale.training.checkpoint_io import PendingSave
from resscale.training.checkpoint_seal import is_whole

PATIENCE_S = 60


class Gate:
    """Holds a save back between its file and its end, until it is opened."""

    def __init__(self, order: list[str], name: str) -> None:
        self.order, self.name = order, name
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE_S)
        self.order.append(self.name)


def test_training_goes_on_while_the_moment_of_the_call_is_written(tmp_path: Path) -> None:
    weights, gate = torch.arange(1000.0), Gate([], "first")
    pending = PendingSave(gate)
    BackgroundCheckpointIO().save_checkpoint({"w": weights}, tmp_path / "a.ckpt", pending)
    weights.add_(1)  # while the save is not done
    assert not pending.done.is_set()
    gate.opened.set()
    assert pending.wait() is None
    assert torch.equal(torch.load(tmp_path / "a.ckpt")["w"], torch.arange(1000.0))


def test_a_file_is_published_when_it_is_complete(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.ckpt", []
    pending = PendingSave(lambda: seen.append(is_whole(path)))
    BackgroundCheckpointIO().save_checkpoint({"w": torch.ones(10)}, path, pending)
    pending.wait()
    assert seen == [True]


def test_a_save_waits_for_the_one_before(tmp_path: Path) -> None:
    writer, order = BackgroundCheckpointIO(), []
    first = Gate(order, "first")
    second = PendingSave(lambda: order.append("second"))
    writer.save_checkpoint({}, tmp_path / "a.ckpt", PendingSave(first))
    assert first.reached.wait(PATIENCE_S)
    other = threading.Thread(
        target=writer.save_checkpoint, args=({}, tmp_path / "b.ckpt", second), daemon=True
    )
    other.start()
    # It cannot come to its end while the first is held; a wrong writer would most likely have.
    other.join(0.2)
    assert other.is_alive()
    assert not (tmp_path / "b.ckpt").exists()
    first.opened.set()
    other.join(PATIENCE_S)
    assert second.wait() is None
    assert order == ["first", "second"]


def test_an_error_is_kept_until_it_is_asked_for_and_the_next_save_goes_well(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    writer = BackgroundCheckpointIO()
    failing = PendingSave(lambda: None)
    writer.save_checkpoint({}, tmp_path / "file" / "a.ckpt", failing)
    assert isinstance(failing.wait(), CheckpointError)
    assert failing.has_failed
    fine = PendingSave(lambda: None)
    writer.save_checkpoint({}, tmp_path / "b.ckpt", fine)
    assert fine.wait() is None
    assert is_whole(tmp_path / "b.ckpt")


def test_a_save_that_nobody_waits_for_is_written_at_once(tmp_path: Path) -> None:
    writer = BackgroundCheckpointIO()
    writer.save_checkpoint({"w": torch.ones(10)}, tmp_path / "a.ckpt")
    assert is_whole(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError):
        writer.save_checkpoint({}, tmp_path / "a.ckpt" / "below a file")
