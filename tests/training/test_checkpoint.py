"""Checkpoints: written whole or not at all, found again, kept, refused where they do not fit."""

import contextlib
import errno
import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resscale.cli import main
from resscale.data import Manifest
from resscale.data.builtin import resolve
from resscale.errors import UserInputError
from resscale.training import checkpoint as module
from resscale.training.checkpoint import (
    STATE_KEY,
    AtomicCheckpointIO,
    Checkpointer,
    find_newest_valid,
    is_whole,
    newest_first,
)
from resscale.training.rundir import RunDir

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
CONTENT = {"weights": torch.arange(1000.0), "step": 3}
CONFIG = """
model: {model: resnet20_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, val: builtin:digits/test, channels: 1, image_size: 8,
       train_crop: center, global_batch_size: 64, eval_batch_size: 360, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 4, limit_train_batches: 2}
checkpoint: {every_n_steps: 1, keep_last: 3}
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "epoch-0001-step-00000003.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of 4 epochs of 2 steps that saves at each step and keeps 3."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "tiny.yaml").write_text(CONFIG)
    run_dir = folder / "run"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setenv("RESSCALE_RUN_DIR", "")  # the run sets it; taken back behind this block
        assert main(["fit", "--config", f"{folder}/tiny.yaml", "--run_dir", str(run_dir)]) == 0
    return RunDir(run_dir)


def test_what_is_saved_is_loaded_with_weights_only(saved: Path) -> None:
    loaded = torch.load(saved, weights_only=True)
    assert torch.equal(loaded["weights"], CONTENT["weights"])
    assert loaded["step"] == 3


def test_no_temporary_file_is_left(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("No space left on device")],
    ids=["the file's", "torch's own zip writer's"],
)
def test_an_error_in_the_middle_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before = saved.read_bytes()

    def half_then_full(content: Any, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half_then_full)
    with pytest.raises(UserInputError, match=r"cannot be written .*No space left on device") as e:
        AtomicCheckpointIO().save_checkpoint({"step": 4}, saved)
    assert "Free space or give another --run_dir, then go on with --ckpt_path auto." in str(e.value)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_device_that_is_really_full_is_told_the_same_way(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def always_full(path: Path, *args: Any, **kwargs: Any) -> Any:
        return real(Path("/dev/full") if path.suffix == ".tmp" else path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", always_full)
    with pytest.raises(UserInputError, match=r"the checkpoint .* cannot be written"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, saved)
    assert is_whole(saved)


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


def test_a_whole_file_is_told_from_a_flipped_byte(saved: Path) -> None:
    assert is_whole(saved)
    data = bytearray(saved.read_bytes())
    # In the middle of the weights: 1000 floats of 4 bytes are most of the file.
    data[len(data) // 2] ^= 1
    saved.write_bytes(data)
    assert not is_whole(saved)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_not_whole(saved: Path, share: float) -> None:
    os.truncate(saved, int(saved.stat().st_size * share))
    assert not is_whole(saved)


def test_a_file_that_is_not_there_is_not_whole(tmp_path: Path) -> None:
    assert not is_whole(tmp_path / "no.ckpt")


def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    folder = RunDir(tmp_path).checkpoints
    paths = [folder / f"epoch-000{e}-step-{s:08d}.ckpt" for e, s in ((0, 9), (0, 10), (1, 11))]
    for path in paths:
        AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    (folder / "epoch-0002-step-00000012.ckpt.tmp").write_bytes(b"left by a kill")
    assert find_newest_valid(RunDir(tmp_path)) == paths[2]
    for torn in (2, 1):
        os.truncate(paths[torn], 100)
        assert find_newest_valid(RunDir(tmp_path)) == paths[torn - 1]
    os.truncate(paths[0], 100)
    assert find_newest_valid(RunDir(tmp_path)) is None


def test_a_run_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert find_newest_valid(RunDir(tmp_path / "no")) is None


def test_only_the_newest_are_kept_and_the_best_survives_them(run: RunDir) -> None:
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == [
        "best.ckpt",
        "epoch-0003-step-00000006.ckpt",
        "epoch-0003-step-00000007.ckpt",
        "epoch-0004-step-00000008.ckpt",
        "last.ckpt",
    ]
    assert all(is_whole(path) for path in run.checkpoints.iterdir())
    last = (run.checkpoints / "last.ckpt").resolve()
    assert last == newest_first(run.checkpoints)[0]


def test_the_best_is_the_first_with_the_highest_accuracy(run: RunDir) -> None:
    rows = [line.split(",") for line in run.metrics.read_text().splitlines()]
    head = rows[0]
    accuracy = {
        int(row[head.index("step")]): float(row[head.index("val/top1")])
        for row in rows[1:]
        if row[head.index("val/top1")]
    }
    assert sorted(accuracy) == [2, 4, 6, 8]
    best = torch.load(run.checkpoints / "best.ckpt", weights_only=True)
    expected = max(accuracy, key=lambda step: (accuracy[step], -step))
    assert best["global_step"] == expected
    state = best["callbacks"]["Checkpointer"]
    assert state["best_top1"] == pytest.approx(accuracy[expected], rel=1e-6)


def test_only_a_rise_makes_a_new_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked: list[tuple[str, str]] = []
    monkeypatch.setattr(module, "_link", lambda a, b: linked.append((a.name, b.name)))
    checkpointer, trainer = Checkpointer(), SimpleNamespace(is_global_zero=True)
    for epoch, top1 in enumerate((0.5, 0.75, 0.75, 0.625, None, 0.875)):
        trainer.callback_metrics = {} if top1 is None else {"val/top1": torch.tensor(top1)}
        monkeypatch.setattr(checkpointer, "save", lambda *a, e=epoch: tmp_path / f"{e}.ckpt")
        checkpointer.on_train_epoch_end(trainer, None)
    assert linked == [(f"{epoch}.ckpt", "best.ckpt") for epoch in (0, 1, 5)]


def test_a_checkpoint_says_what_a_resume_must_know(run: RunDir) -> None:
    newest = torch.load(newest_first(run.checkpoints)[1], weights_only=True)
    state = newest[STATE_KEY]
    assert (state["global_step"], state["samples_seen"]) == (7, 7 * 64)
    assert (state["global_batch_size"], state["seed"], state["num_samples"]) == (64, 0, 1437)
    assert state["manifest"] == Manifest.load(resolve("builtin:digits/train")).fingerprint
    assert state["config"]["data"]["global_batch_size"] == 64
    assert next(iter(newest["state_dict"])).startswith("model.")


def a_trainer(**changes: Any) -> Any:
    """A trainer whose data is what `STATE` says, with some facts changed."""
    facts = {"global_batch_size": 64, "seed": 0, "fingerprint": "f00d", **changes}
    return SimpleNamespace(
        world_size=1,
        datamodule=SimpleNamespace(
            global_batch_size=facts["global_batch_size"],
            seed=facts["seed"],
            manifest=lambda split: SimpleNamespace(fingerprint=facts["fingerprint"]),
            samples_seen=0,
            plan=lambda ranks: SimpleNamespace(accumulate=1),
            steps_per_epoch=lambda: 22,
        ),
    )


STATE = {
    "global_batch_size": 64, "seed": 0, "manifest": "f00d", "global_step": 3, "samples_seen": 192,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, r"with seed=0, now it is 1: .* Set seed_everything as it was"),
        ({"global_batch_size": 32}, r"global_batch_size=64, now it is 32: .* data\.global_batch"),
        ({"fingerprint": "beef"}, r"manifest=f00d, now it is beef: .* Set data\.train as it was"),
    ],
)
def test_going_on_with_another_order_of_samples_is_refused(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserInputError, match=said):
        Checkpointer().on_load_checkpoint(a_trainer(**change), None, {STATE_KEY: dict(STATE)})


def test_a_checkpoint_of_another_program_is_refused() -> None:
    with pytest.raises(UserInputError, match="was not written by resscale"):
        Checkpointer().on_load_checkpoint(a_trainer(), None, {"state_dict": {}})


def test_the_data_goes_on_behind_the_last_sample_and_the_loops_behind_the_last_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, told = a_trainer(), []
    monkeypatch.setattr(module, "rewrite_loops", lambda loop, position: told.append(position))
    loaded = {STATE_KEY: dict(STATE), "loops": {"fit_loop": {}}}
    Checkpointer().on_load_checkpoint(trainer, None, loaded)
    assert trainer.datamodule.samples_seen == 192
    (position,) = told
    assert (position.global_step, position.steps_per_epoch, position.accumulate) == (3, 22, 1)


def test_the_best_accuracy_goes_on_with_the_run() -> None:
    first, second = Checkpointer(), Checkpointer()
    first.best_top1 = 0.75
    second.load_state_dict(first.state_dict())
    assert second.best_top1 == 0.75


def test_at_least_one_checkpoint_is_kept() -> None:
    with pytest.raises(UserInputError, match=r"checkpoint\.keep_last=0 must be at least 1"):
        Checkpointer(keep_last=0)


def test_best_is_a_copy_where_the_file_system_has_no_hard_links(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    module._link(saved, saved.with_name("best.ckpt"))
    before = saved.read_bytes()
    saved.unlink()
    assert saved.with_name("best.ckpt").read_bytes() == before
