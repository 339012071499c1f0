"""Streams: samples as runs of neighbours, laid one behind the other; partitions are cut of them.

A run costs 16 bytes, however many samples it holds, so a million shards are a table of 16 MB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resscale.data.permutation import Int64, UInt64, mix_key, permute, permute_each

_HOME = 1  # goes into the key, so that no other use shares the permutation
_BLOCK = 65_536  # runs worked on at a time, so that memory is that of the table


@dataclass(frozen=True)
class Stream:
    """Runs of neighbouring samples.

    Args:
        bounds: position of each run's first sample, and the end of the last: int64 (runs + 1,).
        first_ids: sample id of each run's first sample, int64 (runs,).
    """

    bounds: Int64
    first_ids: Int64

    def ids(self, positions: Int64) -> Int64:
        """Return the sample ids at some positions: int64, of the same shape."""
        run = np.searchsorted(self.bounds, positions, side="right") - 1
        return self.first_ids[run] + (positions - self.bounds[run])


def home_stream(sizes: Int64, seed: int, *, scatter: bool) -> Stream:
    """Lay the shards out in the order that partitions are cut from.

    Scattered (by the seed alone, so that a node keeps its shards from epoch to epoch), a data set
    sorted by class gives each partition a mix of the classes.

    Args:
        sizes: samples per shard, int64 (shards,).
        seed: of the run.
        scatter: permute the shards.
    """
    if not scatter and (sizes > 0).all():
        bounds = _bounds_of(sizes)
        return Stream(bounds, bounds[:-1])
    first_ids: Int64 = np.cumsum(sizes) - sizes
    filled = np.flatnonzero(sizes)
    if scatter:
        turn = permute(np.arange(len(filled), dtype=np.int64), len(filled), mix_key(seed, _HOME))
        filled = filled[turn]
    return Stream(_bounds_of(sizes[filled]), first_ids[filled])


def shuffled_stream(home: Stream, cuts: Int64, keys: UInt64) -> Stream:
    """Cut neighbouring partitions out of the home stream and permute the runs of each.

    Args:
        home: all samples.
        cuts: first position of each partition and the end of the last, int64 (partitions + 1,).
        keys: name of each partition's permutation, uint64 (partitions,).

    Returns:
        The runs from position `cuts[0]` to `cuts[-1]`; each partition has the place it had.
    """
    first = np.searchsorted(home.bounds[1:], cuts[:-1], side="right")
    counts = np.searchsorted(home.bounds[:-1], cuts[1:], side="left") - first
    offsets = np.cumsum(counts) - counts
    total = int(counts.sum())
    bounds = np.empty(total + 1, dtype=np.int64)
    bounds[0] = cuts[0]
    first_ids = np.empty(total, dtype=np.int64)
    for start in range(0, total, _BLOCK):
        run = np.arange(start, min(start + _BLOCK, total), dtype=np.int64)
        part = np.searchsorted(offsets, run, side="right") - 1
        here = slice(part[0], part[-1] + 1)
        turn = permute_each(run - offsets[part], counts[here], keys[here], part - part[0])
        shard = first[part] + turn
        low = np.maximum(home.bounds[shard], cuts[part])
        bounds[run + 1] = np.minimum(home.bounds[shard + 1], cuts[part + 1]) - low
        first_ids[run] = home.first_ids[shard] + (low - home.bounds[shard])
    return Stream(np.cumsum(bounds, out=bounds), first_ids)


def _bounds_of(counts: npt.NDArray[np.int64]) -> Int64:
    bounds = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=bounds[1:])
    return bounds
