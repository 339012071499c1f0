"""Keyed randomness without state: hashing, uniforms, and permutations evaluated point by point.

Nothing here depends on numpy's random streams, so an order or a crop computed today is computed
the same by any later version, on any machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FEISTEL_ROUNDS = 4
# Values hashed at a time: what a round needs beside them stays in a core's own cache.
_BLOCK = 8192


def mix_key(*parts: int) -> int:
    """Hash integers into one 64-bit key; the order of the parts matters."""
    state = 0
    for part in parts:
        state = _finalize_int((state ^ (part & _MASK)) + _GOLDEN)
    return state


def mix_keys(*parts: int | Int64 | UInt64) -> UInt64:
    """Return `mix_key` of whole arrays: uint64 (n,), from integers and arrays (n,)."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        value = np.array([part & _MASK], np.uint64) if isinstance(part, int) else part
        state = _finalize((state ^ value.astype(np.uint64)) + np.uint64(_GOLDEN))
    return state


def hash_uint64(values: UInt64, key: int | UInt64) -> UInt64:
    """Hash each value under `key`: uint64 array of the same shape (SplitMix64's finaliser)."""
    x = values * np.uint64(_GOLDEN)
    x += np.uint64(key) if isinstance(key, int) else key
    return _finalize(x)


def uniforms(ids: Int64, count: int, key: int) -> npt.NDArray[np.float64]:
    """Return `count` numbers in [0, 1) for each id: float64 array (len(ids), count)."""
    rows = hash_uint64(ids.astype(np.uint64), key)[:, None]
    columns = np.arange(1, count + 1, dtype=np.uint64)[None, :]
    bits = hash_uint64(rows + columns * np.uint64(_GOLDEN), key ^ _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(positions: Int64, size: int, key: int) -> Int64:
    """Apply the permutation of range(`size`) named by `key` to some positions.

    A Feistel network over the next power of two, walked until the value falls into the range
    (Black and Rogaway 2002, "cycle walking"; under two rounds on average). Its cost is that of the
    positions asked for, whatever `size` is: no array of that length is ever made.
    """
    groups = np.zeros(len(positions), dtype=np.int64)
    return permute_each(positions, np.array([size]), np.array([key], dtype=np.uint64), groups)


def permute_each(positions: Int64, sizes: Int64, keys: UInt64, groups: Int64) -> Int64:
    """Apply many permutations at once: to each position the one of its group.

    Args:
        positions: int64 (n,), each within its group's size.
        sizes: group g permutes range(sizes[g]), int64 (g,).
        keys: name of each group's permutation, uint64 (g,).
        groups: number of each position's group, int64 (n,), ascending.

    Returns:
        What `permute(position, size, key)` gives for each position, int64 (n,).
    """
    values = positions.astype(np.uint64)
    if not len(values):
        return values.astype(np.int64)
    networks = _Networks.build(sizes, keys)
    for start in range(0, len(values), _BLOCK):
        part = slice(start, start + _BLOCK)
        values[part] = _feistel(values[part], networks.of(groups[part]))
    outside = np.flatnonzero(values >= networks.sizes[groups])
    while outside.size:
        values[outside] = _feistel(values[outside], networks.of(groups[outside]))
        outside = outside[values[outside] >= networks.sizes[groups[outside]]]
    return values.astype(np.int64)


class _Networks(NamedTuple):
    """Feistel networks, one per group: all arrays (groups,), `keys` (2 × rounds, groups)."""

    sizes: UInt64
    right_bits: UInt64
    right_mask: UInt64
    left_mask: UInt64
    keys: UInt64

    @classmethod
    def build(cls, sizes: Int64, keys: UInt64) -> _Networks:
        one = np.uint64(1)
        whole = np.maximum(sizes, 1).astype(np.uint64)
        bits = np.maximum(_bit_lengths(whole - one), np.uint64(2))
        right = bits // np.uint64(2)
        rounds = np.arange(2 * _FEISTEL_ROUNDS, dtype=np.uint64)[:, None]
        return cls(
            whole,
            right,
            (one << right) - one,
            (one << (bits - right)) - one,
            mix_keys(keys, rounds),
        )

    def of(self, groups: Int64) -> _Networks:
        """Return the networks of some positions; of a single group, it is not copied for each."""
        chosen = groups[:1] if groups[0] == groups[-1] else groups
        return _Networks(*(array[..., chosen] for array in self))


def _feistel(values: UInt64, network: _Networks) -> UInt64:
    left = values >> network.right_bits
    right = values & network.right_mask
    for number in range(0, 2 * _FEISTEL_ROUNDS, 2):
        right ^= hash_uint64(left, network.keys[number]) & network.right_mask
        left ^= hash_uint64(right, network.keys[number + 1]) & network.left_mask
    return (left << network.right_bits) | right


def _bit_lengths(values: UInt64) -> UInt64:
    """Return `int.bit_length` of each value."""
    lengths = np.zeros(len(values), dtype=np.uint64)
    rest = values.copy()
    for step in (32, 16, 8, 4, 2, 1):
        high = rest >= np.uint64(1 << step)
        lengths[high] += np.uint64(step)
        rest[high] >>= np.uint64(step)
    return lengths + rest  # what is left is 0 or 1


def _finalize(x: UInt64) -> UInt64:
    """Apply SplitMix64's finaliser to an array, in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _finalize_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
