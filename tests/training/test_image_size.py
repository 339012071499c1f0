"""Runs whose images grow and whose samples are repeated: resumed, on ranks, measured, evaluated."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from rank_server import RankServer
from resscale.models import count_macs, create_model

CONFIG = """
model: {model: resnet20_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, val: builtin:digits/test, channels: 1, image_size: 16,
       progressive: {from_size: 8, until_epoch: 2, multiple: 4}, train_crop: random_resized,
       repeats: 2, global_batch_size: 64, micro_batch_size: 32, eval_batch_size: 360,
       num_workers: 2, worker_kind: threads, log_sample_ids: true}
trainer: {accelerator: cpu, max_epochs: 3, limit_train_batches: 8, log_every_n_steps: 2}
monitor: {peak_flops_per_s: 1.0e+12}
checkpoint: {every_n_steps: 3, keep_last: 9}
"""
SIZES = (8, 12, 16)  # by epoch
STEPS = 4  # 8 micro-batches of 32, two to a step


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "growing.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def whole(
    rank_server: RankServer, config: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The run directory of three epochs that nobody disturbs, and what it said."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    ended = rank_server.run("fit", f"--config={config}", f"--run_dir={run_dir}", cwd=config.parent)
    assert ended.code == 0, ended.said
    return run_dir, ended.said


def history(run_dir: Path) -> dict[tuple[int, int], list[int]]:
    """The ids of each (epoch, step), ranks one behind the other."""
    found: dict[tuple[int, int], list[int]] = {}
    for file in sorted((run_dir / "samples").glob("rank-*.jsonl")):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            found.setdefault((entry["epoch"], entry["step"]), []).extend(entry["ids"])
    return found


def losses(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_the_sizes_are_said_at_the_start_and_where_they_change(whole: tuple[Path, str]) -> None:
    _, said = whole
    assert (
        "image size: 8x8 in epoch 1, 12x12 in epoch 2, 16x16 from epoch 3 on; memory must hold the "
        "largest, which comes last" in said
    )
    assert "repeats: a batch holds 32 different samples, 2 times each" in said
    assert "GMACs at 16x16" in said
    lines = [line for line in said.splitlines() if "training images are" in line]
    assert lines == [
        f"epoch {epoch + 1}: training images are {SIZES[epoch]}x{SIZES[epoch]} from here on"
        for epoch in (1, 2)
    ]


def test_the_log_proves_that_no_sample_was_seen_more_often_than_its_copies(
    whole: tuple[Path, str],
) -> None:
    found = history(whole[0])
    assert len(found) == 3 * STEPS
    for ids in found.values():
        assert set(Counter(ids).values()) == {2}
    # Epochs 0 and 1 are a super-epoch: no sample comes in two steps of it.
    first = Counter(i for (epoch, _), ids in found.items() if epoch < 2 for i in ids)
    assert len(first) == 2 * STEPS * 32
    assert set(first.values()) == {2}


def test_the_share_of_the_peak_follows_the_size_of_the_epoch(whole: tuple[Path, str]) -> None:
    net = create_model("resnet20_cifar", 10, 1)
    with (whole[0] / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["images_per_s"]]
    assert len(rows) == 6  # each second of 12 steps: 2 steps of 64 images
    elapsed_s = sum(2 * 64 / float(row["images_per_s"]) for row in rows)
    # 3 passes of 2 operations a multiply-add, and as many images of each size.
    flops = sum(6 * count_macs(net, size, 1) * STEPS * 64 for size in SIZES)
    summary = json.loads((whole[0] / "summary.json").read_text())
    assert summary["mfu"] == pytest.approx(flops / elapsed_s / 1e12, rel=1e-3)
    assert summary["num_macs"] == count_macs(net, 16, 1)  # of the largest, which weights are for


def test_a_run_goes_on_in_mid_epoch_at_the_size_of_that_epoch(
    rank_server: RankServer, whole: tuple[Path, str], tmp_path: Path
) -> None:
    step = 6  # the second of epoch 1
    run_dir = tmp_path / "run"
    shutil.copytree(whole[0], run_dir)
    for file in (run_dir / "checkpoints").iterdir():
        if not file.name.endswith(f"{step:08d}.ckpt"):
            file.unlink()  # as if the run had been killed behind this one
    options = (f"--run_dir={run_dir}", "--ckpt_path=auto", "--data.num_workers=0")
    ended = rank_server.run("fit", *options, cwd=tmp_path)
    assert ended.code == 0, ended.said
    assert "epoch 2: training images are 12x12 from here on" in ended.said
    assert history(run_dir) == history(whole[0])
    weights = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (whole[0], run_dir)
    ]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_run_does_not_go_on_with_other_repeats_in_mid_super_epoch(
    rank_server: RankServer, whole: tuple[Path, str], tmp_path: Path
) -> None:
    options = (f"--run_dir={whole[0]}", "--trainer.max_epochs=4", "--data.repeats=4")
    before = history(whole[0])
    ended = rank_server.run("fit", *options, "--ckpt_path=auto", cwd=tmp_path)
    assert ended.code == 2
    assert "with repeats=2, now they are 4: behind 3 epochs some samples" in ended.said
    assert history(whole[0]) == before


def test_two_ranks_of_a_static_graph_see_and_lose_what_one_process_does(
    rank_server: RankServer, whole: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    strategy = {
        "class_path": "resscale.training.strategy.DistributedDataParallel",
        "init_args": {"static_graph": True},
    }
    ended = rank_server.run(
        "fit",
        f"--config={config}",
        f"--run_dir={tmp_path / 'run'}",
        "--trainer.devices=2",
        f"--trainer.strategy={json.dumps(strategy)}",
        "--trainer.limit_train_batches=4",  # of each rank
        cwd=tmp_path,
    )
    assert ended.code == 0, ended.said
    assert history(tmp_path / "run") == history(whole[0])
    alone, together = losses(whole[0]), losses(tmp_path / "run")
    assert together == pytest.approx(alone, abs=2e-3)
    assert ended.said.count("training images are 12x12") == 1


def test_a_net_is_evaluated_at_another_resolution(
    rank_server: RankServer, whole: tuple[Path, str], tmp_path: Path
) -> None:
    options = ("--data.eval_size=24", "--data.eval_resize=28", "--ckpt_path=best")
    ended = rank_server.run("validate", f"--run_dir={whole[0]}", *options, cwd=tmp_path)
    assert ended.code == 0, ended.said
    assert "360 of 360 unique" in ended.said


def test_a_net_is_fine_tuned_at_the_resolution_that_it_is_evaluated_at(
    rank_server: RankServer, whole: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    """FixRes: from the weights of small images, an epoch on whole large ones."""
    options = (
        f"--config={config}",
        f"--run_dir={tmp_path / 'fine'}",
        f"--weights={whole[0] / 'checkpoints' / 'last.ckpt'}",
        "--data.image_size=24",
        "--data.progressive.from_size=null",
        "--data.progressive.until_epoch=null",
        "--data.train_crop=center",
        "--data.repeats=1",
        "--trainer.max_epochs=1",
        "--model.optimizer.lr=0.01",
    )
    ended = rank_server.run("fit", *options, cwd=tmp_path)
    assert ended.code == 0, ended.said
    assert "image size:" not in ended.said
    assert "repeats:" not in ended.said
    # It begins with what it was given: at random, ten classes lose log 10 = 2.3.
    assert losses(tmp_path / "fine")[0] < losses(whole[0])[0]
