"""Checkpoints as files: the newest whole one, links, what goes, and kills at any moment."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resscale.training.checkpoint_folder import (
    drop_oldest,
    find_newest_valid,
    newest_first,
    publish,
    remove_leftovers,
)
from resscale.training.checkpoint_io import write_checkpoint
from resscale.training.rundir import RunDir

CONTENT = {"weights": torch.arange(1000.0), "step": 3}


def write(run: RunDir, *steps: int) -> list[Path]:
    """Write a checkpoint for each step, ten steps an epoch."""
    paths = [run.checkpoints / f"epoch-{s // 10:04d}-step-{s:08d}.ckpt" for s in steps]
    for path in paths:
        write_checkpoint(CONTENT, path)
    return paths


def steps_of(run: RunDir) -> list[int]:
    return [int(path.stem.rpartition("-")[2]) for path in newest_first(run.checkpoints)]


def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    paths = write(run, 9, 10, 11)
    (run.checkpoints / "epoch-0002-step-00000012.ckpt.tmp").write_bytes(b"left by a kill")
    assert find_newest_valid(run) == paths[2]
    for torn in (2, 1):
        os.truncate(paths[torn], 100)
        assert find_newest_valid(run) == paths[torn - 1]
    os.truncate(paths[0], 100)
    assert find_newest_valid(run) is None


def test_a_run_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert find_newest_valid(RunDir(tmp_path / "no")) is None


def test_publishing_links_the_newest_and_drops_the_oldest(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    newest = write(run, 1, 2, 3)[-1]
    publish(newest, keep_last=2, best=False)
    assert steps_of(run) == [3, 2]
    assert (run.checkpoints / "last.ckpt").readlink() == Path(newest.name)
    assert not (run.checkpoints / "best.ckpt").exists()


def test_the_best_outlives_its_number(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    publish(write(run, 1)[0], keep_last=1, best=True)
    publish(write(run, 2)[0], keep_last=1, best=False)
    assert steps_of(run) == [2]
    assert torch.load(run.checkpoints / "best.ckpt", weights_only=True)["step"] == 3


def test_a_torn_file_further_in_training_does_not_push_out_the_whole_ones(tmp_path: Path) -> None:
    # Training went on from step 3, as the file of step 9 is torn, and has come to step 4.
    run = RunDir(tmp_path)
    torn = write(run, 9)[0]
    os.truncate(torn, 100)
    paths = write(run, 3, 4)
    publish(paths[1], keep_last=1, best=False)
    assert steps_of(run) == [9, 4]
    assert find_newest_valid(run) == paths[1]


@pytest.mark.parametrize(
    ("steps", "keep_last", "left"),
    [
        ([1, 2, 3], 3, [3, 2]),  # the next save would drop step 1
        ([1, 2], 3, [2, 1]),  # the next save would drop nothing
        ([1, 2], 1, [2]),  # one too many, of a run that kept more before
        ([1], 1, [1]),  # the only one stays
    ],
)
def test_for_want_of_space_only_what_the_next_save_drops_may_go(
    tmp_path: Path, steps: list[int], keep_last: int, left: list[int]
) -> None:
    run = RunDir(tmp_path)
    write(run, *steps)
    assert drop_oldest(run.checkpoints, keep_last) == (left != steps[::-1])
    assert steps_of(run) == left


def test_nothing_goes_while_the_newest_is_torn(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    os.truncate(write(run, 1, 2)[1], 100)
    assert not drop_oldest(run.checkpoints, 2)
    assert steps_of(run) == [2, 1]


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, 1)
    for name in ("epoch-0000-step-00000002.ckpt.tmp", "last.ckpt.tmp"):
        (run.checkpoints / name).write_bytes(b"half")
    remove_leftovers(run.checkpoints)
    assert [path.name for path in run.checkpoints.iterdir()] == ["epoch-0000-step-00000001.ckpt"]


def test_best_is_a_copy_where_the_file_system_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = write(RunDir(tmp_path), 1)[0]
    publish(path, keep_last=1, best=True)
    before = path.read_bytes()
    path.unlink()
    assert path.with_name("best.ckpt").read_bytes() == before


# Saves without end; forked again and again, killed each time within some milliseconds, and each
# time gone on with as `Checkpointer.on_train_start` does.
SAVE_UNTIL_KILLED = """
import itertools, os, random, signal, sys, time
from functools import partial
from pathlib import Path
import torch
from resscale.training.checkpoint_background import BackgroundCheckpointIO
from resscale.training.checkpoint_folder import (
    drop_oldest, find_newest_valid, publish, remove_leftovers
)
from resscale.training.checkpoint_io import AtomicCheckpointIO, PendingSave
from resscale.training.checkpoint_seal import is_whole
from resscale.training.rundir import RunDir

KEEP = 2
chance = random.Random(0)
weights = [torch.full((20_000,), 1.0) for _ in range(4)]

def is_best(step):
    return step % 3 == 1

def save(writer, run, step):
    path = run.checkpoints / f"epoch-0000-step-{step:08d}.ckpt"
    pending = PendingSave(
        partial(publish, path, KEEP, is_best(step)), partial(drop_oldest, run.checkpoints, KEEP)
    )
    writer.save_checkpoint({"step": step, "weights": weights}, path, pending)
    return pending

def save_for_ever(writer, run, step):
    while True:
        step += 1
        for tensor in weights:
            tensor.fill_(step)
        assert save(writer, run, step).wait() is None

def kill_often(run, kind, kills):
    assert save(AtomicCheckpointIO(), run, 1).wait() is None
    step = moved = halves = 0
    for kill in range(kills):
        child = os.fork()
        if child == 0:
            save_for_ever(kind(), run, max(1, step))
        time.sleep(chance.uniform(0.01, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest = find_newest_valid(run)
        assert newest is not None, f"kill {kill} left nothing"
        found = torch.load(newest, weights_only=True)
        assert found["step"] >= step, f"kill {kill} lost a finished checkpoint"
        assert all((tensor == found["step"]).all() for tensor in found["weights"])
        moved += found["step"] > max(1, step)
        step = found["step"]
        halves += len(list(run.checkpoints.glob("*.ckpt.tmp")))
        remove_leftovers(run.checkpoints)
        publish(newest, KEEP, is_best(step))
        for name, expected in (("last", step), ("best", step - (step - 1) % 3)):
            link = run.checkpoints / f"{name}.ckpt"
            assert is_whole(link), f"kill {kill} left no {name}"
            assert torch.load(link, weights_only=True)["step"] == expected, f"kill {kill}: {name}"
    print(moved, halves)

kill_often(RunDir(sys.argv[1] + "/at_once"), AtomicCheckpointIO, 12)
kill_often(RunDir(sys.argv[1] + "/background"), BackgroundCheckpointIO, 12)
"""


def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    numbers = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(numbers) == 2
    for moved, halves in numbers:
        # Or the kills came before anything was saved, or never in the middle of it.
        assert moved > 0
        assert halves > 0
