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
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resscale.errors import DataFormatError

MANIFEST_NAME = "manifest.json"
PACKING_PATTERN = ".pack*.jsonl"
"""Files that stand beside shards as long as `resscale pack` has not ended."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ShardInfo:
    """One shard: its file name, number of samples, size in bytes and SHA-256 (hex)."""

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


@dataclass(frozen=True)
class Manifest:
    """All shards of one split, in order; a sample's id is its position in that order.

    Args:
        classes: class names, `classes[label]`; empty where none are known.
        shards: the shards in order.
        class_counts: samples per label; as long as the largest label + 1.
        source: how the shards were made (command, seed, resize ...), for people to read.
        root: folder that the shards lie in; not stored in the file.
    """

    classes: tuple[str, ...]
    shards: tuple[ShardInfo, ...]
    class_counts: tuple[int, ...]
    source: dict[str, Any] = field(default_factory=dict)
    root: str = "."

    @cached_property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """Samples per shard: int64 array (num_shards,)."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return int(self.shard_sizes.sum())

    @cached_property
    def num_bytes(self) -> int:
        """Bytes in all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def num_classes(self) -> int:
        """Number of classes: of the names, or of the labels where there are more of them."""
        return max(len(self.classes), len(self.class_counts))

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of everything that decides which sample an id means."""
        facts = [[s.name, s.samples, s.bytes, s.sha256] for s in self.shards]
        return hashlib.sha256(json.dumps([list(self.classes), facts]).encode()).hexdigest()[:16]

    def shard_path(self, shard: int) -> Path:
        """Path of shard number `shard`."""
        return Path(self.root) / self.shards[shard].name

    def index_path(self, shard: int) -> Path:
        """Path of the offset index of shard number `shard`."""
        return Path(self.root) / self.shards[shard].index_name

    @classmethod
    def load(cls, path_or_url: str | os.PathLike[str]) -> Manifest:
        """Read the manifest of a folder of shards (or the `manifest.json` itself).

        Raises:
            DataFormatError: there is none, or it is damaged or of another version.
        """
        path = Path(os.fspath(path_or_url)).expanduser()
        file = path if path.name.endswith(".json") else path / MANIFEST_NAME
        if not file.is_file():
            raise DataFormatError(_missing_manifest(file))
        try:
            raw = json.loads(file.read_text())
            if raw["format_version"] != FORMAT_VERSION:
                raise DataFormatError(
                    f"{file} has format_version {raw['format_version']}; this resscale reads "
                    f"{FORMAT_VERSION}. Make it anew: resscale index '{file.parent}/*.tar'"
                )
            return cls(
                classes=tuple(raw["classes"]),
                shards=tuple(ShardInfo(**shard) for shard in raw["shards"]),
                class_counts=tuple(raw["class_counts"]),
                source=raw.get("source", {}),
                root=str(file.parent),
            )
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise DataFormatError(
                f"{file} is not a resscale manifest ({type(error).__name__}: {error}). "
                f"Make it anew: resscale index '{file.parent}/*.tar'"
            ) from error

    def save(
        self, folder: str | os.PathLike[str], temporary_name: str = f"{MANIFEST_NAME}.tmp"
    ) -> Path:
        """Write `manifest.json` into `folder` (temporary file, then rename) and return its path."""
        file = Path(folder) / MANIFEST_NAME
        text = {
            "format_version": FORMAT_VERSION,
            "num_samples": self.num_samples,
            "classes": list(self.classes),
            "class_counts": list(self.class_counts),
            "source": self.source,
            "shards": [asdict(shard) for shard in self.shards],
        }
        temporary = file.with_name(temporary_name)
        temporary.write_text(json.dumps(text, indent=1) + "\n")
        temporary.replace(file)
        return file

    def check_sizes(self) -> None:
        """Compare each local shard's bytes with the manifest's; cheap enough for each start.

        Raises:
            DataFormatError: a shard or index is missing, shorter or longer.
        """
        remedy = (
            f"Copy the file again or pack the data set again; if the change is meant: "
            f"resscale index --force '{self.root}/*.tar'"
        )
        if not self.shards or not self.num_samples:
            raise DataFormatError(
                f"{self.root}/{MANIFEST_NAME} lists no samples; pack some with `resscale pack`."
            )
        for number, shard in enumerate(self.shards):
            path = self.shard_path(number)
            if not path.is_file():
                raise DataFormatError(f"{path} is missing, the manifest lists it. {remedy}")
            if (size := path.stat().st_size) != shard.bytes:
                raise DataFormatError(
                    f"{path} has {size} bytes, its manifest says {shard.bytes}: "
                    f"{'truncated' if size < shard.bytes else 'changed'}. {remedy}"
                )
            if not self.index_path(number).is_file():
                raise DataFormatError(f"{self.index_path(number)} is missing. {remedy}")

    def check_labels(self, num_classes: int) -> None:
        """Refuse labels outside 0 to `num_classes` - 1.

        Raises:
            DataFormatError: some label does not fit the model.
        """
        if len(self.class_counts) > num_classes:
            outside = sum(self.class_counts[num_classes:])
            raise DataFormatError(
                f"{self.root}: {outside} samples have labels from {num_classes} to "
                f"{len(self.class_counts) - 1}, the model has num_classes={num_classes} "
                f"(labels 0 to {num_classes - 1}). Set --model.num_classes {self.num_classes}."
            )

    def wrong_checksums(self, shards: Iterable[int] | None = None) -> list[str]:
        """Read the shards and return the names of those whose SHA-256 is not the manifest's."""
        numbers = range(len(self.shards)) if shards is None else shards
        return [
            self.shards[number].name
            for number in numbers
            if sha256_of(self.shard_path(number)) != self.shards[number].sha256
        ]


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
