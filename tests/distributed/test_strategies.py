"""Strategies on two real ranks: what they compute in, send, skip, and hand on to each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Outcome, load_outcome, loss_difference, tensor_difference

from rank_server import RankServer

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent
# 6 steps of 64 samples an epoch, in 4 micro-batches.
COMMON = (
    *("--config=configs/demo.yaml", "--model.model=resnet8_cifar", "--model.optimizer.lr=0.01"),
    *("--model.schedule.name=constant", "--model.schedule.warmup_epochs=0", "--data.val=null"),
    *("--data.micro_batch_size=16", "--data.num_workers=0", "--trainer.accelerator=cpu"),
    *("--trainer.log_every_n_steps=1", "--checkpoint.keep_last=9"),
    "--trainer.callbacks+=observer.Observer",
)
ALONE = ("--trainer.limit_train_batches=24", "--trainer.devices=1", "--trainer.strategy=auto")
TWO = ("--trainer.limit_train_batches=12", "--trainer.devices=2")
DDP = "--trainer.strategy.class_path=resscale.training.strategy.DistributedDataParallel"
ZERO = "--trainer.strategy.class_path=resscale.training.zero.ZeRO"
OPTION = "--trainer.strategy.init_args."
# Steps that overflow at first, and later ones that do not.
HUGE = 2.0**22


@dataclass(frozen=True)
class Watched:
    """A run, and what the observer saw on each rank."""

    outcome: Outcome
    ranks: list[dict[str, Any]]
    summary: dict[str, Any]
    run_dir: Path


Fit = Callable[..., Watched]


@pytest.fixture(scope="module")
def fit(rank_server: RankServer, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Train by the real command; the same options train once."""
    folder = tmp_path_factory.mktemp("strategies")
    done: dict[tuple[str, ...], Watched] = {}

    def run(*options: str) -> Watched:
        if options not in done:
            done[options] = train(rank_server, repository, folder / str(len(done)), *options)
        return done[options]

    return run


def train(rank_server: RankServer, repository: Path, run_dir: Path, *options: str) -> Watched:
    arguments = ("fit", f"--run_dir={run_dir}", *COMMON, *options)
    ended = rank_server.run(*arguments, cwd=repository, environ={"PYTHONPATH": str(HERE)})
    assert ended.code == 0, ended.said
    ranks = [json.loads(path.read_text()) for path in sorted(run_dir.glob("observed-*.json"))]
    summary = json.loads((run_dir / "summary.json").read_text())
    return Watched(load_outcome(run_dir), ranks, summary, run_dir)


def weight_difference(one: Watched, other: Watched) -> float:
    first, second = (run.outcome.checkpoint["state_dict"] for run in (one, other))
    return tensor_difference(first, second)


def assert_kept_in_float32(rank: dict[str, Any]) -> None:
    """Weights, those of BatchNorm, its statistics, and the scale and shift of pixels."""
    kept = ("parameter_types", "norm_weight_types", "buffer_types")
    assert [rank[name] for name in kept] == [["torch.float32"]] * 3


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_1", "deepspeed_3"])
def test_convolutions_compute_in_bfloat16_and_all_that_is_kept_is_float32(
    fit: Fit, strategy: str
) -> None:
    precision = "--trainer.precision=bf16-mixed"
    run = fit(*TWO, f"--trainer.strategy={strategy}", precision, "--trainer.max_epochs=1")
    full = ["torch.float32"]
    # Stage 3 takes each gradient away, and reduces by calls of its own, as DDP does.
    gradients = [] if strategy == "deepspeed_3" else full
    reduced = full if strategy == "deepspeed_1" else []
    assert len(run.ranks) == 2
    for rank in run.ranks:
        assert_kept_in_float32(rank)
        assert rank["strategy"] == ("DistributedDataParallel" if strategy == "ddp" else "ZeRO")
        assert {rank["outputs"][name] for name in ("conv1", "fc")} == {"torch.bfloat16"}
        assert (rank["gradient_types"], rank["reduced"]) == (gradients, reduced)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("bf16", 8), ("fp16", 11)],
)
def test_compressed_gradients_are_sent_in_half_and_are_the_mean_over_ranks(
    fit: Fit, name: str, bits: int
) -> None:
    single = fit(*ALONE, "--trainer.max_epochs=1")
    run = fit(*TWO, DDP, f"{OPTION}gradient_compression={name}", "--trainer.max_epochs=1")
    long_name = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}[name]
    for rank in run.ranks:
        assert rank["reduced"] == [long_name]
        assert rank["gradient_types"] == ["torch.float32"]
    # The gradient of the first step: rounded once on each rank, and once in the sum.
    whole, sent = (torch.tensor(found.ranks[0]["gradient"]) for found in (single, run))
    difference = ((sent - whole).abs().max() / whole.abs().max()).item()
    assert 0 < difference < 2 * 2.0**-bits
    assert run.ranks[0]["gradient"] == run.ranks[1]["gradient"]
    assert run.ranks[0]["weights"] == run.ranks[1]["weights"]
    # Losses fall by 1% a step here.
    assert 0 < loss_difference(single.outcome, run.outcome) < 1e-3


def test_a_static_graph_accumulates_and_drops_paths_as_one_process_does(fit: Fit) -> None:
    drops = (
        "--model.model_options={drop_path: 0.3}",
        "--data.micro_batch_size=8",
        "--trainer.max_epochs=1",
    )
    batches = 6 * 64 // 8  # two ranks take 4 a step each
    single = fit(*ALONE, *drops, f"--trainer.limit_train_batches={batches}")
    half = f"--trainer.limit_train_batches={batches // 2}"
    static = fit(*TWO, DDP, f"{OPTION}static_graph=true", *drops, half)
    assert len(static.outcome.losses) == 6
    assert loss_difference(single.outcome, static.outcome) < 1e-5
    assert weight_difference(single, static) < 1e-4


@pytest.fixture(scope="module")
def overflowing(fit: Fit) -> Watched:
    """One process in float16 whose scale begins far too high; 3 epochs."""
    scale = f"--trainer.callbacks.loss_scale={HUGE}"
    return fit(*ALONE, "--trainer.precision=16-mixed", "--trainer.max_epochs=3", scale)


@pytest.mark.parametrize("ranks", [TWO, ALONE[:2]], ids=["2 ranks", "1 rank"])
def test_zero_skips_the_steps_that_one_process_skips(
    fit: Fit, overflowing: Watched, ranks: tuple[str, ...]
) -> None:
    run = fit(
        *ranks,
        "--trainer.strategy=deepspeed_2",
        "--trainer.precision=16-mixed",
        "--trainer.max_epochs=1",
        f"--trainer.callbacks.loss_scale={HUGE}",
    )
    expected = overflowing.ranks[0]
    count = expected["skipped"][6]
    assert 0 < count < 6
    for rank in run.ranks:
        assert rank["skipped"] == expected["skipped"][:7]
        assert rank["scales"] == expected["scales"][:7]
        assert_kept_in_float32(rank)
        assert rank["outputs"]["conv1"] == "torch.float16"
        # Skipped steps leave the weights as they were, others do not.
        assert len(set(rank["weights"][: count + 1])) == 1
        assert len(set(rank["weights"])) == 7 - count
    assert run.summary["skipped_steps"] == overflowing.summary["skipped_steps"] == count
    assert loss_difference(overflowing.outcome, run.outcome) < 1e-4


def test_the_loss_scale_moves_from_one_process_to_zero_to_ddp(
    fit: Fit, overflowing: Watched
) -> None:
    halves = "--trainer.precision=16-mixed"
    first = overflowing.run_dir / "checkpoints" / "epoch-0001-step-00000006.ckpt"
    zero = fit(
        *(*TWO, "--trainer.strategy=deepspeed_2", halves, "--trainer.max_epochs=2"),
        f"--ckpt_path={first}",
    )
    second = zero.run_dir / "checkpoints" / "last.ckpt"
    ddp = fit(
        *(*TWO, "--trainer.strategy=ddp", halves, "--trainer.max_epochs=3"),
        f"--ckpt_path={second}",
    )
    scales = overflowing.ranks[0]["scales"]
    assert scales[6] < HUGE
    assert zero.ranks[0]["scales"] == zero.ranks[1]["scales"] == scales[6:13]
    assert ddp.ranks[0]["scales"] == ddp.ranks[1]["scales"] == scales[12:]
    expected = overflowing.outcome.checkpoint["resscale"]["loss_scale"]
    assert ddp.outcome.checkpoint["resscale"]["loss_scale"] == expected
    # Of 18 steps all but those skipped are good in a row.
    assert expected["good_steps"] == 18 - overflowing.summary["skipped_steps"]
    for run in (zero, ddp):
        assert loss_difference(overflowing.outcome, run.outcome) < 1e-3


def test_compiled_zero_trains_what_one_eager_process_trains(fit: Fit) -> None:
    # In many buckets: ranks must fill them in one order. A rank that is not compiled, among others
    # that are, fills them in another, and all weights are wrong without an error.
    compiled = fit(
        *(*TWO, ZERO, f"{OPTION}stage=1", f"{OPTION}reduce_bucket_size=20000"),
        *("--model.compile=aot_eager", "--trainer.max_epochs=1"),
    )
    assert [rank["num_graphs"] > 0 for rank in compiled.ranks] == [True, True]
    single = fit(*ALONE, "--trainer.max_epochs=1")
    assert single.ranks[0]["num_graphs"] == 0
    assert loss_difference(single.outcome, compiled.outcome) < 1e-5
    assert weight_difference(single, compiled) < 1e-4
