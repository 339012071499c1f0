"""The offset index of a shard: where in the tar each sample's image lies, and its label."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt

from resscale.data.locations import join, local_path, parent, shown
from resscale.errors import DataFormatError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "tif", "tiff")
NO_LABEL = -1
_LABEL_EXTENSIONS = ("cls", "json")
_MOST_LABEL_BYTES = 1 << 16


@dataclass(frozen=True)
class ShardIndex:
    """Arrays over the samples of one shard, in the tar's order.

    Args:
        keys: sample keys, UTF-8 bytes, `S` array (n,).
        offsets: first byte of each image in the tar, int64 (n,).
        sizes: bytes of each image, int64 (n,).
        labels: class of each sample, int64 (n,); -1 where there is none.
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
            self._write(file)
        temporary.replace(target)

    def to_bytes(self) -> bytes:
        """Return what `save` writes."""
        buffer = io.BytesIO()
        self._write(buffer)
        return buffer.getvalue()

    @classmethod
    def load(cls, location: str | os.PathLike[str]) -> ShardIndex:
        """Read an index.

        Args:
            location: a path, or an address that `resscale.data.remote` reads.

        Raises:
            DataFormatError: the file is missing or damaged.
            RemoteError: an address that does not answer.
        """
        where = os.fspath(location)
        if (path := local_path(where)) is not None:
            return cls._read(path, where)
        from resscale.data.remote import read_all

        return cls.from_bytes(read_all(where), where)

    @classmethod
    def from_bytes(cls, raw: bytes, location: str) -> ShardIndex:
        """Read an index out of its file's bytes.

        Args:
            raw: the bytes.
            location: where they are from, for messages.

        Raises:
            DataFormatError: they are damaged.
        """
        return cls._read(io.BytesIO(raw), location)

    @classmethod
    def _read(cls, file: Path | io.BytesIO, location: str) -> ShardIndex:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return cls(arrays["keys"], arrays["offsets"], arrays["sizes"], arrays["labels"])
        # zipfile says NotImplementedError of flags and versions that damage has made.
        except (
            *(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error),
            *(NotImplementedError, MemoryError, OverflowError),
        ) as error:
            raise DataFormatError(
                f"{shown(location)} is not a readable shard index ({error}). "
                f"Make it anew: resscale index '{shown(join(parent(location), '*.tar'))}'"
            ) from error

    def _write(self, file: BinaryIO) -> None:
        np.savez(file, keys=self.keys, offsets=self.offsets, sizes=self.sizes, labels=self.labels)


class SeekableFile(Protocol):
    """What a tar is read through."""

    def read(self, size: int = -1, /) -> bytes:
        """Return so many bytes from here on, fewer at the end of the file."""
        ...

    def seek(self, position: int, whence: int = 0, /) -> int:
        """Stand at a byte."""
        ...

    def tell(self) -> int:
        """Return the byte that is read next."""
        ...


@dataclass(frozen=True)
class TarMember:
    """A regular file in a tar: its name, where its bytes lie, and those of a small label file."""

    name: str
    offset: int
    size: int
    text: bytes | None = None


def scan_tar(path: str | os.PathLike[str]) -> Iterator[TarMember]:
    """Yield the regular files of an uncompressed tar without reading their contents.

    Raises:
        DataFormatError: not a tar, or it ends before its end-of-archive marker.
    """
    with Path(path).open("rb") as file:
        yield from scan_members(file, os.fspath(path))


def scan_members(file: SeekableFile, location: str) -> Iterator[TarMember]:
    """Yield the regular files of an uncompressed tar; of their contents, labels alone are read.

    Labels are read where they are passed, so that a remote file is read in one direction.

    Args:
        file: the tar.
        location: where it lies, for messages.

    Raises:
        DataFormatError: not a tar, or it ends before its end-of-archive marker.
    """
    end = 0
    try:
        with tarfile.open(fileobj=cast(BinaryIO, file), mode="r:") as archive:
            for member in archive:
                # tarfile (of Python 3.11.7) would go back by it, and round and round.
                if member.size < 0 or member.offset < end:
                    raise tarfile.ReadError("a header with an impossible size")
                padded = -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                end = member.offset_data + (padded if member.isreg() else 0)
                if member.isreg():
                    yield _read_member(file, member)
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as error:
        raise DataFormatError(
            f"{shown(location)} is truncated or not an uncompressed tar ({error}; the last whole "
            f"member "
            f"ends at byte {end}). Copy or pack it again."
        ) from error
    # tarfile takes a file that ends behind a whole member for a whole tar; a writer that was
    # closed leaves a block of zeros, so its absence means that samples are missing.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataFormatError(
            f"{shown(location)} is truncated: the end-of-archive marker is missing behind byte "
            f"{end}. "
            f"Copy or pack it again."
        )


def _read_member(file: SeekableFile, member: tarfile.TarInfo) -> TarMember:
    text = None
    if split_key(member.name)[1] in _LABEL_EXTENSIONS and member.size <= _MOST_LABEL_BYTES:
        file.seek(member.offset_data)
        text = file.read(member.size)
    return TarMember(member.name, member.offset_data, member.size, text)


def split_key(name: str) -> tuple[str, str]:
    """Split a member's name as WebDataset does: `d/a.b.jpg` is key `d/a`, extension `b.jpg`."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def build_shard_index(path: str | os.PathLike[str]) -> ShardIndex:
    """Scan a local shard and return its index; members of one sample must be neighbours.

    Raises:
        DataFormatError: truncated tar, a sample without an image, a repeated key, a bad label.
    """
    with Path(path).open("rb") as file:
        return index_of(file, os.fspath(path))


def index_of(file: SeekableFile, location: str) -> ShardIndex:
    """Scan a shard and return its index.

    Args:
        file: the tar.
        location: where it lies, for messages.

    Raises:
        DataFormatError: truncated tar, a sample without an image, a repeated key, a bad label.
    """
    keys: list[bytes] = []
    images: list[TarMember] = []
    labels: list[int] = []
    seen: set[str] = set()
    for key, members in _group_by_key(scan_members(file, location)):
        if key in seen:
            raise DataFormatError(
                f"{shown(location)}: key {key!r} stands in two places; a WebDataset sample's "
                f"files must "
                f"be neighbours and its key unique. Write the shard again, sorted by name."
            )
        seen.add(key)
        image = next((members[e] for e in IMAGE_EXTENSIONS if e in members), None)
        if image is None:
            raise DataFormatError(
                f"{shown(location)}: sample {key!r} has no image, only {sorted(members)}; "
                f"one of {', '.join(IMAGE_EXTENSIONS)} is needed."
            )
        keys.append(key.encode())
        images.append(image)
        labels.append(_label_of(members, location, key))
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


def _label_of(members: dict[str, TarMember], location: str, key: str) -> int:
    texts = {extension: member.text for extension, member in members.items()}
    try:
        return read_label(texts)
    except ValueError as error:
        raise DataFormatError(f"{shown(location)}: sample {key!r} {error}") from None


def read_label(files: Mapping[str, bytes | None]) -> int:
    """Return a sample's label: `.cls` as text, else `label` of `.json`; -1 where there is none.

    A `.json` without a whole number as `label` has none: captions and the like are not labels.

    Args:
        files: contents by extension; None where they were too long to be read.

    Raises:
        ValueError: the label is no whole number from 0 up; the text goes on behind a sample's name.
    """
    if "cls" in files:
        text = files["cls"] or b""
        try:
            label = int(text)
        except ValueError:
            label = NO_LABEL
        if label < 0:
            raise ValueError(
                f"has the label {text[:40]!r}; a .cls file holds one integer from 0 up."
            )
        return label
    label = _json_label(files.get("json"))
    if label < NO_LABEL:
        raise ValueError(f'has the "label" {label} in its .json; labels count from 0 up.')
    return label


def _json_label(text: bytes | None) -> int:
    try:
        label = json.loads(text or b"{}")["label"]
    except (ValueError, KeyError, TypeError):
        return NO_LABEL
    return label if type(label) is int else NO_LABEL
