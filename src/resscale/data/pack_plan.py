"""What a packing will write, settled before any image is read: so it can be run in any order."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resscale import __version__
from resscale.data.pack_images import JPEG, PNG, ImageRules
from resscale.data.pack_part import WHOLE, Part
from resscale.data.pack_samples import Split
from resscale.data.pack_shard import ShardTask
from resscale.errors import UserInputError

_PLAN_VERSION = 1
_BYTES_PER_MB = 1_000_000
CHECKS = ("full", "header", "none")


@dataclass(frozen=True)
class PackOptions:
    """The options of `resscale pack`.

    Args:
        samples_per_shard: most samples in a shard.
        shard_mb: most megabytes (10^6 bytes of source images) in a shard; one larger sample has
            a shard to itself.
        resize: shorter side in pixels that larger images are brought down to; None for never.
        quality: JPEG and WebP quality of what is encoded anew, 1 to 100.
        format: "jpg" or "png", for sources of raw pixels.
        check: "full", "header" or "none".
        seed: of the shuffle.
        limit: samples per split, taken after the shuffle; None for all.
        processes: worker processes; they change the time, never the bytes.
    """

    samples_per_shard: int = 1000
    shard_mb: float = 256.0
    resize: int | None = None
    quality: int = 90
    format: str = JPEG
    check: str = "full"
    seed: int = 0
    limit: int | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "shard_mb", "resize", "limit", "processes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserInputError(f"--{name} {value}: must be above 0.")
        if not 1 <= self.quality <= 100:
            raise UserInputError(f"--quality {self.quality}: must lie in 1 to 100.")
        for name, choices in (("check", CHECKS), ("format", (JPEG, PNG))):
            if getattr(self, name) not in choices:
                raise UserInputError(
                    f"--{name} {getattr(self, name)}: must be one of {', '.join(choices)}."
                )

    @property
    def rules(self) -> ImageRules:
        """The part that each image is treated by."""
        return ImageRules(**{f.name: getattr(self, f.name) for f in fields(ImageRules)})

    def decisive(self) -> dict[str, Any]:
        """Return the options that decide the bytes: all but `processes`."""
        return {name: value for name, value in asdict(self).items() if name != "processes"}


@dataclass(frozen=True)
class Plan:
    """Which samples of a split go into which shard.

    Args:
        split: the samples.
        options: how to pack them.
        rows: rows of the split's table in packing order, int64 (n,).
        bounds: shard i holds `rows[bounds[i]:bounds[i + 1]]`, int64 (num_shards + 1,).
    """

    split: Split
    options: PackOptions
    rows: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]

    @property
    def num_shards(self) -> int:
        """Number of shards, before those are dropped whose samples are all left out."""
        return len(self.bounds) - 1

    @cached_property
    def digest(self) -> str:
        """Hex digest of all that decides the bytes, the contents of the images aside."""
        samples = self.split.samples
        facts = [_PLAN_VERSION, self.split.name, self.options.decisive(), self.split.classes]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for column in (samples.keys, samples.labels, samples.sizes):
            digest.update(column[self.rows].tobytes())
        digest.update(self.bounds.tobytes())
        return digest.hexdigest()[:32]

    def samples_in(self, shard: int) -> int:
        """Return the number of samples planned for a shard."""
        return int(self.bounds[shard + 1] - self.bounds[shard])

    def shard_name(self, shard: int) -> str:
        """Return a shard's file name."""
        return f"{self.split.name}-{shard:06d}.tar"

    def tasks(self, folder: Path, done: frozenset[int], part: Part = WHOLE) -> Iterator[ShardTask]:
        """Yield the work for a part's shards that are not done, one at a time (they are large)."""
        for shard in part.shards(self.num_shards):
            if shard not in done:
                yield ShardTask(
                    number=shard,
                    folder=str(folder),
                    name=self.shard_name(shard),
                    refs=self.split.samples.refs(
                        self.rows[self.bounds[shard] : self.bounds[shard + 1]]
                    ),
                    rules=self.options.rules,
                    pixel_shape=self.split.samples.pixel_shape,
                    tag=part.tag,
                )


def make_plan(split: Split, options: PackOptions) -> Plan:
    """Shuffle, limit and cut a split into shards."""
    rows = shuffled_rows(split.samples.keys, options.seed)[: options.limit]
    max_bytes = round(options.shard_mb * _BYTES_PER_MB)
    bounds = shard_bounds(split.samples.sizes[rows], options.samples_per_shard, max_bytes)
    return Plan(split, options, rows, bounds)


def shuffled_rows(keys: npt.NDArray[np.bytes_], seed: int) -> npt.NDArray[np.int64]:
    """Return the packing order: rows sorted by a keyed hash of their sample's key.

    It depends on the keys and the seed alone: not on the order that the source was listed in, nor
    on a library's random generator.
    """
    salt = str(seed).encode()
    hashes = [
        int.from_bytes(hashlib.blake2b(key, digest_size=8, key=salt).digest(), "big")
        for key in keys.tolist()
    ]
    return np.argsort(np.array(hashes, np.uint64), kind="stable").astype(np.int64)


def shard_bounds(
    sizes: npt.NDArray[np.int64], max_samples: int, max_bytes: int
) -> npt.NDArray[np.int64]:
    """Cut samples into shards of at most `max_samples` and `max_bytes` (or one larger sample).

    Args:
        sizes: bytes of each sample, int64 (n,).
        max_samples: most samples in a shard.
        max_bytes: most bytes in a shard.

    Returns:
        First sample of each shard, and n: int64 (num_shards + 1,).
    """
    ends = np.concatenate([[0], np.cumsum(sizes)])
    bounds = [0]
    while (begin := bounds[-1]) < len(sizes):
        fits = int(np.searchsorted(ends, ends[begin] + max_bytes, side="right")) - 1
        bounds.append(min(max(fits, begin + 1), begin + max_samples, len(sizes)))
    return np.array(bounds, np.int64)


def versions() -> dict[str, str]:
    """Return the versions of what writes the bytes."""
    return {
        "resscale": __version__,
        **{name: importlib.metadata.version(name) for name in ("webdataset", "pillow")},
    }


def default_processes() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
