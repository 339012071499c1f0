"""Writing one shard, in a worker process: read, check, encode, write, sync, rename."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resscale.data.manifest import index_name
from resscale.data.pack_images import BadSample, ImageRules, encode_pixels, prepare_image
from resscale.data.pack_part import temporary_name
from resscale.data.pack_samples import SampleRef
from resscale.data.pack_tar import ShardWriter
from resscale.data.shard_index import ShardIndex
from resscale.data.source_reader import SourceReader
from resscale.errors import UserInputError


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to write shard `number` as `folder/name`, in the part called `tag`."""

    number: int
    folder: str
    name: str
    refs: list[SampleRef]
    rules: ImageRules
    pixel_shape: tuple[int, ...] | None
    tag: str


@dataclass(frozen=True)
class ShardResult:
    """What came of it: samples and bytes written, SHA-256 (hex), and the samples left out."""

    number: int
    samples: int
    bytes: int
    sha256: str
    left_out: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain types for the state file."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> ShardResult:
        """Read back what `to_json` gave."""
        return cls(**{**raw, "left_out": tuple(raw["left_out"])})


def write_shard(task: ShardTask) -> ShardResult:
    """Write one shard and its offset index; a file under its final name is always whole.

    Raises:
        UserInputError: the disk is full or the folder cannot be written.
        DataFormatError: an archive of the source cannot be read any more.
    """
    folder = Path(task.folder)
    temporary = folder / temporary_name(task.name, task.tag)
    index = folder / temporary_name(index_name(task.name), task.tag)
    try:
        with writing_to(folder):
            result, found = _write(task, temporary)
            if result.samples:
                # Under a name of its own first: parts of another division may write this shard too.
                found.save(index)
                index.replace(folder / index_name(task.name))
                temporary.replace(folder / task.name)
                _sync_folder(folder)
            return result
    finally:
        temporary.unlink(missing_ok=True)
        index.unlink(missing_ok=True)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into one message.

    Raises:
        UserInputError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserInputError(
            f"Cannot write into {folder}: {error.strerror or error}. Free some space or correct "
            f"the permissions and run the same command again: what is finished is kept."
        ) from error


def _write(task: ShardTask, temporary: Path) -> tuple[ShardResult, ShardIndex]:
    left_out: list[dict[str, Any]] = []
    with temporary.open("wb") as file, SourceReader() as reader:
        writer = ShardWriter(file)
        for ref in task.refs:
            try:
                extension, data = _image_of(reader.read(ref), task)
            except BadSample as reason:
                left_out.append({"key": ref.key, "path": ref.place, "reason": str(reason)})
                continue
            writer.add(ref.key, extension, data, ref.label)
        writer.finish()
        file.flush()
        os.fsync(file.fileno())
    result = ShardResult(task.number, len(writer), writer.size, writer.sha256, tuple(left_out))
    return result, writer.index()


def _image_of(raw: bytes, task: ShardTask) -> tuple[str, bytes]:
    if task.pixel_shape is not None:
        return encode_pixels(raw, task.pixel_shape, task.rules)
    return prepare_image(raw, task.rules)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
