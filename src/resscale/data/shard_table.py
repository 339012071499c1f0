"""The shards of a manifest as columns: a million of them cost arrays, not a million objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

UNKNOWN_SHA256 = ""
"""Stands for the checksum of a shard that nobody has read whole."""


@dataclass(frozen=True)
class ShardInfo:
    """One shard: its file name, number of samples, size in bytes and SHA-256 (hex).

    The SHA-256 is empty where the shard was indexed without reading it whole.
    """

    name: str
    samples: int
    bytes: int
    sha256: str

    @property
    def index_name(self) -> str:
        """File name of the shard's offset index."""
        return index_name(self.name)


def index_name(shard_name: str) -> str:
    """Return the offset index's file name of a shard: `a.tar` has `a.index.npz`."""
    return shard_name.removesuffix(".tar") + ".index.npz"


class ShardTable(Sequence[ShardInfo]):
    """A sequence of `ShardInfo` held in columns; rows are made when they are asked for.

    Args:
        names: file names.
        samples: samples per shard, int64 (n,).
        bytes: bytes per shard, int64 (n,).
        sha256: hex digests, `S` array (n,); empty where unknown.
    """

    def __init__(
        self,
        names: Sequence[str],
        samples: npt.NDArray[np.int64],
        bytes: npt.NDArray[np.int64],
        sha256: npt.NDArray[np.bytes_],
    ) -> None:
        self.names = names
        self.samples = samples
        self.bytes = bytes
        self.sha256 = sha256

    @classmethod
    def of(cls, shards: Iterable[ShardInfo]) -> ShardTable:
        """Return the table of some rows; a table comes back as it is."""
        if isinstance(shards, ShardTable):
            return shards
        rows = list(shards)
        return cls._of_columns(
            [row.name for row in rows],
            [row.samples for row in rows],
            [row.bytes for row in rows],
            [row.sha256 for row in rows],
        )

    @classmethod
    def of_json(cls, rows: Sequence[Mapping[str, Any]]) -> ShardTable:
        """Return the table of a manifest's `shards`.

        Raises:
            KeyError, TypeError, ValueError: a row that is none of ours.
        """
        return cls._of_columns(
            [row["name"] for row in rows],
            [row["samples"] for row in rows],
            [row["bytes"] for row in rows],
            [row.get("sha256") or UNKNOWN_SHA256 for row in rows],
        )

    @classmethod
    def _of_columns(
        cls, names: list[str], samples: list[int], sizes: list[int], digests: list[str]
    ) -> ShardTable:
        return cls(
            names,
            np.array(samples, dtype=np.int64),
            np.array(sizes, dtype=np.int64),
            np.array(digests, dtype=np.bytes_) if digests else np.empty(0, dtype="S64"),
        )

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, number: slice) -> ShardTable: ...
    def __getitem__(self, number: int | slice) -> ShardInfo | ShardTable:
        if isinstance(number, slice):
            return ShardTable(
                self.names[number], self.samples[number], self.bytes[number], self.sha256[number]
            )
        return ShardInfo(
            self.names[number],
            int(self.samples[number]),
            int(self.bytes[number]),
            self.sha256[number].decode(),
        )

    def __iter__(self) -> Iterator[ShardInfo]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardTable):
            return NotImplemented
        return (
            list(self.names) == list(other.names)
            and np.array_equal(self.samples, other.samples)
            and np.array_equal(self.bytes, other.bytes)
            and np.array_equal(self.sha256, other.sha256)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ShardTable({len(self)} shards, {int(self.samples.sum())} samples)"

    def json_text(self) -> str:
        """Return what `json.dumps` makes of the rows within an object, indented by 1."""
        if not len(self):
            return "[]"
        rows = ",\n".join(
            f'  {{\n   "name": {json.dumps(row.name)},\n   "samples": {row.samples},\n'
            f'   "bytes": {row.bytes},\n   "sha256": {json.dumps(row.sha256)}\n  }}'
            for row in self
        )
        return f"[\n{rows}\n ]"
