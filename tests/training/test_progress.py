"""Progress: a bar in a terminal, plain lines elsewhere, with the four numbers that matter."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from resscale.cli import main
from resscale.training.monitor import Monitor
from resscale.training.progress import ProgressDisplay, course_of, describe, epoch_line
from resscale.training.rank_log import Tee

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
CONFIG = """
model: {model: resnet20_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, val: builtin:digits/test, channels: 1, image_size: 8,
       train_crop: center, global_batch_size: 64, eval_batch_size: 360, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 2, limit_train_batches: 4}
"""
LATEST = {
    "train/loss": 1.23456, "train/top1": 0.5, "val/top1": 0.625, "images_per_s": 12345.6,
    "data_wait": 0.25, "lr": 0.1,
}  # fmt: skip
SAID = "loss 1.235  top-1 50.0%  val 62.5%  12,346 images/s  data-wait 25%"


@pytest.fixture
def monitor() -> Monitor:
    made = Monitor()
    made.latest.update(LATEST)
    return made


@pytest.fixture
def trainer() -> Any:
    return SimpleNamespace(
        is_global_zero=True,
        num_training_batches=22,
        current_epoch=4,
        max_epochs=20,
        max_steps=-1,
        accumulate_grad_batches=1,
        enable_validation=True,
        val_check_batch=22,
        check_val_every_n_epoch=1,
        datamodule=None,
    )


def test_the_newest_values_are_described_in_words() -> None:
    assert describe(LATEST) == SAID
    assert describe({"train/loss": 2.0}) == "loss 2.000"
    assert describe({}) == ""


def test_without_a_terminal_lines_come_at_intervals(
    monitor: Monitor,
    trainer: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = SimpleNamespace(monotonic=lambda: clock[0])
    clock = [100.0]
    monkeypatch.setattr("resscale.training.progress.time", now)
    display = ProgressDisplay(monitor, line_every_s=10.0)
    display.on_train_start(trainer, None)
    for batch, time in ((0, 105.0), (1, 111.0), (3, 122.0)):
        clock[0] = time
        display.on_train_batch_end(trainer, None, None, None, batch)
    said = capsys.readouterr()
    assert said.out == ""
    # At 111 s: 11 s behind the start; at 122 s: 11 s behind that.
    assert said.err == f"epoch 5/20  2/22  {SAID}\nepoch 5/20  4/22  {SAID}\n"


def test_lines_say_when_training_ends(
    monitor: Monitor,
    trainer: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(
        "resscale.training.progress.time", SimpleNamespace(monotonic=lambda: clock[0])
    )
    display = ProgressDisplay(monitor, line_every_s=10.0)
    display.on_train_start(trainer, None)
    for batch in range(22):
        clock[0] += 2.0
        display.on_train_batch_end(trainer, None, None, None, batch)
    said = capsys.readouterr().err.splitlines()
    # Nothing costs an evaluation yet. Batch 5 of 22 of epoch 5 of 20: 17 + 15 × 22 of 2 s.
    assert said[0].startswith(f"epoch 5/20  5/22  {SAID}  ends in 0:11:34 (")
    display.on_validation_start(trainer, None)
    clock[0] += 8.0
    display.on_validation_end(trainer, None)
    display.on_train_epoch_end(trainer, None)
    # 15 epochs of 22 × 2 s and an evaluation of 8 s: 780 s
    assert capsys.readouterr().err.endswith("ends in 0:13:00\n")


def test_an_epochs_line_leaves_out_what_says_least_until_it_fits() -> None:
    end = "ends in 3:12:05"
    line = epoch_line("epoch 5/20", {**LATEST, "data_wait": 0.01}, end)
    assert line == (
        "epoch 5/20  loss 1.235  top-1 50.0%  val 62.5%  12,346 images/s  ends in 3:12:05"
    )
    # Waiting for data is news; the accuracy on training images is in the table.
    assert epoch_line("epoch 5/20", LATEST, end) == (
        "epoch 5/20  loss 1.235  val 62.5%  12,346 images/s  ends in 3:12:05"
    )
    for epoch in ("epoch 5/20", "epoch 105/600"):
        for more in ({}, {"val/ema_top1": 0.75}):
            assert len(epoch_line(epoch, {**LATEST, **more}, end)) <= 80


def test_the_course_of_a_run_counts_batches_of_this_rank(trainer: Any) -> None:
    whole = course_of(trainer)
    assert (whole.batches_per_epoch, whole.last_batch) == (22, 20 * 22)
    assert whole.evaluations_left(4 * 22) == 16
    trainer.max_steps, trainer.accumulate_grad_batches = 50, 2
    assert course_of(trainer).last_batch == 100
    trainer.enable_validation = False
    assert course_of(trainer).evaluations_left(0) == 0


def test_each_epoch_leaves_a_line(
    monitor: Monitor, trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    display = ProgressDisplay(monitor)
    display.on_train_start(trainer, None)
    display.on_train_epoch_end(trainer, None)
    assert capsys.readouterr().err == f"epoch 5/20  {SAID}\n"


@pytest.mark.parametrize("ending", ["end", "exception"])
def test_in_a_terminal_there_is_a_bar_that_closes_however_the_run_ends(
    monitor: Monitor, trainer: Any, ending: str
) -> None:
    shown = io.StringIO()
    display = ProgressDisplay(monitor, line_every_s=0.0)
    display._console = Console(file=shown, force_terminal=True, width=160)
    display.on_train_start(trainer, None)
    display.on_train_batch_end(trainer, None, None, None, 10)
    display.on_train_epoch_end(trainer, None)
    if ending == "end":
        display.on_train_end(trainer, None)
    else:
        display.on_exception(trainer, None, ValueError("x"))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    assert re.search(rf"epoch 5/20 .*11/22.*{re.escape(SAID)}", text)
    assert f"epoch 5/20  {SAID}\n" in text  # the line left behind
    assert "\x1b[?25h" in shown.getvalue()  # the cursor is visible again


def test_beside_a_bar_the_ranks_file_has_plain_lines(
    monitor: Monitor, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, log = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", Tee(shown, log))
    display = ProgressDisplay(monitor, line_every_s=0.0)
    display._console = Console(file=shown, force_terminal=True, width=160)
    display.on_train_start(trainer, None)
    display.on_train_batch_end(trainer, None, None, None, 10)
    print("a word of another callback", file=sys.stderr)
    display.on_train_epoch_end(trainer, None)
    display.on_train_end(trainer, None)
    print("behind the bar", file=sys.stderr)
    said = [
        f"epoch 5/20  11/22  {SAID}",
        "a word of another callback",
        f"epoch 5/20  {SAID}",
        "behind the bar",
    ]
    assert log.getvalue().splitlines() == said
    for line in said[1:]:
        assert line in shown.getvalue()


def test_other_ranks_show_nothing(
    monitor: Monitor, trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.is_global_zero = False
    display = ProgressDisplay(monitor, line_every_s=0.0)
    display.on_train_start(trainer, None)
    display.on_train_batch_end(trainer, None, None, None, 0)
    display.on_train_epoch_end(trainer, None)
    display.on_train_end(trainer, None)
    assert capsys.readouterr() == ("", "")


def test_a_real_run_says_loss_accuracy_rate_and_waiting_each_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESSCALE_RUN_DIR", "")  # the run sets it; taken back behind the test
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    arguments = ["--config", f"{tmp_path}/tiny.yaml", "--run_dir", f"{tmp_path}/run"]
    assert main(["fit", *arguments]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    form = r"epoch {}/2  loss \d+\.\d{{3}}  top-1 \d+\.\d%  val \d+\.\d%  [\d,]+ images/s"
    assert len(lines) == 2
    # Four batches an epoch: the first three of the process are not timed. A rank that reads by
    # itself waits, and then the line has no room for the accuracy on training images.
    first = form.format(1).replace(r"  top-1 \d+\.\d%", r"(  top-1 \d+\.\d%)?")
    assert re.fullmatch(first + r"(  data-wait \d+%)?  ends in 0:00:\d\d", lines[0])
    assert re.fullmatch(form.format(2) + r"  data-wait \d+%", lines[1])
