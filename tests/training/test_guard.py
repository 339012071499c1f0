"""The guards: losses kept without reading them, named by step, rank and samples, and ended at."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resscale import ImageClassifier
from resscale.cli import main
from resscale.data import EpochOrder, Manifest
from resscale.data.batching import plan_batches
from resscale.data.builtin import resolve
from resscale.data.samples import ShardSamples
from resscale.errors import TrainingStopped, UserInputError
from resscale.training.guard import (
    LossTrail,
    NonFinite,
    NonFiniteGuard,
    Place,
    check_bad_samples,
    micro_batch_ids,
    pack_nonfinite,
    unpack_nonfinite,
)
from resscale.training.rundir import RunDir

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
# 64 samples a step, in 4 micro-batches of 16.
CONFIG = """
model: {model: resnet8_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, channels: 1, image_size: 8, train_crop: center,
       global_batch_size: 64, micro_batch_size: 16, num_workers: 0, log_sample_ids: true}
trainer: {accelerator: cpu, max_epochs: 2, limit_train_batches: 24, log_every_n_steps: 4}
"""
NAN = torch.tensor(math.nan)
Fit = Callable[..., tuple[int, RunDir]]


class Numbered:
    """Samples whose keys are their ids."""

    def key(self, sample: int) -> str:
        return f"s{sample}"


@pytest.fixture
def note(tmp_path: Path) -> Callable[..., NonFiniteGuard]:
    """A function that tells a guard of losses, where the global batch is 8 in micro-batches of 2.

    100 samples in their own order, two ranks: rank 1's second micro-batch of step 3 has the
    samples 24 + 4 + 2 = 30 and 31.
    """

    def told(guard: NonFiniteGuard, *found: NonFinite, count: int | None = None) -> NonFiniteGuard:
        order = EpochOrder([100], global_batch_size=8, shuffle="none")
        guard.note(
            len(found) if count is None else count,
            found,
            order=order,
            plan=plan_batches(8, 2, world_size=2),
            samples=Numbered(),  # type: ignore[arg-type]
            steps_per_epoch=order.num_steps,
            ledger=RunDir(tmp_path),
        )
        return guard

    return told


def test_a_trail_finds_what_is_not_finite_and_where() -> None:
    trail = LossTrail()
    losses = {(0, 5): [1.0, math.nan], (0, 6): [math.inf, 2.0], (1, 0): [-math.inf, 3.0]}
    for (epoch, step), values in losses.items():
        for value in values:
            trail.add(torch.tensor(value, requires_grad=True), epoch, step)
    found = trail.take(rank=3)
    assert [(entry.place, str(entry.loss)) for entry in found] == [
        (Place(0, 5, 1), "nan"),
        (Place(0, 6, 0), "inf"),
        (Place(1, 0, 0), "-inf"),
    ]
    assert {entry.rank for entry in found} == {3}
    assert trail.take(rank=3) == []


def test_a_trail_is_as_long_as_the_interval() -> None:
    trail = LossTrail()
    for step in range(1000):  # more than it makes room for at first
        trail.add(torch.tensor(math.nan if step in (3, 300, 999) else 0.0), 0, step)
    assert [entry.place.step for entry in trail.take(0)] == [3, 300, 999]


def test_adding_a_loss_reads_nothing_off_the_device() -> None:
    # A tensor without values: whoever reads one fails.
    trail = LossTrail()
    for step in range(600):
        trail.add(torch.zeros((), device="meta"), 0, step)
    with pytest.raises((RuntimeError, NotImplementedError)):
        trail.take(0)


def test_the_first_ones_survive_the_way_to_the_other_ranks() -> None:
    found = [NonFinite(Place(2, step, 1), rank=5, loss=math.inf) for step in range(9)]
    count, told = unpack_nonfinite(pack_nonfinite(found), rank=5)
    assert (count, told) == (9, found[:4])
    assert unpack_nonfinite(pack_nonfinite([]), rank=5) == (0, [])


def test_any_rank_knows_the_samples_of_any_other() -> None:
    order = EpochOrder([100], global_batch_size=8, seed=3)
    plan = plan_batches(8, 2, world_size=2)
    ids = [
        micro_batch_ids(order, plan, Place(1, 3, micro), rank).tolist()
        for rank in (0, 1)
        for micro in (0, 1)
    ]
    # Ranks one behind the other are the global batch of that epoch.
    flat = [sample for part in ids for sample in part]
    assert flat == order.at_epoch(1).global_batch(3).tolist()


def test_the_message_names_step_rank_and_samples(note: Callable[..., NonFiniteGuard]) -> None:
    guard = note(NonFiniteGuard(1), NonFinite(Place(0, 3, 1), rank=1, loss=math.nan))
    said = (
        r"1 loss was not finite, guard.max_nonfinite_losses=1 ends training there: nan at step 4 "
        r"on rank 1 \(samples s30, s31\)\. Lower model.optimizer.lr, .* earlier checkpoint\."
    )
    with pytest.raises(TrainingStopped, match=said):
        guard.check()


def test_the_first_in_time_are_named_first(
    note: Callable[..., NonFiniteGuard], tmp_path: Path
) -> None:
    found = [
        NonFinite(Place(0, 4, 0), rank=0, loss=math.inf),
        NonFinite(Place(0, 3, 1), rank=1, loss=math.nan),
        NonFinite(Place(0, 3, 1), rank=0, loss=math.nan),
    ]
    guard = note(NonFiniteGuard(3), *found, count=40)
    with pytest.raises(TrainingStopped, match="40 losses were not finite") as stopped:
        guard.check()
    places = ["nan at step 4 on rank 0 (", "nan at step 4 on rank 1 (", "inf at step 5 on rank 0 ("]
    positions = [str(stopped.value).index(place) for place in places]
    assert positions == sorted(positions)
    ledger = RunDir(tmp_path).read_events("nonfinite_loss")
    assert [(entry["global_step"], entry["rank"]) for entry in ledger] == [(4, 0), (4, 1), (5, 0)]
    assert ledger[1]["keys"] == ["s30", "s31"]
    assert (ledger[1]["epoch"], ledger[1]["step"], ledger[1]["micro_batch"]) == (0, 3, 1)
    assert ledger[1]["loss"] == "nan"


def test_losses_add_up_over_intervals(note: Callable[..., NonFiniteGuard]) -> None:
    guard = NonFiniteGuard(3)
    for step in (1, 5):
        note(guard, NonFinite(Place(0, step, 0), rank=0, loss=math.nan)).check()
    assert guard.count == 2
    note(guard, NonFinite(Place(1, 0, 0), rank=0, loss=math.nan))
    # 100 // 8 = 12 steps an epoch: epoch 1 begins with step 13.
    with pytest.raises(TrainingStopped, match=r"at step 2 .* at step 6 .* at step 13 "):
        guard.check()


def test_no_limit_ends_nothing(note: Callable[..., NonFiniteGuard]) -> None:
    note(NonFiniteGuard(0), NonFinite(Place(0, 3, 1), rank=1, loss=math.nan), count=1000).check()


def test_a_limit_below_zero_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"guard.max_nonfinite_losses=-1 must be 1 or more"):
        NonFiniteGuard(-1)


@pytest.mark.parametrize(("bad", "stops"), [(10, False), (11, True)])
def test_damage_over_the_budget_ends_training(bad: int, stops: bool, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append_event("bad_sample", key="train-0007")
    if not stops:  # 1% of 1,000 samples
        check_bad_samples(bad, 0.01, 1000, run)
        return
    said = r"11 damaged samples .* data.max_bad_fraction=0.01 of 1000 allows: train-0007 \("
    with pytest.raises(TrainingStopped, match=said):
        check_bad_samples(bad, 0.01, 1000, run)


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """A function that trains on the digits and returns the exit code and the run directory."""
    monkeypatch.setenv("RESSCALE_RUN_DIR", "")  # the run sets it; taken back behind the test
    (tmp_path / "tiny.yaml").write_text(CONFIG)

    def run(*options: str) -> tuple[int, RunDir]:
        arguments = ["--config", f"{tmp_path}/tiny.yaml", "--run_dir", f"{tmp_path}/run"]
        return main(["fit", *arguments, *options]), RunDir(tmp_path / "run")

    return run


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Micro-batches, counted over the run, whose loss is to be no number.

    Gradients and so weights stay sound, unless -1 is among them.
    """
    chosen: set[int] = set()
    seen = iter(range(10**6))
    honest = ImageClassifier.training_step

    def training_step(self: ImageClassifier, batch: Any, batch_idx: int) -> Tensor:
        loss = honest(self, batch, batch_idx)
        if next(seen) not in chosen:
            return loss
        return loss * NAN if -1 in chosen else loss + NAN

    monkeypatch.setattr(ImageClassifier, "training_step", training_step)
    return chosen


def test_a_real_run_names_the_micro_batch_of_an_accumulated_step(
    fit: Fit, poisoned: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    # Epochs of 24 / 4 = 6 steps; the 38th micro-batch is the second of step 10: 9 · 4 + 2.
    poisoned.add(37)
    code, run = fit("--guard.max_nonfinite_losses", "1")
    assert code == 70
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "1 loss was not finite" in said
    assert "nan at step 10 on rank 0 (samples " in said
    # It is seen where an interval of 4 steps ends, at the 12th.
    summary = run.read_summary()
    assert (summary["status"], summary["global_step"]) == ("stopped", 12)
    assert summary["nonfinite_losses"] == 1
    assert "nan at step 10" in summary["reason"]
    # The samples are those that the log has for that micro-batch: epoch 1, step 3.
    log = [json.loads(line) for line in run.samples(0).read_text().splitlines()]
    assert (log[37]["epoch"], log[37]["step"]) == (1, 3)
    samples = ShardSamples(Manifest.load(resolve("builtin:digits/train")))
    keys = [samples.key(sample) for sample in log[37]["ids"]]
    [event] = run.read_events("nonfinite_loss")
    assert event["keys"] == keys
    place = [event[name] for name in ("rank", "epoch", "step", "micro_batch", "global_step")]
    assert place == [0, 1, 3, 1, 10]
    assert f"(samples {', '.join(keys[:4])} and 12 more)" in said


def test_a_real_run_goes_on_below_the_limit(fit: Fit, poisoned: set[int]) -> None:
    poisoned.update((1, 37))
    code, run = fit()  # 3 by default
    assert code == 0
    assert run.read_summary()["nonfinite_losses"] == 2
    steps = [event["global_step"] for event in run.read_events("nonfinite_loss")]
    assert steps == [1, 10]


def test_float16_skips_the_step_and_goes_on(fit: Fit, poisoned: set[int]) -> None:
    # Added to the loss, NaN spoils no gradient; as a factor it does, and the scaler sees it.
    poisoned.update((9, -1))
    code, run = fit("--trainer.precision", "16-mixed", "--trainer.max_epochs", "1")
    assert code == 0
    summary = run.read_summary()
    assert (summary["skipped_steps"], summary["nonfinite_losses"]) == (1, 1)
    [event] = run.read_events("nonfinite_loss")
    assert (event["global_step"], event["micro_batch"]) == (3, 1)  # 9 = 2 · 4 + 1


def test_a_run_that_diverges_ends_with_70(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    code, run = fit("--model.optimizer.lr", "1e30", "--model.optimizer.weight_decay", "0.1")
    assert code == 70
    assert "not finite, guard.max_nonfinite_losses=3 ends training there" in capsys.readouterr().err
    assert run.read_summary()["status"] == "stopped"
    assert run.read_events("nonfinite_loss")[0]["loss"] == "nan"
