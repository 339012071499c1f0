"""Packing: from the samples of a source to WebDataset shards with index and manifest.

```
split ─ make_plan: which sample in which shard ─┬─ worker: write_shard(0) ─┐
                                                ├─ worker: write_shard(1) ─┼─ manifest.json
                                                └─ ...                    ─┘
```
The plan is settled before any image is read, so the bytes depend on the source and the options,
never on the number of processes, and a packing that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resscale.data.manifest import Manifest, ShardInfo
from resscale.data.pack_plan import PackOptions, Plan, make_plan, versions
from resscale.data.pack_pool import run_tasks
from resscale.data.pack_progress import PackProgress
from resscale.data.pack_samples import Split
from resscale.data.pack_shard import ShardResult, write_shard, writing_to
from resscale.data.pack_state import PackState, finished_manifest
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


def pack_splits(
    splits: list[Split],
    out: Path,
    options: PackOptions,
    command: str,
    on_start: Callable[[str], None] = lambda line: None,
) -> list[Packed]:
    """Pack each split into `out/<split name>`; what an earlier run has finished is kept.

    Args:
        splits: the samples.
        out: folder for the splits' folders.
        options: how to pack.
        command: the command's name, for the manifest.
        on_start: is told in one line what each split will be.

    Raises:
        UserInputError: a folder holds something else, or cannot be written.
        DataFormatError: no usable sample, or an archive that cannot be read.
    """
    plans = [make_plan(split, options) for split in splits]
    # All of them first: a refusal of the second split should not come after hours on the first.
    finished = [finished_manifest(out / plan.split.name, plan) for plan in plans]
    packed = []
    for plan, manifest in zip(plans, finished, strict=True):
        folder = out / plan.split.name
        if manifest is not None:
            packed.append(Packed(folder, manifest, _count_lines(folder / LEFT_OUT_NAME), 0.0))
            continue
        on_start(f"Packing {plan.split.name}: {len(plan.rows):,} samples into {folder}")
        packed.append(_pack(plan, folder, command))
    return packed


def _pack(plan: Plan, folder: Path, command: str) -> Packed:
    begun_at = time.monotonic()
    options, name = plan.options, plan.split.name
    with writing_to(folder), PackState(folder, plan) as state:
        done = frozenset(state.results)
        samples_done = sum(plan.samples_in(shard) for shard in done)
        tasks = plan.tasks(folder, done)
        processes = min(options.processes, max(1, plan.num_shards - len(done)))
        with (
            PackProgress(f"pack {name}", len(plan.rows), samples_done) as progress,
            closing(run_tasks(write_shard, tasks, processes, _PRELOAD)) as finished,
        ):
            for result in finished:
                state.add(result)
                progress.advance(plan.samples_in(result.number))
        results = [state.results[shard] for shard in sorted(state.results)]
        manifest = _finish(plan, folder, results, command)
        state.remove()
    left_out = sum(len(result.left_out) for result in results)
    return Packed(folder, manifest, left_out, time.monotonic() - begun_at, plan.split.notes)


def _finish(plan: Plan, folder: Path, results: list[ShardResult], command: str) -> Manifest:
    left_out = [entry for result in results for entry in result.left_out]
    shards = [result for result in results if result.samples]
    if not shards:
        raise DataFormatError(_nothing_packed(plan, left_out))
    if left_out:
        lines = "".join(json.dumps(entry) + "\n" for entry in left_out)
        (folder / LEFT_OUT_NAME).write_text(lines)
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
    manifest.save(folder)
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
