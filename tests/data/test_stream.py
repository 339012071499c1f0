"""Streams: what partitions are cut of, and how their runs are permuted."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from resscale.data.permutation import mix_keys
from resscale.data.stream import home_stream, shuffled_stream

SIZES = st.lists(st.one_of(st.sampled_from([0, 1]), st.integers(0, 30)), max_size=30)


def all_ids(stream, first: int, last: int) -> list[int]:
    return stream.ids(np.arange(first, last)).tolist()


@given(SIZES, st.integers(0, 2**63), st.booleans())
def test_the_home_stream_holds_each_sample_once(sizes: list[int], seed: int, scatter: bool) -> None:
    stream = home_stream(np.array(sizes, np.int64), seed, scatter=scatter)
    total = sum(sizes)
    assert stream.bounds[0] == 0
    assert stream.bounds[-1] == total
    ids = all_ids(stream, 0, total)
    assert sorted(ids) == list(range(total))
    if not scatter:
        assert ids == list(range(total))


def test_a_run_is_a_shard_read_in_a_row() -> None:
    stream = home_stream(np.array([3, 0, 2, 4]), seed=5, scatter=True)
    assert len(stream.first_ids) == 3  # the empty shard has no run
    runs = [all_ids(stream, a, b) for a, b in pairwise(stream.bounds)]
    assert sorted(runs) == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]


@given(SIZES, st.integers(1, 6), st.data())
def test_partitions_keep_their_places_and_their_samples(
    sizes: list[int], partitions: int, data: st.DataObject
) -> None:
    home = home_stream(np.array(sizes, np.int64), 3, scatter=True)
    total = sum(sizes)
    cuts = np.arange(partitions + 1) * total // partitions
    keys = mix_keys(9, np.arange(partitions))
    whole = shuffled_stream(home, cuts, keys)
    for low, high in pairwise(cuts):
        assert sorted(all_ids(whole, low, high)) == sorted(all_ids(home, low, high))
    # Made alone, partitions are what they are among the others.
    first = data.draw(st.integers(0, partitions - 1))
    last = data.draw(st.integers(first + 1, partitions))
    some = shuffled_stream(home, cuts[first : last + 1], keys[first:last])
    low, high = cuts[first], cuts[last]
    assert all_ids(some, low, high) == all_ids(whole, low, high)


def test_a_table_is_the_same_whatever_it_is_worked_on_at_a_time(monkeypatch) -> None:
    home = home_stream(np.full(50, 3), 1, scatter=True)
    cuts, keys = np.array([0, 40, 41, 150]), mix_keys(2, np.arange(3))
    whole = shuffled_stream(home, cuts, keys)
    monkeypatch.setattr("resscale.data.stream._BLOCK", 7)
    pieces = shuffled_stream(home, cuts, keys)
    assert pieces.bounds.tolist() == whole.bounds.tolist()
    assert pieces.first_ids.tolist() == whole.first_ids.tolist()
