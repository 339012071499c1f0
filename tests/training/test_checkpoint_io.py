"""Writing: a kill, a full disk or an error leaves the old file or the new, never half of one."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from resscale.errors import CheckpointError
from resscale.training.checkpoint_io import AtomicCheckpointIO, PendingSave, wait_for_saves
from resscale.training.checkpoint_seal import is_whole

CONTENT = {"weights": torch.arange(1000.0), "step": 3}
LARGE = {"weights": torch.zeros(1_000_000), "step": 4}  # 4 MB


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "epoch-0001-step-00000003.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    return path


def never() -> None:
    raise AssertionError("published what was not written")


def test_what_is_saved_is_loaded_with_weights_only(saved: Path) -> None:
    loaded = torch.load(saved, weights_only=True)
    assert torch.equal(loaded["weights"], CONTENT["weights"])
    assert loaded["step"] == 3


def test_no_temporary_file_is_left(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_the_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, seen = tmp_path / "a.ckpt", []
    real = os.fsync

    def note(descriptor: int) -> None:
        seen.append(target.exists())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    AtomicCheckpointIO().save_checkpoint(CONTENT, target)
    assert seen == [False, True]  # the file before the rename, the folder behind it


def test_what_is_being_written_is_waited_for_and_not_what_is_only_asked_for() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        go_on.wait(60)

    save = PendingSave(publish=lambda: None)
    assert not wait_for_saves(60)
    threading.Thread(target=save.run, args=(write,)).start()
    assert begun.wait(60)
    assert wait_for_saves(0.0)
    assert not save.done.is_set()
    threading.Timer(0.2, go_on.set).start()
    assert wait_for_saves(60)
    assert save.done.is_set()
    assert not wait_for_saves(60)


def test_an_error_in_the_middle_leaves_the_old_file(saved: Path, limited_files: None) -> None:
    before = saved.read_bytes()
    with pytest.raises(
        CheckpointError, match=r"cannot be written .*those before it are kept\. Free"
    ):
        AtomicCheckpointIO().save_checkpoint(LARGE, saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_device_that_is_full_is_told_the_same_way(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def always_full(path: Path, *args: Any, **kwargs: Any) -> Any:
        return real(Path("/dev/full") if path.suffix == ".tmp" else path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", always_full)
    with pytest.raises(CheckpointError, match=r"the checkpoint .* cannot be written .*No space"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, saved)
    assert is_whole(saved)


@pytest.mark.parametrize("small_disk", ["3m"], indirect=True)
def test_a_disk_that_is_too_small_is_found_before_a_byte_is_written(small_disk: Path) -> None:
    first = small_disk / "epoch-0000-step-00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, first)
    with pytest.raises(CheckpointError) as refused:
        AtomicCheckpointIO().save_checkpoint(LARGE, small_disk / "epoch-0001-step-00000002.ckpt")
    # 4,000,000 of the weights, 512 of their record and 1,048,576 for the structure.
    assert (
        "step-00000002.ckpt needs 5.0 MB and its disk has 3.1 MB free: it was not begun, and "
        in (str(refused.value))
    )
    assert [path.name for path in small_disk.iterdir()] == [first.name]
    assert is_whole(first)


@pytest.mark.parametrize("small_disk", ["3m"], indirect=True)
def test_a_disk_that_fills_up_meanwhile_leaves_the_checkpoints_before(small_disk: Path) -> None:
    # The check finds 3.1 MB free for the 3.0 MB; then other writers take the most of it.
    first, second = (small_disk / f"epoch-0000-step-0000000{n}.ckpt" for n in (1, 2))
    AtomicCheckpointIO().save_checkpoint(CONTENT, first)

    class Greedy(dict[str, Any]):
        """Takes the space when torch begins to write it, behind the check."""

        def __reduce__(self) -> Any:
            (small_disk / "other").write_bytes(b"x" * 2_500_000)
            return dict, (dict(self),)

    content = {"late": Greedy(a=1), "weights": torch.zeros(480_000)}
    with pytest.raises(CheckpointError, match=r"cannot be written .*No space left on device"):
        AtomicCheckpointIO().save_checkpoint(content, second)
    assert sorted(path.name for path in small_disk.iterdir()) == [first.name, "other"]
    assert is_whole(first)


def test_a_folder_that_may_not_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"cannot be written .*make the folder writable"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "file" / "a.ckpt")


def test_a_pending_save_is_published_when_the_file_is_complete(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.ckpt", []
    pending = PendingSave(lambda: seen.append(is_whole(path)))
    AtomicCheckpointIO().save_checkpoint(CONTENT, path, pending)
    assert seen == [True]
    assert pending.wait() is None
    assert not pending.has_failed


def test_a_pending_save_keeps_its_error_for_the_ranks_to_share(saved: Path) -> None:
    pending = PendingSave(never)
    AtomicCheckpointIO().save_checkpoint(CONTENT, saved / "below a file.ckpt", pending)
    assert isinstance(pending.wait(), CheckpointError)
    assert pending.has_failed


def test_an_error_of_publishing_is_an_error_of_the_save(tmp_path: Path) -> None:
    def publish() -> None:
        (tmp_path / "no" / "last.ckpt").symlink_to("a.ckpt")

    pending = PendingSave(publish)
    AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "a.ckpt", pending)
    with pytest.raises(CheckpointError, match=r"cannot be written .*No such file"):
        raise pending.wait()  # type: ignore[misc]


@pytest.mark.parametrize("small_disk", ["3m"], indirect=True)
def test_on_a_full_disk_what_may_go_goes_before_the_save_is_given_up(small_disk: Path) -> None:
    old, new = (small_disk / f"epoch-0000-step-0000000{n}.ckpt" for n in (1, 2))
    middle = {"weights": torch.zeros(400_000)}  # 1.6 MB, and 1 MB of margin: two do not fit
    AtomicCheckpointIO().save_checkpoint(middle, old)

    def make_room() -> bool:
        before = old.exists()
        old.unlink(missing_ok=True)
        return before

    pending = PendingSave(lambda: None, make_room)
    AtomicCheckpointIO().save_checkpoint(middle, new, pending)
    assert pending.wait() is None
    assert [path.name for path in small_disk.iterdir()] == [new.name]
