"""Runs with every augmentation on: stopped and resumed, compiled, evaluated with a test flip."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity import load_outcome, loss_difference

from resscale.cli import main

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
# Two epochs of 5 steps of two micro-batches.
OPTIONS = (
    *("--config=configs/demo.yaml", "--model.model=resnet8_cifar", "--model.optimizer.lr=0.01"),
    *("--model.schedule.warmup_epochs=0", "--data.flip=true", "--data.num_workers=0"),
    *("--data.global_batch_size=256", "--data.micro_batch_size=128", "--trainer.max_epochs=2"),
    *("--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--checkpoint.keep_last=20"),
    *("--data.val=null", "--data.log_sample_ids=true"),
)
EVERYTHING = (
    *("--model.policy.name=rand-m7-mstd0.5-inc1", "--model.policy.interpolation=bilinear"),
    *("--model.erasing.probability=0.5", "--model.erasing.value=noise"),
    *("--model.mixing.mixup_alpha=0.2", "--model.mixing.cutmix_alpha=1"),
    *("--model.loss=bce", "--model.target_threshold=0.2"),
    "--model.model_options={drop_path: 0.2}",
)


@pytest.fixture
def fit(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train in this process; return the run directory."""
    monkeypatch.chdir(repository)

    def run(name: str, *more: str) -> Path:
        monkeypatch.setenv("RESSCALE_RUN_DIR", "")
        assert main(["fit", *OPTIONS, f"--run_dir={tmp_path / name}", *more]) == 0
        return tmp_path / name

    return run


def test_a_run_resumed_in_mid_epoch_is_the_undisturbed_one_to_the_bit(
    fit: Callable[..., Path],
) -> None:
    run_dir = fit("whole", *EVERYTHING, "--checkpoint.every_n_steps=3")
    whole = load_outcome(run_dir)
    middle = next((run_dir / "checkpoints").glob("*step-00000003.ckpt"))
    resumed = load_outcome(fit("resumed", *EVERYTHING, f"--ckpt_path={middle}"))
    assert sorted(resumed.losses) == [4, 5, 6, 7, 8, 9, 10]
    assert all(resumed.losses[step] == whole.losses[step] for step in resumed.losses)
    for name, tensor in whole.checkpoint["state_dict"].items():
        assert torch.equal(resumed.checkpoint["state_dict"][name], tensor), name
    for name, tensor in whole.momentum.items():
        assert torch.equal(resumed.momentum[name], tensor)


def test_a_compiled_network_trains_on_the_same_augmented_images(fit: Callable[..., Path]) -> None:
    # Without drop_path, whose noise a compiler may draw in another order.
    options = (*EVERYTHING[:-1], "--trainer.max_epochs=1")
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    eager = load_outcome(fit("eager", *options))
    compiled = load_outcome(fit("compiled", *options, "--model.compile=aot_eager"))
    # One graph for ten micro-batches of ten different boxes.
    assert counters["stats"]["unique_graphs"] == 1
    torch.compiler.reset()
    counters.clear()
    assert loss_difference(eager, compiled) < 1e-5


def test_the_average_of_weights_is_evaluated_with_the_test_flip_too(
    fit: Callable[..., Path],
) -> None:
    options = ("--data.val=builtin:digits/test", "--trainer.max_epochs=1")
    options += (
        "--data.global_batch_size=64",
        "--data.micro_batch_size=64",
        "--model.optimizer.lr=0.1",
    )
    # An average that keeps nothing is the network itself.
    average = ("--ema.decay=0", "--ema.warmup=false")
    found = []
    for flip in ("true", "false"):
        run_dir = fit(f"flip-{flip}", *options, *average, f"--model.test_flip={flip}")
        with (run_dir / "metrics.csv").open() as file:
            (row,) = (row for row in csv.DictReader(file) if row["val/loss"])
        assert row["val/ema_top1"] == row["val/top1"]
        found.append(float(row["val/top1"]))
    assert found[0] != found[1]  # digits are not their mirrors
