"""The manifest of what the user names: a folder, an address, or shards that have no manifest."""

from __future__ import annotations

from resscale.data.builtin import resolve
from resscale.data.index_cache import cached_manifest
from resscale.data.locations import join, local_path, name_of, parent
from resscale.data.manifest import MANIFEST_NAME, PACKING_PATTERN, Manifest
from resscale.data.shard_patterns import expand_shards, is_pattern
from resscale.errors import DataFormatError


def open_manifest(location: str) -> Manifest:
    """Return the manifest of a folder, an address or a pattern of shards.

    Shards without a manifest are indexed on the fly, once, into the user's cache folder.

    Args:
        location: a folder or its manifest, as a path or address; `builtin:` and a name; or shards:
            `s3://bucket/train-{000..099}.tar`.

    Raises:
        UserInputError: nothing is there, or the cache folder cannot be written.
        DataFormatError: a manifest or a shard that is damaged.
        RemoteError: an address that does not answer.
    """
    location = resolve(location)
    if not is_pattern(location):
        if _has_manifest(location) or not _may_be_indexed(location):
            return Manifest.load(location)
        return cached_manifest(expand_shards([location]))
    shards = expand_shards([location])
    folder = parent(shards[0])
    if _has_manifest(folder):
        manifest = Manifest.load(folder)
        # A part of its shards is another data set, whose labels nobody has counted yet.
        if list(manifest.table.names) == [name_of(shard) for shard in shards]:
            return manifest
    elif not _may_be_indexed(folder):
        return Manifest.load(folder)
    return cached_manifest(shards)


def _has_manifest(location: str) -> bool:
    file = location if name_of(location).endswith(".json") else join(location, MANIFEST_NAME)
    if (path := local_path(file)) is not None:
        return path.is_file()
    from resscale.data import remote

    try:
        remote.stat(file)
    except DataFormatError:
        return False
    return True


def _may_be_indexed(location: str) -> bool:
    """Return whether shards without a manifest lie there, and not the beginning of a packing."""
    if name_of(location).endswith(".json"):
        return False
    folder = local_path(location)
    if folder is None:
        return True
    return any(folder.glob("*.tar")) and not any(folder.glob(PACKING_PATTERN))
