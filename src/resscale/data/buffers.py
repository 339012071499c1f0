"""Memory for the pixels of batches, used again once nobody holds the batch."""

from __future__ import annotations

import weakref

import numpy as np
import numpy.typing as npt
import torch

Pixels = npt.NDArray[np.uint8]
# Sizes of which memory is kept: batches of the last one may still be held when the next comes.
_KEPT_SIZES = 2


class PixelBuffers:
    """Lends arrays of one process's batches; one that nobody holds any more is lent again.

    A fresh array of a batch's size costs a page fault for each 4 kB when it is first written: about
    0.1 ms of CPU for an image of 224 × 224.

    Args:
        pinned: page-locked memory, from which a GPU copies by itself; torch keeps and lends that
            again on its own, and knows when a copy has ended.
        most_kept: buffers of one size that are kept while nobody holds them.
    """

    def __init__(self, pinned: bool = False, most_kept: int = 8) -> None:
        self.pinned = pinned
        self.most_kept = most_kept
        self._free: dict[int, list[bytearray]] = {}

    def take(self, rows: int, side: int, channels: int) -> Pixels:
        """Return an array of any content: uint8 (rows, side, side, channels).

        Tensors and views made of it hold it; it is lent again when the last of them is gone.
        """
        shape = (rows, side, side, channels)
        size = rows * side * side * channels
        if self.pinned:
            pixels: Pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
            return pixels
        free = self._free.get(size)
        if free is None:
            # Images that grow come to a new size and never back: the memory of small ones may go.
            for other in list(self._free)[: 1 - _KEPT_SIZES]:
                self._free.pop(other, None)
            free = self._free[size] = []
        try:
            memory = free.pop()
        except IndexError:
            memory = bytearray(size)
        # A view of its own on the bytes: numpy lets views of an array hold that array's owner.
        lent = np.frombuffer(memory, dtype=np.uint8).reshape(shape)
        owner = lent.base
        assert isinstance(owner, np.ndarray)
        weakref.finalize(owner, self._give_back, size, memory).atexit = False
        return lent

    def _give_back(self, size: int, memory: bytearray) -> None:
        # No lock: this may run in the middle of `take`, wherever Python collects garbage. One list
        # operation is whole by itself.
        free = self._free.get(size)
        if free is not None and len(free) < self.most_kept:
            free.append(memory)
