"""ZeRO on real ranks by the command line: offloading, emptied weights, starts, stops, uses."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import COMMON, ROOT, Outcome, compare, load_outcome

from rank_server import RankServer
from resscale.models import count_macs, create_model
from resscale.training.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="the extra [deepspeed] is not installed",
    ),
]

# 14 steps of 96. A third of a sum is rounded, and at a higher rate micro-batches of 16 let that
# grow; measured at this one, on three ranks: see the tolerances' use.
OPTIONS = (
    "--trainer.max_epochs=1",
    "--data.global_batch_size=96",
    "--data.micro_batch_size=16",
    "--model.optimizer.lr=0.001",
)
LARS = ("--model.optimizer.name=lars", "--model.optimizer.lr=0.01")
ZERO = "--trainer.strategy.class_path=resscale.training.zero.ZeRO"
# Weights small enough to be kept whole between steps are all there are in this net, if allowed.
EMPTIED = '--trainer.strategy.config={"zero_optimization":{"stage3_param_persistence_threshold":0}}'
WITNESS = "--trainer.callbacks+=zero_witness.Witness"
WITNESSED = {"PYTHONPATH": str(Path(__file__).parent)}
LOSSES = 1e-5
TENSORS = 1e-4

# Of each case: its ranks, its arguments, and the case that it must equal. LARS under ZeRO-3 is
# held against one process in test_parity.py.
CASES: dict[str, tuple[int, tuple[str, ...], str]] = {
    "single": (1, (), "single"),
    "zero3 on 3": (3, (ZERO, "--trainer.strategy.stage=3", EMPTIED), "single"),
    "zero1 offloaded": (
        2,
        (ZERO, "--trainer.strategy.stage=1", "--trainer.strategy.offload_optimizer=true"),
        "single",
    ),
    "zero2 offloaded": (2, ("--config=configs/strategy/deepspeed_2_offload.yaml",), "single"),
    "lars zero3": (2, (*LARS, ZERO, "--trainer.strategy.stage=3", EMPTIED), "lars zero3"),
    "lars zero3 offloaded": (
        2,
        (
            *LARS,
            ZERO,
            "--trainer.strategy.stage=3",
            "--trainer.strategy.offload_optimizer=true",
            "--trainer.strategy.offload_parameters=true",
            EMPTIED,
        ),
        "lars zero3",
    ),
}
Runs = Callable[[str], tuple[Path, Outcome]]


def train(rank_server: RankServer, run_dir: Path, *arguments: str) -> Outcome:
    options = (f"--run_dir={run_dir}", *COMMON, "--data.num_workers=0", *arguments)
    ended = rank_server.run("fit", *options, cwd=ROOT, environ=WITNESSED)
    assert ended.code == 0, ended.said
    return load_outcome(run_dir)


@pytest.fixture(scope="module")
def runs(rank_server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Train each case once, when it is first asked for; return its folder and what it left."""
    folder = tmp_path_factory.mktemp("zero")
    done: dict[str, tuple[Path, Outcome]] = {}

    def run(case: str) -> tuple[Path, Outcome]:
        if case not in done:
            ranks, arguments, _ = CASES[case]
            devices = () if ranks == 1 else (f"--trainer.devices={ranks}", WITNESS)
            run_dir = folder / case.replace(" ", "-")
            done[case] = run_dir, train(rank_server, run_dir, *OPTIONS, *arguments, *devices)
        return done[case]

    return run


def witnesses(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(run_dir.glob("witness-*.json"))]


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][2] != case])
def test_ranks_train_what_one_process_trains_and_offloaded_what_others_do(
    runs: Runs, case: str
) -> None:
    reference = runs(CASES[case][2])[1]
    found = runs(case)[1]
    assert len(reference.losses) == 14  # 1,437 // 96
    assert found.sample_hash == reference.sample_hash
    differences = compare(reference, found)
    assert differences["losses"] < LOSSES
    # Three ranks accumulate 2 micro-batches, two ranks 3: divided twice, the weights would show it.
    others = ("weights", "momentum", "average")
    assert max(differences[name] for name in others) < TENSORS, differences


@pytest.mark.parametrize(
    ("case", "stage", "optimizer", "parameters"),
    [
        ("zero3 on 3", 3, False, False),
        ("zero1 offloaded", 1, True, False),
        ("zero2 offloaded", 2, True, False),
        ("lars zero3 offloaded", 3, True, True),
    ],
)
def test_each_case_was_what_it_is_called(
    runs: Runs, case: str, stage: int, optimizer: bool, parameters: bool
) -> None:
    facts = witnesses(runs(case)[0])
    assert len(facts) == CASES[case][0]
    num_parameters = len(list(create_model("resnet8_cifar", 10, 1).parameters()))
    for fact in facts:
        assert fact["stage"] == stage
        assert fact["offloads_optimizer"] is optimizer
        assert fact["offloads_parameters"] is parameters
        assert fact["emptied"] == (num_parameters if stage == 3 else 0)


@pytest.mark.parametrize("case", ["zero3 on 3", "zero1 offloaded", "zero2 offloaded"])
def test_a_checkpoint_is_one_file_and_all_ranks_hold_its_batchnorm(runs: Runs, case: str) -> None:
    run_dir, outcome = runs(case)
    assert not [path for path in (run_dir / "checkpoints").iterdir() if path.is_dir()]
    checkpoint = load_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    plain = runs("single")[1].checkpoint
    assert list(checkpoint) == list(plain)
    assert list(checkpoint["state_dict"]) == list(plain["state_dict"])
    assert checkpoint["optimizer_states"][0].keys() == plain["optimizer_states"][0].keys()
    facts = witnesses(run_dir)
    assert len({fact["buffers"] for fact in facts}) == 1
    assert all(fact["keys"] == sorted(outcome.checkpoint["state_dict"]) for fact in facts)


def test_the_cost_of_an_image_is_known_on_every_rank_of_zero_3(runs: Runs) -> None:
    expected = count_macs(create_model("resnet8_cifar", 10, 1), 8, 1)
    for fact in witnesses(runs("zero3 on 3")[0]):
        assert fact["macs"] == expected
        # Counted too late: the weights are shares by now.
        assert fact["macs_of_other_images"] is None


def test_two_ranks_of_zero_3_validate_and_predict_as_one_process_does(
    runs: Runs, rank_server: RankServer, tmp_path: Path, repository: Path
) -> None:
    run_dir, _ = runs("zero3 on 3")
    two = ("--trainer.strategy=deepspeed_3", "--trainer.devices=2")
    one = ("--trainer.strategy=auto", "--trainer.devices=1")

    def call(*arguments: str) -> str:
        # The run's saved configuration names the witness.
        ended = rank_server.run(*arguments, cwd=repository, environ=WITNESSED)
        assert ended.code == 0, ended.said
        return ended.said

    said = call("validate", f"--run_dir={run_dir}", *two)
    expected = float(json.loads((run_dir / "summary.json").read_text())["val_top1"])
    assert f"top-1 {expected:.2%}" in said
    assert "360 of 360 unique" in said
    tables = []
    for name, ranks in (("two", two), ("one", one)):
        table = tmp_path / f"{name}.csv"
        images = "--data.predict=builtin:digits/test"
        call("predict", f"--run_dir={run_dir}", images, f"--output={table}", *ranks)
        with table.open() as file:
            tables.append([{**row} for row in csv.DictReader(file)])
    assert len(tables[0]) == 360
    assert tables[0] == tables[1]


def test_zero_3_begins_with_the_weights_of_a_file(
    runs: Runs, rank_server: RankServer, tmp_path: Path
) -> None:
    first = runs("single")[0] / "checkpoints" / "last.ckpt"
    still = train(
        rank_server,
        tmp_path / "still",
        *OPTIONS,
        "--trainer.limit_train_batches=12",
        "--model.optimizer.lr=0",
        f"--weights={first}",
        ZERO,
        "--trainer.strategy.stage=3",
        "--trainer.devices=2",
        EMPTIED,
    )
    begun = runs("single")[1].checkpoint["state_dict"]
    names = [name for name in begun if "running" not in name and "num_batches" not in name]
    assert len(names) == len(list(create_model("resnet8_cifar", 10, 1).parameters()))
    # The rate is 0, so they are still what they began with.
    assert all(torch.equal(still.checkpoint["state_dict"][name], begun[name]) for name in names)


def test_a_signal_ends_zero_1_with_75_and_the_run_goes_on_to_the_same_end(
    runs: Runs, rank_server: RankServer, tmp_path: Path, repository: Path
) -> None:
    run_dir = tmp_path / "run"
    two = (*OPTIONS, "--trainer.strategy=deepspeed_1", "--trainer.devices=2")
    process = subprocess.Popen(
        [sys.executable, "-m", "resscale", "fit", f"--run_dir={run_dir}", *COMMON, *two],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = run_dir / "samples" / "rank-1.jsonl"
    deadline = time.monotonic() + 200
    while not log.exists() or log.read_text().count("\n") < 9:  # three steps of 3 micro-batches
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, "the run does not get going"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 75, said
    stopped = load_outcome(run_dir)
    assert 3 <= stopped.checkpoint["global_step"] < 14

    whole = runs("single")[1]
    resumed = train(rank_server, run_dir, *two, "--ckpt_path=auto")
    assert sorted(resumed.losses) == list(range(1, 15))
    assert resumed.sample_hash == whole.sample_hash
    differences = compare(whole, resumed)
    assert differences["losses"] < LOSSES
    assert max(differences["weights"], differences["momentum"]) < TENSORS
