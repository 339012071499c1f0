"""Keyed permutations: bijective, near uniform, and the same numbers in every version."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resscale.data.permutation import (
    hash_uint64,
    mix_key,
    mix_keys,
    permute,
    permute_each,
    uniforms,
)

KEYS = st.integers(0, 2**64 - 1)


def whole(size: int, key: int) -> list[int]:
    return permute(np.arange(size), size, key).tolist()


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@given(size=st.integers(0, 600), key=KEYS)
def test_each_value_occurs_once(size: int, key: int) -> None:
    assert sorted(whole(size, key)) == list(range(size))


@given(size=st.integers(1, 600), key=KEYS, data=st.data())
def test_a_position_maps_the_same_alone_or_among_others(size: int, key: int, data) -> None:
    some = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9))
    table = whole(size, key)
    assert permute(np.array(some), size, key).tolist() == [table[position] for position in some]


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1])
def test_sizes_at_a_power_of_two_are_permuted_whole(size: int) -> None:
    values = permute(np.arange(size), size, 5)
    assert np.array_equal(np.sort(values), np.arange(size))


def test_values_of_a_huge_range_stay_inside_and_spread() -> None:
    size = 10**15
    values = permute(np.arange(1000), size, 1)
    assert values.min() >= 0
    assert values.max() < size
    assert len(set(values.tolist())) == 1000
    # The mean of 1,000 uniforms is within 4 standard errors, 4 / sqrt(12 × 1000) = 0.037, of 1/2.
    assert abs(values.mean() / size - 0.5) < 0.037


def test_the_positions_given_are_left_as_they_were() -> None:
    for size in (1, 10):
        positions = np.zeros(1, dtype=np.int64)
        result = permute(positions, size, 3)
        assert result is not positions
        assert positions.tolist() == [0]


@pytest.mark.parametrize(("size", "limit"), [(7, 67.99), (8, 85.35)])  # (size-1)² = 36, 49 degrees
def test_every_position_takes_every_value_about_equally_often(size: int, limit: float) -> None:
    keys = 3000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), whole(size, mix_key(key))] += 1
    # `limit` is the 0.999 quantile of chi-square; without cycle walking or mixing it is far off.
    assert chi_square(counts, keys / size) < limit


def test_pairs_of_neighbours_land_anywhere_about_equally_often() -> None:
    size, keys = 8, 3000
    seen = Counter(tuple(whole(size, mix_key(key))[:2]) for key in range(keys))
    assert len(seen) == 56  # 8 × 7 ordered pairs
    assert chi_square(np.array(list(seen.values())), keys / 56) < 93.17  # 55 degrees, 0.999


def test_a_large_permutation_has_about_one_fixed_point_and_no_drift() -> None:
    size = 4096
    fixed = [
        int((np.array(whole(size, mix_key(key))) == np.arange(size)).sum()) for key in range(50)
    ]
    assert 0.4 < np.mean(fixed) < 1.6  # 1 ± 4 / sqrt(50)
    values = np.array(whole(size, mix_key(1)))
    correlation = np.corrcoef(values, np.arange(size))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(size)


def test_the_hash_is_splitmix64() -> None:
    # The first three outputs of the published generator for seed 0 (Steele et al. 2014).
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert hash_uint64(np.array([1, 2, 3], dtype=np.uint64), 0).tolist() == known
    assert mix_key(0) == known[0]


def test_a_key_depends_on_every_part_and_on_their_order() -> None:
    keys = [mix_key(), mix_key(0), mix_key(0, 0), mix_key(1, 2), mix_key(2, 1), mix_key(-1, 2)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)
    assert mix_key(-1) == mix_key(2**64 - 1)  # negative seeds are taken modulo 2**64


def test_the_numbers_of_version_0_1_stay_as_they_are() -> None:
    assert mix_key(1, 2, 3) == 15_020_427_595_393_229_491
    assert whole(10, 7) == [6, 1, 7, 5, 9, 3, 4, 8, 2, 0]
    assert uniforms(np.array([5]), 2, 9)[0].tolist() == [0.42608244735366363, 0.13127066678206023]


@given(ids=st.lists(st.integers(0, 2**40), max_size=20), count=st.integers(0, 6), key=KEYS)
def test_uniforms_are_in_range_and_belong_to_their_id(ids, count: int, key: int) -> None:
    drawn = uniforms(np.array(ids, dtype=np.int64), count, key)
    assert drawn.shape == (len(ids), count)
    assert ((drawn >= 0) & (drawn < 1)).all()
    for row, sample in enumerate(ids):
        assert np.array_equal(drawn[row], uniforms(np.array([sample]), count, key)[0])


def test_uniforms_are_uniform_and_their_columns_independent() -> None:
    drawn = uniforms(np.arange(20_000), 3, 11)
    for column in range(3):
        counts = np.histogram(drawn[:, column], bins=20, range=(0, 1))[0]
        assert chi_square(counts, 1000) < 43.82  # 19 degrees, 0.999
    correlations = np.corrcoef(drawn.T)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(20_000)


def test_another_key_draws_other_uniforms() -> None:
    ids = np.arange(100)
    assert not np.isclose(uniforms(ids, 2, 1), uniforms(ids, 2, 2)).any()


# Many at once


@given(
    st.lists(
        st.one_of(
            st.integers(0, 40),
            st.sampled_from([2**16 - 1, 2**16, 2**16 + 1, 2**40, 2**53 - 1, 2**53 + 1, 2**62]),
        ),
        min_size=1,
        max_size=12,
    ),
    st.data(),
)
def test_many_permutations_at_once_are_those_of_each(sizes: list[int], data) -> None:
    keys = [data.draw(KEYS) for _ in sizes]
    groups, positions = [], []
    for group, size in enumerate(sizes):
        for _ in range(data.draw(st.integers(0, 3)) if size else 0):
            groups.append(group)
            positions.append(data.draw(st.integers(0, size - 1)))
    found = permute_each(
        np.array(positions, np.int64),
        np.array(sizes, np.int64),
        np.array(keys, np.uint64),
        np.array(groups, np.int64),
    )
    alone = [
        int(permute(np.array([position]), sizes[group], keys[group])[0])
        for position, group in zip(positions, groups, strict=True)
    ]
    assert found.tolist() == alone


def test_permutations_longer_than_what_is_hashed_at_a_time_are_whole() -> None:
    # 8,192 values are hashed at a time: the groups begin and end within such blocks.
    sizes = np.array([5_000, 1, 12_000, 3])
    groups = np.repeat(np.arange(4), sizes)
    positions = np.concatenate([np.arange(size) for size in sizes])
    found = permute_each(positions, sizes, np.arange(4, dtype=np.uint64), groups)
    for group, size in enumerate(sizes):
        assert sorted(found[groups == group].tolist()) == list(range(size))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.integers(0, 2**70))
def test_keys_of_whole_arrays_are_those_of_each_number(numbers: list[int], part: int) -> None:
    found = mix_keys(part, np.array(numbers), 7)
    assert found.tolist() == [mix_key(part, number, 7) for number in numbers]


def test_these_values_never_change() -> None:
    """They decide the order of every run begun before."""
    assert mix_key(1, 2, 3) == 15020427595393229491
    assert permute(np.arange(10), 10, 42).tolist() == [1, 4, 9, 5, 8, 7, 3, 2, 0, 6]
    assert permute(np.arange(3), 10**12, 42).tolist() == [728511737950, 348373094768, 463717022040]
