"""What ranks tell each other: packed into numbers and read back, by rank."""

import math
import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resscale.training.guard import NonFinite, Place, pack_nonfinite
from resscale.training.interval import (
    Interval,
    RankSums,
    exchange,
    gather_hosts,
    read_memory_bytes,
    read_rows,
)

SUMS = RankSums(loss=20.0, correct=4.0, rows=10.0, bad=1.0, wait_s=0.5, own_s=0.1, memory_bytes=1e9)
MORE = RankSums(loss=40.0, correct=2.0, rows=10.0, bad=0.0, wait_s=1.5, own_s=0.3, memory_bytes=2e9)


def row(sums: RankSums, *nonfinite: NonFinite) -> list[float]:
    return [*vars(sums).values(), *pack_nonfinite(nonfinite)]


def test_an_interval_is_that_of_all_ranks() -> None:
    interval = read_rows([row(SUMS), row(MORE)])
    assert interval == Interval((SUMS, MORE), 0, ())
    assert interval.mean_loss == 3.0  # (20 + 40) / 20 rows
    assert interval.top1 == 0.3  # (4 + 2) / 20
    assert interval.total("bad") == 1.0
    assert interval.total("wait_s") == 2.0
    assert interval.memory_bytes == 2_000_000_000  # the larger


def test_losses_that_are_not_finite_come_with_their_rank() -> None:
    found = NonFinite(Place(epoch=1, step=7, micro=2), rank=1, loss=math.inf)
    interval = read_rows([row(SUMS), row(MORE, found)])
    assert interval.nonfinite_count == 1
    assert interval.nonfinite == (found,)


def test_a_rank_without_samples_divides_by_nothing() -> None:
    interval = read_rows([[0.0] * len(row(SUMS))])
    assert (interval.mean_loss, interval.top1) == (0.0, 0.0)


def test_one_rank_alone_has_its_own_values() -> None:
    trainer: Any = SimpleNamespace(world_size=1)
    assert exchange(SUMS, [], trainer) == Interval((SUMS,), 0, ())
    assert gather_hosts(1) == [socket.gethostname()]


def test_the_memory_of_a_process_grows_with_what_it_holds() -> None:
    before = read_memory_bytes(torch.device("cpu"))
    held = torch.ones(64 * 2**20, dtype=torch.uint8)  # 64 MiB
    after = read_memory_bytes(torch.device("cpu"))
    assert after - before >= 48 * 2**20, f"{len(held)} bytes are held"
    assert after < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", ["loss", "own_s"])
def test_a_value_that_is_not_finite_is_passed_on(name: str) -> None:
    sums = RankSums(**{**vars(SUMS), name: math.nan})
    assert math.isnan(getattr(read_rows([row(sums)]).ranks[0], name))
