"""LAMB and AdamW by the command line: resumed on one process, and moved between strategies."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from parity import (
    COMMON,
    ROOT,
    VARIANTS,
    Outcome,
    load_outcome,
    loss_difference,
    strategy_arguments,
    tensor_difference,
)

from rank_server import RankServer

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="the extra [deepspeed] is not installed",
    ),
]

LOSSES = 1e-5
FIRST_EPOCH = "epoch-0001-step-00000011.ckpt"


def train(rank_server: RankServer, run_dir: Path, *arguments: str) -> Outcome:
    options = (*COMMON, "--data.num_workers=0", *arguments)
    ended = rank_server.run("fit", f"--run_dir={run_dir}", *options, cwd=ROOT)
    assert ended.code == 0, ended.said
    return load_outcome(run_dir)


def steps_done(outcome: Outcome) -> set[float]:
    return {value.item() for key, value in outcome.momentum.items() if key.endswith(" step")}


def test_lamb_goes_on_bitwise_on_one_process_and_the_same_under_zero(
    rank_server: RankServer, tmp_path: Path
) -> None:
    whole = train(rank_server, tmp_path / "whole", *VARIANTS["lamb"])
    go_on = (*VARIANTS["lamb"], f"--ckpt_path={tmp_path}/whole/checkpoints/{FIRST_EPOCH}")
    single = train(rank_server, tmp_path / "single", *go_on)
    assert sorted(single.losses) == list(range(12, 23))  # the second epoch's 11 steps
    assert all(whole.losses[step] == loss for step, loss in single.losses.items())
    assert tensor_difference(whole.momentum, single.momentum) == 0
    for name, weight in whole.checkpoint["state_dict"].items():
        assert torch.equal(weight, single.checkpoint["state_dict"][name]), name

    zero = train(rank_server, tmp_path / "zero", *go_on, *strategy_arguments("deepspeed_3"))
    assert sorted(zero.losses) == list(range(12, 23))
    assert loss_difference(whole, zero, num_steps=22) < LOSSES
    # Two epochs of 11 steps: those before the move count.
    assert steps_done(whole) == steps_done(zero) == {22}


def test_adamw_under_zero_trains_what_ddp_trains_and_goes_on_under_it(
    rank_server: RankServer, tmp_path: Path
) -> None:
    zero = train(
        rank_server, tmp_path / "zero", *VARIANTS["adamw"], *strategy_arguments("deepspeed_2")
    )
    go_on = (*VARIANTS["adamw"], f"--ckpt_path={tmp_path}/zero/checkpoints/{FIRST_EPOCH}")
    ddp = train(rank_server, tmp_path / "ddp", *go_on, *strategy_arguments("ddp"))
    assert sorted(ddp.losses) == list(range(12, 23))
    assert loss_difference(zero, ddp, num_steps=22) < LOSSES
    assert steps_done(zero) == steps_done(ddp) == {22}
    # The rate moves the losses by far more than that.
    assert abs(zero.losses[22] / zero.losses[1] - 1) > 0.01
