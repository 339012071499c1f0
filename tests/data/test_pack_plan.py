"""The plan: the shuffle, the cut into shards, and which options decide the bytes."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resscale.data.digits import digits_splits
from resscale.data.pack_plan import (
    PackOptions,
    default_processes,
    make_plan,
    shard_bounds,
    shuffled_rows,
)
from resscale.errors import UserInputError

KEYS = np.array([f"k{n:04d}".encode() for n in range(1000)])


def test_shuffle_is_a_permutation_by_key_and_seed() -> None:
    rows = shuffled_rows(KEYS, 0)
    assert sorted(rows.tolist()) == list(range(1000))
    np.testing.assert_array_equal(rows, shuffled_rows(KEYS, 0))
    assert rows.tolist() != shuffled_rows(KEYS, 1).tolist()


def test_shuffle_does_not_depend_on_the_listing() -> None:
    backwards = KEYS[::-1]
    assert KEYS[shuffled_rows(KEYS, 7)].tolist() == backwards[shuffled_rows(backwards, 7)].tolist()


def test_each_shard_has_a_mix_of_classes() -> None:
    labels = np.repeat(np.arange(10), 100)[shuffled_rows(KEYS, 0)]
    per_shard = [np.bincount(shard, minlength=10) for shard in np.split(labels, 10)]
    # 100 draws of 10 classes: 10 each, with a standard deviation of sqrt(100 × 0.1 × 0.9) = 3.
    assert np.abs(np.array(per_shard) - 10).max() <= 12


@given(
    sizes=st.lists(st.integers(0, 100), max_size=60),
    max_samples=st.integers(1, 10),
    max_bytes=st.integers(1, 300),
)
def test_shards_keep_both_bounds(sizes: list[int], max_samples: int, max_bytes: int) -> None:
    array = np.array(sizes, np.int64)
    bounds = shard_bounds(array, max_samples, max_bytes)
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    for begin, end in pairwise(bounds.tolist()):
        assert 1 <= end - begin <= max_samples
        assert end - begin == 1 or array[begin:end].sum() <= max_bytes


def test_shards_are_filled() -> None:
    sizes = np.full(10, 5, np.int64)
    assert shard_bounds(sizes, 4, 1000).tolist() == [0, 4, 8, 10]
    assert shard_bounds(sizes, 100, 15).tolist() == [0, 3, 6, 9, 10]


def test_tasks_cover_the_limit_and_skip_what_is_done() -> None:
    split = digits_splits()[1]
    plan = make_plan(split, PackOptions(samples_per_shard=10, limit=35))
    assert plan.num_shards == 4
    tasks = list(plan.tasks(Path("/out"), frozenset({1})))
    assert [(task.name, len(task.refs)) for task in tasks] == [
        ("test-000000.tar", 10),
        ("test-000002.tar", 10),
        ("test-000003.tar", 5),
    ]
    fewer = make_plan(split, PackOptions(samples_per_shard=10, limit=10))
    assert next(fewer.tasks(Path("/out"), frozenset())).refs == tasks[0].refs


@pytest.mark.parametrize(
    "change",
    [
        {"samples_per_shard": 9},
        {"shard_mb": 1.0},
        {"resize": 4},
        {"quality": 80},
        {"format": "png"},
        {"check": "none"},
        {"seed": 1},
        {"limit": 100},
    ],
)
def test_digest_depends_on_each_option_but_the_processes(change: dict[str, Any]) -> None:
    split = digits_splits()[1]
    digest = make_plan(split, PackOptions()).digest
    assert make_plan(split, PackOptions(processes=7)).digest == digest
    assert make_plan(split, PackOptions(**change)).digest != digest
    assert make_plan(digits_splits()[0], PackOptions()).digest != digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_shard": 0}, "--samples_per_shard 0: must be above 0"),
        ({"shard_mb": -1.0}, r"--shard_mb -1\.0: must be above 0"),
        ({"resize": 0}, "--resize 0: must be above 0"),
        ({"limit": 0}, "--limit 0: must be above 0"),
        ({"processes": 0}, "--processes 0: must be above 0"),
        ({"quality": 101}, "--quality 101: must lie in 1 to 100"),
        ({"check": "some"}, "--check some: must be one of full, header, none"),
        ({"format": "gif"}, "--format gif: must be one of jpg, png"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        PackOptions(**options)


def test_default_is_one_process_per_core() -> None:
    assert default_processes() >= 1
