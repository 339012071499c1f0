"""The folder that a split is packed into: what is finished there, and whether it may be used.

While a packing is under way its folder holds `.pack.jsonl`: a line with the plan's digest, then a
line for each finished shard. It is locked by the process that packs, and removed at the end.
"""

from __future__ import annotations

import fcntl
import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from resscale.data.manifest import MANIFEST_NAME, Manifest, index_name
from resscale.data.pack_plan import Plan, versions
from resscale.data.pack_shard import ShardResult
from resscale.errors import DataFormatError, UserInputError

STATE_NAME = ".pack.jsonl"


def finished_manifest(folder: Path, plan: Plan) -> Manifest | None:
    """Return the manifest if this very plan was packed into the folder before, None if it is free.

    Raises:
        UserInputError: the folder holds something else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UserInputError(f"{folder} is a file, not a folder. Choose another OUT.")
    if (folder / STATE_NAME).exists():
        _read_state(folder, plan)
        return None
    if (folder / MANIFEST_NAME).exists():
        manifest = _load(folder)
        if manifest is not None and manifest.source.get("plan") == plan.digest:
            manifest.check_sizes()
            return manifest
        raise UserInputError(
            f"{folder} holds another data set, or the same one packed with other options "
            f"({_differences(manifest, plan)}). Choose another OUT, or remove the folder first: "
            f"rm -r {folder}"
        )
    if contents := sorted(path.name for path in folder.iterdir()):
        raise UserInputError(
            f"{folder} is not empty: it holds {len(contents)} files that no unfinished packing "
            f"accounts for, such as {contents[0]!r}. Choose another OUT, or empty the folder."
        )
    return None


class PackState:
    """The open state file of a packing; a context manager that holds its lock.

    Raises:
        UserInputError: another process packs into the folder, or it holds another packing.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / STATE_NAME
        self._file: TextIO = self._path.open("a")
        try:
            _lock(self._file, folder)
            self.results = _read_state(folder, plan)
            # Written anew, so that a torn last line does not spoil the one that comes after it.
            self._file.truncate(0)
            self._append(_header(plan))
            for result in self.results.values():
                self._append(result.to_json())
        except BaseException:
            self._file.close()
            raise
        self._remove_leftovers()

    def __enter__(self) -> PackState:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove_leftovers()
        self._file.close()

    def add(self, result: ShardResult) -> None:
        """Note a finished shard."""
        self.results[result.number] = result
        self._append(result.to_json())

    def remove(self) -> None:
        """End the packing: its manifest stands."""
        self._path.unlink()

    def _remove_leftovers(self) -> None:
        """Remove what workers that were ended in the middle have left."""
        folder = self._path.parent
        for leftover in [*folder.glob(".*.tmp"), *folder.glob("*.index.npz.tmp")]:
            leftover.unlink(missing_ok=True)

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _header(plan: Plan) -> dict[str, Any]:
    return {"plan": plan.digest, "versions": versions(), "options": plan.options.decisive()}


def _lock(file: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserInputError(
            f"Another `resscale pack` is writing into {folder}. Wait for it, or choose another OUT."
        ) from None
    except OSError:
        pass  # a file system without locks: two packings at once still rename whole, equal shards


def _read_state(folder: Path, plan: Plan) -> dict[int, ShardResult]:
    """Return the finished shards that are still there, by number."""
    results: dict[int, ShardResult] = {}
    header: dict[str, Any] | None = None
    for text in (folder / STATE_NAME).read_text().splitlines():
        with suppress(json.JSONDecodeError, TypeError):  # the last line may be torn
            line = json.loads(text)
            if header is None:
                header = line
                _require_same(header, folder, plan)
            else:
                result = ShardResult.from_json(line)
                if _is_there(folder, plan, result):
                    results[result.number] = result
    return results


def _require_same(header: dict[str, Any], folder: Path, plan: Plan) -> None:
    expected = _header(plan)
    if header == expected:
        return
    for part in ("options", "versions"):
        if header.get(part) != expected[part]:
            reason = _changes(header.get(part) or {}, expected[part])
            break
    else:
        reason = "the source has changed"
    raise UserInputError(
        f"{folder} holds an unfinished packing of another plan ({reason}). Run it again as it was "
        f"begun, choose another OUT, or remove the folder: rm -r {folder}"
    )


def _is_there(folder: Path, plan: Plan, result: ShardResult) -> bool:
    if not result.samples:
        return True
    shard = folder / plan.shard_name(result.number)
    index = folder / index_name(shard.name)
    return shard.is_file() and shard.stat().st_size == result.bytes and index.is_file()


def _load(folder: Path) -> Manifest | None:
    try:
        return Manifest.load(folder)
    except DataFormatError:
        return None


def _differences(manifest: Manifest | None, plan: Plan) -> str:
    if manifest is None:
        return "its manifest is of another form"
    command = manifest.source.get("command", "another tool")
    options = manifest.source.get("options")
    expected = plan.options.decisive()
    if isinstance(options, dict) and options != expected:
        return f"made by {command}: {_changes(options, expected)}"
    return f"made by {command}, {manifest.num_samples} samples of {manifest.num_classes} classes"


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    )
