"""Readers are counted from where all of them are at work; rates are medians."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from resscale.bench.reader_rate import (
    ReaderRate,
    ReaderRound,
    read_for,
    reading_cpu_s,
    render_readers,
    summarise,
)


def batches(count: int) -> Iterator[Any]:
    for number in range(count):
        yield {"label": torch.zeros(10 + number)}


def test_the_first_batch_of_each_reader_is_not_counted() -> None:
    found = read_for(list(batches(5)), readers=3, seconds=1e-9)
    assert found.images == 13 + 14  # behind 10, 11 and 12


def test_a_short_epoch_begins_anew() -> None:
    found = read_for(list(batches(2)), readers=1, seconds=1e-9)
    assert found.images == 11 + 10


def test_rates_are_medians_over_rounds() -> None:
    rounds = {
        2: [ReaderRound(100, 1.0, 0.5), ReaderRound(100, 2.0, 0.7), ReaderRound(100, 4.0, 0.6)],
        0: [ReaderRound(10, 1.0, 0.1)],
    }
    assert summarise(rounds) == [
        ReaderRate(0, 10.0, pytest.approx(10.0)),
        ReaderRate(2, 50.0, pytest.approx(6.0)),
    ]
    rows = [line.split() for line in render_readers(summarise(rounds), "threads").splitlines()]
    assert rows[0][0] == "threads"
    assert rows[1] == ["0", "10.0", "10.000", "10.0"]
    assert rows[2] == ["2", "50.0", "6.000", "25.0"]


def test_cpu_time_of_this_process_counts() -> None:
    before, stop = reading_cpu_s(), time.process_time() + 0.05
    while time.process_time() < stop:
        pass
    assert reading_cpu_s() - before >= 0.04
