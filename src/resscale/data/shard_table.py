"""The shards of a manifest as columns: a million of them cost arrays, not a million objects."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from resscale.data.manifest_check import EntryError, check_names, check_row, wrong

UNKNOWN_SHA256 = ""
"""Stands for the checksum of a shard that nobody has read whole."""
_ROW_KEYS = {"name", "samples", "bytes"}


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
        return cls.of_columns(
            [row.name for row in rows],
            [row.samples for row in rows],
            [row.bytes for row in rows],
            [row.sha256 for row in rows],
        )

    @classmethod
    def of_columns(
        cls,
        names: list[str],
        samples: Sequence[int],
        sizes: Sequence[int],
        digests: Sequence[str] | Sequence[bytes],
    ) -> ShardTable:
        """Return the table of names, samples, bytes and SHA-256 in hex, each as long."""
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


class ShardRows:
    """Takes a manifest's shards out of JSON while it is parsed.

    Kept as objects until the end of the text, a million of them would need 300 MB more.
    Give `take` to `json.loads` as its `object_pairs_hook`.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._samples = array("q")
        self._sizes = array("q")
        self._digests: list[bytes] = []

    def take(self, pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
        """Keep an object that is a shard and return None; return any other as a dictionary.

        Raises:
            EntryError: a shard with a name, number or checksum that cannot be.
        """
        row = dict(pairs)
        if not row.keys() >= _ROW_KEYS:
            return row
        check_row(len(self._names), row)
        self._names.append(row["name"])
        self._samples.append(row["samples"])
        self._sizes.append(row["bytes"])
        self._digests.append((row.get("sha256") or UNKNOWN_SHA256).encode())
        return None

    def table(self, rows: object) -> ShardTable:
        """Return what was taken.

        Args:
            rows: what the text's list of shards has become: as many None.

        Raises:
            EntryError: there are others among them, shards in another place, or a name twice.
        """
        if type(rows) is not list:
            raise wrong("shards", rows, "a list")
        for number, row in enumerate(rows):
            if row is not None or number >= len(self._names):
                raise wrong(f"shards[{number}]", row, "an object with name, samples and bytes")
        if len(rows) != len(self._names):
            raise EntryError(
                f"shards lists {len(rows)} of the {len(self._names)} shards in the file; all of "
                f"them must stand in that list"
            )
        check_names(self._names)
        return ShardTable.of_columns(self._names, self._samples, self._sizes, self._digests)
