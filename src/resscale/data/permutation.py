"""Keyed randomness without state: hashing, uniforms, and permutations evaluated point by point.

Nothing here depends on numpy's random streams, so an order or a crop computed today is computed
the same by any later version, on any machine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FEISTEL_ROUNDS = 4


def mix_key(*parts: int) -> int:
    """Hash integers into one 64-bit key; the order of the parts matters."""
    state = 0
    for part in parts:
        state = _finalize_int((state ^ (part & _MASK)) + _GOLDEN)
    return state


def hash_uint64(values: UInt64, key: int) -> UInt64:
    """Hash each value under `key`: uint64 array of the same shape (SplitMix64's finaliser)."""
    x = values * np.uint64(_GOLDEN) + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


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
    if size <= 1:
        return positions.copy()
    bits = max(2, (size - 1).bit_length())
    keys = [mix_key(key, number) for number in range(2 * _FEISTEL_ROUNDS)]
    values = _feistel(positions.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        values[outside] = _feistel(values[outside], bits, keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: UInt64, bits: int, keys: list[int]) -> UInt64:
    right_bits = bits // 2
    right_mask = np.uint64((1 << right_bits) - 1)
    left_mask = np.uint64((1 << (bits - right_bits)) - 1)
    left = values >> np.uint64(right_bits)
    right = values & right_mask
    for number in range(0, len(keys), 2):
        right = right ^ (hash_uint64(left, keys[number]) & right_mask)
        left = left ^ (hash_uint64(right, keys[number + 1]) & left_mask)
    return (left << np.uint64(right_bits)) | right


def _finalize_int(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
