"""Writing checkpoints beside training: copied to host memory at once, written by a thread.

Lightning has an AsyncCheckpointIO, and torch an `async_save`. Neither is used: the first copies on
the device, queues any number of saves, does not say when a file is complete (links to it and the
removal of older ones must wait for that) and tells of an error at the save after the next; the
second writes a folder of shards.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from resscale.training.checkpoint_io import AtomicCheckpointIO, PendingSave, write_checkpoint
from resscale.training.host_copy import HostCopier


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """Returns as soon as the checkpoint is copied; the `PendingSave` says when it is on the disk.

    A save waits for the one before, and is copied to where that one was: one copy is in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread: threading.Thread | None = None
        self._copier = HostCopier()

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Save in the background; without a `PendingSave` nobody could learn of it: at once.

        Args:
            checkpoint: dicts, lists, tensors and plain values; free to change afterwards.
            path: the file.
            storage_options: a `PendingSave`, or nothing.

        Raises:
            CheckpointError: without a `PendingSave`, as `AtomicCheckpointIO` does.
        """
        if self._thread is not None:
            self._thread.join()
        if not isinstance(storage_options, PendingSave):
            super().save_checkpoint(checkpoint, path)
            return
        copied = self._copier.copy(checkpoint)
        # A daemon: the second Ctrl-C, and a failing rank, must not wait for the disk.
        self._thread = threading.Thread(
            target=_write,
            args=(copied, Path(path), storage_options),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()


def _write(checkpoint: dict[str, Any], path: Path, pending: PendingSave) -> None:
    pending.run(lambda: write_checkpoint(checkpoint, path, pending.make_room))
