"""Index and manifest of shards that another tool wrote; and checking shards against theirs."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resscale import __version__
from resscale.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, index_name, sha256_of
from resscale.data.pack_pool import run_tasks
from resscale.data.pack_progress import PackProgress
from resscale.data.pack_shard import writing_to
from resscale.data.shard_index import ShardIndex, build_shard_index
from resscale.errors import DataFormatError, UserInputError

COMMAND = "resscale index"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|pipe:")
_MOST_LINES = 20


def expand_shards(patterns: Sequence[str]) -> list[Path]:
    """Return the shards that paths, folders, `{000..009}` and `*` patterns mean, in their order.

    Raises:
        UserInputError: an address, a pattern that nothing fits, or shards of several folders.
    """
    paths: list[Path] = []
    for pattern in patterns:
        if _URL.match(pattern):
            raise UserInputError(
                f"{pattern} is an address; `resscale index` reads local shards. Copy them first."
            )
        found = _expand(pattern)
        if not found:
            raise UserInputError(f"No shards fit {pattern!r}: no such .tar file. Correct the path.")
        paths += found
    paths = list(dict.fromkeys(paths))
    for path in paths:
        if path.suffix != ".tar":
            raise UserInputError(
                f"{path} is no .tar file. A shard is an uncompressed tar, so that images can be "
                f"read from its middle; unpack a compressed one: gunzip {path}"
            )
    if len(folders := {path.parent.resolve() for path in paths}) > 1:
        names = ", ".join(sorted(map(str, folders)))
        raise UserInputError(
            f"The shards lie in {len(folders)} folders ({names}); a manifest is for one. "
            f"Run `resscale index` once for each."
        )
    return paths


def index_shards(
    shards: Sequence[Path], classes: tuple[str, ...] = (), processes: int = 1, force: bool = False
) -> Manifest:
    """Write each shard's offset index, and `manifest.json` into their folder.

    Args:
        shards: the shards in order, all in one folder.
        classes: names by label; empty to keep those of a manifest that is there.
        processes: worker processes.
        force: replace a manifest that another command wrote.

    Raises:
        UserInputError: such a manifest is there, or the folder cannot be written.
        DataFormatError: a shard is damaged, has no image for a sample, or labels that do not fit.
    """
    folder = shards[0].parent
    old = _old_manifest(folder)
    if old is not None and not force:
        _require_own(old)
    found: dict[str, _Indexed] = {}
    total_bytes = sum(path.stat().st_size for path in shards)
    with (
        PackProgress("index", total_bytes, unit="bytes") as progress,
        closing(run_tasks(_index_one, shards, min(processes, len(shards)))) as finished,
    ):
        for indexed in finished:
            found[indexed.info.name] = indexed
            progress.advance(indexed.info.bytes)
    results = [found[path.name] for path in shards]
    # Names that an earlier manifest knew are kept: the shards themselves hold numbers only.
    classes = classes or (old.classes if old is not None else ())
    manifest = Manifest(
        classes=classes,
        shards=tuple(result.info for result in results),
        class_counts=_class_counts(results, classes, folder),
        source={"command": COMMAND, "versions": {"resscale": __version__}},
        root=str(folder),
    )
    if not manifest.num_samples:
        raise DataFormatError(f"The shards in {folder} hold no samples. Write them again.")
    with writing_to(folder):
        manifest.save(folder)
    return manifest


def verify_shards(folder: Path, processes: int = 1) -> Manifest:
    """Compare the shards of a folder with its manifest: presence, size, SHA-256, offset index.

    Raises:
        DataFormatError: some differ; the message has a line for each.
    """
    manifest = Manifest.load(folder)
    tasks = [(folder, shard) for shard in manifest.shards]
    wrong: dict[str, str] = {}
    with (
        PackProgress("verify", manifest.num_bytes, unit="bytes") as progress,
        closing(run_tasks(_verify_one, tasks, min(processes, max(1, len(tasks))))) as checked,
    ):
        for shard, problem in checked:
            if problem:
                wrong[shard.name] = problem
            progress.advance(shard.bytes)
    if wrong:
        lines = [f"  {name}: {wrong[name]}" for name in sorted(wrong)]
        if len(lines) > _MOST_LINES:
            lines[_MOST_LINES:] = [f"  and {len(lines) - _MOST_LINES} more"]
        raise DataFormatError(
            f"{len(wrong)} of the {len(manifest.shards)} shards in {folder} are not as "
            f"{MANIFEST_NAME} says:\n" + "\n".join(lines) + "\nCopy or pack these shards again, "
            f"or index what is there: resscale index --force '{folder}/*.tar'"
        )
    return manifest


def folder_of(patterns: Sequence[str]) -> Path:
    """Return the folder that `--verify` means: the one named, or that of the shards named."""
    if len(patterns) == 1 and Path(patterns[0]).expanduser().is_dir():
        return Path(patterns[0]).expanduser()
    return expand_shards(patterns)[0].parent


@dataclass(frozen=True)
class _Indexed:
    info: ShardInfo
    counts: npt.NDArray[np.int64]
    unlabelled: int


def _index_one(path: Path) -> _Indexed:
    try:
        index = build_shard_index(path)
        size, digest = path.stat().st_size, sha256_of(path)
    except OSError as error:
        raise DataFormatError(
            f"{path} cannot be read ({error.strerror}). Check its permissions and its disk."
        ) from error
    with writing_to(path.parent):
        index.save(path.with_name(index_name(path.name)))
    labels = index.labels[index.labels >= 0]
    info = ShardInfo(path.name, len(index), size, digest)
    return _Indexed(info, np.bincount(labels), len(index) - len(labels))


def _verify_one(task: tuple[Path, ShardInfo]) -> tuple[ShardInfo, str]:
    folder, shard = task
    path = folder / shard.name
    if not path.is_file():
        return shard, "missing"
    if (size := path.stat().st_size) != shard.bytes:
        return shard, f"{size} bytes instead of {shard.bytes}"
    if sha256_of(path) != shard.sha256:
        return shard, "its SHA-256 differs"
    try:
        rows = len(ShardIndex.load(folder / shard.index_name))
    except DataFormatError:
        return shard, f"its index {shard.index_name} is missing or damaged"
    return shard, "" if rows == shard.samples else f"its index lists {rows} samples"


def _expand(pattern: str) -> list[Path]:
    from braceexpand import braceexpand

    path = Path(pattern).expanduser()
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    try:
        names = list(braceexpand(str(path)))
    except ValueError as error:
        raise UserInputError(f"{pattern!r}: its braces do not pair up ({error}).") from error
    found: list[Path] = []
    for name in names:
        if Path(name).is_file():
            found.append(Path(name))
        elif matches := sorted(glob.glob(name)):  # noqa: PTH207 - patterns may be absolute
            found += [Path(match) for match in matches]
        else:
            raise UserInputError(f"{name} is missing ({pattern!r} asks for it). Correct the path.")
    return found


def _old_manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.load(folder)
    except DataFormatError:
        return None  # none, or one that cannot be read: this is how it is mended


def _require_own(manifest: Manifest) -> None:
    command = manifest.source.get("command")
    if command != COMMAND:
        raise UserInputError(
            f"{Path(manifest.root) / MANIFEST_NAME} was written by {command or 'another tool'} and "
            f"knows more than an index does. Keep it (--verify checks it), or replace it: --force"
        )


def _class_counts(
    results: list[_Indexed], classes: tuple[str, ...], folder: Path
) -> tuple[int, ...]:
    unlabelled = [result for result in results if result.unlabelled]
    if unlabelled and any(len(result.counts) for result in results):
        first = unlabelled[0]
        raise DataFormatError(
            f"{folder / first.info.name}: {first.unlabelled} of {first.info.samples} samples have "
            f"no .cls file, while others have one. Give each sample a label, or none."
        )
    counts = np.zeros(max((len(result.counts) for result in results), default=0), np.int64)
    for result in results:
        counts[: len(result.counts)] += result.counts
    if classes and len(counts) > len(classes):
        raise DataFormatError(
            f"The shards in {folder} have labels up to {len(counts) - 1}, --classes gives "
            f"{len(classes)} names. One name per label is needed."
        )
    return tuple(counts.tolist())
