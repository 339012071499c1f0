"""The parity matrix: one process, DDP and ZeRO 1 to 3 on two real ranks train the same network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity import (
    COMMON,
    ROOT,
    STRATEGIES,
    VARIANTS,
    Outcome,
    compare,
    load_outcome,
    loss_difference,
    strategy_arguments,
)

from rank_server import RankServer

pytestmark = pytest.mark.timeout(600)

# Relative. Sums of 4 gradients are rounded differently as (a + b) + (c + d); measured: 1.1e-7.
FP32_LOSSES = 1e-5
# Measured: 1e-6, until one ReLU's input is rounded to the other side of 0, which no arithmetic in
# float32 can rule out: then 3e-2 for the momentum, 9e-3 for weights. The losses hardly move.
FP32_WEIGHTS = 5e-2
FP32_MOMENTUM = 2e-1
# A sum that rounds the other way flips bits of bfloat16 (8 of them) in later steps.
BF16_LOSSES = 2e-2

Runs = Callable[[str, str, str], Outcome]


def train(rank_server: RankServer, run_dir: Path, *arguments: str) -> Outcome:
    options = (*COMMON, "--data.num_workers=0", *arguments)
    ended = rank_server.run("fit", f"--run_dir={run_dir}", *options, cwd=ROOT)
    assert ended.code == 0, ended.said
    return load_outcome(run_dir)


@pytest.fixture(scope="module")
def runs(rank_server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Train each case once, when it is first asked for."""
    folder = tmp_path_factory.mktemp("parity")
    done: dict[tuple[str, str, str], Outcome] = {}

    def run(strategy: str, precision: str, variant: str = "sgd") -> Outcome:
        case = (strategy, precision, variant)
        if case not in done:
            done[case] = train(
                rank_server,
                folder / "-".join(case),
                f"--trainer.precision={precision}",
                *VARIANTS[variant],
                *strategy_arguments(strategy),
            )
        return done[case]

    return run


def check_tensors(found: dict[str, float]) -> None:
    """All of the checkpoint: weights with BatchNorm's statistics, their average, the momentum."""
    assert max(found["weights"], found["average"]) < FP32_WEIGHTS
    assert found["momentum"] < FP32_MOMENTUM


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_two_ranks_under_any_strategy_train_what_one_process_trains(
    runs: Runs, strategy: str, precision: str
) -> None:
    single, ranks = (runs(name, precision, "sgd") for name in ("single", strategy))
    assert len(single.losses) == 22  # 2 epochs × 11 steps
    assert single.sample_hash == ranks.sample_hash
    assert single.samples == ranks.samples
    found = compare(single, ranks)
    if precision == "32-true":
        assert found["losses"] < FP32_LOSSES
        check_tensors(found)
    else:
        assert found["losses"] < BF16_LOSSES
    # Were the gradients of one rank left out, the losses would differ by more than this.
    assert abs(single.losses[20] / single.losses[1] - 1) > 2 * BF16_LOSSES


@pytest.mark.parametrize("variant", ["clip", "lars"])
@pytest.mark.parametrize("strategy", ["deepspeed_2", "deepspeed_3"])
def test_clipping_and_lars_are_those_of_one_process(
    runs: Runs, strategy: str, variant: str
) -> None:
    single, ranks = (runs(name, "32-true", variant) for name in ("single", strategy))
    found = compare(single, ranks)
    assert found["losses"] < FP32_LOSSES
    check_tensors(found)
    plain = runs("single", "32-true", "sgd")
    # The variant does something: its losses are other ones, by far more than the tolerance.
    assert loss_difference(plain, single) > 100 * FP32_LOSSES


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_mixed_precision_leaves_weights_batchnorm_and_buffers_in_float32(
    runs: Runs, strategy: str
) -> None:
    checkpoint = runs(strategy, "bf16-mixed", "sgd").checkpoint
    for name, tensor in {**checkpoint["state_dict"], **checkpoint["ema_state_dict"]}.items():
        counter = name.endswith("num_batches_tracked")
        assert tensor.dtype == (torch.int64 if counter else torch.float32), name
    losses = runs(strategy, "bf16-mixed", "sgd").losses
    # And yet bfloat16 was at work: float32 would have given other losses.
    assert loss_difference(runs(strategy, "32-true", "sgd"), runs(strategy, "bf16-mixed", "sgd"))
    assert all(torch.isfinite(torch.tensor(list(losses.values()))))


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        ("ddp", ("--trainer.strategy=deepspeed_3", "--trainer.devices=2")),
        ("deepspeed_3", ("--trainer.strategy=deepspeed_1", "--trainer.devices=1")),
        ("deepspeed_1", ("--trainer.strategy=ddp", "--trainer.devices=2")),
        ("deepspeed_2", ()),
    ],
    ids=["ddp to zero3", "zero3 on 2 to zero1 on 1", "zero1 to ddp", "zero2 on 2 to 1 process"],
)
def test_a_run_goes_on_under_another_strategy_and_number_of_ranks(
    runs: Runs,
    rank_server: RankServer,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    before: str,
    behind: tuple[str, ...],
) -> None:
    whole = runs(before, "32-true", "sgd")
    source = next(tmp_path_factory.getbasetemp().glob(f"parity*/{before}-32-true-sgd"))
    first_epoch = source / "checkpoints" / "epoch-0001-step-00000011.ckpt"
    resumed = train(rank_server, tmp_path / "resumed", f"--ckpt_path={first_epoch}", *behind)
    assert sorted(resumed.losses) == list(range(12, 23))  # the second epoch's 11 steps
    assert loss_difference(whole, resumed, num_steps=22) < FP32_LOSSES
    found = compare(whole, resumed)
    check_tensors(found)
