"""The manifest: what a folder of WebDataset shards holds, known before a GPU is taken.

```
train/
  train-000000.tar          an ordinary WebDataset tar: <key>.jpg, <key>.cls, optional <key>.json
  train-000000.index.npz    where each sample's image lies in it (`resscale.data.shard_index`)
  ...
  manifest.json             this module
```
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resscale.data.locations import is_url, join, local_path, name_of, parent, shown
from resscale.data.manifest_check import EntryError, check_facts
from resscale.data.shard_presence import check_presence, sha256_of_location
from resscale.data.shard_table import ShardInfo as ShardInfo
from resscale.data.shard_table import ShardRows, ShardTable
from resscale.data.shard_table import index_name as index_name
from resscale.errors import DataFormatError, UserInputError

MANIFEST_NAME = "manifest.json"
PACKING_PATTERN = ".pack*.jsonl"
"""Files that stand beside shards as long as `resscale pack` has not ended."""
FORMAT_VERSION = 1
_HASHED_AT_ONCE = 10_000


@dataclass(frozen=True)
class Manifest:
    """All shards of one split, in order; a sample's id is its position in that order.

    Args:
        classes: class names, `classes[label]`; empty where none are known.
        shards: the shards in order.
        class_counts: samples per label; as long as the largest label + 1.
        source: how the shards were made (command, seed, resize ...), for people to read.
        root: location of the folder that manifest and offset indices lie in; not stored.
        shards_root: location of the folder that the shards lie in, where that is another one.
    """

    classes: tuple[str, ...]
    shards: Sequence[ShardInfo]
    class_counts: tuple[int, ...]
    source: dict[str, Any] = field(default_factory=dict)
    root: str = "."
    shards_root: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", ShardTable.of(self.shards))

    @property
    def table(self) -> ShardTable:
        """The shards as columns."""
        assert isinstance(self.shards, ShardTable)
        return self.shards

    @property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """Samples per shard: int64 array (num_shards,)."""
        return self.table.samples

    @cached_property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return int(self.table.samples.sum())

    @cached_property
    def num_bytes(self) -> int:
        """Bytes in all shards."""
        return int(self.table.bytes.sum())

    @property
    def num_classes(self) -> int:
        """Number of classes: of the names, or of the labels where there are more of them."""
        return max(len(self.classes), len(self.class_counts))

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of everything that decides which sample an id means."""
        # What it is the digest of is one JSON text; hashed piece by piece, a million shards need
        # no gigabyte for it.
        digest = hashlib.sha256(f"[{json.dumps(list(self.classes))}, [".encode())
        for start in range(0, len(self.shards), _HASHED_AT_ONCE):
            rows = self.table[start : start + _HASHED_AT_ONCE]
            text = json.dumps([[s.name, s.samples, s.bytes, s.sha256] for s in rows])
            digest.update(((", " if start else "") + text[1:-1]).encode())
        digest.update(b"]]")
        return digest.hexdigest()[:16]

    def shard_location(self, shard: int) -> str:
        """Location of shard number `shard`: a path, or an address."""
        return join(self.shards_root or self.root, self.table.names[shard])

    def index_location(self, shard: int) -> str:
        """Location of the offset index of shard number `shard`."""
        return join(self.root, index_name(self.table.names[shard]))

    def shard_path(self, shard: int) -> Path:
        """Path of shard number `shard`.

        Raises:
            UserInputError: it does not lie on a file system.
        """
        return _path(self.shard_location(shard))

    def index_path(self, shard: int) -> Path:
        """Path of the offset index of shard number `shard`.

        Raises:
            UserInputError: it does not lie on a file system.
        """
        return _path(self.index_location(shard))

    @classmethod
    def load(cls, path_or_url: str | os.PathLike[str]) -> Manifest:
        """Read the manifest of a folder of shards (or the `manifest.json` itself).

        Args:
            path_or_url: a path, or an address that `resscale.data.remote` reads.

        Raises:
            DataFormatError: there is none, or it is damaged or of another version.
            RemoteError: an address that does not answer.
        """
        location = os.fspath(path_or_url)
        path = local_path(location)
        if path is not None:
            location = str(path)
        file = location if name_of(location).endswith(".json") else join(location, MANIFEST_NAME)
        if path is not None and not Path(file).is_file():
            raise DataFormatError(_missing_manifest(Path(file)))
        return cls.parse(lambda: _read(file), file)

    @classmethod
    def parse(cls, read: Callable[[], str], file: str) -> Manifest:
        """Read a manifest out of its file's text.

        Args:
            read: returns the text, as `text_of` makes it; it may be 160 MB, so nobody holds it.
            file: where they are from; shards and indices lie beside it, unless it says otherwise.

        Raises:
            DataFormatError: they are damaged or of another version; the message names the entry.
        """
        root = parent(file)
        again = f"Make it anew: resscale index '{shown(join(root, '*.tar'))}'"
        try:
            rows = ShardRows()
            facts = json.loads(read(), object_pairs_hook=rows.take)
            version = facts["format_version"]
            if type(version) is int and version != FORMAT_VERSION:
                raise DataFormatError(
                    f"{shown(file)} has format_version {version}; this resscale reads "
                    f"{FORMAT_VERSION}. {again}"
                )
            table = rows.table(facts["shards"])
            check_facts(facts, table)
            return cls(
                classes=tuple(facts["classes"]),
                shards=table,
                class_counts=tuple(facts["class_counts"]),
                source=facts.get("source", {}),
                root=root,
                shards_root=_shards_root(facts.get("shards_root"), root),
            )
        except EntryError as error:
            reason = str(error)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
        raise DataFormatError(f"{shown(file)} is not a resscale manifest ({reason}). {again}")

    def save(
        self, folder: str | os.PathLike[str], temporary_name: str = f"{MANIFEST_NAME}.tmp"
    ) -> Path:
        """Write `manifest.json` into `folder` (temporary file, then rename) and return its path."""
        file = Path(folder) / MANIFEST_NAME
        temporary = file.with_name(temporary_name)
        temporary.write_text(self.json_text())
        temporary.replace(file)
        return file

    def json_text(self) -> str:
        """Return the text of the manifest's file."""
        facts: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "num_samples": self.num_samples,
            "classes": list(self.classes),
            "class_counts": list(self.class_counts),
            "source": self.source,
        }
        if self.shards_root is not None:
            facts["shards_root"] = self.shards_root
        head = json.dumps(facts, indent=1).removesuffix("\n}")
        return f'{head},\n "shards": {self.table.json_text()}\n}}\n'

    def check_sizes(self) -> None:
        """Compare the shards' bytes with the manifest's; cheap enough for each start.

        Local shards: all up to 16,384 of them, so many of them spread evenly where there are more.
        Remote ones: the first and the last; each is compared when it is downloaded.

        Raises:
            DataFormatError: a shard or index is missing, shorter or longer.
            RemoteError: an address that does not answer.
        """
        if not self.shards or not self.num_samples:
            raise DataFormatError(
                f"{shown(join(self.root, MANIFEST_NAME))} lists no samples; pack some with "
                f"`resscale pack`."
            )
        check_presence(self.table, self.root, self.shards_root or self.root)

    def check_labels(self, num_classes: int) -> None:
        """Refuse labels outside 0 to `num_classes` - 1.

        Raises:
            DataFormatError: some label does not fit the model.
        """
        if len(self.class_counts) > num_classes:
            outside = sum(self.class_counts[num_classes:])
            raise DataFormatError(
                f"{shown(self.root)}: {outside} samples have labels from {num_classes} to "
                f"{len(self.class_counts) - 1}, the model has num_classes={num_classes} "
                f"(labels 0 to {num_classes - 1}). Set --model.num_classes {self.num_classes}."
            )

    def wrong_checksums(self, shards: Iterable[int] | None = None) -> list[str]:
        """Read the shards and return the names of those whose SHA-256 is not the manifest's.

        A shard whose SHA-256 the manifest does not know is not read.

        Raises:
            DataFormatError, RemoteError: a shard cannot be read.
        """
        numbers = range(len(self.shards)) if shards is None else shards
        return [
            self.shards[number].name
            for number in numbers
            if self.shards[number].sha256
            and sha256_of_location(self.shard_location(number)) != self.shards[number].sha256
        ]


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_of(raw: bytes) -> str:
    """Return a manifest's text; bytes that are no UTF-8 become what `Manifest.parse` refuses."""
    return raw.decode("utf-8", "surrogateescape")


def _read(file: str) -> str:
    path = local_path(file)
    if path is not None:
        return text_of(path.read_bytes())
    from resscale.data.remote import read_all

    return text_of(read_all(file))


def _path(location: str) -> Path:
    path = local_path(location)
    if path is None:
        raise UserInputError(
            f"{shown(location)} is no file here: this needs local shards. Copy the folder first."
        )
    return path


def _shards_root(written: str | None, root: str) -> str | None:
    """Return where shards lie: an address, or a path that may begin at the manifest's folder."""
    return written if written is None or is_url(written) else join(root, written)


def _missing_manifest(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return (
            f"No shards at {folder}: there is no such folder. Pack a data set into it with "
            f"`resscale pack`, or correct the path."
        )
    if any(folder.glob(PACKING_PATTERN)):
        return (
            f"{folder} is still being packed, or its packing was stopped: it has no "
            f"{MANIFEST_NAME} yet. Wait for all parts to end, or give the same `resscale pack` "
            f"again."
        )
    if any(folder.glob("*.tar")):
        return (
            f"{folder} holds shards but no {MANIFEST_NAME}. "
            f"Make it: resscale index '{folder}/*.tar'"
        )
    return f"No shards at {folder}: it holds no .tar file. Pack a data set with `resscale pack`."
