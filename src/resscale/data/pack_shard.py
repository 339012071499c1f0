"""Writing one shard, in a worker process: read, check, encode, write, sync, rename."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from resscale.data.manifest import index_name
from resscale.data.pack_images import BadSample, ImageRules, encode_pixels, prepare_image
from resscale.data.pack_part import temporary_name
from resscale.data.pack_samples import SampleRef
from resscale.data.shard_index import build_shard_index
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
            result = _write(task, temporary)
            if result.samples:
                # Under a name of its own first: parts of another division may write this shard too.
                build_shard_index(temporary).save(index)
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


class _HashingFile:
    """Passes bytes on to a file and hashes them, so that the shard need not be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write and hash; return the bytes taken."""
        self.sha256.update(data)
        return self.file.write(data)


def _write(task: ShardTask, temporary: Path) -> ShardResult:
    # Imported here: webdataset imports torch, which costs seconds that --help must not pay.
    from webdataset.writer import TarWriter

    samples = 0
    left_out: list[dict[str, Any]] = []
    with temporary.open("wb") as file:
        hashing = _HashingFile(file)
        # User, group, mode and time are fixed: the same samples are the same bytes everywhere.
        fixed = {"user": "root", "group": "root", "mode": 0o644, "mtime": 0}
        with SourceReader() as reader, TarWriter(hashing, encoder=False, **fixed) as writer:
            for ref in task.refs:
                try:
                    extension, data = _image_of(reader.read(ref), task)
                except BadSample as reason:
                    left_out.append({"key": ref.key, "path": ref.place, "reason": str(reason)})
                    continue
                writer.write({"__key__": ref.key, extension: data, "cls": b"%d" % ref.label})
                samples += 1
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    digest = hashing.sha256.hexdigest()
    return ShardResult(task.number, samples, size, digest, tuple(left_out))


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
