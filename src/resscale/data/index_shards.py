"""Index and manifest of shards that another tool wrote, on this machine or elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from resscale import __version__
from resscale.data.index_one import Indexed, IndexTask, index_one
from resscale.data.index_place import check_place, make_folder, save_manifest
from resscale.data.locations import join, local_path, name_of, parent, shown
from resscale.data.manifest import MANIFEST_NAME, Manifest
from resscale.data.pack_progress import PackProgress
from resscale.data.shard_patterns import expand_shards as expand_shards
from resscale.data.shard_pool import IN_THREADS, run_on_shards
from resscale.errors import DataFormatError, UserInputError

COMMAND = "resscale index"


def index_shards(
    shards: Sequence[str | os.PathLike[str]],
    classes: tuple[str, ...] = (),
    processes: int = 1,
    force: bool = False,
    out: str | None = None,
    checksums: bool | None = None,
) -> Manifest:
    """Write each shard's offset index, and `manifest.json`, into the shards' folder or another.

    Args:
        shards: locations of the shards in order, all in one folder.
        classes: names by label; empty to keep those of a manifest that is there.
        processes: worker processes for local shards; `IN_THREADS`, as remote shards have anyway,
            for threads of this one.
        force: replace a manifest that another command wrote.
        out: location of the folder for manifest and indices; None: that of the shards.
        checksums: read whole shards for their SHA-256; None: local ones.

    Raises:
        UserInputError: such a manifest is there, or the folder cannot be written.
        DataFormatError: a shard is damaged, has no image for a sample, or labels that do not fit.
        RemoteError: an address that does not answer.
    """
    locations = [os.fspath(shard) for shard in shards]
    folder = parent(locations[0])
    root = folder if out is None else out
    remote = local_path(folder) is None
    check_place(root)
    old = _old_manifest(root)
    if old is not None and not force:
        _require_own(old)
    make_folder(root)
    checksum = not remote if checksums is None else checksums
    tasks = [IndexTask(location, root, checksum) for location in locations]
    results = _index_all(tasks, IN_THREADS if remote else processes)
    # Names that an earlier manifest knew are kept: the shards themselves hold numbers only.
    classes = classes or (old.classes if old is not None else ())
    manifest = Manifest(
        classes=classes,
        shards=[result.info for result in results],
        class_counts=_class_counts(results, classes, folder),
        source={"command": COMMAND, "versions": {"resscale": __version__}},
        root=root,
        shards_root=None if root == folder else _lasting(folder),
    )
    if not manifest.num_samples:
        raise DataFormatError(f"The shards in {shown(folder)} hold no samples. Write them again.")
    save_manifest(root, manifest)
    return manifest


def _index_all(tasks: Sequence[IndexTask], processes: int) -> list[Indexed]:
    """Return what came of the tasks, in their order."""
    found: dict[str, Indexed] = {}
    with (
        PackProgress("index", len(tasks), unit="shards") as progress,
        closing(run_on_shards(index_one, tasks, min(processes, len(tasks)))) as finished,
    ):
        for indexed in finished:
            found[indexed.info.name] = indexed
            progress.advance(1)
    return [found[name_of(task.location)] for task in tasks]


def _lasting(folder: str) -> str:
    """Return a folder's location as a manifest elsewhere can name it."""
    return os.path.abspath(folder) if local_path(folder) is not None else folder  # noqa: PTH100


def _old_manifest(root: str) -> Manifest | None:
    try:
        return Manifest.load(root)
    except DataFormatError:
        return None  # none, or one that cannot be read: this is how it is mended


def _require_own(manifest: Manifest) -> None:
    command = manifest.source.get("command")
    if command != COMMAND:
        raise UserInputError(
            f"{shown(join(manifest.root, MANIFEST_NAME))} was written by "
            f"{command or 'another tool'} and "
            f"knows more than an index does. Keep it (--verify checks it), or replace it: --force"
        )


def _class_counts(results: list[Indexed], classes: tuple[str, ...], folder: str) -> tuple[int, ...]:
    unlabelled = [result for result in results if result.unlabelled]
    if unlabelled and any(len(result.counts) for result in results):
        first = unlabelled[0]
        raise DataFormatError(
            f"{shown(join(folder, first.info.name))}: {first.unlabelled} of {first.info.samples} "
            f"samples "
            f"have no label (.cls), while others have one. Give each sample a label, or none."
        )
    counts = np.zeros(max((len(result.counts) for result in results), default=0), np.int64)
    for result in results:
        counts[: len(result.counts)] += result.counts
    if classes and len(counts) > len(classes):
        raise DataFormatError(
            f"The shards in {shown(folder)} have labels up to {len(counts) - 1}, --classes gives "
            f"{len(classes)} names. One name per label is needed."
        )
    return tuple(counts.tolist())
