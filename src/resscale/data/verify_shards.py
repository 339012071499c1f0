"""Checking shards against their manifest: presence, size, SHA-256, offset index."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from resscale.data.locations import join, local_path, parent, shown
from resscale.data.manifest import MANIFEST_NAME, Manifest, ShardInfo
from resscale.data.pack_progress import PackProgress
from resscale.data.shard_index import ShardIndex
from resscale.data.shard_patterns import expand_shards, is_pattern
from resscale.data.shard_pool import IN_THREADS, run_on_shards
from resscale.data.shard_presence import sha256_of_location, size_of_location
from resscale.errors import DataFormatError

_MOST_LINES = 20


def verify_shards(location: str, processes: int = 1) -> Manifest:
    """Compare all shards of a manifest with it, by reading them whole.

    A shard whose SHA-256 the manifest does not know is compared by its size.

    Args:
        location: of the folder of the manifest, or of the manifest.
        processes: worker processes for local shards; remote ones are read by threads.

    Raises:
        DataFormatError: some differ; the message has a line for each.
        RemoteError: an address that does not answer.
    """
    manifest = Manifest.load(location)
    remote = local_path(manifest.shard_location(0)) is None if manifest.shards else False
    workers = IN_THREADS if remote else min(processes, max(1, len(manifest.shards)))
    tasks = (
        _Task(shard, manifest.shard_location(number), manifest.index_location(number))
        for number, shard in enumerate(manifest.shards)
    )
    wrong: dict[str, str] = {}
    with (
        PackProgress("verify", manifest.num_bytes, unit="bytes") as progress,
        closing(run_on_shards(_verify_one, tasks, workers)) as checked,
    ):
        for shard, problem in checked:
            if problem:
                wrong[shard.name] = problem
            progress.advance(shard.bytes)
    if wrong:
        lines = [f"  {name}: {wrong[name]}" for name in sorted(wrong)]
        if len(lines) > _MOST_LINES:
            lines[_MOST_LINES:] = [f"  and {len(lines) - _MOST_LINES} more"]
        shards_root = manifest.shards_root or manifest.root
        out = f" --out {shown(manifest.root)}" if manifest.shards_root else ""
        raise DataFormatError(
            f"{len(wrong)} of the {len(manifest.shards)} shards in {shown(shards_root)} are not as "
            f"{MANIFEST_NAME} says:\n" + "\n".join(lines) + "\nCopy or pack these shards again, "
            f"or index what is there: resscale index --force "
            f"'{shown(join(shards_root, '*.tar'))}'{out}"
        )
    return manifest


def folder_of(patterns: Sequence[str]) -> str:
    """Return the folder that `--verify` means: the one named, or that of the shards named."""
    if len(patterns) == 1 and not is_pattern(patterns[0]):
        path = local_path(patterns[0])
        return patterns[0] if path is None else str(path)
    return parent(expand_shards(patterns)[0])


@dataclass(frozen=True)
class _Task:
    shard: ShardInfo
    location: str
    index_location: str


def _verify_one(task: _Task) -> tuple[ShardInfo, str]:
    shard = task.shard
    try:
        size = size_of_location(task.location)
    except DataFormatError:
        size = None
    if size is None:
        return shard, "missing"
    if size != shard.bytes:
        return shard, f"{size} bytes instead of {shard.bytes}"
    if shard.sha256 and sha256_of_location(task.location) != shard.sha256:
        return shard, "its SHA-256 differs"
    try:
        rows = len(ShardIndex.load(task.index_location))
    except DataFormatError:
        return shard, f"its index {shard.index_name} is missing or damaged"
    return shard, "" if rows == shard.samples else f"its index lists {rows} samples"
