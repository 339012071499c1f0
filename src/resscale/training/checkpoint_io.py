"""Writing a checkpoint: whole or not at all, sealed, and only where it fits."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from resscale.errors import CheckpointError
from resscale.training.checkpoint_seal import SealedWriter
from resscale.training.checkpoint_space import needed_bytes, require_space

# Saves that are just being written by this process.
_WRITING: set[PendingSave] = set()


@dataclass(eq=False)
class PendingSave:
    """One save, from when it is asked for until it is done; handed over as `storage_options`.

    With it an error is kept here rather than raised: the ranks must learn of it together.

    Args:
        publish: called once the file is complete.
        make_room: removes a file that may go where the disk is full; tells whether there was one.
    """

    publish: Callable[[], None]
    make_room: Callable[[], bool] | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def has_failed(self) -> bool:
        """It has ended, and not well."""
        return self.done.is_set() and self.error is not None

    def wait(self) -> BaseException | None:
        """Wait until it is done; return its error."""
        self.done.wait()
        return self.error

    def run(self, write: Callable[[], None]) -> None:
        """Write and publish, and keep what goes wrong."""
        _WRITING.add(self)
        try:
            write()
            self.publish()
        except OSError as error:
            self.error = CheckpointError(
                f"a checkpoint cannot be written ({error}). Free space, then go on with "
                f"--ckpt_path auto."
            )
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()
            _WRITING.discard(self)


def wait_for_saves(timeout_s: float) -> bool:
    """Let the saves that are being written come to their end; tell whether there were any.

    Args:
        timeout_s: how long, at most: the disk may be what has failed.
    """
    saves = tuple(_WRITING)
    deadline = time.monotonic() + timeout_s
    for save in saves:
        save.done.wait(max(0.0, deadline - time.monotonic()))
    return bool(saves)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, syncs it, renames it: a kill leaves the old file or the new."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Save atomically.

        Args:
            checkpoint: dicts, lists, tensors and plain values.
            path: the file.
            storage_options: a `PendingSave`, or nothing.

        Raises:
            CheckpointError: the disk is full or not writable; with a `PendingSave` it is kept
                there.
        """
        if isinstance(storage_options, PendingSave):
            pending = storage_options
            pending.run(lambda: write_checkpoint(checkpoint, Path(path), pending.make_room))
        else:
            write_checkpoint(checkpoint, Path(path))


def write_checkpoint(
    checkpoint: dict[str, Any], target: Path, make_room: Callable[[], bool] | None = None
) -> None:
    """Write a sealed file in one step.

    Args:
        checkpoint: dicts, lists, tensors and plain values.
        target: the file; folders above it are made.
        make_room: removes a file that may go where the disk is full; tells whether there was one.

    Raises:
        CheckpointError: it does not fit, or cannot be written; what was there is unchanged.
    """
    temporary = target.with_name(target.name + ".tmp")
    writer: SealedWriter | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target, needed_bytes(checkpoint), make_room)
        with temporary.open("wb") as file:
            writer = SealedWriter(file)
            torch.save(checkpoint, cast("BinaryIO", writer))
            writer.seal()
        temporary.replace(target)
        _sync_folder(target.parent)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer.
        cause = (writer.error if writer is not None else None) or error
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"the checkpoint {target} cannot be written ({cause}); those before it are kept. Free "
            f"space there or make the folder writable, then go on with --ckpt_path auto."
        ) from error


def _sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
