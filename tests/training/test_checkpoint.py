"""Checkpoints: kept, gone on from, refused where they do not fit, and told of when they fail."""

import contextlib
import io
import subprocess
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
    Checkpointer,
    check_resumable,
    load_checkpoint,
)
from resscale.training.checkpoint_background import BackgroundCheckpointIO
from resscale.training.checkpoint_folder import newest_first
from resscale.training.checkpoint_io import AtomicCheckpointIO, write_checkpoint
from resscale.training.checkpoint_seal import is_whole, seal_holds
from resscale.training.rundir import RunDir

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
CONFIG = """
model: {model: resnet20_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, val: builtin:digits/test, channels: 1, image_size: 8,
       train_crop: center, global_batch_size: 64, eval_batch_size: 360, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 4, limit_train_batches: 2}
checkpoint: {every_n_steps: 1, keep_last: 3}
"""


# Draws from each generator behind each step, and asks to stop behind one.
DRAWS = """
import os, random, signal
import numpy as np
import torch
from lightning.pytorch import Callback

class Draw(Callback):
    def on_train_batch_end(self, trainer, *ignored):
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        with open(trainer.default_root_dir + "/drawn", "a") as file:
            print(trainer.global_step, *drawn, file=file)
        if str(trainer.global_step) == os.environ.get("STOP_AT"):
            os.kill(os.getpid(), signal.SIGUSR2)
"""


def fit(*arguments: str) -> int:
    """Run `resscale fit` in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setenv("RESSCALE_RUN_DIR", "")  # the run sets it; taken back behind this block
        return main(["fit", *arguments])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture(scope="module", params=["false", "true"], ids=["at once", "in the background"])
def run(
    request: pytest.FixtureRequest, config: str, tmp_path_factory: pytest.TempPathFactory
) -> RunDir:
    """A run of 4 epochs of 2 steps that saves at each step and keeps 3."""
    run_dir = tmp_path_factory.mktemp("kept") / "run"
    options = ["--run_dir", str(run_dir), "--checkpoint.asynchronous", request.param]
    assert fit("--config", config, *options) == 0
    return RunDir(run_dir)


@pytest.fixture
def draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options of a run with that callback."""
    (tmp_path / "draws_for_test.py").write_text(DRAWS)
    monkeypatch.syspath_prepend(tmp_path)
    return ["--trainer.callbacks", "draws_for_test.Draw"]


def test_only_the_newest_are_kept_and_the_best_survives_them(run: RunDir) -> None:
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == [
        "best.ckpt",
        "epoch-0003-step-00000006.ckpt",
        "epoch-0003-step-00000007.ckpt",
        "epoch-0004-step-00000008.ckpt",
        "last.ckpt",
    ]
    assert all(seal_holds(path) for path in run.checkpoints.iterdir())
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
    assert state["best_step"] == expected


def test_only_a_rise_makes_a_new_best(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    checkpointer = Checkpointer()
    monkeypatch.setattr(checkpointer, "save", lambda *a, best: asked.append(best))
    for epoch, top1 in enumerate((0.5, 0.75, 0.75, 0.625, None, 0.875)):
        metrics = {} if top1 is None else {"val/top1": torch.tensor(top1)}
        trainer = SimpleNamespace(callback_metrics=metrics, global_step=10 * epoch)
        checkpointer.on_train_epoch_end(trainer, None)
    assert asked == [True, True, False, False, False, True]
    assert (checkpointer.best_top1, checkpointer.best_step) == (0.875, 50)


def test_an_epoch_s_last_step_is_saved_behind_its_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved: list[int] = []
    checkpointer = Checkpointer(every_n_steps=2)
    monkeypatch.setattr(checkpointer, "save", lambda trainer, module: saved.append(step))
    for step in range(1, 9):
        progress = SimpleNamespace(current=SimpleNamespace(ready=(step - 1) % 4 + 1))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        trainer = SimpleNamespace(
            global_step=step, accumulate_grad_batches=1, num_training_batches=4, fit_loop=loop
        )
        checkpointer.on_train_batch_end(trainer, None, None, None, 0)
    # Steps 4 and 8 end epochs of 4: `on_train_epoch_end` saves them.
    assert saved == [2, 6]


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
    facts = {
        "global_batch_size": 64, "seed": 0, "fingerprint": "f00d",
        "shuffle": "window", "window": 4096, "partitions": 1, "repeats": 1,
        **changes,
    }  # fmt: skip
    return SimpleNamespace(
        world_size=1,
        datamodule=SimpleNamespace(
            global_batch_size=facts["global_batch_size"],
            seed=facts["seed"],
            shuffle=facts["shuffle"],
            window=facts["window"],
            partitions=facts["partitions"],
            repeats=facts["repeats"],
            manifest=lambda split: SimpleNamespace(fingerprint=facts["fingerprint"]),
            samples_seen=0,
            plan=lambda ranks: SimpleNamespace(accumulate=1),
            steps_per_epoch=lambda: 22,
        ),
    )


STATE = {
    "global_batch_size": 64, "seed": 0, "manifest": "f00d", "global_step": 3, "samples_seen": 192,
    "config": {"data": {"shuffle": "window", "window": 4096, "partitions": 1}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, r"with seed=0, now it is 1: .* Set seed_everything as it was"),
        ({"global_batch_size": 32}, r"global_batch_size=64, now it is 32: .* data\.global_batch"),
        ({"partitions": 2}, r"with partitions=1, now it is 2: .* Set data\.partitions as it was"),
        ({"shuffle": "full"}, r"with shuffle=window, now it is full: .* Set data\.shuffle"),
        ({"window": 512}, r"with window=4096, now it is 512: .* Set data\.window"),
        ({"fingerprint": "beef"}, r"manifest=f00d, now it is beef: .* Set data\.train as it was"),
    ],
)
def test_going_on_with_another_order_of_samples_is_refused(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserInputError, match=said):
        Checkpointer().on_load_checkpoint(a_trainer(**change), None, {STATE_KEY: dict(STATE)})


def test_a_window_that_orders_nothing_may_change() -> None:
    data = a_trainer(shuffle="full", window=512).datamodule
    full = {**STATE, "config": {"data": {"shuffle": "full", "window": 4096, "partitions": 1}}}
    assert check_resumable({STATE_KEY: full}, data) == full


@pytest.mark.parametrize(
    ("saved", "repeats", "step"), [(1, 3, 3), (3, 1, 22), (None, 2, 22), (2, 3, 44)]
)
def test_other_repeats_are_refused_where_samples_would_not_come_equally_often(
    saved: int | None, repeats: int, step: int
) -> None:
    state = {**STATE, "global_step": step, **({} if saved is None else {"repeats": saved})}
    with pytest.raises(UserInputError, match=rf"repeats={saved or 1}, now they are {repeats}: "):
        Checkpointer().on_load_checkpoint(a_trainer(repeats=repeats), None, {STATE_KEY: state})


def test_a_checkpoint_of_another_program_is_refused() -> None:
    with pytest.raises(UserInputError, match="was not written by resscale"):
        Checkpointer().on_load_checkpoint(a_trainer(), None, {"state_dict": {}})


def test_the_data_goes_on_behind_the_last_sample_and_the_loops_behind_the_last_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, told = a_trainer(), []
    monkeypatch.setattr(
        module,
        "rewrite_loops",
        lambda loop, position, *, validation_due: told.append((position, validation_due)),
    )
    loaded = {STATE_KEY: dict(STATE), "loops": {"fit_loop": {}}}
    Checkpointer().on_load_checkpoint(trainer, None, loaded)
    assert trainer.datamodule.samples_seen == 192
    ((position, validation_due),) = told
    assert not validation_due
    assert (position.global_step, position.steps_per_epoch, position.accumulate) == (3, 22, 1)


def test_the_best_accuracy_goes_on_with_the_run() -> None:
    first, second = Checkpointer(), Checkpointer()
    first.best_top1, first.best_step = 0.75, 22
    second.load_state_dict(first.state_dict())
    assert (second.best_top1, second.best_step) == (0.75, 22)


def test_at_least_one_checkpoint_is_kept() -> None:
    with pytest.raises(
        UserInputError, match=r"checkpoint\.keep_last=0 must be at least 1, which keeps the new"
    ):
        Checkpointer(keep_last=0)
    with pytest.raises(UserInputError, match=r"every_n_steps=-3 must be 1 or more, or 0 to save"):
        Checkpointer(every_n_steps=-3)


def test_the_trainer_is_given_the_writer_that_was_asked_for() -> None:
    assert type(Checkpointer().checkpoint_io()) is AtomicCheckpointIO
    assert type(Checkpointer(asynchronous=True).checkpoint_io()) is BackgroundCheckpointIO


def test_a_resumed_run_mends_what_a_kill_left(tmp_path: Path) -> None:
    # Killed between the file of step 2, the best so far, and its links.
    folder = RunDir(tmp_path).checkpoints
    old, new = (folder / f"epoch-0000-step-0000000{step}.ckpt" for step in (1, 2))
    for path in (old, new):
        write_checkpoint({"name": path.name}, path)
    (folder / "last.ckpt").symlink_to(old.name)
    (folder / "best.ckpt").hardlink_to(old)
    (folder / "epoch-0000-step-00000003.ckpt.tmp").write_bytes(b"half")
    checkpointer = Checkpointer()
    checkpointer.best_step = 2
    trainer = SimpleNamespace(default_root_dir=tmp_path, ckpt_path=new, global_step=2)
    checkpointer.clear_up(trainer)
    for link in ("last.ckpt", "best.ckpt"):
        assert torch.load(folder / link, weights_only=True) == {"name": new.name}
    assert not list(folder.glob("*.tmp"))


# A checkpoint of resnet20_cifar takes 2.3 MB, and asks for 1 MB more.
@pytest.mark.parametrize("small_disk", ["5m"], indirect=True)
@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_disk_too_small_ends_the_run_which_goes_on_when_there_is_space(
    config: str, small_disk: Path, capsys: pytest.CaptureFixture[str], asynchronous: str
) -> None:
    run = RunDir(small_disk / "run")
    options = ["--run_dir", str(run.path), "--checkpoint.asynchronous", asynchronous]
    assert fit("--config", config, *options) == 2
    said = capsys.readouterr().err
    # 3 to keep, the best and the one being written.
    assert f"warning: {run.checkpoints} has" in said
    assert "free, and 5 checkpoints of" in said
    assert said.count("step-00000002.ckpt needs") == 1
    assert "it was not begun, and those before it are kept. Free space there, then go on" in said
    assert [path.name for path in newest_first(run.checkpoints)] == [
        "epoch-0000-step-00000001.ckpt"
    ]
    assert is_whole(run.checkpoints / "last.ckpt")
    assert run.read_summary()["status"] == "failed"

    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    assert fit("--run_dir", str(run.path), "--ckpt_path", "auto") == 0
    summary = run.read_summary()
    assert (summary["status"], summary["global_step"]) == ("done", 8)
    assert "step-00000001" in summary["resumed_from"]


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_write_that_fails_ends_the_run_with_one_message(
    config: str,
    tmp_path: Path,
    limited_files: None,
    capsys: pytest.CaptureFixture[str],
    asynchronous: str,
) -> None:
    run = RunDir(tmp_path / "run")
    options = ["--run_dir", str(run.path), "--checkpoint.asynchronous", asynchronous]
    assert fit("--config", config, *options) == 2
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1
    assert "File too large" in said
    assert not list(run.checkpoints.iterdir())


def test_a_save_that_failed_in_the_background_ends_the_run_before_the_next_one(
    config: str, tmp_path: Path, limited_files: None
) -> None:
    run = RunDir(tmp_path / "run")
    options = ["--checkpoint.asynchronous=true", "--checkpoint.every_n_steps=0"]
    options += ["--trainer.limit_train_batches=22"]
    assert fit("--config", config, "--run_dir", str(run.path), *options) == 2
    # Saved at the ends of epochs, 22 and 44: the first fails, and the next is not awaited.
    assert 22 <= run.read_summary()["global_step"] < 44


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_stopped_run_that_cannot_save_does_not_ask_to_be_resumed(
    config: str,
    tmp_path: Path,
    draws: list[str],
    limited_files: None,
    monkeypatch: pytest.MonkeyPatch,
    asynchronous: str,
) -> None:
    monkeypatch.setenv("STOP_AT", "1")
    options = ["--checkpoint.asynchronous", asynchronous, "--checkpoint.every_n_steps=0", *draws]
    assert fit("--config", config, "--run_dir", str(tmp_path / "run"), *options) == 2  # not 75


def test_a_users_random_numbers_go_on_where_a_run_was_stopped(
    config: str, tmp_path: Path, draws: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = str(tmp_path / "whole"), str(tmp_path / "stopped")
    options = ["--config", config, *draws, "--checkpoint.asynchronous", "true"]
    assert fit(*options, "--run_dir", whole) == 0
    with monkeypatch.context() as patch:
        patch.setenv("STOP_AT", "3")
        assert fit(*options, "--run_dir", stopped) == 75
    # The run does not leave before the file is whole, though a thread wrote it.
    assert seal_holds(newest_first(RunDir(stopped).checkpoints)[0])
    assert fit("--run_dir", stopped, "--ckpt_path", "auto") == 0
    expected = Path(whole, "drawn").read_text()
    assert len(expected.splitlines()) == 8  # 4 epochs of 2 steps
    assert Path(stopped, "drawn").read_text() == expected


def test_a_file_of_another_kind_is_refused_without_advice_on_how_to_save_it(
    repository: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.ckpt"
    write_checkpoint({"state_dict": {"w": torch.arange(1000.0)}}, torn)
    torn.write_bytes(torn.read_bytes()[:-100])
    for path in (repository / "README.md", torn):
        with pytest.raises(UserInputError) as caught:
            load_checkpoint(path)
        assert str(caught.value) == (
            f"{path} is not a checkpoint: no file of torch.save, or torn off in the middle. Name "
            f"another, or --ckpt_path auto for the newest whole one of a run."
        )


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "epoch-0000-step-00000001.ckpt"
    write_checkpoint({"state_dict": {"w": torch.arange(1000.0)}}, path)
    assert torch.equal(load_checkpoint(path)["state_dict"]["w"], torch.arange(1000.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the weights: torch itself would read them without a word
    path.write_bytes(data)
    assert not torch.equal(
        torch.load(path, weights_only=True, mmap=True)["state_dict"]["w"], torch.arange(1000.0)
    )
    with pytest.raises(UserInputError, match=r"step-00000001\.ckpt is damaged: its bytes .* auto"):
        load_checkpoint(path)
