"""The offset index of a shard: where in the tar each sample's image lies, and its label."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from resscale.errors import DataFormatError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "tif", "tiff")
NO_LABEL = -1


@dataclass(frozen=True)
class ShardIndex:
    """Arrays over the samples of one shard, in the tar's order.

    Args:
        keys: sample keys, UTF-8 bytes, `S` array (n,).
        offsets: first byte of each image in the tar, int64 (n,).
        sizes: bytes of each image, int64 (n,).
        labels: class of each sample, int64 (n,); -1 where the shard has no `.cls`.
    """

    keys: npt.NDArray[np.bytes_]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as an uncompressed `.npz` (temporary file, then rename)."""
        target = Path(path)
        temporary = target.with_name(target.name + ".tmp")
        with temporary.open("wb") as file:
            np.savez(
                file, keys=self.keys, offsets=self.offsets, sizes=self.sizes, labels=self.labels
            )
        temporary.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ShardIndex:
        """Read an index.

        Raises:
            DataFormatError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["keys"], arrays["offsets"], arrays["sizes"], arrays["labels"])
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataFormatError(
                f"{path} is not a readable shard index ({error}). "
                f"Make it anew: resscale index '{Path(path).parent}/*.tar'"
            ) from error


@dataclass(frozen=True)
class TarMember:
    """A regular file in a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


def scan_tar(path: str | os.PathLike[str]) -> Iterator[TarMember]:
    """Yield the regular files of an uncompressed tar without reading their contents.

    Raises:
        DataFormatError: not a tar, or it ends before its end-of-archive marker.
    """
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                padded = -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                end = member.offset_data + (padded if member.isreg() else 0)
                if member.isreg():
                    yield TarMember(member.name, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise DataFormatError(
            f"{path} is truncated or not an uncompressed tar ({error}; the last whole member ends "
            f"at byte {end}). Copy or pack it again."
        ) from error
    # tarfile takes a file that ends behind a whole member for a whole tar; a writer that was
    # closed leaves a block of zeros, so its absence means that samples are missing.
    with Path(path).open("rb") as file:
        file.seek(end)
        marker = file.read(tarfile.BLOCKSIZE)
    if marker != bytes(tarfile.BLOCKSIZE):
        raise DataFormatError(
            f"{path} is truncated: the end-of-archive marker is missing behind byte {end}. "
            f"Copy or pack it again."
        )


def split_key(name: str) -> tuple[str, str]:
    """Split a member's name as WebDataset does: `d/a.b.jpg` is key `d/a`, extension `b.jpg`."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def build_shard_index(path: str | os.PathLike[str]) -> ShardIndex:
    """Scan a shard and return its index; members of one sample must be neighbours.

    Raises:
        DataFormatError: truncated tar, a sample without an image, a repeated key, a bad label.
    """
    keys: list[bytes] = []
    images: list[TarMember] = []
    labels: list[int] = []
    seen: set[str] = set()
    with Path(path).open("rb") as raw:
        for key, members in _group_by_key(scan_tar(path)):
            if key in seen:
                raise DataFormatError(
                    f"{path}: key {key!r} stands in two places; a WebDataset sample's files must "
                    f"be neighbours and its key unique. Write the shard again, sorted by name."
                )
            seen.add(key)
            image = next((members[e] for e in IMAGE_EXTENSIONS if e in members), None)
            if image is None:
                raise DataFormatError(
                    f"{path}: sample {key!r} has no image, only {sorted(members)}; "
                    f"one of {', '.join(IMAGE_EXTENSIONS)} is needed."
                )
            keys.append(key.encode())
            images.append(image)
            labels.append(_read_label(raw, members.get("cls"), path, key))
    return ShardIndex(
        keys=np.array(keys, dtype=np.bytes_) if keys else np.empty(0, dtype="S1"),
        offsets=np.array([image.offset for image in images], dtype=np.int64),
        sizes=np.array([image.size for image in images], dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
    )


def _group_by_key(members: Iterator[TarMember]) -> Iterator[tuple[str, dict[str, TarMember]]]:
    current: str | None = None
    group: dict[str, TarMember] = {}
    for member in members:
        key, extension = split_key(member.name)
        if current is not None and key != current:
            yield current, group
            group = {}
        current = key
        group[extension] = member
    if current is not None:
        yield current, group


def _read_label(raw: BinaryIO, member: TarMember | None, path: object, key: str) -> int:
    if member is None:
        return NO_LABEL
    raw.seek(member.offset)
    text = raw.read(member.size)
    try:
        label = int(text)
    except ValueError:
        label = NO_LABEL
    if label < 0:
        raise DataFormatError(
            f"{path}: sample {key!r} has the label {text[:40]!r}; "
            f"a .cls file holds one integer from 0 up."
        )
    return label
