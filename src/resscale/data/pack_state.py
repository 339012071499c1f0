"""The folder that a split is packed into: what is finished there, and whether it may be used.

While a packing is under way its folder holds `.pack.jsonl`, or a `.pack-<I>-of-<N>.jsonl` for each
part: a line with the plan's digest, then a line for each finished shard. Only the process that
packs a part writes its file, and holds its lock. All of them are read by whoever ends, and the one
who finds every shard writes the manifest and removes them. Nothing is waited for and nothing is
shared, so this needs no more of a file system than that a renamed file is seen whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from resscale.data.manifest import MANIFEST_NAME, PACKING_PATTERN, Manifest, index_name
from resscale.data.pack_part import WHOLE, Part
from resscale.data.pack_plan import Plan, versions
from resscale.data.pack_shard import ShardResult
from resscale.errors import DataFormatError, UserInputError

STATE_NAME = WHOLE.state_name
# Whoever looks whether a part is alive holds its lock for an instant.
_LOCK_PATIENCE_S = 1.0


def finished_manifest(folder: Path, plan: Plan) -> Manifest | None:
    """Return the manifest if this very plan was packed into the folder before, None if it is free.

    Raises:
        UserInputError: the folder holds something else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UserInputError(f"{folder} is a file, not a folder. Choose another OUT.")
    # In this order another part may begin, write and end meanwhile: states stand there before
    # shards do, and the manifest before states go.
    contents = sorted(path.name for path in folder.iterdir())
    unfinished = any(_states(folder))
    if (manifest := packed_manifest(folder, plan)) is not None:
        return manifest
    if unfinished:
        read_results(folder, plan)
        return None
    if (folder / MANIFEST_NAME).exists():
        raise UserInputError(
            f"{folder} holds another data set, or the same one packed with other options "
            f"({_differences(_load(folder), plan)}). Choose another OUT, or remove the folder "
            f"first: rm -r {folder}"
        )
    if contents:
        raise UserInputError(
            f"{folder} is not empty: it holds {len(contents)} files that no unfinished packing "
            f"accounts for, such as {contents[0]!r}. Choose another OUT, or empty the folder."
        )
    return None


def packed_manifest(folder: Path, plan: Plan) -> Manifest | None:
    """Return the folder's manifest if this very plan was packed there, else None.

    Raises:
        DataFormatError: it is, and a shard has gone or changed since.
    """
    manifest = _load(folder)
    if manifest is None or manifest.source.get("plan") != plan.digest:
        return None
    manifest.check_sizes()
    return manifest


def read_results(folder: Path, plan: Plan) -> dict[int, ShardResult]:
    """Return the shards that any part has finished and that are still there, by number.

    Raises:
        UserInputError: a part was packed by another plan.
    """
    results: dict[int, ShardResult] = {}
    for _, state in _states(folder):
        results |= _read_state(state, plan)
    return results


def remove_leftovers(folder: Path) -> None:
    """Remove what parts that are gone have left: states, and what they were in the middle of.

    Where locks do not work nobody is known to be gone, and it stays.
    """
    states = list(_states(folder))
    if not states:
        return
    alive = set()
    for part, state in states:
        if _is_held(state) is False:
            state.unlink(missing_ok=True)
        else:
            alive.add(part.tag)
    for leftover in folder.glob(".*.tmp"):
        if not any(f".{tag}." in leftover.name for tag in alive):
            leftover.unlink(missing_ok=True)


class PackState:
    """The open state file of a part of a packing; a context manager that holds its lock.

    Raises:
        UserInputError: another process packs this part, or parts of another division, or the
            folder holds another packing.
    """

    def __init__(self, folder: Path, plan: Plan, part: Part = WHOLE) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._plan, self._part = folder, plan, part
        self._path = folder / part.state_name
        self._ended = False
        _refuse_another_division(folder, part)
        self._file: TextIO = self._path.open("a+")
        try:
            _lock(self._file, folder, part)
            self.results = self._begin()
        except BaseException:
            self._file.close()
            raise
        self._remove_own_leftovers()

    def __enter__(self) -> PackState:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove_own_leftovers()
        if self._ended:
            self._path.unlink(missing_ok=True)
        self._file.close()

    def add(self, result: ShardResult) -> None:
        """Note a finished shard."""
        self.results[result.number] = result
        self._append(result.to_json())

    def finish(self, make: Callable[[list[ShardResult]], Manifest]) -> Manifest | None:
        """Return the manifest, made now if this part ends last; None where shards are missing.

        Args:
            make: writes the manifest of these results, in the order of the shards.

        Raises:
            UserInputError: shards of this part were removed meanwhile.
        """
        os.fsync(self._file.fileno())  # so that a part that ends on another node reads it
        self.results = read_results(self._folder, self._plan)
        manifest = packed_manifest(self._folder, self._plan)
        if manifest is None:
            numbers = self._part.shards(self._plan.num_shards)
            if lost := [number for number in numbers if number not in self.results]:
                raise UserInputError(
                    f"{self._folder} has changed while it was packed: "
                    f"{self._plan.shard_name(lost[0])} is gone. Run the same command again."
                )
            if len(self.results) < self._plan.num_shards:
                return None
            manifest = make([self.results[number] for number in sorted(self.results)])
        self._ended = True
        remove_leftovers(self._folder)
        return manifest

    def _begin(self) -> dict[int, ShardResult]:
        own = _read_state(self._path, self._plan)
        lines = [_header(self._plan), *(result.to_json() for result in own.values())]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        # A torn last line would spoil the one that comes after it. Else it stays untouched: others
        # may be reading it.
        self._file.seek(0)
        if self._file.read() != text:
            self._file.truncate(0)
            self._file.write(text)
            self._file.flush()
        try:
            # Behind the header: of two parts of different plans that begin together one sees it.
            return read_results(self._folder, self._plan)
        except UserInputError:
            if not own:
                self._path.unlink(missing_ok=True)
            raise

    def _remove_own_leftovers(self) -> None:
        """Remove what workers of this part that were ended in the middle have left."""
        for leftover in self._folder.glob(f".*.{self._part.tag}.*.tmp"):
            leftover.unlink(missing_ok=True)

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _states(folder: Path) -> Iterator[tuple[Part, Path]]:
    for path in sorted(folder.glob(PACKING_PATTERN)):
        part = Part.of_state(path.name)
        if part is not None:
            yield part, path


def _refuse_another_division(folder: Path, part: Part) -> None:
    """Let parts of another division at work end first: both would do the same work."""
    for other, state in _states(folder):
        if other.count != part.count and _is_held(state):
            what = "the whole" if other.is_whole else f"part {other}"
            raise UserInputError(
                f"Another `resscale pack` is writing {what} into {folder}, so this one cannot take "
                f"{'the whole' if part.is_whole else f'part {part}'}. Divide it by "
                f"{other.count} too, wait for it, or choose another OUT."
            )


def _header(plan: Plan) -> dict[str, Any]:
    return {"plan": plan.digest, "versions": versions(), "options": plan.options.decisive()}


def _is_held(state: Path) -> bool | None:
    """Whether a living process packs the part of this state; None where locks do not work."""
    try:
        with state.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _lock(file: TextIO, folder: Path, part: Part) -> None:
    give_up_at = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() < give_up_at:
                time.sleep(0.05)
                continue
            what = "" if part.is_whole else f"part {part} "
            raise UserInputError(
                f"Another `resscale pack` is writing {what}into {folder}. Wait for it, or choose "
                f"another OUT."
            ) from None
        except OSError:
            return  # no locks here: two packings at once still rename whole, equal shards


def _read_state(state: Path, plan: Plan) -> dict[int, ShardResult]:
    """Return the finished shards of a state that are still there, by number."""
    results: dict[int, ShardResult] = {}
    header: dict[str, Any] | None = None
    try:
        lines = state.read_text().splitlines()
    except FileNotFoundError:
        return results  # the part that ended last has removed it
    for text in lines:
        with suppress(json.JSONDecodeError, TypeError):  # the last line may be torn
            line = json.loads(text)
            if header is None:
                header = line
                _require_same(header, state.parent, plan)
            else:
                result = ShardResult.from_json(line)
                if _is_there(state.parent, plan, result):
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
