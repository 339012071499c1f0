"""Packing: from the samples of a source to WebDataset shards with index and manifest.

```
split ─ make_plan: which sample in which shard ─┬─ worker: write_shard(0) ─┐
                                                ├─ worker: write_shard(1) ─┼─ manifest.json
                                                └─ ...                    ─┘
```
The plan is settled before any image is read, so the bytes depend on the source and the options,
never on the number of processes, and a packing that was stopped goes on where it was. Nor on the
number of nodes: each may pack a part of the shards, and the one that ends last writes the manifest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resscale.data.manifest import MANIFEST_NAME, Manifest, ShardInfo
from resscale.data.pack_part import WHOLE, Part, temporary_name
from resscale.data.pack_plan import PackOptions, Plan, make_plan, versions
from resscale.data.pack_pool import run_tasks
from resscale.data.pack_progress import PackProgress
from resscale.data.pack_samples import Split
from resscale.data.pack_shard import ShardResult, write_shard, writing_to
from resscale.data.pack_state import (
    PackState,
    finished_manifest,
    packed_manifest,
    remove_leftovers,
)
from resscale.data.shard_index import ShardIndex
from resscale.errors import DataFormatError

LEFT_OUT_NAME = "left_out.jsonl"
_PRELOAD = ("webdataset", "resscale.data.pack_shard")


@dataclass(frozen=True)
class Packed:
    """What packing one split came to.

    Args:
        folder: where the shards lie.
        manifest: their manifest.
        left_out: number of samples that could not be used.
        seconds: time taken; 0 where all of it was there already.
        notes: what else is worth saying.
    """

    folder: Path
    manifest: Manifest
    left_out: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartPacked:
    """What packing a part of a split came to, where other parts are not done.

    Args:
        folder: where the shards lie.
        part: which part.
        shards: number of shards in it.
        samples: number of samples in them, those left out included.
        missing: number of shards of other parts that are not there yet.
        seconds: time taken.
    """

    folder: Path
    part: Part
    shards: int
    samples: int
    missing: int
    seconds: float


def pack_splits(
    splits: list[Split],
    out: Path,
    options: PackOptions,
    command: str,
    on_start: Callable[[str], None] = lambda line: None,
    part: Part = WHOLE,
) -> list[Packed | PartPacked]:
    """Pack each split into `out/<split name>`; what an earlier run has finished is kept.

    Args:
        splits: the samples.
        out: folder for the splits' folders.
        options: how to pack.
        command: the command's name, for the manifest.
        on_start: is told in one line what each split will be.
        part: which shards of each split to pack; other processes pack the others, on any node,
            before, after or meanwhile.

    Returns:
        Per split a `Packed`; or a `PartPacked` where shards of other parts are missing yet.

    Raises:
        UserInputError: a folder holds something else, or cannot be written; or another process
            packs this part.
        DataFormatError: no usable sample, or an archive that cannot be read.
    """
    plans = [make_plan(split, options) for split in splits]
    # All of them first: a refusal of the second split should not come after hours on the first.
    finished = [finished_manifest(out / plan.split.name, plan) for plan in plans]
    packed: list[Packed | PartPacked] = []
    for plan, manifest in zip(plans, finished, strict=True):
        folder = out / plan.split.name
        if manifest is not None:
            with writing_to(folder):
                remove_leftovers(folder)  # of a process that was killed behind the manifest
            packed.append(_found(folder, manifest))
            continue
        samples, name = _samples(plan, part.shards(plan.num_shards)), plan.split.name
        which = (
            f"{samples:,}" if part.is_whole else f"part {part}, {samples:,} of {len(plan.rows):,}"
        )
        on_start(f"Packing {name}: {which} samples into {folder}")
        packed.append(_pack(plan, folder, command, part))
    return packed


def _found(folder: Path, manifest: Manifest) -> Packed:
    return Packed(folder, manifest, _count_lines(folder / LEFT_OUT_NAME), 0.0)


def _pack(plan: Plan, folder: Path, command: str, part: Part) -> Packed | PartPacked:
    begun_at = time.monotonic()
    with writing_to(folder), PackState(folder, plan, part) as state:
        # Once more: another part may have ended all of it since.
        if (manifest := packed_manifest(folder, plan)) is None:
            _write_shards(plan, folder, state, part)
        manifest = state.finish(lambda results: _finish(plan, folder, results, command, part))
    seconds = time.monotonic() - begun_at
    if manifest is not None:
        left_out = _count_lines(folder / LEFT_OUT_NAME)
        return Packed(folder, manifest, left_out, seconds, plan.split.notes)
    shards = part.shards(plan.num_shards)
    missing = plan.num_shards - len(state.results)
    return PartPacked(folder, part, len(shards), _samples(plan, shards), missing, seconds)


def _write_shards(plan: Plan, folder: Path, state: PackState, part: Part) -> None:
    done = frozenset(state.results)
    shards = part.shards(plan.num_shards)
    finished_before = [shard for shard in shards if shard in done]
    tasks = plan.tasks(folder, done, part)
    processes = min(plan.options.processes, max(1, len(shards) - len(finished_before)))
    label = f"pack {plan.split.name}" + ("" if part.is_whole else f" {part}")
    with (
        PackProgress(label, _samples(plan, shards), _samples(plan, finished_before)) as progress,
        closing(run_tasks(write_shard, tasks, processes, _PRELOAD)) as finished,
    ):
        for result in finished:
            state.add(result)
            progress.advance(plan.samples_in(result.number))


def _samples(plan: Plan, shards: Iterable[int]) -> int:
    return sum(plan.samples_in(shard) for shard in shards)


def _finish(
    plan: Plan, folder: Path, results: list[ShardResult], command: str, part: Part
) -> Manifest:
    left_out = [entry for result in results for entry in result.left_out]
    shards = [result for result in results if result.samples]
    if not shards:
        raise DataFormatError(_nothing_packed(plan, left_out))
    if left_out:
        lines = "".join(json.dumps(entry) + "\n" for entry in left_out)
        temporary = folder / temporary_name(LEFT_OUT_NAME, part.tag)
        temporary.write_text(lines)
        temporary.replace(folder / LEFT_OUT_NAME)
    infos = tuple(
        ShardInfo(plan.shard_name(result.number), result.samples, result.bytes, result.sha256)
        for result in shards
    )
    counts = np.zeros(0, np.int64)
    for info in infos:
        found = np.bincount(ShardIndex.load(folder / info.index_name).labels, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    manifest = Manifest(
        classes=plan.split.classes,
        shards=infos,
        class_counts=tuple(counts.tolist()),
        source=_source(plan, command, len(left_out)),
        root=str(folder),
    )
    # Parts that end together may each write it: the same bytes, each under a name of its own.
    manifest.save(folder, temporary_name(MANIFEST_NAME, part.tag))
    return manifest


def _source(plan: Plan, command: str, left_out: int) -> dict[str, Any]:
    return {
        "command": command,
        "split": plan.split.name,
        "plan": plan.digest,
        "options": plan.options.decisive(),
        "versions": versions(),
        "left_out": left_out,
        "notes": list(plan.split.notes),
    }


def _nothing_packed(plan: Plan, left_out: list[dict[str, Any]]) -> str:
    if not left_out:
        return f"The split {plan.split.name} has no samples: nothing to pack. Check the source."
    first = left_out[0]
    return (
        f"None of the {len(left_out)} samples of the split {plan.split.name} can be used; the "
        f"first, {first['path']}: {first['reason']}. Check the source."
    )


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)
