"""What checkpoints need, what is free, and what is said where it is short."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from resscale import create_model
from resscale.errors import CheckpointError
from resscale.training import checkpoint_space
from resscale.training.checkpoint_io import write_checkpoint
from resscale.training.checkpoint_space import (
    expected_bytes,
    free_bytes,
    needed_bytes,
    require_space,
    shortage,
)
from resscale.training.lamb import Lamb

MARGIN = 1 << 20


def test_shared_storage_is_counted_once() -> None:
    weights = torch.zeros(1000)
    checkpoint = {"a": weights, "b": [weights[:10], weights], "c": {"d": torch.zeros(5)}, "n": 3}
    # 1000 · 4 and 5 · 4 bytes in two records of at most 512 more each.
    assert needed_bytes(checkpoint) == 4020 + 2 * 512 + MARGIN


def test_the_margin_covers_the_file_of_a_real_network(tmp_path: Path) -> None:
    model = create_model("resnet20_cifar", 10)
    checkpoint = {"state_dict": model.state_dict(), "config": {"text": "x" * 10_000}}
    write_checkpoint(checkpoint, tmp_path / "a.ckpt")
    size = (tmp_path / "a.ckpt").stat().st_size
    assert size <= needed_bytes(checkpoint) <= 1.05 * size + MARGIN


@pytest.mark.parametrize(
    ("momentum", "averaged", "copies"),
    [(0.0, False, 1), (0.9, False, 2), (0.9, True, 3)],
    ids=["weights", "and momentum", "and their average"],
)
def test_a_run_knows_before_its_first_checkpoint_what_one_takes(
    momentum: float, averaged: bool, copies: int
) -> None:
    module = nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=momentum)
    # 100 · 100 floats of 4 bytes each time.
    assert expected_bytes(module, [optimizer], averaged) == copies * 40_000 + MARGIN


@pytest.mark.parametrize("kind", [torch.optim.AdamW, Lamb])
def test_adam_and_its_kin_keep_two_moments(kind: type[torch.optim.Optimizer]) -> None:
    module = nn.Linear(100, 100, bias=False)
    optimizer = kind(module.parameters(), lr=0.1)
    # Weights and two moments of 100 · 100 floats.
    assert expected_bytes(module, [optimizer], False) == 3 * 40_000 + MARGIN


def test_buffers_count_and_frozen_weights_have_no_momentum() -> None:
    module = nn.BatchNorm1d(8)
    module.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([module.bias], lr=0.1, momentum=0.9)
    # Weight, bias, mean and variance of 8 floats, a counter of 8 bytes; momentum of the bias.
    assert expected_bytes(module, [optimizer], False) == 4 * 32 + 8 + 32 + MARGIN


def on_a_disk(monkeypatch: pytest.MonkeyPatch, free: int, total: int = 10**9) -> None:
    usage = SimpleNamespace(total=total, used=total - free, free=free)
    monkeypatch.setattr(checkpoint_space.shutil, "disk_usage", lambda folder: usage)


def test_what_fits_is_let_through_and_what_does_not_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_disk(monkeypatch, free=2_000_000)
    require_space(tmp_path / "a.ckpt", 2_000_000, None)
    with pytest.raises(CheckpointError, match=r"a\.ckpt needs 2\.1 MB and its disk has 2\.0 MB"):
        require_space(tmp_path / "a.ckpt", 2_100_000, None)


def test_files_that_may_go_are_asked_for_until_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_disk(monkeypatch, free=1)
    left = [True, True, False]
    with pytest.raises(CheckpointError):
        require_space(tmp_path / "a.ckpt", 2, lambda: left.pop(0))
    assert left == []


def test_a_file_system_that_does_not_say_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_disk(monkeypatch, free=0, total=0)
    assert free_bytes(tmp_path) is None
    require_space(tmp_path / "a.ckpt", 10**12, None)
    assert shortage(tmp_path, 10**12, keep_last=2, present=0) is None


def test_a_real_disk_says_what_is_free(tmp_path: Path) -> None:
    free = free_bytes(tmp_path)
    assert free is not None
    assert free > 0


def test_a_disk_too_small_for_all_checkpoints_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # keep_last=2, the best and the one being written: 4 · 100 MB.
    on_a_disk(monkeypatch, free=399_000_000)
    warning = shortage(tmp_path, 100_000_000, keep_last=2, present=0)
    assert warning == (
        f"{tmp_path} has 399.0 MB free, and 4 checkpoints of 100.0 MB (checkpoint.keep_last=2, "
        f"the best, and the one being written) want 400.0 MB: free space before it runs out."
    )
    # One is there already: 3 · 100 MB are still to come.
    assert shortage(tmp_path, 100_000_000, keep_last=2, present=1) is None
    on_a_disk(monkeypatch, free=400_000_000)
    assert shortage(tmp_path, 100_000_000, keep_last=2, present=0) is None
