"""The manifest of what the user names: a folder, an address, or shards that have no manifest."""

from __future__ import annotations

from functools import partial

from resscale.data.builtin import resolve
from resscale.data.cache import ShardCache
from resscale.data.cache_entry import CacheSource
from resscale.data.index_cache import cached_manifest
from resscale.data.locations import join, local_path, name_of, parent, shown
from resscale.data.manifest import MANIFEST_NAME, PACKING_PATTERN, Manifest, text_of
from resscale.data.sequential import is_sequential, sequential_manifest
from resscale.data.shard_patterns import expand_shards, is_pattern
from resscale.errors import DataFormatError, UserInputError


def open_manifest(location: str, cache: ShardCache | None = None) -> Manifest:
    """Return the manifest of a folder, an address or a pattern of shards.

    Shards without a manifest are indexed on the fly, once, into the user's cache folder.

    Args:
        location: a folder or its manifest, as a path or address; `builtin:` and a name; or shards:
            `s3://bucket/train-{000..099}.tar`.
        cache: of the node, through which its processes share the manifest of an address.

    Raises:
        UserInputError: nothing is there, or the cache folder cannot be written.
        DataFormatError: a manifest or a shard that is damaged.
        RemoteError: an address that does not answer.
    """
    location = resolve(location)
    if not is_pattern(location):
        manifest = _manifest_at(location, cache)
        if manifest is None and _may_be_indexed(location):
            return cached_manifest(expand_shards([location]))
        return manifest or Manifest.load(location)
    shards = expand_shards([location])
    folder = parent(shards[0])
    manifest = _manifest_at(folder, cache)
    if manifest is not None:
        # A part of its shards is another data set, whose labels nobody has counted yet.
        if list(manifest.table.names) == [name_of(shard) for shard in shards]:
            return manifest
    elif not _may_be_indexed(folder):
        return Manifest.load(folder)
    return cached_manifest(shards)


def open_split(
    split: str,
    location: str,
    epoch_samples: int | None,
    *,
    looks_at_shards: bool = True,
    cache: ShardCache | None = None,
) -> Manifest:
    """Return the manifest of a split of the user's, checked.

    Args:
        split: "train", "val", "test" or "predict".
        location: what the user names, as for `open_manifest`; for "train" a sequential source, too.
        epoch_samples: samples of an epoch of a sequential source; None otherwise.
        looks_at_shards: sees whether shards are there, and as long as the manifest says.
        cache: as for `open_manifest`.

    Raises:
        UserInputError: as `open_manifest`; or a sequential source where samples must be counted.
        DataFormatError: samples without a label, where they are needed.
    """
    if is_sequential(location):
        if split != "train":
            raise UserInputError(
                f"data.{split} is {shown(location)}, which is read in one direction: nobody can "
                f"tell "
                f"whether each of its samples comes once. Only data.train takes it; index or pack "
                f"these shards as .tar files."
            )
        return sequential_manifest(location, epoch_samples)
    manifest = open_manifest(location, cache)
    if looks_at_shards:
        manifest.check_sizes()
    if split == "train" and epoch_samples is not None:
        raise UserInputError(
            f"data.epoch_samples={epoch_samples} is for sources that cannot be counted (pipe:, "
            f".tar.gz); {shown(location)} has {manifest.num_samples} samples. Leave it out."
        )
    if split != "predict":
        _check_labelled(manifest, split)
    return manifest


def names_shards(location: str) -> bool:
    """Return whether what is to be predicted is shards, and not plain image files."""
    location = resolve(location)
    path = local_path(location)
    if path is None or is_pattern(location) or path.name == MANIFEST_NAME:
        return True
    return (path / MANIFEST_NAME).is_file() or any(path.glob("*.tar"))


def _check_labelled(manifest: Manifest, split: str) -> None:
    unlabelled = manifest.num_samples - sum(manifest.class_counts)
    if unlabelled:
        raise DataFormatError(
            f"{shown(manifest.root)}: {unlabelled} of {manifest.num_samples} samples have no .cls "
            f"label, "
            f"so they cannot be data.{split}; data.predict takes them."
        )


def _manifest_at(location: str, cache: ShardCache | None) -> Manifest | None:
    """Return the manifest that lies there; None: there is none.

    A server is asked for its version by each process. With a cache, one of a node downloads it.
    """
    file = location if name_of(location).endswith(".json") else join(location, MANIFEST_NAME)
    if (path := local_path(file)) is not None:
        return Manifest.load(location) if path.is_file() else None
    from resscale.data import remote

    try:
        about = remote.stat(file)
    except DataFormatError:
        return None
    if cache is not None and about.tag:
        source = CacheSource(file, about.size, about.tag)
        raw = cache.whole(source)
        if raw is not None:
            try:
                return Manifest.parse(partial(text_of, raw), file)
            except DataFormatError:
                # Damaged, there or here: what the server has now decides.
                cache.drop(source)
    return Manifest.load(location)


def _may_be_indexed(location: str) -> bool:
    """Return whether shards without a manifest lie there, and not the beginning of a packing."""
    if name_of(location).endswith(".json"):
        return False
    folder = local_path(location)
    if folder is None:
        return True
    return any(folder.glob("*.tar")) and not any(folder.glob(PACKING_PATTERN))
