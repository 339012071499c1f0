"""Whether shards are where their manifest says, as long as it says, and of the same bytes."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from resscale.data.locations import join, local_path, shown
from resscale.data.shard_table import ShardTable, index_name
from resscale.errors import DataFormatError

MOST_LOOKED_AT = 16_384
"""Local shards that are looked at when a run starts."""
_THREADS = 16
_PER_TASK = 256
_BYTES_AT_ONCE = 8 << 20


def check_presence(
    table: ShardTable, root: str, shards_root: str, most: int = MOST_LOOKED_AT
) -> None:
    """Compare the presence and length of shards with a manifest, without reading them.

    A network file system answers many questions at once far sooner than one after the other, so
    threads ask. An object store is asked for the first and the last shard only: a wrong address, a
    missing right to read, or a set replaced as a whole show there, and each shard is compared when
    it is downloaded.

    Args:
        table: the shards.
        root: location of the folder of offset indices.
        shards_root: location of the folder of shards.
        most: local shards that are looked at, spread evenly.

    Raises:
        DataFormatError: a shard or index is missing, shorter or longer.
        RemoteError: an address that does not answer.
    """
    remote = local_path(shards_root) is None
    numbers = spread(len(table), 2 if remote else most)

    def look(start: int) -> None:
        for number in numbers[start : start + _PER_TASK]:
            _look_at(table, number, root, shards_root)

    starts = range(0, len(numbers), _PER_TASK)
    with ThreadPoolExecutor(min(_THREADS, len(starts))) as threads:
        # Results come in order: the first shard that is wrong is the one told of.
        for _ in threads.map(look, starts):
            pass


def spread(count: int, most: int) -> list[int]:
    """Return all numbers below `count`, or `most` (2 or more) of them, the first and last included.

    They are spread evenly.
    """
    if count <= most:
        return list(range(count))
    return [number * (count - 1) // (most - 1) for number in range(most)]


def sha256_of_location(location: str) -> str:
    """Hex SHA-256 of a file, or of all bytes at an address.

    Raises:
        DataFormatError: there is no such file.
        RemoteError: an address that does not answer.
    """
    path = local_path(location)
    if path is not None:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    from resscale.data import remote

    found = remote.stat(location)
    digest = hashlib.sha256()
    for start in range(0, found.size, _BYTES_AT_ONCE):
        stop = min(start + _BYTES_AT_ONCE, found.size)
        digest.update(remote.read_range(location, start, stop, tag=found.tag))
    return digest.hexdigest()


def size_of_location(location: str) -> int | None:
    """Return the bytes of a file or address; None for a file that is not there.

    Raises:
        DataFormatError: there is nothing at the address.
        RemoteError: an address that does not answer.
    """
    path = local_path(location)
    if path is None:
        from resscale.data import remote

        return remote.stat(location).size
    try:
        return path.stat().st_size if path.is_file() else None
    except FileNotFoundError:  # removed between the two questions
        return None


def _look_at(table: ShardTable, number: int, root: str, shards_root: str) -> None:
    name, expected = table.names[number], int(table.bytes[number])
    location, index = join(shards_root, name), join(root, index_name(name))
    elsewhere = "" if shards_root == root else f" --out {shown(root)}"
    remedy = (
        f"Copy the file again or pack the data set again; if the change is meant: "
        f"resscale index --force '{shown(join(shards_root, '*.tar'))}'{elsewhere}"
    )
    size = size_of_location(location)
    if size is None:
        raise DataFormatError(f"{shown(location)} is missing, the manifest lists it. {remedy}")
    if size != expected:
        raise DataFormatError(
            f"{shown(location)} has {size} bytes, its manifest says {expected}: "
            f"{'truncated' if size < expected else 'changed'}. {remedy}"
        )
    if (path := local_path(index)) is not None and not path.is_file():
        raise DataFormatError(f"{index} is missing. {remedy}")
