"""One shard's offset index, with the shard's size and SHA-256, wherever the shard lies."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from resscale.data.index_place import save_index
from resscale.data.locations import local_path, name_of
from resscale.data.range_file import RangeFile
from resscale.data.shard_index import ShardIndex, index_of
from resscale.data.shard_table import UNKNOWN_SHA256, ShardInfo, index_name
from resscale.errors import DataFormatError


@dataclass(frozen=True)
class IndexTask:
    """A shard to be indexed.

    Args:
        location: of the shard.
        root: location of the folder that its index is written into.
        checksum: read the whole shard for its SHA-256; else it is known where reading whole was
            the quickest way anyway.
    """

    location: str
    root: str
    checksum: bool


@dataclass(frozen=True)
class Indexed:
    """A shard's row of the manifest, its samples per label, and how many have no label."""

    info: ShardInfo
    counts: npt.NDArray[np.int64]
    unlabelled: int


def index_one(task: IndexTask) -> Indexed:
    """Write a shard's offset index and return what the manifest says of it.

    Raises:
        DataFormatError: the shard is missing, unreadable or damaged.
        RemoteError: an address that does not answer.
        UserInputError: the index cannot be written.
    """
    name = name_of(task.location)
    if local_path(task.location) is None:
        index, size, sha256 = _read_remote(task.location, task.checksum)
    else:
        index, size, sha256 = _read_local(task.location, task.checksum)
    save_index(task.root, index_name(name), index)
    labels = index.labels[index.labels >= 0]
    info = ShardInfo(name, len(index), size, sha256)
    return Indexed(info, np.bincount(labels), len(index) - len(labels))


def _read_local(location: str, checksum: bool) -> tuple[ShardIndex, int, str]:
    path = local_path(location)
    assert path is not None
    try:
        with path.open("rb") as file:
            index = index_of(file, location)
            size = file.seek(0, 2)
            file.seek(0)
            sha256 = _sha256_of(file) if checksum else UNKNOWN_SHA256
    except OSError as error:
        raise DataFormatError(
            f"{location} cannot be read ({error.strerror}). Check its permissions and its disk."
        ) from error
    return index, size, sha256


def _read_remote(url: str, checksum: bool) -> tuple[ShardIndex, int, str]:
    from resscale.data import remote

    about = remote.stat(url)
    if not about.ranges:
        # Each range would transfer the shard from its beginning.
        with tempfile.TemporaryFile() as file:
            remote.download(url, file.write, about)
            file.seek(0)
            index = index_of(file, url)
            file.seek(0)
            return index, about.size, _sha256_of(file)

    def read_range(start: int, stop: int) -> bytes:
        return remote.read_range(url, start, stop, tag=about.tag)

    ranges = RangeFile(read_range, about.size, whole=checksum)
    index = index_of(ranges, url)
    return index, about.size, ranges.finish()


def _sha256_of(file: BinaryIO) -> str:
    return hashlib.file_digest(cast(BytesIO, file), "sha256").hexdigest()
